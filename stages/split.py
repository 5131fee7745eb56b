"""Stage split: look at every clip, and give each to the train, val or test split by whole groups."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdistill.config.schema import Split
from avdistill.data import datasets, media
from avdistill.pipeline import workers
from avdistill.pipeline.errors import UserError, nearest
from avdistill.pipeline.stage import Stage

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "val", "test")
UNUSABLE = ("gone", "excluded")  # what a dataset says itself: columns of clips.csv that hold the reason


def main(stage: Stage) -> None:
    """Write index.csv, one row a clip: gone, broken and silent ones stay in it, marked, with a reason.

    The metrics have `expected_clips` of each split where a paper says how many it had."""
    from avdistill.data.files import digest
    from avdistill.data.index import write_index

    name = str(stage.item)
    dataset = stage.params.datasets[name]
    videos = datasets.of(dataset.origin).videos
    source = stage.input("download", name)
    clips = datasets.clips(source)
    index = assign(look(clips, videos(dataset.origin, source)), dataset.split)
    with stage.output() as folder:
        write_index(folder / "index.csv", index)
    summary = summarise(index)
    if expected := datasets.published(dataset.origin):
        summary["expected_clips"] = expected
    stage.metrics(summary)
    stage.run.log_params(dataset.split.model_dump())
    stage.run.log_metrics({f"{group}.{key}": n for group, counts in summary.items() for key, n in counts.items()})
    path = stage.params.path("split", name) / "index.csv"
    stage.run.log_dataset(name=name, path=path, digest=digest(path), context="split")
    stage.run.log_artifact(path)


def look(clips: pd.DataFrame, videos: Path) -> pd.DataFrame:
    """The clips with what their files hold: start, end, seconds, audio, status and reason."""
    import pandas as pd

    media.check_readers()
    places = datasets.locate(clips, videos)
    told = [(status, clips[status]) for status in UNUSABLE if status in clips]
    found = {
        clip.id: unusable(clip, status, reason)
        for status, reasons in told
        for clip, reason in zip(places, reasons, strict=True)
        if reason
    }
    here = [clip for clip in places if clip.id not in found]
    for clip, outcome in workers.each(examine, here, "look at clips"):
        found[clip.id] = unusable(clip, "broken", str(outcome)) if isinstance(outcome, UserError) else outcome
    known = clips.drop(columns=["start", "end", *UNUSABLE], errors="ignore")
    return pd.concat([known, pd.DataFrame([found[clip.id] for clip in places], index=clips.index)], axis=1)


def examine(clip: datasets.Clip) -> dict[str, object]:
    """What there is between the start and the end of a clip."""
    found = media.probe(clip.path, clip.start, clip.end)
    if found.broken is not None:
        return unusable(clip, "broken", found.broken)
    end = found.seconds if clip.end is None else min(clip.end, found.seconds)
    if end <= clip.start:
        reason = f"nothing between {clip.start:g} s and {end:g} s: the file is {found.seconds:g} s long"
        return unusable(clip, "broken", reason)
    place = {"start": clip.start, "end": end, "seconds": end - clip.start}
    return {**place, "audio": found.audio, "status": "ok", "reason": found.reason}


def unusable(clip: datasets.Clip, status: str, reason: str) -> dict[str, object]:
    """The row of a clip that cannot be used."""
    place = {"start": clip.start, "end": clip.end, "seconds": 0.0}
    return {**place, "audio": "no", "status": status, "reason": reason}


def assign(clips: pd.DataFrame, shares: Split) -> pd.DataFrame:
    """Add `label` (number of the class in alphabetical order) and `split`.

    Splits that the dataset gives are kept; without a validation split among them, one is cut from train. Otherwise
    `test`
    of the groups of each class go to test, and `val` of the rest to val. A group never stands in two splits.
    Raises UserError naming a class that has too few groups with usable clips.
    """
    classes = sorted(set(clips["class"]))
    usable = clips[clips["status"] == "ok"]
    for name in classes:
        if not (usable["class"] == name).any():
            raise UserError(f"class '{name}': none of its {(clips['class'] == name).sum()} clips can be decoded")
    if "split" in clips:
        split = clips["split"].astype(str)
        for value in sorted(set(split) - set(SPLITS)):
            raise UserError(
                f"split '{value}' of clip '{clips['id'][split == value].iloc[0]}': {nearest(value, SPLITS)}"
            )
    else:
        test = cut(usable, shares.test, [shares.seed, 0], keep=2 if shares.val else 1)
        split = clips["group"].isin(test).map({True: "test", False: "train"})
    if not (split == "val").any():
        train = usable[split[usable.index] == "train"]
        val = cut(train, shares.val, [shares.seed, 1], keep=1)
        split = split.mask((split == "train") & clips["group"].isin(val), "val")
    return clips.assign(label=clips["class"].map({name: label for label, name in enumerate(classes)}), split=split)


def cut(clips: pd.DataFrame, share: float, seed: list[int], keep: int) -> set[str]:
    """Groups drawn so that each class gives `share` of its own, rounded half up, at least one; `keep` stay.

    A group that several classes have is taken only while all of them have room for it.
    """
    import numpy as np

    if share == 0:
        return set()
    groups = clips.groupby("class")["group"].agg(set).to_dict()
    room = {name: min(max(1, int(share * len(own) + 0.5)), len(own) - keep) for name, own in groups.items()}
    for name, places in room.items():
        if places < 1:
            raise UserError(
                f"class '{name}' has {len(groups[name])} groups with usable clips, {keep + 1} are needed to keep the "
                "splits apart; add clips, or set split.test or split.val to 0"
            )
    asked = dict(room)
    owners = clips.groupby("group")["class"].agg(set).to_dict()
    taken = set()
    for group in np.random.default_rng(seed).permutation(sorted(set(clips["group"]))):
        if all(room[name] for name in owners[group]):
            taken.add(str(group))
            for name in owners[group]:
                room[name] -= 1
    for name, places in room.items():
        if places == asked[name]:
            raise UserError(f"class '{name}' shares all its groups with classes that have no room for them")
    return taken


def summarise(index: pd.DataFrame) -> dict[str, Any]:
    """Numbers of clips: usable ones by split and by sound, all by status; and of groups, usable and gone, by split."""
    usable = index[index["status"] == "ok"]
    gone = index[(index["status"] == "gone") & ~index["group"].isin(index["group"][index["status"] != "gone"])]
    return {
        "split": {split: int((usable["split"] == split).sum()) for split in SPLITS},
        "audio": {audio: int((usable["audio"] == audio).sum()) for audio in ("yes", "silent", "no")},
        "status": {status: int((index["status"] == status).sum()) for status in ("ok", "broken", *UNUSABLE)},
        "groups": {split: usable["group"][usable["split"] == split].nunique() for split in SPLITS},
        "groups_gone": {split: gone["group"][gone["split"] == split].nunique() for split in SPLITS},
    }
