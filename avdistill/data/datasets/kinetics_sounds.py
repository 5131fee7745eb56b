"""kinetics_sounds: Kinetics-Sounds (Arandjelović and Zisserman, ICCV 2017), 31 classes of Kinetics-400.

The authors chose 34 classes of an earlier release that are recognisable both visually and aurally; 31 of them are
classes of Kinetics-400. The clips of 10 s, `<video>_<start>_<end>.mp4` with six-digit times, come from the archives of
the Common Visual Data Foundation: about 400 GB, of which a twelfth is kept; one archive at a time is on the disk. The
foundation's replacements for damaged files are used. The official training clips are the train split, the validation
clips the test split. The groups are the videos.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from avdistill.config.origins import KineticsSounds
from avdistill.data.sources import youtube
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.progress import progress

if TYPE_CHECKING:
    import pandas as pd

OFFICIAL = "https://s3.amazonaws.com/kinetics/400"
REPLACEMENTS = "replacement_for_corrupted_k400.tgz"
LISTS = {"annotations/train.csv": "train", "annotations/val.csv": "test"}
ARCHIVES = ["train/k400_train_path.txt", "val/k400_val_path.txt"]
COLUMNS = ["label", "youtube_id", "time_start", "time_end"]
CLASSES = (
    "blowing nose",
    "blowing out candles",
    "bowling",
    "chopping wood",
    "dribbling basketball",
    "laughing",
    "mowing lawn",
    "playing accordion",
    "playing bagpipes",
    "playing bass guitar",
    "playing clarinet",
    "playing drums",
    "playing guitar",
    "playing harmonica",
    "playing keyboard",
    "playing organ",
    "playing piano",
    "playing saxophone",
    "playing trombone",
    "playing trumpet",
    "playing violin",
    "playing xylophone",
    "ripping paper",
    "shoveling snow",
    "shuffling cards",
    "singing",
    "stomping grapes",
    "tap dancing",
    "tapping guitar",
    "tapping pen",
    "tickling",
)


def check(origin: KineticsSounds) -> None:
    """Check that the paths in the origin exist. Raises UserError."""
    youtube.check(origin, list(LISTS))


def videos(origin: KineticsSounds, folder: Path) -> Path:
    """Return the user's folder, or that of the unpacked clips."""
    return youtube.video_folder(origin, folder)


def download(origin: KineticsSounds, folder: Path) -> None:
    """Write clips.csv; download the official lists and the archives with clips that the user does not have."""
    import pandas as pd

    lists = [listed(youtube.official(origin, OFFICIAL, name, folder), split) for name, split in LISTS.items()]
    clips = pd.concat(lists, ignore_index=True)
    reasons = {}
    if youtube.downloads(origin):
        target = videos(origin, folder)
        missing = set(clips["stem"]) - set(youtube.find_videos(target))
        if missing:
            _unpack_archives(youtube.mirrored(origin, OFFICIAL), target, missing)
        reasons = dict.fromkeys(missing, "in none of the archives")
    youtube.save(clips, origin, folder, reasons)


def listed(path: Path, split: str) -> pd.DataFrame:
    """Read one row per clip of CLASSES in an official list: id, class, group, split, stem.

    Raises UserError if the file is no such list.
    """
    import pandas as pd

    types = {"label": "string", "youtube_id": "string", "time_start": "int64", "time_end": "int64"}
    try:
        table = pd.read_csv(path, usecols=COLUMNS, dtype=types, keep_default_na=False)
    except (ValueError, pd.errors.ParserError) as error:
        expected = f"expected the columns {', '.join(COLUMNS)}, as in the official lists"
        raise UserError(f"{path}: {expected} ({' '.join(str(error).split())})") from None
    table = table[table["label"].isin(CLASSES)]
    start, end = (table[name].astype("string").str.zfill(6) for name in ("time_start", "time_end"))
    stem = table["youtube_id"] + "_" + start + "_" + end
    clips = pd.DataFrame(
        {"id": stem, "class": table["label"], "group": table["youtube_id"], "split": split, "stem": stem}
    )
    return youtube.unique(clips, path)


def _unpack_archives(base: str, target: Path, missing: Collection[str]) -> None:
    """Download each archive, move its missing clips to `target`, delete it. Resumes an interrupted call."""
    from avdistill.data.sources.archives import unpack
    from avdistill.data.sources.http import fetch

    archives = target / ".archives"

    def is_missing(member: str) -> bool:
        name = PurePosixPath(member)
        return name.stem in missing and not (target / name.name).exists()

    # The replacements come first, so that the damaged files of the same names are skipped as not missing.
    urls = [f"{base}/{REPLACEMENTS}"]
    for name in ARCHIVES:
        text = fetch(f"{base}/{name}", archives / PurePosixPath(name).name).read_text(encoding="utf-8")
        urls += [url.replace(OFFICIAL, base) for url in text.split()]
    for url in progress(urls, "archives of Kinetics-400"):
        name = url.removeprefix(f"{base}/").replace("/", "-")
        done = archives / f"{name}.done"
        if done.exists():
            continue
        archive = fetch(url, archives / name)
        for path in unpack(archive, archives / "unpacked", is_missing):
            path.replace(target / path.name)
        done.touch()
        archive.unlink()
