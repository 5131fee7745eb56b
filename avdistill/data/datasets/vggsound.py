"""vggsound: VGGSound (Chen et al., ICASSP 2020), 10 s clips of YouTube videos, 309 classes.

The official list has 183,730 training and 15,446 test clips. The file of a clip is `<video>_<start>.mp4`, with the
start in seconds as six digits. The groups are the videos, because some videos have two clips. With `vggsounder`, the
test clips have the labels of VGGSounder: avdistill/data/sources/vggsounder.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from avdistill.config.origins import VGGSound
from avdistill.data.sources import vggsounder, youtube
from avdistill.pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    import pandas as pd

OFFICIAL = "https://www.robots.ox.ac.uk/~vgg/data/vggsound"
ANNOTATION = "vggsound.csv"
COLUMNS = ["video", "start", "class", "split"]
SECONDS = 10.0
PUBLISHED = {"train": 183_730, "test": 15_446}


def check(origin: VGGSound) -> None:
    """Check that the paths in the origin exist. Raises UserError."""
    youtube.check(origin, [ANNOTATION])


def videos(origin: VGGSound, folder: Path) -> Path:
    """Return the user's folder, or that of the downloaded clips."""
    return youtube.video_folder(origin, folder)


def published(origin: VGGSound) -> dict[str, int]:
    """Return the count of clips by split in the official list."""
    return PUBLISHED


def download(origin: VGGSound, folder: Path) -> None:
    """Write clips.csv; download the official list and, with yt-dlp, the clips that the user does not have."""
    table = listed(youtube.official(origin, OFFICIAL, ANNOTATION, folder))
    if origin.vggsounder:
        labels = vggsounder.read(vggsounder.download(youtube.mirrored(origin, vggsounder.OFFICIAL), folder))
        table = vggsounder.add(table, labels)
    wanted = [
        youtube.Wanted(stem, video, start, SECONDS)
        for stem, video, start in table[["stem", "video", "start"]].itertuples(index=False)
    ]
    reasons = youtube.get(wanted, videos(origin, folder), origin)
    youtube.save(table.rename(columns={"video": "group"}).drop(columns="start"), origin, folder, reasons)


def listed(path: Path) -> pd.DataFrame:
    """Read one row per clip of an official list: id, stem, video, start (s into the video), class, split.

    Raises UserError if the file is no such list.
    """
    import pandas as pd

    types = {"video": "string", "start": "int64", "class": "string", "split": "string"}
    try:
        table = pd.read_csv(path, header=None, names=COLUMNS, dtype=types, keep_default_na=False, index_col=False)
    except (ValueError, pd.errors.ParserError) as error:
        expected = "expected rows of video, start in seconds, class and split, as in the official list"
        raise UserError(f"{path}: {expected} ({' '.join(str(error).split())})") from None
    for split in sorted(set(table["split"]) - {"train", "test"}):
        raise UserError(f"{path}: unknown split '{split}'; {nearest(split, ['train', 'test'])}")
    stem = table["video"] + "_" + table["start"].astype("string").str.zfill(6)
    return youtube.unique(table.assign(id=stem, stem=stem), path)
