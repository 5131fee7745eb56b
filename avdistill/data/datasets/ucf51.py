"""ucf51: the 51 classes of UCF101 whose clips have sound (Soomro et al. 2012, CRCV-TR-12-01), parted as published.

A clip is known by its file's name, v_<class>_g<group>_c<clip>.avi, wherever the file lies. The listing has the clips of
the official train and test list that are there; those without an audio stream are no part of UCF51 (Chen et al. 2021)
and stay in it, marked. CRCV publishes no checksums: the archive is checked by its length, each clip by its CRC.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from avdistill.config.origins import Ucf51
from avdistill.data import media
from avdistill.data.datasets import CLIPS
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
# Clips with sound in split 1. The published features have one training clip more, v_PlayingCello_g19_c06, in no split.
PUBLISHED = {"train": 4892, "test": 1944}
CLASSES = frozenset(
    """
    ApplyEyeMakeup ApplyLipstick Archery BabyCrawling BalanceBeam BandMarching BasketballDunk BlowDryHair
    BlowingCandles BodyWeightSquats Bowling BoxingPunchingBag BoxingSpeedBag BrushingTeeth CliffDiving CricketBowling
    CricketShot CuttingInKitchen FieldHockeyPenalty FloorGymnastics FrisbeeCatch FrontCrawl Haircut HammerThrow
    Hammering HandStandPushups HandstandWalking HeadMassage IceDancing Knitting LongJump MoppingFloor ParallelBars
    PlayingCello PlayingDaf PlayingDhol PlayingFlute PlayingSitar Rafting ShavingBeard Shotput SkyDiving SoccerPenalty
    StillRings SumoWrestling Surfing TableTennisShot Typing UnevenBars WallPushups WritingOnBoard
    """.split()  # noqa: SIM905 - a line a class would be 51 lines
)


def check(origin: Ucf51) -> None:
    """Raises UserError if `videos` is given and is neither an archive nor a folder with clips of the 51 classes."""
    if origin.videos is None:
        return
    path = Path(origin.videos)
    if not path.exists():
        raise UserError(f"videos: {path}: there is no such folder or archive")
    if path.is_dir() and next(_files(path), None) is None:
        raise UserError(f"videos: {path}: expected clips named like v_Archery_g01_c01.avi, found none")


def videos(origin: Ucf51, folder: Path) -> Path:
    """The user's folder, or what was unpacked."""
    return Path(origin.videos) if origin.videos and Path(origin.videos).is_dir() else folder / "videos"


def published(origin: Ucf51) -> dict[str, int]:
    """How many clips a split has in the papers; empty where they do not say."""
    return PUBLISHED if origin.split == 1 else {}


def download(origin: Ucf51, folder: Path) -> None:
    """Fetch and unpack what the user does not have; write clips.csv, and sizes.csv for exchanged files to be noticed.

    Clips that are no part of UCF51 are `excluded` in clips.csv, with the reason: split marks them, nothing uses them.
    """
    import pandas as pd

    from avdistill.data.files import write_csv

    source = videos(origin, folder)
    if not source.exists():
        _unpack_videos(origin, folder, source)
    if not origin.keep_archive:
        (folder / ARCHIVE).unlink(missing_ok=True)
    listing = _listing(source, _parts(origin, folder))
    sizes = [(source / file).stat().st_size for file in listing["file"]]
    write_csv(folder / "sizes.csv", pd.DataFrame({"file": listing["file"], "size": sizes}))
    listing["excluded"] = _why_excluded([source / file for file in listing["file"]])
    used = listing["split"][listing["excluded"] == ""]
    for split, clips in published(origin).items():
        if (used == split).sum() != clips:
            print(f"ucf51: {(used == split).sum()} {split} clips have sound; published: {clips}", file=sys.stderr)
    write_csv(folder / CLIPS, listing)


def _unpack_videos(origin: Ucf51, folder: Path, target: Path) -> None:
    """Bring the clips of the 51 classes from the user's archive or the official one; whole or not at all."""
    archive = Path(origin.videos or folder / ARCHIVE)
    if origin.videos is None:
        fetch(f"{origin.mirror or SITE}/{ARCHIVE}", archive)
    partial = target.with_name(".unpacking")
    if not unpack(archive, partial, _is_clip):
        raise UserError(f"{archive}: expected clips such as UCF-101/Archery/v_Archery_g01_c01.avi, found none")
    partial.replace(target)


def _is_clip(name: str) -> bool:
    """Whether a path names a clip of the 51 classes."""
    path = Path(name)
    match = NAME.fullmatch(path.stem)
    return path.suffix == ".avi" and match is not None and match["class"] in CLASSES


def _files(folder: Path) -> Iterator[Path]:
    """The clips below a folder, in no order."""
    return (path for path in folder.rglob("v_*.avi") if _is_clip(path.name))


def _parts(origin: Ucf51, folder: Path) -> dict[str, str]:
    """The split, train or test, of every clip of the official lists, which may lie in the user's folder or beside
    it."""
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
            raise UserError(f"{path}: missing; it is in {SITE}/{LISTS}")
        # <class>/<clip>.avi, in the train list with the number of the class behind it. Folders spell classes their way.
        names = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        splits |= {Path(name).stem: split for name in names if _is_clip(name)}
    return splits


def _listing(source: Path, splits: dict[str, str]) -> pd.DataFrame:
    """The clips that are there and in the lists, by name."""
    import pandas as pd

    files: dict[str, Path] = {}
    for path in sorted(_files(source)):
        if path.stem in files:
            raise UserError(f"{path}: a second file of that name; the other one is {files[path.stem]}")
        files[path.stem] = path
    lacking = sorted(splits.keys() - files.keys())
    if lacking:
        print(f"ucf51: {len(lacking)} of {len(splits)} listed clips are not there: {lacking[0]}, …", file=sys.stderr)
    names = sorted(splits.keys() & files.keys())
    table = pd.DataFrame({"id": names, "file": [files[name].relative_to(source).as_posix() for name in names]})
    known = table["id"].str.extract(NAME)
    table["class"] = known["class"]
    table["group"] = known["class"] + "/g" + known["group"]  # groups are numbered within their class
    return table.assign(split=table["id"].map(splits))


def _why_excluded(files: list[Path]) -> list[str]:
    """For each file the reason why it is no part of UCF51; empty where it is one."""
    looked = workers.each(_mute, files, "look for sound")
    return [media.NO_AUDIO if mute is True else "" for _, mute in looked]


def _mute(path: Path) -> bool:
    """Whether a video has no audio stream. A broken file is not for this module to judge."""
    return media.probe(path, end=0.0).no_sound == media.NO_AUDIO
