"""crema_d: CREMA-D (Cao et al. 2014, doi 10.1109/TAFFC.2014.2336244), 7,442 clips of 91 actors, 6 acted emotions.

A clip is identified by its file name, <actor>_<sentence>_<emotion>_<level>.flv, in any folder. The clips are in Git LFS
at GitHub: the zip of the repository has a pointer for each, with the SHA-256 and size that its download is checked by.
The class is the emotion that the actor was asked for, not what viewers saw.

The groups are the actors, and no actor is in two splits. `split: published` is the split of Peng et al. (OGM-GE, CVPR
2022), which later papers use: 6,698 training and 744 test clips, sampled by clip, so all 91 actors are on both sides.
Four clips that are known to be bad (the authors' README) are marked as excluded.
"""

from __future__ import annotations

import re
import sys
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from avdistill.config.origins import CremaD
from avdistill.data.datasets import warn_of_overlap
from avdistill.data.sources import youtube
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.progress import progress

if TYPE_CHECKING:
    import pandas as pd

REPOSITORY = "https://github.com/CheyneyComputerScience/CREMA-D"
POINTERS = f"{REPOSITORY}/archive/refs/heads"
ARCHIVE = "master.zip"
MEDIA = "https://media.githubusercontent.com/media/CheyneyComputerScience/CREMA-D/master"
CLIPS_FOLDER = "VideoFlash"
LISTS_SITE = (
    "https://raw.githubusercontent.com/GeWu-Lab/OGM-GE_CVPR2022/65a8324464207f5efd41533cb362648c0cdee8a8/data/CREMAD"
)
LISTS = {"train.csv": "train", "test.csv": "test"}
PUBLISHED = {"train": 6698, "test": 744}
CLIPS = 7442
EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad"}
SENTENCES = "DFA|IEO|IOM|ITH|ITS|IWL|IWW|MTI|TAI|TIE|TSI|WSI"
NAME = re.compile(rf"(?P<actor>10\d\d)_(?:{SENTENCES})_(?P<emotion>{'|'.join(EMOTIONS)})_(?:LO|MD|HI|XX)")
POINTER = re.compile(rb"version https://git-lfs\S*\noid sha256:(?P<sha256>[0-9a-f]{64})\nsize (?P<size>\d+)\n")
BAD = {
    "1064_IEO_DIS_MD": "known to be bad: a minute with all emotions",
    "1064_TIE_SAD_XX": "known to be bad: the file has no duration",
    "1076_MTI_NEU_XX": "known to be bad: hardly a frame",
    "1076_MTI_SAD_XX": "known to be bad: no sound, an error picture",
}
WORKERS = 4  # downloads at a time


def check(origin: CremaD) -> None:
    """Check that the paths in the origin exist, and that videos are no Git LFS pointers. Raises UserError."""
    youtube.check(origin, list(LISTS))
    if origin.videos is not None and not youtube.own_archive(origin):
        _refuse_pointers(Path(origin.videos))


def videos(origin: CremaD, folder: Path) -> Path:
    """Return the user's folder, or that of the downloaded clips."""
    return youtube.video_folder(origin, folder)


def published(origin: CremaD) -> dict[str, int]:
    """Return the count of clips by split in the published lists; empty for the split by actor."""
    return PUBLISHED if origin.split == "published" else {}


def download(origin: CremaD, folder: Path) -> None:
    """Write clips.csv; unpack the user's archive, or download the clips that the user does not have."""
    target = videos(origin, folder)
    splits = _published_split(origin, folder) if origin.split == "published" else {}
    if archive := youtube.own_archive(origin):
        from avdistill.data.sources.archives import unpack

        unpack(archive, target, _is_clip)
        _refuse_pointers(target)
    names = {stem for stem in youtube.find_videos(target) if NAME.fullmatch(stem)}
    if youtube.downloads(origin):
        names |= _download_clips(origin, folder, target, names)
    if len(names) < CLIPS:
        print(f"crema_d: found {len(names)} of {CLIPS} clips", file=sys.stderr)
    table = listed(splits or names)
    if splits:
        table["split"] = table["id"].map(splits)
        warn_of_overlap(origin.kind, table, "actors")
    youtube.save(table, origin, folder, {})


def listed(names: Iterable[str]) -> pd.DataFrame:
    """Return one row per clip, sorted by name: id, class, group, stem, excluded."""
    import pandas as pd

    table = pd.DataFrame({"id": sorted(names)}, dtype="string")
    if table.empty:
        raise UserError("crema_d: expected clips named like 1001_DFA_ANG_XX.flv, found none")
    fields = table["id"].str.extract(NAME)
    table["class"] = fields["emotion"].map(EMOTIONS)
    table["group"] = fields["actor"]
    return table.assign(stem=table["id"], excluded=[BAD.get(name, "") for name in table["id"]])


def read_list(path: Path) -> list[str]:
    """Return the names of clips in a published list, lines of <name>,<emotion>. Raises UserError for other lines."""
    names = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        name, _, emotion = line.strip().partition(",")
        match = NAME.fullmatch(name)
        if match is None or match["emotion"] != emotion:
            raise UserError(f"{path}: line {number}: expected a row like 1001_DFA_ANG_XX,ANG, found '{line[:60]}'")
        names.append(name)
    return names


def pointers(archive: Path) -> dict[str, tuple[str, int]]:
    """Return SHA-256 and size of each clip, by name, from the zip of the repository. Raises UserError."""
    found = {}
    try:
        with zipfile.ZipFile(archive) as file:
            for member in filter(_is_clip, file.namelist()):
                pointer = POINTER.match(file.read(member))
                if pointer is None:
                    raise UserError(f"{archive}: {member}: expected a Git LFS pointer")
                found[PurePosixPath(member).stem] = (pointer["sha256"].decode(), int(pointer["size"]))
    except zipfile.BadZipFile as error:
        raise UserError(f"{archive}: no zip archive ({error}); delete it and run again") from None
    if not found:
        raise UserError(f"{archive}: expected pointers such as CREMA-D-master/VideoFlash/1001_DFA_ANG_XX.flv")
    return found


def _is_clip(member: str) -> bool:
    """Return whether a path in an archive names a clip; the sound of a clip has the same name and another type."""
    path = PurePosixPath(member)
    return NAME.fullmatch(path.stem) is not None and path.suffix not in (".wav", ".mp3")


def _published_split(origin: CremaD, folder: Path) -> dict[str, str]:
    """Return the split of each clip of the published lists. Raises UserError if a clip is in both."""
    splits: dict[str, str] = {}
    for file, split in LISTS.items():
        path = youtube.official(origin, LISTS_SITE, file, folder)
        for name in read_list(path):
            if splits.setdefault(name, split) != split:
                raise UserError(f"{path}: clip '{name}' is also in the list of the {splits[name]} split")
    return splits


def _download_clips(origin: CremaD, folder: Path, target: Path, existing: set[str]) -> set[str]:
    """Download the clips that do not exist, checked by their pointers. Returns the names of all official clips."""
    from avdistill.data.sources.http import DownloadError, fetch

    base = youtube.mirrored(origin, MEDIA)
    official = pointers(fetch(f"{youtube.mirrored(origin, POINTERS)}/{ARCHIVE}", folder / ARCHIVE))

    def get(name: str) -> None:
        sha256, size = official[name]
        fetch(f"{base}/{CLIPS_FOLDER}/{name}.flv", target / f"{name}.flv", sha256=sha256, size=size)

    missing = sorted(official.keys() - existing)
    try:
        with ThreadPoolExecutor(WORKERS) as pool:
            for _ in progress(pool.map(get, missing), "clips of CREMA-D", total=len(missing)):
                pass
    except DownloadError as error:
        raise DownloadError(f"{error}; or clone {REPOSITORY} with Git LFS and set `videos` to the clone") from None
    return set(official)


def _refuse_pointers(folder: Path) -> None:
    """Raise UserError if a clip is a Git LFS pointer, as in a clone that was made without Git LFS."""
    for stem, file in youtube.find_videos(folder).items():
        path = folder / file
        if NAME.fullmatch(stem) and path.stat().st_size < 1024 and POINTER.match(path.read_bytes()):
            raise UserError(f"videos: {path}: a Git LFS pointer, not a video; run `git lfs pull` in the clone")
