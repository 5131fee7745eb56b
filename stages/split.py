"""Stage split: probe every clip, and assign whole groups of clips to the train, val and test splits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdistill.config.schema import Split
from avdistill.data import datasets, media
from avdistill.pipeline import workers
from avdistill.pipeline.errors import UserError, nearest
from avdistill.pipeline.stage import Stage

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

SPLITS = ("train", "val", "test")
UNUSABLE = ("unavailable", "excluded")  # set by the dataset: columns of clips.csv with the reason


def main(stage: Stage) -> None:
    """Write index.csv, one row per clip; unusable and silent clips are included, with status, audio and reason.

    The metrics include `expected_clips`, the published count of clips by split, if it is known."""
    from avdistill.data.files import digest
    from avdistill.data.index import write_index

    name = str(stage.item)
    dataset = stage.params.datasets[name]
    videos = datasets.of(dataset.origin).videos
    source = stage.input("download", name)
    clips = datasets.clips(source)
    index = assign(probe_clips(clips, videos(dataset.origin, source)), dataset.split)
    with stage.output() as folder:
        write_index(folder / "index.csv", index)
    summary = summarise(index)
    if expected := datasets.published(dataset.origin):
        summary["expected_clips"] = expected
    stage.run.log_params(dataset.split.model_dump())
    stage.run.log_metrics({f"{group}.{key}": n for group, counts in summary.items() for key, n in counts.items()})
    path = stage.params.index(name)
    stage.run.log_dataset(name=name, path=path, digest=digest(path), context="split")
    stage.run.log_artifact(path)


def probe_clips(clips: pd.DataFrame, videos: Path) -> pd.DataFrame:
    """Probe the files of the clips; add the columns start, end, seconds, audio, status and reason."""
    import pandas as pd

    media.check_readers()
    located = datasets.locate(clips, videos)
    given = [(status, clips[status]) for status in UNUSABLE if status in clips]
    found = {
        clip.id: unusable(clip, status, reason)
        for status, reasons in given
        for clip, reason in zip(located, reasons, strict=True)
        if reason
    }
    remaining = [clip for clip in located if clip.id not in found]
    for clip, outcome in workers.each(probe_clip, remaining, "probe clips"):
        found[clip.id] = unusable(clip, "corrupt", str(outcome)) if isinstance(outcome, UserError) else outcome
    kept = clips.drop(columns=["start", "end", *UNUSABLE], errors="ignore")
    return pd.concat([kept, pd.DataFrame([found[clip.id] for clip in located], index=clips.index)], axis=1)


def probe_clip(clip: datasets.Clip) -> dict[str, object]:
    """Return the index columns of a clip from its file between start and end."""
    found = media.probe(clip.path, clip.start, clip.end)
    if found.corrupt is not None:
        return unusable(clip, "corrupt", found.corrupt)
    end = found.seconds if clip.end is None else min(clip.end, found.seconds)
    if end <= clip.start:
        reason = f"nothing between {clip.start:g} s and {end:g} s: the file is {found.seconds:g} s long"
        return unusable(clip, "corrupt", reason)
    times = {"start": clip.start, "end": end, "seconds": end - clip.start}
    return {**times, "audio": found.audio, "status": "ok", "reason": found.reason}


def unusable(clip: datasets.Clip, status: str, reason: str) -> dict[str, object]:
    """Return the index columns of a clip that cannot be used."""
    times = {"start": clip.start, "end": clip.end, "seconds": 0.0}
    return {**times, "audio": "no", "status": status, "reason": reason}


def assign(clips: pd.DataFrame, fractions: Split) -> pd.DataFrame:
    """Add the columns `label` (class number in alphabetical order) and `split`.

    Official splits of the dataset are kept; if they have no validation split, it is taken from train. Without official
    splits, the fraction `test` of the groups of each class goes to test, and `val` of the others to val. All clips of
    a group are in one split. Raises UserError naming a class with too few groups of usable clips.
    """
    classes = sorted(set(clips["class"]))
    usable = clips[clips["status"] == "ok"]
    for name in classes:
        if not (usable["class"] == name).any():
            raise UserError(
                f"class '{name}': none of its {(clips['class'] == name).sum()} clips is usable (each is corrupt, "
                "unavailable or excluded); add clips or remove the class"
            )
    if "split" in clips:
        split = clips["split"].astype(str)
        for value in sorted(set(split) - set(SPLITS)):
            raise UserError(
                f"clip '{clips['id'][split == value].iloc[0]}': unknown split '{value}'; {nearest(value, SPLITS)}"
            )
    else:
        test = sample_groups(usable, fractions.test, [fractions.seed, 0], keep=2 if fractions.val else 1)
        split = clips["group"].isin(test).map({True: "test", False: "train"})
    if not (split == "val").any():
        train = usable[split[usable.index] == "train"]
        val = sample_groups(train, fractions.val, [fractions.seed, 1], keep=1)
        split = split.mask((split == "train") & clips["group"].isin(val), "val")
    labelled = clips.assign(label=clips["class"].map({name: label for label, name in enumerate(classes)}), split=split)
    return labelled if fractions.wrong_labels is None else labelled.assign(given=given_labels(labelled, fractions))


def given_labels(clips: pd.DataFrame, fractions: Split) -> np.ndarray:
    """Return the label that training gets for each clip: that of a random other class for `wrong_labels` of the
    usable training clips, rounded to whole clips, else the clip's own."""
    import numpy as np

    random = np.random.default_rng([fractions.seed, 2])
    given = clips["label"].to_numpy().copy()
    usable = np.flatnonzero((clips["split"] == "train") & (clips["status"] == "ok"))
    wrong = random.choice(usable, round((fractions.wrong_labels or 0) * len(usable)), replace=False)
    number = int(given.max()) + 1
    given[wrong] = (given[wrong] + random.integers(1, number, len(wrong))) % number
    return given


def sample_groups(clips: pd.DataFrame, fraction: float, seed: list[int], keep: int) -> set[str]:
    """Sample `fraction` of the groups of each class, rounded half up, at least one, leaving at least `keep`.

    A group with clips of several classes is sampled only if all of these classes still need a group.
    Raises UserError if a class has too few groups.
    """
    import numpy as np

    if fraction == 0:
        return set()
    groups = clips.groupby("class")["group"].agg(set).to_dict()
    wanted = {name: min(max(1, int(fraction * len(own) + 0.5)), len(own) - keep) for name, own in groups.items()}
    for name, number in wanted.items():
        if number < 1:
            raise UserError(
                f"class '{name}' has {len(groups[name])} groups with usable clips, expected at least {keep + 1} for "
                "disjoint splits; add clips, or set split.test or split.val to 0"
            )
    owners = clips.groupby("group")["class"].agg(set).to_dict()
    random = np.random.default_rng(seed)
    for _ in range(100):  # a group of several classes can take the place of the only ones of another class
        missing, taken = dict(wanted), set()
        for group in random.permutation(sorted(owners)):
            if all(missing[name] for name in owners[group]):
                taken.add(str(group))
                for name in owners[group]:
                    missing[name] -= 1
        without = [name for name, number in missing.items() if number == wanted[name]]
        if not without:
            return taken
    raise UserError(
        f"class '{without[0]}': all its groups also have clips of classes that have enough groups in this split; "
        "add a group with clips of this class only"
    )


def summarise(index: pd.DataFrame) -> dict[str, Any]:
    """Count the usable clips by split and audio, all clips by status, and usable and unavailable groups by split."""
    usable = index[index["status"] == "ok"]
    has_file = index["status"] != "unavailable"
    unavailable = index[~has_file & ~index["group"].isin(index["group"][has_file])]
    return {
        "split": {split: int((usable["split"] == split).sum()) for split in SPLITS},
        "audio": {audio: int((usable["audio"] == audio).sum()) for audio in ("yes", "silent", "no")},
        "status": {status: int((index["status"] == status).sum()) for status in ("ok", "corrupt", *UNUSABLE)},
        "groups": {split: usable["group"][usable["split"] == split].nunique() for split in SPLITS},
        "groups_unavailable": {
            split: unavailable["group"][unavailable["split"] == split].nunique() for split in SPLITS
        },
    }
