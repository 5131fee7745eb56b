"""The `origin` sections of params.yaml: where datasets come from, one class per kind."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from avdistill.config.types import Count, Fraction, Positive, Seed, Settings, Url


class Origin(Settings):
    """Where a dataset comes from. `source` is the file or folder that stage download depends on in DVC."""

    source: str


class Avsynth(Origin):
    """The synthetic dataset with known ground truth; avdistill/data/datasets/avsynth documents the keys."""

    kind: Literal["avsynth"]
    seed: Seed = 0
    classes: Annotated[int, Field(ge=2, le=10)] = 10
    variants: Annotated[int, Field(ge=1, le=5)] = 1
    groups: Annotated[int, Field(ge=3)] = 20
    clips_per_group: Count = 3
    seconds: Annotated[float, Field(ge=0.5, le=30)] = 3.0
    fps: Annotated[int, Field(ge=4, le=60)] = 12
    width: Annotated[int, Field(ge=16, multiple_of=2)] = 56
    height: Annotated[int, Field(ge=16, multiple_of=2)] = 42
    relevant: Fraction = 0.8
    informed: Fraction = 1.0
    strong: Fraction = 0.7
    no_sound: Fraction = 0.02
    music_db: tuple[float, float] = (-25.0, -5.0)
    clutter: Fraction = 0.5
    typical: Fraction = 0.6


class Folder(Origin):
    """The user's videos: `<source>/<class>/<clip>.<any video type>` and optionally `<source>/groups.csv`."""

    kind: Literal["folder"]
    group_pattern: str | None = None

    @model_validator(mode="after")
    def _pattern_compiles(self) -> Folder:
        if self.group_pattern is not None:
            try:
                groups = re.compile(self.group_pattern).groups
            except re.error as error:
                raise ValueError(f"group_pattern is not a regular expression: {error}") from error
            if groups != 1:
                raise ValueError(f"group_pattern must have exactly one (group) in parentheses, it has {groups}")
        return self


class Ucf51(Origin):
    """The clips of UCF101 that have sound, split by the official lists number `split`.

    `videos` is a folder or an archive, used in place. Without it, UCF101.rar is downloaded from the official site or
    from the base URL `mirror`, and deleted after unpacking unless `keep_archive`. Set `source`, which DVC watches, to
    the same path as `videos`, or to avdistill/data/datasets/unwatched without `videos`."""

    kind: Literal["ucf51"]
    videos: str | None = None
    mirror: Url | None = None
    split: Literal[1, 2, 3] = 1
    keep_archive: bool = Field(default=False, repr=False)


class Videos(Origin):
    """Published videos.

    `videos` is a folder of videos that the user already has, in any layout, used in place. With `fill`, missing videos
    are downloaded into it; without, they are marked as unavailable. Without `videos`, all videos are downloaded.
    `annotation` is the user's copy of the official list of clips, `mirror` a base URL in place of the official one.
    Set `source`, which DVC watches, to the same folder as `videos` if `fill` is false, else to
    avdistill/data/datasets/unwatched."""

    videos: str | None = None
    fill: bool = Field(default=False, repr=False)
    annotation: str | None = None
    mirror: Url | None = None

    @model_validator(mode="after")
    def _fill_has_a_folder(self) -> Videos:
        if self.fill and self.videos is None:
            raise ValueError("fill needs videos: set videos to the folder to download into")
        return self


class YouTube(Videos):
    """Videos that yt-dlp downloads, at most `workers` at a time; see avdistill/data/sources/youtube.py.

    `format` is a yt-dlp format; the default, a small file with both video and audio, needs no ffmpeg. `rate_limit` is
    in MB/s, for all workers together. A worker waits `pause` seconds before each try and retries a video up to
    `retries` times; at most the fraction `tolerated` of all videos may fail for transient reasons. `retry_unavailable`
    requests videos again that were unavailable before. `cookies` is a cookie file in Netscape format, for videos that
    need a login. `{id}` in `video_url` is replaced by the video id.

    Keys that do not change the result have repr=False: an interrupted download resumes only if the repr is the same."""

    video_url: str = "https://www.youtube.com/watch?v={id}"
    format: str = "b[height<=360]/b"
    workers: Count = Field(default=4, repr=False)
    rate_limit: Positive | None = Field(default=None, repr=False)
    pause: Annotated[float, Field(ge=0)] = Field(default=5.0, repr=False)
    retries: Annotated[int, Field(ge=0)] = Field(default=5, repr=False)
    tolerated: Fraction = Field(default=0.01, repr=False)
    retry_unavailable: bool = Field(default=False, repr=False)
    cookies: str | None = Field(default=None, repr=False)

    @model_validator(mode="after")
    def _url_has_an_id_placeholder(self) -> YouTube:
        if "{id}" not in self.video_url:
            raise ValueError("video_url needs {id} in place of the video id")
        return self


class ActivityNet(YouTube):
    """ActivityNet v1.3: one clip per annotated segment; see avdistill/data/datasets/activitynet.py."""

    kind: Literal["activitynet"]


class KineticsSounds(Videos):
    """Kinetics-Sounds: 31 classes of Kinetics-400 with typical sounds; see avdistill/data/datasets/kinetics_sounds.py.

    `annotation` is a folder with Kinetics-400's train.csv and val.csv."""

    kind: Literal["kinetics_sounds"]


class VGGSound(YouTube):
    """VGGSound: 10 s clips of YouTube videos; see avdistill/data/datasets/vggsound.py.

    `vggsounder` also downloads the labels of VGGSounder, from PyPI or from `mirror`: what is heard and seen in each
    test clip (avdistill/data/sources/vggsounder.py). The report then evaluates the runs on them."""

    kind: Literal["vggsound"]
    vggsounder: bool = Field(default=False, repr=False)  # the videos stay the same


class Archived(Videos):
    """Published videos; `videos` may also be an archive (zip, tar or RAR), which is unpacked into the output."""


class CremaD(Archived):
    """CREMA-D: 6 acted emotions, 91 actors; see avdistill/data/datasets/crema_d.py.

    `split`: no actor is in two splits, or the split that others published. `annotation` is a folder with the published
    train.csv and test.csv."""

    kind: Literal["crema_d"]
    split: Literal["actor", "published"] = Field(default="actor", repr=False)  # is not a reason to download again


class Ave(Archived):
    """AVE: 28 classes of audio-visual events in clips of 10 s; see avdistill/data/datasets/ave.py.

    `split`: the published lists with each video in one split only, or as they are. `annotation` is a folder with
    trainSet.txt, valSet.txt and testSet.txt, which are also in the archive."""

    kind: Literal["ave"]
    split: Literal["video", "published"] = Field(default="video", repr=False)


class Ravdess(Archived):
    """RAVDESS: 8 acted emotions in speech, 24 actors; see avdistill/data/datasets/ravdess.py."""

    kind: Literal["ravdess"]


PublishedVideos = ActivityNet | KineticsSounds | VGGSound | CremaD | Ave | Ravdess
AnyOrigin = Annotated[Avsynth | Folder | Ucf51 | PublishedVideos, Field(discriminator="kind")]
