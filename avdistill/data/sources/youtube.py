"""Clips of YouTube videos: which are there, which are gone, and getting the rest by yt-dlp.

A clip's file is known by its *stem*, its name without ending: published datasets agree on stems, and neither on file
types nor on folders. `<videos>/gone.csv` (columns stem, reason) is the ledger of what YouTube no longer has, so that
nobody asks for it again and again. A network that is down, a YouTube that has had enough of our requests and whatever
else may pass is not in the ledger: it is tried again, and ends in an error if much is still lacking.

YouTube answers a few hundred requests an hour, so it is their number that takes time, not their size: a clip of a few
seconds is cut out of its whole video, which needs no other program.
"""

from __future__ import annotations

import csv
import io
import os
import random
import re
import shutil
import threading
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from avdistill.config.origins import Videos, YouTube
from avdistill.data import media
from avdistill.data.datasets import CLIPS
from avdistill.data.datasets.folder import VIDEO_TYPES
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.progress import progress

if TYPE_CHECKING:
    import pandas as pd

LEDGER = "gone.csv"
NOT_THERE = "not in the folder of videos"
INCOMING = ".incoming"  # files that are not whole yet
BACK_OFF = 2.0  # s before the second try, doubled with each further one
LONGEST_BACK_OFF = 60.0  # s
IN_A_ROW = 30  # failures; it is not the videos that are at fault
SHORT_SIDE, FPS = 256, 30  # at most, of clips that are cut out of a video

# What YouTube says of a video that is not coming back, as yt-dlp hands it on.
GONE = re.compile(
    r"private video|video is private|no longer available|(video|recording) (is )?(unavailable|not available)"
    r"|been removed|has been deleted|does not exist|account .*terminated|copyright|in your (country|region|location)"
    r"|members|premium|confirm your age|age-restricted|requires payment|webpage: HTTP Error (404|410|451)",
    re.I,
)
# What sounds alike, and passes.
PASSING = re.compile(r"not a bot|try again|rate.limit|too many requests|content isn.t available|captcha", re.I)


class Wanted(NamedTuple):
    """A file to have: the whole of a video (`seconds` is None), or `seconds` of it from `start`."""

    stem: str
    video: str
    start: float = 0.0
    seconds: float | None = None


class GoneError(Exception):
    """The file cannot be had, now or later; the message says why."""


class TransientError(Exception):
    """The file could not be had for a reason that may pass."""


def check(origin: Videos, lists: Sequence[str]) -> None:
    """The user's own folder and files: are they there? `lists` are as for `official`. Raises UserError."""
    for name in lists:
        _own_list(origin, name)
    if origin.videos is not None and not origin.fill and not there(Path(origin.videos)):
        raise UserError(f"videos: {origin.videos}: expected a folder with videos, found none")
    if isinstance(origin, YouTube) and origin.cookies is not None and not Path(origin.cookies).is_file():
        raise UserError(f"cookies: {origin.cookies}: there is no such file")


def official(origin: Videos, base: str, name: str, folder: Path) -> Path:
    """An official list of clips: the user's own copy of it, or `<base>/<name>`, fetched into `folder`."""
    from avdistill.data.sources.http import fetch

    url = f"{mirrored(origin, base)}/{name}"
    return _own_list(origin, name) or fetch(url, folder / PurePosixPath(name).name)


def mirrored(origin: Videos, base: str) -> str:
    """The base URL to use in place of an official one."""
    return (origin.mirror or base).rstrip("/")


def _own_list(origin: Videos, name: str) -> Path | None:
    """The user's own copy of a list: `annotation`, or the file of that name in it."""
    if origin.annotation is None:
        return None
    own = Path(origin.annotation)
    own = own / PurePosixPath(name).name if own.is_dir() else own
    if not own.is_file():
        raise UserError(f"annotation: {own}: there is no such file")
    return own


def home(origin: Videos, folder: Path) -> Path:
    """Where the videos lie: the user's own folder, or one in what download makes."""
    return folder / "videos" if origin.videos is None else Path(origin.videos)


def downloads(origin: Videos) -> bool:
    """Whether videos that are not there are downloaded."""
    return origin.videos is None or origin.fill


def there(videos: Path) -> dict[str, str]:
    """The video files below a folder: the path from there, by stem. Of two files with one stem the first counts."""
    found: dict[str, str] = {}
    for place, folders, files in os.walk(videos):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(place).relative_to(videos).as_posix()
        for name in sorted(files):
            stem, ending = os.path.splitext(name)  # noqa: PTH122 - 200,000 Path objects would take seconds
            if VIDEO_TYPES.fullmatch(ending) and not name.startswith("."):
                found.setdefault(stem, name if inside == "." else f"{inside}/{name}")
    return found


def save(clips: pd.DataFrame, origin: Videos, folder: Path, reasons: dict[str, str]) -> None:
    """Write clips.csv: `clips` with the columns `file` and `gone` in place of `stem`.

    `file` is the file that is there, or should be; `gone` says why it is not (`reasons` are by stem). Of files in the
    user's own folder, files.csv keeps the sizes, so that exchanged files are noticed. Raises UserError if there is no
    file at all.
    """
    import pandas as pd

    from avdistill.data.files import write_csv

    videos = home(origin, folder)
    have = there(videos)
    stems = clips["stem"].tolist()
    if have.keys().isdisjoint(stems):
        raise UserError(f"{videos}: expected videos named like {stems[0]}.mp4, found none of {len(clips)} clips")
    if origin.videos is not None:
        own = [have[stem] for stem in dict.fromkeys(stems) if stem in have]
        sizes = [(videos / file).stat().st_size for file in own]
        write_csv(folder / "files.csv", pd.DataFrame({"file": own, "size": sizes}))
    files = [have.get(stem, f"{stem}.mp4") for stem in stems]
    gone = ["" if stem in have else reasons.get(stem, NOT_THERE) for stem in stems]
    write_csv(folder / CLIPS, clips.drop(columns="stem").assign(file=files, gone=gone))


def unique(clips: pd.DataFrame, source: Path) -> pd.DataFrame:
    """The clips without rows that repeat another one. Raises UserError if there is none, or an id stands for two."""
    if clips.empty:
        raise UserError(f"{source}: expected an official list of clips, found none of this dataset")
    clips = clips.drop_duplicates(ignore_index=True)
    for name in clips["id"][clips["id"].duplicated()]:
        raise UserError(f"{source}: clip '{name}' stands twice, with different values")
    return clips


def get(wanted: Sequence[Wanted], videos: Path, origin: YouTube) -> dict[str, str]:
    """Download what is neither there nor known to be gone. Returns the reasons of what is lacking in the end, by stem.

    A file gets its name when it is whole. Raises UserError if nothing can be had any more, or if more than the share
    `tolerated` of all files fails for reasons that may pass; what has come stays, and the next call goes on from there.
    """
    if not downloads(origin):
        return ledger(videos)
    videos.mkdir(parents=True, exist_ok=True)
    if origin.retry_gone:
        (videos / LEDGER).unlink(missing_ok=True)
    gone = ledger(videos)
    have = there(videos)
    missing = [one for one in wanted if one.stem not in have and one.stem not in gone]
    failed: dict[str, str] = {}
    in_a_row = 0
    with _open_ledger(videos, gone) as file, closing(_outcomes(missing, videos, origin)) as outcomes:
        write = csv.writer(file, lineterminator="\n")
        for one, outcome in progress(outcomes, "videos", total=len(missing)):
            in_a_row = in_a_row + 1 if isinstance(outcome, TransientError) else 0
            if isinstance(outcome, TransientError):
                failed[one.stem] = str(outcome)
            elif isinstance(outcome, GoneError):
                gone[one.stem] = str(outcome)
                write.writerow([one.stem, outcome])
                file.flush()
            if in_a_row == IN_A_ROW:
                break
    if in_a_row == IN_A_ROW or len(failed) > origin.tolerated * len(wanted):
        stem, reason = list(failed.items())[-1]
        raise UserError(
            f"{videos}: {len(failed)} of {len(missing)} videos could not be downloaded, the last of them {stem}: "
            f"{reason}; what has come is kept, run again to go on"
        )
    shutil.rmtree(videos / INCOMING, ignore_errors=True)
    return gone | failed


def ledger(videos: Path) -> dict[str, str]:
    """Why files are gone, by stem. A last line that was not written to its end does not count."""
    path = videos / LEDGER
    lines = path.read_text(encoding="utf-8").split("\n")[1:-1] if path.exists() else []
    return {row[0]: row[1] for row in csv.reader(lines) if len(row) == 2}


def _open_ledger(videos: Path, gone: dict[str, str]) -> io.TextIOWrapper:
    """The ledger, written anew and open for more."""
    import pandas as pd

    from avdistill.data.files import write_csv

    write_csv(videos / LEDGER, pd.DataFrame(list(gone.items()), columns=["stem", "reason"]))
    return (videos / LEDGER).open("a", encoding="utf-8", newline="")


def _outcomes(
    wanted: Sequence[Wanted], videos: Path, origin: YouTube
) -> Generator[tuple[Wanted, GoneError | TransientError | None]]:
    """What became of each, as it becomes known. To close the iterator is to stop the downloads."""
    stop = threading.Event()
    rest = iter(wanted)
    running: dict[Future[GoneError | TransientError | None], Wanted] = {}
    pool = ThreadPoolExecutor(origin.workers, thread_name_prefix="yt-dlp")
    try:
        while True:
            for one in islice(rest, 2 * origin.workers - len(running)):
                running[pool.submit(_have, one, videos, origin, stop)] = one
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _have(one: Wanted, videos: Path, origin: YouTube, stop: threading.Event) -> GoneError | TransientError | None:
    """Download a file, with as many tries as it takes or may take. Returns why it is not there, None where it is."""
    for attempt in range(origin.retries + 1):
        if stop.wait(origin.pause):
            return TransientError("stopped")
        try:
            source = _download(one, videos / INCOMING, origin, stop)
            break
        except GoneError as error:
            return error
        except TransientError as error:
            back_off = min(BACK_OFF * 2**attempt, LONGEST_BACK_OFF) * random.uniform(0.5, 1.5)
            if attempt == origin.retries or stop.wait(back_off):
                return error
    if one.seconds is None:
        source.replace(videos / f"{one.stem}{source.suffix}")
        return None
    try:
        _cut(source, videos / f"{one.stem}.mp4", one.start, one.start + one.seconds)
    except media.MediaError as error:
        return GoneError(f"cannot be cut out of its video: {str(error).removeprefix(f'{source}: ')}")
    finally:
        source.unlink()
    return None


def _download(one: Wanted, folder: Path, origin: YouTube, stop: threading.Event) -> Path:
    """One try at a whole video, going on with what an earlier one has left. Raises GoneError or TransientError."""
    from yt_dlp import YoutubeDL
    from yt_dlp.utils import DownloadCancelled, YoutubeDLError

    def look(status: dict[str, Any]) -> None:
        if stop.is_set():
            raise DownloadCancelled("stopped")

    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "quiet": True,
        "no_warnings": True,
        "noprogress": True,
        "logger": _Silent(),
        "format": origin.format,
        "outtmpl": f"{folder}/{one.stem}".replace("%", "%%") + ".%(ext)s",
        "noplaylist": True,
        "retries": 0,  # tries are counted here
        "socket_timeout": 30,
        "updatetime": False,
        "progress_hooks": [look],
        "ratelimit": None if origin.rate_limit is None else origin.rate_limit * 1e6 / origin.workers,
        # As text: yt-dlp would write a file of cookies back, from several threads.
        "cookiefile": None if origin.cookies is None else io.StringIO(Path(origin.cookies).read_text()),
    }
    try:
        with YoutubeDL(options) as downloader:
            found = downloader.extract_info(origin.video_url.replace("{id}", one.video))
        return Path(found["requested_downloads"][0]["filepath"])
    except YoutubeDLError as error:
        reason = _reason(error, one)
        if GONE.search(reason) and not PASSING.search(reason):
            raise GoneError(reason) from None
        raise TransientError(reason) from None


def _reason(error: Exception, one: Wanted) -> str:
    """What yt-dlp says, on one line, without its name for the video, its causes and its advice how to report bugs."""
    said = " ".join(str(error).split()).removeprefix("ERROR: ")
    said = re.sub(r"^\[[^]]*\] ?", "", said).removeprefix(f"{one.video}: ")
    return re.split(r" \(caused by |; please report this issue", said)[0][:300]


def _cut(source: Path, target: Path, start: float, end: float) -> None:
    """Write a part of a video, with pictures and sound, as a small file of its own. Raises MediaError."""
    found = media.probe(source, start, end)
    if found.broken is not None:
        raise media.MediaError(f"{source}: {found.broken}")
    fps = max(1, min(FPS, round(found.fps)))
    side = min(SHORT_SIDE, found.width, found.height)
    pictures = media.read_frames(source, fps, side, start, end, reader="pyav")
    height, width = (length // 2 * 2 for length in pictures.shape[1:3])
    sound = None if found.audio == "no" else media.read_audio(source, start=start, end=end)
    media.write_video(target, pictures[:, :height, :width], fps, sound)


class _Silent:
    """Takes yt-dlp's messages: what matters comes as an exception."""

    def debug(self, message: str) -> None:
        """Nothing."""

    info = warning = error = debug
