"""Find the video files of a dataset and download the missing ones from YouTube with yt-dlp.

A file is identified by its *stem*, the file name without extension: published copies of a dataset agree on stems but
not on file types or folders. `<videos>/unavailable.csv` (columns stem, reason) is the ledger of videos that YouTube no
longer has; they are not requested again. Transient failures (no network, rate limiting, …) are retried and not
recorded in the ledger; if too many videos still fail, the download ends with an error.

YouTube serves a few hundred requests an hour, so the number of requests limits the speed, not the size of the videos.
A clip of a few seconds is therefore cut out of the downloaded whole video, which needs no external program.
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

from avdistill.config.origins import Archived, PublishedVideos, Videos, YouTube
from avdistill.data import media
from avdistill.data.datasets import CLIPS, print_counts
from avdistill.data.datasets.folder import VIDEO_TYPES
from avdistill.data.sources.http import TransientError
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.progress import progress

if TYPE_CHECKING:
    import pandas as pd

LEDGER = "unavailable.csv"
NOT_THERE = "not in the folder of videos"
INCOMING = ".incoming"  # folder of incomplete files
BACK_OFF = 2.0  # s before the second try, doubled for each later one
LONGEST_BACK_OFF = 60.0  # s
IN_A_ROW = 30  # consecutive failures that point to the network or the site, not to single videos
SHORT_SIDE, FPS = 256, 30  # upper limits for clips that are cut out of a video

# yt-dlp's messages about videos that are permanently unavailable.
UNAVAILABLE = re.compile(
    r"private video|video is private|no longer available|(video|recording) (is )?(unavailable|not available)"
    r"|been removed|has been deleted|does not exist|account .*terminated|copyright|in your (country|region|location)"
    r"|members|premium|confirm your age|age-restricted|requires payment|webpage: HTTP Error (404|410|451)",
    re.I,
)
# Messages that UNAVAILABLE may match but whose cause is transient.
TRANSIENT = re.compile(r"not a bot|try again|rate.limit|too many requests|content isn.t available|captcha", re.I)


class Wanted(NamedTuple):
    """A file to download: the whole video (`seconds` is None), or `seconds` of it from `start`."""

    stem: str
    video: str
    start: float = 0.0
    seconds: float | None = None


class UnavailableError(Exception):
    """A file is permanently unavailable; the message is the reason."""


def check(origin: Videos, lists: Sequence[str]) -> None:
    """Check that the user's folder and files exist; `lists` are names as for `official`. Raises UserError."""
    for name in lists:
        _own_list(origin, name)
    if not downloads(origin) and not own_archive(origin) and not find_videos(Path(origin.videos or "")):
        raise UserError(f"videos: {origin.videos}: expected a folder with videos, found none")
    if isinstance(origin, YouTube) and origin.cookies is not None and not Path(origin.cookies).is_file():
        raise UserError(f"cookies: {origin.cookies}: there is no such file")


def official(origin: Videos, base: str, name: str, folder: Path) -> Path:
    """Return the path of an official list of clips: the user's copy, or `<base>/<name>` downloaded into `folder`."""
    from avdistill.data.sources.http import fetch

    url = f"{mirrored(origin, base)}/{name}"
    return _own_list(origin, name) or fetch(url, folder / PurePosixPath(name).name)


def mirrored(origin: Videos, base: str) -> str:
    """Return the origin's mirror, or the official base URL `base` if it has none."""
    return (origin.mirror or base).rstrip("/")


def _own_list(origin: Videos, name: str) -> Path | None:
    """Return the user's copy of a list: `annotation`, or the file of that name in it. None without `annotation`."""
    if origin.annotation is None:
        return None
    own = Path(origin.annotation)
    own = own / PurePosixPath(name).name if own.is_dir() else own
    if not own.is_file():
        raise UserError(f"annotation: {own}: there is no such file")
    return own


def video_folder(origin: Videos, folder: Path) -> Path:
    """Return the folder of the videos: the user's, or one in the output `folder` of stage download."""
    return folder / "videos" if origin.videos is None or own_archive(origin) else Path(origin.videos)


def own_archive(origin: Videos) -> Path | None:
    """Return the user's archive of videos; None if `videos` is a folder or not set."""
    path = Path(origin.videos) if isinstance(origin, Archived) and origin.videos else None
    return path if path and path.is_file() else None


def downloads(origin: Videos) -> bool:
    """Return whether missing videos are downloaded."""
    return origin.videos is None or origin.fill


def find_videos(videos: Path) -> dict[str, str]:
    """Return the relative paths of the video files below a folder, by stem; of two files with one stem, the first."""
    found: dict[str, str] = {}
    for parent, folders, files in os.walk(videos):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        relative = Path(parent).relative_to(videos).as_posix()
        for name in sorted(files):
            stem, extension = os.path.splitext(name)  # noqa: PTH122 - 200,000 Path objects would take seconds
            if VIDEO_TYPES.fullmatch(extension) and not name.startswith("."):
                found.setdefault(stem, name if relative == "." else f"{relative}/{name}")
    return found


def save(clips: pd.DataFrame, origin: PublishedVideos, folder: Path, reasons: dict[str, str]) -> None:
    """Write clips.csv: `clips` with the columns `file` and `unavailable` in place of `stem`.

    `file` is the existing or expected file; `unavailable` is the reason why it does not exist (`reasons` are by stem),
    empty if it exists or is not needed because the clip is excluded. For files in the user's folder, also write
    files.csv with their sizes, so that DVC notices replaced files. Print the counts. Raises UserError if none of the
    files exists.
    """
    import pandas as pd

    from avdistill.data.files import write_csv

    videos = video_folder(origin, folder)
    existing = find_videos(videos)
    stems = clips["stem"].tolist()
    if existing.keys().isdisjoint(stems):
        raise UserError(f"{videos}: expected videos named like {stems[0]}.mp4, found none of {len(clips)} clips")
    if origin.videos is not None:
        own = [existing[stem] for stem in dict.fromkeys(stems) if stem in existing]
        sizes = [(videos / file).stat().st_size for file in own]
        write_csv(folder / "files.csv", pd.DataFrame({"file": own, "size": sizes}))
    files = [existing.get(stem, f"{stem}.mp4") for stem in stems]
    unavailable = ["" if stem in existing else reasons.get(stem, NOT_THERE) for stem in stems]
    table = clips.drop(columns="stem").assign(file=files, unavailable=unavailable)
    if "excluded" in table:
        table["unavailable"] = table["unavailable"].where(table["excluded"] == "", "")
    write_csv(folder / CLIPS, table)
    print_counts(origin.kind, table, {"files that are not in the official list": len(existing.keys() - set(stems))})


def unique(clips: pd.DataFrame, source: Path) -> pd.DataFrame:
    """Drop duplicate rows. Raises UserError if there is no clip, or two different clips have one id."""
    if clips.empty:
        raise UserError(f"{source}: expected an official list of clips, found none of this dataset")
    clips = clips.drop_duplicates(ignore_index=True)
    for name in clips["id"][clips["id"].duplicated()]:
        raise UserError(f"{source}: clip '{name}' occurs twice, with different values")
    return clips


def get(wanted: Sequence[Wanted], videos: Path, origin: YouTube) -> dict[str, str]:
    """Download the files that neither exist nor are in the ledger; return why files are missing in the end, by stem.

    A file gets its name when it is complete. Raises UserError after IN_A_ROW consecutive transient failures, or if more
    than the fraction `tolerated` of all files fails transiently. Downloaded files are kept, and the next call resumes.
    """
    if not downloads(origin):
        return ledger(videos)
    videos.mkdir(parents=True, exist_ok=True)
    if origin.retry_unavailable:
        (videos / LEDGER).unlink(missing_ok=True)
    unavailable = ledger(videos)
    existing = find_videos(videos)
    missing = [one for one in wanted if one.stem not in existing and one.stem not in unavailable]
    failed: dict[str, str] = {}
    in_a_row = 0
    with _open_ledger(videos, unavailable) as file, closing(_outcomes(missing, videos, origin)) as outcomes:
        write = csv.writer(file, lineterminator="\n")
        for one, outcome in progress(outcomes, "videos", total=len(missing)):
            in_a_row = in_a_row + 1 if isinstance(outcome, TransientError) else 0
            if isinstance(outcome, TransientError):
                failed[one.stem] = str(outcome)
            elif isinstance(outcome, UnavailableError):
                unavailable[one.stem] = str(outcome)
                write.writerow([one.stem, outcome])
                file.flush()
            if in_a_row == IN_A_ROW:
                break
    if in_a_row == IN_A_ROW or len(failed) > origin.tolerated * len(wanted):
        stem, reason = list(failed.items())[-1]
        raise UserError(
            f"{videos}: {len(failed)} of {len(missing)} videos could not be downloaded, the last of them {stem}: "
            f"{reason}; the downloaded videos are kept, run again to resume"
        )
    shutil.rmtree(videos / INCOMING, ignore_errors=True)
    return unavailable | failed


def ledger(videos: Path) -> dict[str, str]:
    """Read why files are unavailable, by stem. An incomplete last line is ignored."""
    path = videos / LEDGER
    lines = path.read_text(encoding="utf-8").split("\n")[1:-1] if path.exists() else []
    return {row[0]: row[1] for row in csv.reader(lines) if len(row) == 2}


def _open_ledger(videos: Path, unavailable: dict[str, str]) -> io.TextIOWrapper:
    """Rewrite the ledger, without an incomplete last line, and open it for appending."""
    import pandas as pd

    from avdistill.data.files import write_csv

    write_csv(videos / LEDGER, pd.DataFrame(list(unavailable.items()), columns=["stem", "reason"]))
    return (videos / LEDGER).open("a", encoding="utf-8", newline="")


def _outcomes(
    wanted: Sequence[Wanted], videos: Path, origin: YouTube
) -> Generator[tuple[Wanted, UnavailableError | TransientError | None]]:
    """Yield each file with its error, or None, in order of completion. Closing the generator stops the downloads."""
    stop = threading.Event()
    remaining = iter(wanted)
    running: dict[Future[UnavailableError | TransientError | None], Wanted] = {}
    pool = ThreadPoolExecutor(origin.workers, thread_name_prefix="yt-dlp")
    try:
        while True:
            for one in islice(remaining, 2 * origin.workers - len(running)):
                running[pool.submit(_download_or_cut, one, videos, origin, stop)] = one
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _download_or_cut(
    one: Wanted, videos: Path, origin: YouTube, stop: threading.Event
) -> UnavailableError | TransientError | None:
    """Download a file with up to `retries` retries, and cut out the clip. Returns the last error, None on success."""
    for attempt in range(origin.retries + 1):
        if stop.wait(origin.pause):
            return TransientError("stopped")
        try:
            source = _download(one, videos / INCOMING, origin, stop)
            break
        except UnavailableError as error:
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
        return UnavailableError(f"cannot be cut out of its video: {str(error).removeprefix(f'{source}: ')}")
    finally:
        source.unlink()
    return None


def _download(one: Wanted, folder: Path, origin: YouTube, stop: threading.Event) -> Path:
    """Download a whole video in one try, resuming an earlier one. Raises UnavailableError or TransientError."""
    from yt_dlp import YoutubeDL
    from yt_dlp.utils import DownloadCancelled, YoutubeDLError

    def cancel_if_stopped(status: dict[str, Any]) -> None:
        if stop.is_set():
            raise DownloadCancelled("stopped")

    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "quiet": True,
        "no_warnings": True,
        "noprogress": True,
        "logger": _SilentLogger(),
        "format": origin.format,
        "outtmpl": f"{folder}/{one.stem}".replace("%", "%%") + ".%(ext)s",
        "noplaylist": True,
        "retries": 0,  # _download_or_cut retries
        "socket_timeout": 30,
        "updatetime": False,
        "progress_hooks": [cancel_if_stopped],
        "ratelimit": None if origin.rate_limit is None else origin.rate_limit * 1e6 / origin.workers,
        # A copy in memory: yt-dlp writes a cookie file back, which several threads must not do.
        "cookiefile": None if origin.cookies is None else io.StringIO(Path(origin.cookies).read_text()),
    }
    try:
        with YoutubeDL(options) as downloader:
            found = downloader.extract_info(origin.video_url.replace("{id}", one.video))
        return Path(found["requested_downloads"][0]["filepath"])
    except YoutubeDLError as error:
        reason = _reason(error, one)
        if UNAVAILABLE.search(reason) and not TRANSIENT.search(reason):
            raise UnavailableError(reason) from None
        raise TransientError(reason) from None


def _reason(error: Exception, one: Wanted) -> str:
    """Return yt-dlp's message as one line, without the video id, the cause and the advice on reporting bugs."""
    message = " ".join(str(error).split()).removeprefix("ERROR: ")
    message = re.sub(r"^\[[^]]*\] ?", "", message).removeprefix(f"{one.video}: ")
    return re.split(r" \(caused by |; please report this issue", message)[0][:300]


def _cut(source: Path, target: Path, start: float, end: float) -> None:
    """Write `start` to `end` (s) of a video, with its sound, to a file within SHORT_SIDE and FPS. Raises MediaError."""
    found = media.probe(source, start, end)
    if found.corrupt is not None:
        raise media.MediaError(f"{source}: {found.corrupt}")
    fps = max(1, min(FPS, round(found.fps)))
    side = min(SHORT_SIDE, found.width, found.height)
    frames = media.read_frames(source, fps, side, start, end, reader="pyav")
    height, width = (length // 2 * 2 for length in frames.shape[1:3])
    sound = None if found.audio == "no" else media.read_audio(source, start=start, end=end)
    media.write_video(target, frames[:, :height, :width], fps, sound)


class _SilentLogger:
    """Discard yt-dlp's messages: failures are raised as exceptions."""

    def debug(self, message: str) -> None:
        """Discard the message."""

    info = warning = error = debug
