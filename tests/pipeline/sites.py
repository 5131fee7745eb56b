"""The official sites that the papers' data and the teachers come from, in one folder: a few dozen little clips of each
dataset. And the paper suite's params, so that it takes seconds."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from avdistill.data import media
from avdistill.data.sources import weights
from models.teachers import build_teacher
from tests.helpers import replicas
from tests.helpers.little import ramp, tone
from tests.helpers.replicas import kinetics_name, ucf101_name
from tests.helpers.teaching import cnn14, save_panns
from tests.pipeline.conftest import keep_jobs

WIDTH = 1 / 16  # of the teachers and of the students
FEATURES = 32  # length of what students and teachers make of a clip, 512 in full width
CNN14 = weights.CHECKPOINTS["panns:Cnn14_emb512_mAP=0.420"].path
CCL = "/CCL/audiocnn14embed512_features.tar.gz"
TEXT = b"<!DOCTYPE html><p>Not found"

# The clips that something is amiss with: what the index has to say of their status and sound, and the reason's start.
UNAVAILABLE = "Unable to download webpage: HTTP Error 404"
ODD: dict[str, dict[str, tuple[str, str, str]]] = {
    "ucf51": {
        "v_Archery_g08_c01": ("excluded", "no", "no audio stream"),
        "v_Archery_g09_c01": ("ok", "silent", "digital silence"),
        "v_HandStandPushups_g10_c02": ("corrupt", "no", "mislabelled: text"),
    },
    "activitynet": {
        "_gone-video_0": ("unavailable", "no", UNAVAILABLE),
        "_gone-video_1": ("unavailable", "no", UNAVAILABLE),
        "silent-vid0_0": ("ok", "silent", "digital silence"),
        "nosound-vid_0": ("ok", "no", "no audio stream"),
        "cut-off-vid_0": ("corrupt", "no", "truncated"),
        "two-splits-1_1": ("corrupt", "no", "nothing between 9 s and 2 s"),
    },
    "kinetics_sounds": {
        kinetics_name("in-no-archi", 7): ("unavailable", "no", "in none of the archives"),
        kinetics_name("silent-vid0", 8): ("ok", "silent", "digital silence"),
        kinetics_name("a-text-file", 9): ("corrupt", "no", "mislabelled: text"),
    },
    "vggsound": {
        "_gone-video_000004": ("unavailable", "no", UNAVAILABLE),
        "short-video_000030": ("unavailable", "no", "cannot be cut out of its video: no frame between 30 s"),
        "nosound-vid_000001": ("ok", "no", "no audio stream"),
    },
}


class Labelled(NamedTuple):
    """VGGSounder's labels of a clip, with their modalities, and what follows from them, by hand: does its sound belong?

    `own`: its class in VGGSound is seen and heard (False: one of the two); `clean`: all that is heard is seen, without
    music and voice-over (False: it is not). None: it does not count. `speech`: there is a label or voice-over of it."""

    labels: dict[str, str]
    own: bool | None
    clean: bool | None
    music: bool = False
    voice: bool = False
    speech: bool = False


MARCHING, CHIRPING = "people marching", "bird chirping, tweeting"
MAN = "male speech, man speaking"  # of the 309 classes, but none of the two that the replica has
LABELLED = {
    "marching--6_000002": Labelled({MARCHING: "AV"}, own=True, clean=True),
    "marching--7_000003": Labelled({MARCHING: "A", CHIRPING: "V"}, own=False, clean=False),
    "marching--8_000000": Labelled({MARCHING: "AV", CHIRPING: "A", MAN: "A"}, own=True, clean=False, speech=True),
    "marching--9_000001": Labelled({MARCHING: "V", CHIRPING: "V"}, own=False, clean=None),
    "chirping--6_000002": Labelled({CHIRPING: "AV"}, own=True, clean=False, music=True),
    "chirping--8_000000": Labelled({MARCHING: "AV"}, own=None, clean=True),
    "chirping--9_000001": Labelled({CHIRPING: "A"}, own=False, clean=False, music=True, voice=True, speech=True),
    "nosound-vid_000001": Labelled({MARCHING: "V"}, own=False, clean=None),
}  # of the other two test clips one has no labels, and the video of the other one is gone


def write_teachers(folder: Path) -> dict[str, str]:
    """Narrow networks in the layouts of PANNs, whose checksum is in Zenodo's record, and of torchvision.

    Returns the checksums that params have to give."""
    content = save_panns(cnn14(embedding=FEATURES), folder / CNN14.lstrip("/")).read_bytes()
    record = {"files": [{"key": Path(CNN14).name, "checksum": f"md5:{hashlib.md5(content).hexdigest()}"}]}
    (folder / "api/records").mkdir(parents=True)
    (folder / f"api/records/{weights.RECORD}").write_text(json.dumps(record))
    (folder / "models").mkdir()
    checksums = {}
    for kind in ("resnet34", "resnet50"):
        torch.manual_seed(0)
        path = folder / weights.CHECKPOINTS[f"torchvision:{kind}"].path.lstrip("/")
        torch.save(build_teacher(kind, 1000, WIDTH).state_dict(), path)
        checksums[kind] = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    return checksums


def shrink(
    raw: dict[str, Any],
    url: str,
    checksums: dict[str, str],
    jobs: tuple[str, ...],
    runs: dict[str, tuple[str, ...]] | None = None,
) -> None:
    """Keep `jobs` of the paper suite, of which some keep only certain `runs`, and what they use, with little to do.

    Teachers come from `url`, and each dataset from the folder of its name there."""
    raw["device"] = "cpu"
    keep_jobs(raw, jobs, runs or {})
    kept = list(raw["jobs"].values())
    features = {job[letter] for job in kept for letter in "AI"}
    raw["features"] = {name: entry for name, entry in raw["features"].items() if name in features}
    teachers = {entry["teacher"] for entry in raw["features"].values()}
    raw["teachers"] = {name: entry for name, entry in raw["teachers"].items() if name in teachers}
    inputs = {entry["input"] for entry in (*kept, *raw["features"].values())}
    for stage, section in (("frames", "frames"), ("mix_noise", "noise_mixes")):
        raw[section] = {name: entry for name, entry in raw[section].items() if f"{stage}/{name}" in inputs}
    datasets = {job["dataset"] for job in kept}
    raw["datasets"] = {name: entry for name, entry in raw["datasets"].items() if name in datasets}
    for name, dataset in raw["datasets"].items():
        dataset["origin"]["mirror"] = f"{url}/{name}"
    for name, teacher in raw["teachers"].items():
        teacher |= {"mirror": url, "width": WIDTH} | ({"checksum": checksums[name]} if name in checksums else {})
    for frames in raw["frames"].values():
        frames |= {"fps": 4, "short_side": 32}
    for recipe in raw["recipes"].values():
        recipe |= {"width": WIDTH, "frames": 4, "stride": 4, "size": 24, "batch": 4, "epochs": 2, "milestones": [1]}
        recipe |= {"precision": "float32", "compile": False, "loader_workers": 0}
    for job in kept:
        job["seeds"] = [0]
    raw["exports"] = []


class Sites:
    """`clips`: the ids that each dataset has to have; `checksums`: of the teachers, where params have to give them, and
    of VGGSounder's wheel."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "watch").mkdir()  # YouTube
        self.video, self.mute = self.encoded(tone(2)), self.encoded(None)
        self.silent = self.encoded(np.zeros_like(tone(2)))
        self.clips = {
            "ucf51": self.ucf101(),
            "activitynet": self.activitynet(),
            "kinetics_sounds": self.kinetics(),
            "vggsound": self.vggsound(),
        }
        self.checksums = write_teachers(folder) | {"vggsounder": self.vggsounder()}

    def encoded(self, sound: np.ndarray | None, seconds: int = 2) -> bytes:
        """A video of 4 pictures a second."""
        path = self.folder / "made.mp4"
        media.write_video(path, ramp(4 * seconds), 4, sound)
        content = path.read_bytes()
        path.unlink()
        return content

    def ucf101(self) -> set[str]:
        """Two of the 51 classes, one of them spelt in two ways as in the real archive, and one that has no sound."""
        members, made = {}, self.folder / "made.avi"
        for action, place in (("Archery",) * 2, ("HandStandPushups", "HandstandPushups"), ("BenchPress",) * 2):
            for group in (1, 2, *range(8, 13)):
                for clip in (1, 2):
                    name = ucf101_name(action, group, clip)
                    status, audio, _ = ODD["ucf51"].get(name, ("ok", "yes", ""))
                    sound = {"yes": tone(1, 300 + 10 * group), "silent": 0 * tone(1)}.get(audio)
                    content = TEXT if status == "corrupt" else replicas.write_avi(made, ramp(8), 8, sound)
                    members[f"UCF-101/{place}/{name}.avi"] = content
        made.unlink()
        (self.folder / "ucf101").mkdir()
        replicas.write_ucf101(self.folder / "ucf101", members)
        clips = {Path(name).stem for name in members if "BenchPress" not in name}
        self.features(sorted(clips - ODD["ucf51"].keys()))
        return clips

    def features(self, heard: list[str]) -> None:
        """CCL's features of clips, and as in the real archive of one that no list has."""
        names = [*heard, "v_PlayingCello_g19_c06"]
        vectors = np.random.default_rng(0).normal(size=(len(names), FEATURES)).astype(np.float32)
        by_path = {f"{name.split('_')[1]}/{name}": vector for name, vector in zip(names, vectors, strict=True)}
        replicas.write_ccl_features(self.folder / CCL.lstrip("/"), by_path)

    def activitynet(self) -> set[str]:
        """Videos of a segment, and two videos of two."""
        labels = {f"{label}{n:02}": label for label in ("Shaving", "Zumba") for n in range(8)}
        names = {f"{name:-<11}": label for name, label in labels.items()}
        names |= dict.fromkeys(["_gone-video", "silent-vid0", "nosound-vid", "cut-off-vid", "two-splits-1"], "Zumba")
        contents = {"silent-vid0": self.silent, "nosound-vid": self.mute, "cut-off-vid": self.video[:2000]}
        database: dict[str, Any] = {"--testing--": replicas.activitynet_video("testing")}
        for name, label in names.items():
            segments = [(0.0, 1.5, label), (9.0, 10.0, label)][: 2 if name in ("_gone-video", "two-splits-1") else 1]
            subset = "validation" if name.rstrip("-")[-2:] in ("06", "07") else "training"
            database[name] = replicas.activitynet_video(subset, *segments)
            if name != "_gone-video":
                (self.folder / f"watch/{name}.mp4").write_bytes(contents.get(name, self.video))
        replicas.write_activitynet(self.folder / "activitynet/activity_net.v1-3.min.json", database)
        return {f"{name}_{number}" for name, video in database.items() for number in range(len(video["annotations"]))}

    def kinetics(self) -> set[str]:
        """Two archives of the training split, one of the validation split, and a damaged file's replacement."""
        odd = {"in-no-archi": None, "silent-vid0": self.silent, "a-text-file": TEXT, "damaged-one": b"damaged"}
        rows = {
            split: [(label, f"{label[:3]}-{split:-<6}{n}", n) for label in ("bowling", "tap dancing") for n in numbers]
            for split, numbers in {"train": range(7), "val": range(2)}.items()
        }
        rows["train"] += [("bowling", name, start) for start, name in enumerate(odd, 7)]
        rows["train"].append(("abseiling", "other-class", 3))
        files = {
            split: {f"./{kinetics_name(name, start)}.mp4": odd.get(name, self.video) for _, name, start in listed}
            for split, listed in rows.items()
        }
        packed = {split: [(name, data) for name, data in made.items() if data] for split, made in files.items()}
        folder = self.folder / "kinetics/400"
        replicas.write_kinetics_lists(folder / "annotations", rows)
        replicas.write_kinetics(
            folder,
            {"train": [dict(packed["train"][:9]), dict(packed["train"][9:])], "val": [dict(packed["val"])]},
            {f"{kinetics_name('damaged-one', 10)}.mp4": self.video},
        )
        listed = [row for split in rows.values() for row in split if row[0] != "abseiling"]
        return {kinetics_name(name, start) for _, name, start in listed}

    def vggsound(self) -> set[str]:
        """Whole videos of 14 s, out of which the clips are to be cut; each sounds otherwise."""
        labels = {"marching---": MARCHING, "chirping---": CHIRPING}
        splits = ["train"] * 6 + ["test"] * 4
        rows = [(f"{id_[:-1]}{n}", n % 4, label, splits[n]) for id_, label in labels.items() for n in range(10)]
        for place, (name, *_) in enumerate(rows):
            sound = tone(14, 200 + 60 * place, 0.7 - 0.03 * place)
            (self.folder / f"watch/{name}.mp4").write_bytes(self.encoded(sound, 14))
        # A gone video, one that ends before the clip, and one without sound, as long as ActivityNet's.
        odd = {"_gone-video": (4, "test"), "short-video": (30, "train"), "nosound-vid": (1, "test")}
        rows += [(name, start, MARCHING, split) for name, (start, split) in odd.items()]
        (self.folder / "watch/short-video.mp4").write_bytes(self.encoded(tone(14), 14))
        replicas.write_vggsound(self.folder / "vggsound/vggsound.csv", rows)
        return {f"{name}_{start:06}" for name, start, *_ in rows}

    def vggsounder(self) -> str:
        """The wheel of VGGSounder, beside VGGSound's list; returns its checksum."""
        rows = [("_gone-video_000004", MARCHING, "AV", False, False, False)]
        for name, clip in LABELLED.items():
            rows += [(name, label, modality, clip.music, False, clip.voice) for label, modality in clip.labels.items()]
        path = replicas.write_vggsounder(self.folder / "vggsound", rows)
        return hashlib.sha256(path.read_bytes()).hexdigest()
