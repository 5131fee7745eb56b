"""vggsound: VGGSound (Chen et al., ICASSP 2020), clips of 10 s of YouTube videos, 309 classes.

The official list names 183,730 clips for training and 15,446 for testing. A clip's file is `<video>_<start>.mp4`, the
start in seconds with six digits. The groups are the videos: some gave two clips.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from avdistill.config.origins import VGGSound
from avdistill.data.sources import youtube
from avdistill.pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    import pandas as pd

OFFICIAL = "https://www.robots.ox.ac.uk/~vgg/data/vggsound"
ANNOTATION = "vggsound.csv"
COLUMNS = ["video", "start", "class", "split"]
SECONDS = 10.0
PUBLISHED = {"train": 183_730, "test": 15_446}


def check(origin: VGGSound) -> None:
    """Raises UserError if something that the user has named is not there."""
    youtube.check(origin, [ANNOTATION])


def videos(origin: VGGSound, folder: Path) -> Path:
    """The user's own folder, or where the clips were downloaded to."""
    return youtube.home(origin, folder)


def published(origin: VGGSound) -> dict[str, int]:
    """How many clips a part of the official list has."""
    return PUBLISHED


def download(origin: VGGSound, folder: Path) -> None:
    """Get the official list and, if the user has not got them, the clips by yt-dlp; write clips.csv."""
    table = listed(youtube.official(origin, OFFICIAL, ANNOTATION, folder))
    wanted = [
        youtube.Wanted(stem, video, start, SECONDS)
        for stem, video, start in table[["stem", "video", "start"]].itertuples(index=False)
    ]
    reasons = youtube.get(wanted, videos(origin, folder), origin)
    youtube.save(table.rename(columns={"video": "group"}).drop(columns="start"), origin, folder, reasons)


def listed(path: Path) -> pd.DataFrame:
    """One row a clip of an official list: id, stem, video, start (s, in the video), class, split.

    Raises UserError for what is no such list.
    """
    import pandas as pd

    types = {"video": "string", "start": "int64", "class": "string", "split": "string"}
    try:
        table = pd.read_csv(path, header=None, names=COLUMNS, dtype=types, keep_default_na=False, index_col=False)
    except (ValueError, pd.errors.ParserError) as error:
        expected = "expected rows of video, start in seconds, class and split, as in the official list"
        raise UserError(f"{path}: {expected} ({' '.join(str(error).split())})") from None
    for split in sorted(set(table["split"]) - {"train", "test"}):
        raise UserError(f"{path}: split '{split}': {nearest(split, ['train', 'test'])}")
    stem = table["video"] + "_" + table["start"].astype("string").str.zfill(6)
    return youtube.unique(table.assign(id=stem, stem=stem), path)
