"""activitynet: ActivityNet v1.3 (Caba Heilbron et al., CVPR 2015), 200 activities in videos of YouTube.

One example a segment of its annotation: `<video>_<n>`, the n-th of the video, from `start` to `end` in its file
`v_<video>`. The groups are the videos. The official training videos are the train split, the validation videos the
test split; those for testing have no public labels and are left out.

The numbers of videos that were there differ from paper to paper: Chen had all 10,024 and 4,926, Xia's program reads
15,232 and 7,555 segments of 14,844 videos. Stage split counts what is there today.
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
PUBLISHED = {"train": 15_232, "test": 7_555}  # segments that Xia's program reads
SPLITS = {"training": "train", "validation": "test", "testing": None}


def check(origin: ActivityNet) -> None:
    """Raises UserError if something that the user has named is not there."""
    youtube.check(origin, [ANNOTATION])


def videos(origin: ActivityNet, folder: Path) -> Path:
    """The user's own folder, or where the videos were downloaded to."""
    return youtube.home(origin, folder)


def published(origin: ActivityNet) -> dict[str, int]:
    """How many clips a split has in Xia et al."""
    return PUBLISHED


def download(origin: ActivityNet, folder: Path) -> None:
    """Get the annotation and, if the user has not got them, whole videos by yt-dlp; write clips.csv."""
    clips = segments(youtube.official(origin, OFFICIAL, ANNOTATION, folder))
    names = clips["group"].unique()
    wanted = [youtube.Wanted(f"v_{name}", name) for name in names]
    youtube.save(clips, origin, folder, youtube.get(wanted, videos(origin, folder), origin))


def segments(path: Path) -> pd.DataFrame:
    """One row a segment of an official annotation file: id, class, group, split, start and end (s), stem.

    Raises UserError naming the video whose entry is not as expected.
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
            for number, one in enumerate(video["annotations"] if split else ()):
                start, end = map(float, one["segment"])
                rows.append((f"{name}_{number}", name, split, one["label"], start, end))
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{path}: {name}: expected a subset ({', '.join(SPLITS)}) and annotations, each with a label and a "
                "segment of two times"
            ) from None
    clips = pd.DataFrame(rows, columns=["id", "group", "split", "class", "start", "end"])
    return youtube.unique(clips.assign(stem="v_" + clips["group"]), path)
