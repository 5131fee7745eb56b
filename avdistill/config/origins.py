"""Where datasets come from: one class per kind of origin."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from avdistill.config.types import Count, Positive, Seed, Settings, Share, Url


class Origin(Settings):
    """Where a dataset comes from. `source` is the file or folder that its download depends on (for DVC)."""

    source: str


class Avsynth(Origin):
    """The synthetic dataset with known truth; see avdistill/data/datasets/avsynth for what each value means."""

    kind: Literal["avsynth"]
    seed: Seed = 0
    classes: Annotated[int, Field(ge=2, le=12)] = 10
    groups: Annotated[int, Field(ge=3)] = 20
    clips_per_group: Count = 3
    seconds: Annotated[float, Field(ge=0.5, le=30)] = 3.0
    fps: Annotated[int, Field(ge=4, le=60)] = 12
    width: Annotated[int, Field(ge=32, multiple_of=2)] = 56
    height: Annotated[int, Field(ge=32, multiple_of=2)] = 42
    relevant: Share = 0.8
    strong: Share = 0.7
    no_sound: Share = 0.02
    music_db: tuple[float, float] = (-25.0, -5.0)
    clutter: Share = 0.5
    typical: Share = 0.6


class Folder(Origin):
    """Anybody's videos: `<source>/<class>/<clip>.<any video type>` and an optional `<source>/groups.csv`."""

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
                raise ValueError("group_pattern needs exactly one (group) in parentheses")
        return self


class Ucf51(Origin):
    """The clips of UCF101 that have sound, parted by the official lists of `split`.

    Without `videos` (a folder or an archive that is used where it lies) UCF101.rar is fetched from its site, or from
    `mirror`, and deleted when it is unpacked unless `keep_archive`. `source`: what DVC watches, the folder or archive
    where `videos` is given, else avdistill/data/datasets/unwatched."""

    kind: Literal["ucf51"]
    videos: str | None = None
    mirror: Url | None = None
    split: Literal[1, 2, 3] = 1
    keep_archive: bool = Field(default=False, repr=False)


class Videos(Origin):
    """Published videos. `videos`: a folder of those that the user already has, used in place, in any layout; with
    `fill` the others are downloaded into it, without they are marked as gone. Where it is not given, all are
    downloaded. `annotation`: the user's own copy of the official list of clips. `mirror`: a base URL in place of the
    official one. `source`: what DVC watches, the folder where `videos` is given without `fill`, else
    avdistill/data/datasets/unwatched."""

    videos: str | None = None
    fill: bool = Field(default=False, repr=False)
    annotation: str | None = None
    mirror: Url | None = None

    @model_validator(mode="after")
    def _something_to_fill(self) -> Videos:
        if self.fill and self.videos is None:
            raise ValueError("fill needs videos, the folder that is to be filled")
        return self


class YouTube(Videos):
    """Videos that yt-dlp downloads, at most `workers` at a time; see avdistill/data/sources/youtube.py.

    `format` is yt-dlp's; the default, a small file that has both pictures and sound, needs no ffmpeg. `rate_limit`
    is in MB/s, for all workers together. A worker waits `pause` seconds before each video, and tries it again up to
    `retries` times; no more than the share `tolerated` of all videos may fail for reasons that could pass. What was
    gone an earlier time is asked for again with `retry_gone`. `cookies` is a file of cookies in Netscape's format,
    for a site that wants to know who asks. `{id}` in `video_url` stands for the video's id.

    What says only how to download stays out of the repr, by which download tells whether it goes on with what an
    interrupted one has left."""

    video_url: str = "https://www.youtube.com/watch?v={id}"
    format: str = "b[height<=360]/b"
    workers: Count = Field(default=4, repr=False)
    rate_limit: Positive | None = Field(default=None, repr=False)
    pause: Annotated[float, Field(ge=0)] = Field(default=5.0, repr=False)
    retries: Annotated[int, Field(ge=0)] = Field(default=5, repr=False)
    tolerated: Share = Field(default=0.01, repr=False)
    retry_gone: bool = Field(default=False, repr=False)
    cookies: str | None = Field(default=None, repr=False)

    @model_validator(mode="after")
    def _url_has_a_place_for_the_id(self) -> YouTube:
        if "{id}" not in self.video_url:
            raise ValueError("video_url needs {id} where the video's id belongs")
        return self


class ActivityNet(YouTube):
    """ActivityNet v1.3: one example a segment of a video; see avdistill/data/datasets/activitynet.py."""

    kind: Literal["activitynet"]


class KineticsSounds(Videos):
    """The classes of Kinetics-400 that can be heard; see avdistill/data/datasets/kinetics_sounds.py.

    `annotation` is a folder that has Kinetics-400's train.csv and val.csv."""

    kind: Literal["kinetics_sounds"]


class VGGSound(YouTube):
    """VGGSound: clips of 10 s of YouTube videos; see avdistill/data/datasets/vggsound.py."""

    kind: Literal["vggsound"]


AnyOrigin = Annotated[Avsynth | Folder | Ucf51 | ActivityNet | KineticsSounds | VGGSound, Field(discriminator="kind")]
