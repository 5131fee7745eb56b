"""ravdess: the videos of speech of RAVDESS (Livingstone and Russo 2018, doi 10.1371/journal.pone.0196391).

24 actors speak two sentences with 8 emotions. A clip is identified by its file name,
<modality>-01-<emotion>-<intensity>-<statement>-<repetition>-<actor>.mp4, two digits each, in any folder. Modality 01
has sound and picture; 02, the same recordings without sound, is excluded and not unpacked. The archives, one per actor,
are at Zenodo (record 1188976, CC BY-NC-SA 4.0) and are checked by the MD5 of the record; one at a time is on the disk.

The groups are the actors. There are no official splits, and no published list of a split was found.
"""

from __future__ import annotations

from collections.abc import Set
from itertools import product
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from avdistill.config.origins import Ravdess
from avdistill.data.sources import youtube, zenodo
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.progress import progress

if TYPE_CHECKING:
    import pandas as pd

RECORD = "1188976"
ACTORS = [f"{number:02}" for number in range(1, 25)]
EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
WITH_SOUND, SILENT = "01", "02"


def check(origin: Ravdess) -> None:
    """Check that the paths in the origin exist. Raises UserError."""
    youtube.check(origin, [])


def videos(origin: Ravdess, folder: Path) -> Path:
    """Return the user's folder, or that of the unpacked clips."""
    return youtube.video_folder(origin, folder)


def download(origin: Ravdess, folder: Path) -> None:
    """Write clips.csv; unpack the user's archive, or download the archives with clips that the user does not have."""
    target = videos(origin, folder)
    clips = listed()
    wanted = set(clips["id"][clips["excluded"] == ""])
    reasons = {}
    if archive := youtube.own_archive(origin):
        from avdistill.data.sources.archives import unpack

        unpack(archive, target, lambda member: PurePosixPath(member).stem in wanted)
    if youtube.downloads(origin):
        missing = wanted - youtube.find_videos(target).keys()
        _unpack_archives(youtube.mirrored(origin, zenodo.SITE), target, missing)
        reasons = dict.fromkeys(missing, "not in the archive of its actor")
    youtube.save(clips, origin, folder, reasons)


def listed() -> pd.DataFrame:
    """Return one row per file of the 24 archives: id, class, group, stem, excluded.

    Neutral has one intensity, the other emotions have two."""
    import pandas as pd

    rows = []
    for actor, modality, (number, emotion) in product(ACTORS, (WITH_SOUND, SILENT), enumerate(EMOTIONS, 1)):
        intensities = ("01",) if emotion == "neutral" else ("01", "02")
        for intensity, statement, repetition in product(intensities, ("01", "02"), ("01", "02")):
            stem = f"{modality}-01-{number:02}-{intensity}-{statement}-{repetition}-{actor}"
            excluded = "" if modality == WITH_SOUND else "recording without sound"
            rows.append((stem, emotion, f"Actor_{actor}", stem, excluded))
    return pd.DataFrame(rows, columns=["id", "class", "group", "stem", "excluded"])


def _unpack_archives(site: str, target: Path, missing: Set[str]) -> None:
    """Download the archive of each actor who has missing clips, unpack them, delete it. Resumes an interrupted call."""
    from avdistill.data.sources.archives import unpack
    from avdistill.data.sources.http import fetch

    archives = target / ".archives"
    actors = [actor for actor in ACTORS if any(stem.endswith(f"-{actor}") for stem in missing)]
    actors = [actor for actor in actors if not (archives / f"{actor}.done").exists()]
    checksums = zenodo.md5(site, RECORD) if actors else {}
    for actor in progress(actors, "archives of RAVDESS"):
        name = f"Video_Speech_Actor_{actor}.zip"
        if name not in checksums:
            raise UserError(f"{site}/api/records/{RECORD}: no checksum of {name} in the record")
        archive = fetch(f"{site}/records/{RECORD}/files/{name}", archives / name, md5=checksums[name])
        unpack(archive, target, lambda member: PurePosixPath(member).stem in missing)
        (archives / f"{actor}.done").touch()
        archive.unlink()
