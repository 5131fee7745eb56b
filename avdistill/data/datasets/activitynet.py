"""activitynet: ActivityNet v1.3 (Caba Heilbron et al., CVPR 2015), 200 activities in YouTube videos.

One clip per annotated segment: `<video>_<n>` is the n-th segment of the video, `start` to `end` of the file
`v_<video>`. The groups are the videos. The official training videos are the train split, the validation videos the
test split; the testing videos have no public labels and are left out.

The papers had different numbers of videos: Chen et al. all 10,024 (training) and 4,926 (validation); the program of
Xia et al. reads 15,232 and 7,555 segments of 14,844 videos. Stage split counts the clips available today.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from avdistill.config.origins import ActivityNet
from avdistill.data.sources import youtube
from avdistill.pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

OFFICIAL = "http://ec2-52-25-205-214.us-west-2.compute.amazonaws.com/files"
ANNOTATION = "activity_net.v1-3.min.json"
PUBLISHED = {"train": 15_232, "test": 7_555}  # segments that the program of Xia et al. reads
SPLITS = {"training": "train", "validation": "test", "testing": None}


def check(origin: ActivityNet) -> None:
    """Check that the paths in the origin exist. Raises UserError."""
    youtube.check(origin, [ANNOTATION])


def videos(origin: ActivityNet, folder: Path) -> Path:
    """Return the user's folder, or that of the downloaded videos."""
    return youtube.video_folder(origin, folder)


def published(origin: ActivityNet) -> dict[str, int]:
    """Return the count of clips by split in Xia et al."""
    return PUBLISHED


def download(origin: ActivityNet, folder: Path) -> None:
    """Write clips.csv; download the annotation and, with yt-dlp, whole videos that the user does not have."""
    clips = segments(youtube.official(origin, OFFICIAL, ANNOTATION, folder))
    names = clips["group"].unique()
    wanted = [youtube.Wanted(f"v_{name}", name) for name in names]
    youtube.save(clips, origin, folder, youtube.get(wanted, videos(origin, folder), origin))


def segments(path: Path) -> pd.DataFrame:
    """Read one row per segment of an official annotation file: id, class, group, split, start and end (s), stem.

    Raises UserError naming the video whose entry is malformed.
    """
    import pandas as pd

    try:
        database = json.loads(path.read_text(encoding="utf-8"))["database"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: expected JSON with a 'database', as in the official {ANNOTATION}") from None
    rows = []
    for name, video in database:
        try:
            split = SPLITS[video["subset"]]
            for number, annotation in enumerate(video["annotations"] if split else ()):
                start, end = map(float, annotation["segment"])
                rows.append((f"{name}_{number}", name, split, annotation["label"], start, end))
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{path}: {name}: expected a subset ({', '.join(SPLITS)}) and annotations, each with a label and a "
                "segment of two times"
            ) from None
    clips = pd.DataFrame(rows, columns=["id", "group", "split", "class", "start", "end"])
    return youtube.unique(clips.assign(stem="v_" + clips["group"]), path)
