"""kinetics_sounds: the 31 classes of Kinetics-400 that can be seen and heard (Arandjelović and Zisserman, ICCV 2017).

Their list of 34 was drawn up on an earlier release; 31 of the names are classes of Kinetics-400 today. Clips of 10 s,
`<video>_<start>_<end>.mp4` with times of six digits, come from the Common Visual Data Foundation's archives: about
400 GB, of which a twelfth is kept; one archive at a time is on the disk. Their replacements for damaged files are
taken, too. The official training clips are the train split, the validation clips the test split. The groups are the
videos.
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
    """Raises UserError if something that the user has named is not there."""
    youtube.check(origin, list(LISTS))


def videos(origin: KineticsSounds, folder: Path) -> Path:
    """The user's own folder, or where the archives were unpacked to."""
    return youtube.home(origin, folder)


def download(origin: KineticsSounds, folder: Path) -> None:
    """Get the official lists and, if the user has not got them, the clips from the archives; write clips.csv."""
    import pandas as pd

    lists = [listed(youtube.official(origin, OFFICIAL, name, folder), split) for name, split in LISTS.items()]
    clips = pd.concat(lists, ignore_index=True)
    reasons = {}
    if youtube.downloads(origin):
        home = videos(origin, folder)
        missing = set(clips["stem"]) - set(youtube.there(home))
        if missing:
            _unpack_archives(youtube.mirrored(origin, OFFICIAL), home, missing)
        reasons = dict.fromkeys(missing, "in none of the archives")
    youtube.save(clips, origin, folder, reasons)


def listed(path: Path, split: str) -> pd.DataFrame:
    """One row a clip of CLASSES in an official list: id, class, group, split, stem. Raises UserError for other
    files."""
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


def _unpack_archives(base: str, home: Path, missing: Collection[str]) -> None:
    """Fetch each archive, keep the files that are missing, delete it. Goes on where an earlier call stopped."""
    from avdistill.data.sources.archives import unpack
    from avdistill.data.sources.http import fetch

    archives = home / ".archives"

    def is_missing(member: str) -> bool:
        name = PurePosixPath(member)
        return name.stem in missing and not (home / name.name).exists()

    # The replacements come first: what they bring is not missing any more when the damaged files come by.
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
            path.replace(home / path.name)
        done.touch()
        archive.unlink()
