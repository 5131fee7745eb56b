"""What the official sites of datasets and features have, in little: real names, layouts, archive types and lists."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
import zipfile
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import av
import numpy as np
import pandas as pd

from avdistill.data.datasets import crema_d, kinetics_sounds, ravdess, ucf51
from avdistill.data.sources import vggsounder
from tests.helpers.little import RATE
from tests.helpers.packed import write_rar

CCL_FOLDER = "ucf101_audiocnn14embed512_features"


def write_avi(path: Path, pictures: np.ndarray, fps: int, sound: np.ndarray | None) -> bytes:
    """A file as UCF101's: AVI with MPEG-4 pictures and MP3 sound. Returns its bytes."""
    return _write(path, "avi", "mpeg4", pictures, fps, sound, RATE)


def write_flv(path: Path, pictures: np.ndarray, fps: int, sound: np.ndarray | None) -> bytes:
    """A file as CREMA-D's: Flash video, with MP3 sound of 44.1 kHz. Returns its bytes."""
    return _write(path, "flv", "flv1", pictures, fps, sound, 44_100)


def _write(
    path: Path, kind: str, codec: str, pictures: np.ndarray, fps: int, sound: np.ndarray | None, rate: int
) -> bytes:
    with av.open(str(path), "w", format=kind) as container:
        picture = container.add_stream(codec, rate=fps)
        picture.height, picture.width = pictures.shape[1:3]
        picture.pix_fmt = "yuv420p"
        voice = None if sound is None else container.add_stream("libmp3lame", rate=rate, layout="mono")
        for image in pictures:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(picture.encode(None))
        if voice is not None and sound is not None:
            frame = av.AudioFrame.from_ndarray(sound[np.newaxis], format="fltp", layout="mono")
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
            container.mux(voice.encode(frame))
            container.mux(voice.encode(None))
    return path.read_bytes()


def write_tar_gz(path: Path, members: dict[str, bytes]) -> Path:
    """`members`: contents by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def ucf101_name(action: str, group: int, clip: int) -> str:
    return f"v_{action}_g{group:02}_c{clip:02}"


def write_ucf101(folder: Path, members: dict[str, bytes], unlisted: str = "") -> None:
    """The archive (here stored) of UCF-101/<class>/<clip>.avi, and the lists: in split 1 the test split has the groups
    g01 to g07; splits 2 and 3 lack two clips a split."""
    write_rar(folder / ucf51.ARCHIVE, members)
    places = [PurePosixPath(name) for name in members if PurePosixPath(name).stem != unlisted]
    classes = {name: number for number, name in enumerate(dict.fromkeys(place.parent.name for place in places), 1)}
    test = [f"{place.parent.name}/{place.name}" for place in places if int(place.stem[-6:-4]) <= 7]
    train = [f"{place.parent.name}/{place.name}" for place in places if int(place.stem[-6:-4]) > 7]
    train = [f"{line} {classes[line.split('/')[0]]}" for line in train]
    with zipfile.ZipFile(folder / ucf51.LISTS, "w") as file:
        file.writestr("ucfTrainTestlist/classInd.txt", "".join(f"{n} {name}\r\n" for name, n in classes.items()))
        for number in (1, 2, 3):
            for split, lines in {"train": train, "test": test}.items():
                kept = lines if number == 1 else lines[2:]
                file.writestr(f"ucfTrainTestlist/{split}list0{number}.txt", "\r\n".join([*kept, ""]))


def activitynet_video(subset: str, *segments: tuple[float, float, str]) -> dict[str, Any]:
    """The entry of a video in the annotation; `segments`: start and end in seconds, and label."""
    return {
        "duration": 82.73,
        "subset": subset,
        "resolution": "640x360",
        "url": "https://www.youtube.com/watch?v=x",
        "annotations": [{"segment": [start, end], "label": label} for start, end, label in segments],
    }


def write_activitynet(path: Path, database: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    taxonomy = [{"parentName": "Root", "nodeName": "Shaving", "nodeId": 1, "parentId": 0}]
    path.write_text(json.dumps({"version": "VERSION 1.3", "taxonomy": taxonomy, "database": database}))
    return path


def kinetics_name(video: str, start: int) -> str:
    return f"{video}_{start:06d}_{start + 10:06d}"


def write_kinetics_lists(folder: Path, clips: dict[str, list[tuple[str, str, int]]]) -> None:
    """train.csv and val.csv; `clips`: label, video and start in seconds, by split."""
    folder.mkdir(parents=True)
    for split, rows in clips.items():
        table = pd.DataFrame(rows, columns=["label", "youtube_id", "time_start"])
        table = table.assign(time_end=table["time_start"] + 10, split=split, is_cc=0)
        table.to_csv(folder / f"{split}.csv", index=False)


def write_kinetics(folder: Path, archives: dict[str, list[dict[str, bytes]]], replacements: dict[str, bytes]) -> None:
    """The archives of the Common Visual Data Foundation, and the lists of their URLs; `archives` are by split."""
    for split, several in archives.items():
        for number, members in enumerate(several):
            write_tar_gz(folder / f"{split}/part_{number}.tar.gz", members)
        urls = [f"{kinetics_sounds.OFFICIAL}/{split}/part_{number}.tar.gz\n" for number in range(len(several))]
        (folder / f"{split}/k400_{split}_path.txt").write_text("".join(urls))
    replaced = {f"replacement_for_corrupted_k400/{name}": content for name, content in replacements.items()}
    write_tar_gz(folder / kinetics_sounds.REPLACEMENTS, replaced)


def write_vggsound(path: Path, rows: list[tuple[str, int, str, str]]) -> Path:
    """`rows`: video, start in seconds, label and split; quoted where the label has a comma, as the official list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    return path


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    """`members`: contents by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def lfs_pointer(content: bytes) -> bytes:
    """What a repository has in place of a file that is in Git LFS."""
    oid = hashlib.sha256(content).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()


def write_crema_d(folder: Path, clips: dict[str, bytes]) -> None:
    """The zip of the repository, with pointers, and the videos; `clips`: contents by name, without type."""
    top = "CREMA-D-master"
    members = {f"{top}/README.md": b"CREMA-D", f"{top}/VideoDemographics.csv": b"ActorID,Age,Sex,Race,Ethnicity\n"}
    for name, content in clips.items():
        members[f"{top}/AudioWAV/{name}.wav"] = lfs_pointer(b"sound")
        members[f"{top}/VideoFlash/{name}.flv"] = lfs_pointer(content)
        path = folder / f"VideoFlash/{name}.flv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    write_zip(folder / crema_d.ARCHIVE, members)


def ave_members(lists: dict[str, list[str]], videos: dict[str, bytes]) -> dict[str, bytes]:
    """The files of AVE's archive; `lists`: rows by split (train, val, test), `videos`: contents by YouTube id."""
    rows = [row for split in lists.values() for row in split]
    members = {"AVE_Dataset/ReadMe.txt": b"AVE", "AVE_Dataset/.DS_Store": b"x"}
    members |= {f"AVE_Dataset/AVE/{video}.mp4": content for video, content in videos.items()}
    members["AVE_Dataset/Annotations.txt"] = "\n".join(["Category&VideoID&Quality&StartTime&EndTime", *rows]).encode()
    return members | {f"AVE_Dataset/{split}Set.txt": "\n".join([*lists[split], ""]).encode() for split in lists}


def write_ravdess(site: Path, archives: dict[str, dict[str, bytes]]) -> None:
    """The archives at Zenodo and their record; `archives`: contents by file name, by number of the actor."""
    record = []
    for actor, files in archives.items():
        name = f"Video_Speech_Actor_{actor}.zip"
        members = {f"Actor_{actor}/{file}": content for file, content in files.items()}
        path = write_zip(site / f"records/{ravdess.RECORD}/files/{name}", members)
        record.append({"key": name, "checksum": f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"})
    path = site / f"api/records/{ravdess.RECORD}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"files": record}))


def write_vggsounder(folder: Path, rows: list[tuple[str, str, str, bool, bool, bool]]) -> Path:
    """The wheel; `rows`: clip, label, modality, background music, static image and voice-over.

    As in the official one, its other tables are of an earlier version or leave out the clips with music."""
    path = folder / vggsounder.WHEEL
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("vggsounder/__init__.py", "raise ImportError('the package is not to be imported')\n")
        for name, own in {
            "vggsounder+background-music.csv": rows,
            "vggsounder+background-music_0.1.6.csv": rows[:1],
            "vggsounder.csv": [row for row in rows if not row[3]],
        }.items():
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["video_id", "label", "modality", "background_music", "static_image", "voice_over"])
            writer.writerows(own)
            wheel.writestr(f"vggsounder/data/{name}", text.getvalue())
    return path


def write_ccl_features(path: Path, vectors: dict[str, Any], folder: str = CCL_FOLDER) -> Path:
    """CCL's archive: one .npy file a clip, <folder>/<class>/<clip>.npy; the keys of `vectors` are <class>/<clip>.

    Values that are bytes stand as they are."""
    members = {}
    for name, vector in vectors.items():
        file = io.BytesIO()
        if isinstance(vector, bytes):
            file.write(vector)
        else:
            np.save(file, vector)
        members[f"{folder}/{name}.npy"] = file.getvalue()
    return write_tar_gz(path, members)
