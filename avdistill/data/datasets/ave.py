"""ave: AVE (Tian et al., ECCV 2018), clips of 10 s from AudioSet with 28 classes of audio-visual events.

The archive, a zip on Google Drive, has AVE/<YouTube id>.mp4 and the lists of the splits, whose rows are
Category&VideoID&Quality&Start&End. A clip is the whole video; the times of its event are the columns event_start and
event_end (s). The groups are the videos.

The lists have 3,339 training, 402 validation and 402 test rows, but 4,097 videos: 45 videos have two labels, and some
are in two lists. Every row is a row of clips.csv. By default each video is used once, with its first label in the test
list, else the validation list, else the training list; its other rows are excluded. `split: published` uses all rows.
In both, an event without length (VWi2ENBuTbw, 0 to 0 s) is excluded.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from avdistill.config.origins import Ave
from avdistill.data.datasets import warn_of_overlap
from avdistill.data.sources import youtube
from avdistill.pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

DRIVE_FILE = "1FjKwe79e0u96vdjIVwfRQ1V6SoDHe7kK"
ARCHIVE = "AVE_Dataset.zip"
# In the order in which the lists keep a video that is in several.
LISTS = {"testSet.txt": "test", "valSet.txt": "val", "trainSet.txt": "train"}
ROW = re.compile(r"(?P<class>[^&]+)&(?P<video>[\w-]+)&[^&]*&(?P<start>\d+(?:\.\d+)?)&(?P<end>\d+(?:\.\d+)?)")
HEADER = re.compile(r"Category&VideoID&.*", re.I)
PUBLISHED = {"train": 3339, "val": 402, "test": 402}


def check(origin: Ave) -> None:
    """Check that the paths in the origin exist. Raises UserError."""
    youtube.check(origin, list(LISTS) if origin.annotation else [])
    if origin.videos is not None and not youtube.own_archive(origin) and not youtube.downloads(origin):
        _lists(origin, Path(origin.videos))


def videos(origin: Ave, folder: Path) -> Path:
    """Return the user's folder, or that of the unpacked clips."""
    return youtube.video_folder(origin, folder)


def published(origin: Ave) -> dict[str, int]:
    """Return the count of rows by split in the published lists, train with val; empty for the split by video."""
    counts = {"train": PUBLISHED["train"] + PUBLISHED["val"], "test": PUBLISHED["test"]}
    return counts if origin.split == "published" else {}


def download(origin: Ave, folder: Path) -> None:
    """Write clips.csv; unpack the user's archive, or download and unpack what the user does not have."""
    import pandas as pd

    target = videos(origin, folder)
    if youtube.own_archive(origin) or youtube.downloads(origin):
        _unpack(origin, folder, target)
    clips = pd.concat([listed(path, split) for split, path in _lists(origin, target).items()], ignore_index=True)
    clips = numbered(clips)
    if origin.split == "published":
        warn_of_overlap(origin.kind, clips, "videos")
    else:
        clips = use_once(clips)
    youtube.save(clips, origin, folder, {})


def listed(path: Path, split: str) -> pd.DataFrame:
    """Read one row per row of a list: class, group, stem, split, event_start, event_end (s), excluded.

    Raises UserError naming the first line that is no such row.
    """
    import pandas as pd

    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip() or HEADER.fullmatch(line.strip()):
            continue
        match = ROW.fullmatch(line.strip())
        if match is None:
            raise UserError(
                f"{path}: line {number}: expected Category&VideoID&Quality&Start&End, as in the official list, found "
                f"'{line[:60]}'"
            )
        rows.append((match["class"], match["video"], float(match["start"]), float(match["end"])))
    if not rows:
        raise UserError(f"{path}: expected an official list of clips, found no row")
    table = pd.DataFrame(rows, columns=["class", "group", "event_start", "event_end"])
    empty = table["event_end"] <= table["event_start"]
    return table.assign(stem=table["group"], split=split, excluded=empty.map({True: "event without length", False: ""}))


def numbered(clips: pd.DataFrame) -> pd.DataFrame:
    """Add the column id: the video for its first row, <video>_2 for its second, and so on."""
    number = clips.groupby("group").cumcount() + 1
    return clips.assign(id=clips["group"].where(number == 1, clips["group"] + "_" + number.astype("string")))


def use_once(clips: pd.DataFrame) -> pd.DataFrame:
    """Exclude all rows of a video but the first one that is not excluded yet."""
    used = clips[clips["excluded"] == ""]
    first = used.drop_duplicates("group").set_index("group")
    reasons = clips["excluded"].copy()
    for row in used[used.duplicated("group")].itertuples():
        kept = first.loc[row.group]
        same = kept["split"] == row.split
        reasons[row.Index] = "another label of its video" if same else f"its video is in the {kept['split']} split"
    return clips.assign(excluded=reasons)


def _lists(origin: Ave, target: Path) -> dict[str, Path]:
    """Return the path of the list of each split: in `annotation`, below the folder of videos, or beside it.

    Raises UserError if one is missing."""
    found = {}
    for name, split in LISTS.items():
        if origin.annotation is not None:
            own = Path(origin.annotation)
            places = [own / name if own.is_dir() else own.parent / name]
        else:
            places = [*sorted(target.rglob(name)), target.parent / name]
        path = next((path for path in places if path.is_file()), None)
        if path is None:
            raise UserError(f"{target}: no {name} in it or beside it; set `annotation` to the folder that has it")
        found[split] = path
    return found


def _unpack(origin: Ave, folder: Path, target: Path) -> None:
    """Unpack the user's archive or the official one into `target`; resume an interrupted call."""
    from avdistill.data.sources import google_drive
    from avdistill.data.sources.archives import unpack
    from avdistill.data.sources.http import DownloadError, fetch

    own, downloaded, done = youtube.own_archive(origin), folder / ARCHIVE, folder / f"{ARCHIVE}.done"
    if own is None and done.exists():
        return
    try:
        if own is None and origin.mirror:
            fetch(f"{origin.mirror.rstrip('/')}/{ARCHIVE}", downloaded)
        elif own is None:
            google_drive.download(DRIVE_FILE, downloaded)
    except DownloadError as error:
        page = f"https://drive.google.com/file/d/{DRIVE_FILE}/view"
        raise DownloadError(f"{error}; or download {page} in a browser and set `videos` to that file") from None
    archive = own or downloaded
    existing = youtube.find_videos(target)

    def is_wanted(member: str) -> bool:
        path = PurePosixPath(member)
        is_video = path.suffix == ".mp4" and not path.name.startswith(".") and path.stem not in existing
        return is_video or path.name in LISTS

    if not unpack(archive, target, is_wanted) and not existing:
        raise UserError(f"{archive}: expected clips such as AVE_Dataset/AVE/RUhOCu3LNXM.mp4, found none")
    if own is None:
        done.touch()
        downloaded.unlink()
