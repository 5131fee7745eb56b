"""ucf51: the 51 classes of UCF101 (Soomro et al. 2012, CRCV-TR-12-01) whose clips have sound, with official splits.

A clip is identified by its file name, v_<class>_g<group>_c<clip>.avi, in any folder. clips.csv has the existing clips
of the official train and test lists; those without an audio stream do not belong to UCF51 (Chen et al. 2021) and are
marked as excluded. CRCV publishes no checksums, so the archive is checked by its length and each clip by its CRC.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from avdistill.config.origins import Ucf51
from avdistill.data import media
from avdistill.data.datasets import CLIPS, print_counts
from avdistill.data.sources.archives import unpack
from avdistill.data.sources.http import fetch
from avdistill.pipeline import workers
from avdistill.pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

SITE = "https://www.crcv.ucf.edu/datasets/human-actions/ucf101"
ARCHIVE = "UCF101.rar"  # 6.5 GB
LISTS = "UCF101TrainTestSplits-RecognitionTask.zip"
LISTS_FOLDER = "ucfTrainTestlist"
NAME = re.compile(r"v_(?P<class>[A-Za-z]+)_g(?P<group>\d\d)_c\d\d")
# Clips with sound in split 1. The published features have one more clip, v_PlayingCello_g19_c06, which is in no split.
PUBLISHED = {"train": 4892, "test": 1944}
CLASSES = frozenset(
    """
    ApplyEyeMakeup ApplyLipstick Archery BabyCrawling BalanceBeam BandMarching BasketballDunk BlowDryHair
    BlowingCandles BodyWeightSquats Bowling BoxingPunchingBag BoxingSpeedBag BrushingTeeth CliffDiving CricketBowling
    CricketShot CuttingInKitchen FieldHockeyPenalty FloorGymnastics FrisbeeCatch FrontCrawl Haircut HammerThrow
    Hammering HandStandPushups HandstandWalking HeadMassage IceDancing Knitting LongJump MoppingFloor ParallelBars
    PlayingCello PlayingDaf PlayingDhol PlayingFlute PlayingSitar Rafting ShavingBeard Shotput SkyDiving SoccerPenalty
    StillRings SumoWrestling Surfing TableTennisShot Typing UnevenBars WallPushups WritingOnBoard
    """.split()  # noqa: SIM905 - a list would have one line per class
)


def check(origin: Ucf51) -> None:
    """Check `videos`. Raises UserError if it is neither an existing archive nor a folder with clips of UCF51."""
    if origin.videos is None:
        return
    path = Path(origin.videos)
    if not path.exists():
        raise UserError(f"videos: {path}: there is no such folder or archive")
    if path.is_dir() and next(_files(path), None) is None:
        raise UserError(f"videos: {path}: expected clips named like v_Archery_g01_c01.avi, found none")


def videos(origin: Ucf51, folder: Path) -> Path:
    """Return the user's folder, or that of the unpacked clips."""
    return Path(origin.videos) if origin.videos and Path(origin.videos).is_dir() else folder / "videos"


def published(origin: Ucf51) -> dict[str, int]:
    """Return the count of clips by split in Chen et al. 2021, who used split 1; empty for the other splits."""
    return PUBLISHED if origin.split == 1 else {}


def download(origin: Ucf51, folder: Path) -> None:
    """Download and unpack videos and lists that the user does not have; write clips.csv and sizes.csv.

    Clips without an audio stream have the reason in column `excluded` of clips.csv. sizes.csv has the file sizes, so
    that DVC notices replaced files.
    """
    import pandas as pd

    from avdistill.data.files import write_csv

    source = videos(origin, folder)
    if not source.exists():
        _unpack_videos(origin, folder, source)
    if not origin.keep_archive:
        (folder / ARCHIVE).unlink(missing_ok=True)
    splits = _splits(origin, folder)
    files = _by_name(source)
    listing = _listing(source, files, splits)
    sizes = [(source / file).stat().st_size for file in listing["file"]]
    write_csv(folder / "sizes.csv", pd.DataFrame({"file": listing["file"], "size": sizes}))
    listing["excluded"] = _why_excluded([source / file for file in listing["file"]])
    used = listing["split"][listing["excluded"] == ""]
    for split, clips in published(origin).items():
        if (used == split).sum() != clips:
            print(f"ucf51: found {(used == split).sum()} {split} clips with sound, published: {clips}", file=sys.stderr)
    write_csv(folder / CLIPS, listing)
    left_out = {
        "listed clips that are missing": len(splits.keys() - files.keys()),
        f"clips that are not in the lists of split {origin.split}": len(files.keys() - splits.keys()),
        "clips of other classes of UCF101": sum(not _is_clip(path.name) for path in source.rglob("v_*.avi")),
    }
    print_counts(origin.kind, listing, left_out)


def _unpack_videos(origin: Ucf51, folder: Path, target: Path) -> None:
    """Unpack the clips of UCF51 from the user's archive or the official one into `target`, atomically."""
    archive = Path(origin.videos or folder / ARCHIVE)
    if origin.videos is None:
        fetch(f"{origin.mirror or SITE}/{ARCHIVE}", archive)
    partial = target.with_name(".unpacking")
    if not unpack(archive, partial, _is_clip):
        raise UserError(f"{archive}: expected clips such as UCF-101/Archery/v_Archery_g01_c01.avi, found none")
    partial.replace(target)


def _is_clip(name: str) -> bool:
    """Return whether a path names a clip of the 51 classes."""
    path = Path(name)
    match = NAME.fullmatch(path.stem)
    return path.suffix == ".avi" and match is not None and match["class"] in CLASSES


def _files(folder: Path) -> Iterator[Path]:
    """Yield the clips below a folder, in no particular order."""
    return (path for path in folder.rglob("v_*.avi") if _is_clip(path.name))


def _splits(origin: Ucf51, folder: Path) -> dict[str, str]:
    """Return the split, train or test, of every clip in the official lists.

    The lists are taken from ucfTrainTestlist in the user's folder, else beside it, else downloaded.
    """
    lists = folder / LISTS_FOLDER
    if origin.videos is not None:
        near = (Path(origin.videos) / LISTS_FOLDER, Path(origin.videos).parent / LISTS_FOLDER)
        lists = next((path for path in near if path.is_dir()), lists)
    if not lists.exists():
        unpack(fetch(f"{origin.mirror or SITE}/{LISTS}", folder / LISTS), folder)
    splits: dict[str, str] = {}
    for split in ("train", "test"):
        path = lists / f"{split}list{origin.split:02}.txt"
        if not path.is_file():
            raise UserError(f"{path}: missing; unpack it from {SITE}/{LISTS}")
        # Lines are <class>/<clip>.avi, in the train list followed by the class number. Lists and file names spell one
        # class differently (HandstandPushups), so only the file name counts.
        names = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        splits |= {Path(name).stem: split for name in names if _is_clip(name)}
    return splits


def _by_name(source: Path) -> dict[str, Path]:
    """Return the clips below a folder by name. Raises UserError if two of them have the same."""
    files: dict[str, Path] = {}
    for path in sorted(_files(source)):
        if path.stem in files:
            raise UserError(f"{path}: another file has the same name: {files[path.stem]}; remove one of them")
        files[path.stem] = path
    return files


def _listing(source: Path, files: dict[str, Path], splits: dict[str, str]) -> pd.DataFrame:
    """Return the table of clips that are both in `source` and in the official lists, sorted by name."""
    import pandas as pd

    missing = sorted(splits.keys() - files.keys())
    if missing:
        print(f"ucf51: {len(missing)} of {len(splits)} listed clips are missing: {missing[0]}, …", file=sys.stderr)
    names = sorted(splits.keys() & files.keys())
    table = pd.DataFrame({"id": names, "file": [files[name].relative_to(source).as_posix() for name in names]})
    fields = table["id"].str.extract(NAME)
    table["class"] = fields["class"]
    table["group"] = fields["class"] + "/g" + fields["group"]  # groups are numbered within their class
    return table.assign(split=table["id"].map(splits))


def _why_excluded(files: list[Path]) -> list[str]:
    """Return for each file why it does not belong to UCF51, or "" if it does."""
    probed = workers.each(_has_no_audio, files, "look for audio streams")
    return [media.NO_AUDIO if no_audio is True else "" for _, no_audio in probed]


def _has_no_audio(path: Path) -> bool:
    """Return whether a video has no audio stream; False for a corrupt file, which stage split marks."""
    return media.probe(path, end=0.0).no_sound == media.NO_AUDIO
