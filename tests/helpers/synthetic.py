"""A made-up suite with the files that the other stages would leave, for the tests of figures and report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from avdistill.config.report import CLIP_METRICS
from avdistill.config.schema import Params
from avdistill.data.files import write_arrays, write_csv, write_json
from avdistill.data.index import write_index
from avdistill.data.packed import StoreWriter
from avdistill.pipeline.stage import Stage

CLASSES = ["bouncing", "circling", "drifting", "pulsing", "spinning", "swinging"]
# Mean accuracy of each run, in the order of the jobs below.
LEVELS = {"uni_modal": 0.60, "kd": 0.55, "mnf_csc": 0.66, "mnf_csc-no_triplet": 0.63, "mnf_csc-audio": 0.58}
SEEDS = (0, 1, 2, 3, 4)


class Recorder:
    """Stands for a tracked run: remembers what was logged."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **_: self.calls.append((name, args))

    def logged(self, name: str) -> list[tuple[Any, ...]]:
        return [args for called, args in self.calls if called == name]


def suite_params(out: Path, **changes: Any) -> Params:
    """Params of the suite; `changes` replace keys of its report section."""
    report = {
        "baseline": "uni_modal",
        "figures": {
            "training_curves": {"visual": "mnf_csc", "audio": "mnf_csc-audio"},
            "gain_per_class": ["kd", "mnf_csc"],
            "scores": ["mnf_csc"],
        },
        "claims": {
            "X1": {
                "claim": "MNF+CSC recognises better",
                "metric": "accuracy",
                "runs": ["mnf_csc"],
                "minus": ["uni_modal"],
                "reported": {"UCF51": 6.4},
            },
            "X5": {
                "claim": "The triplet loss costs nothing",
                "expected": "equal",
                "metric": "R@1",
                "runs": ["mnf_csc"],
                "minus": ["mnf_csc-no_triplet"],
            },
            "X11": {"claim": "The mask tells what belongs", "metric": "auroc/mask", "runs": ["mnf_csc"]},
        },
        "tables": {
            "xia_1": {
                "title": "Action recognition and video retrieval",
                "source": "xia2023",
                "table": 1,
                "reported_dataset": "ucf51",
                "metrics": ["accuracy", "R@1", "mAP@100", "mAP@500"],
                "rows": {"Uni-modal": "uni_modal", "KD": "kd", "MNF+CSC": "mnf_csc"},
            },
            "xia_2": {
                "title": "Ablation of MNF+CSC",
                "source": "xia2023",
                "table": 2,
                "reported_dataset": "ucf51",
                "metrics": ["accuracy", "R@1"],
                "rows": {"MNF+CSC": "mnf_csc", "MNF+CSC w/o L_t": "mnf_csc-no_triplet"},
                "baseline": "MNF+CSC",
            },
        },
    } | changes
    job = {"dataset": "made", "input": "frames/made", "recipe": "short", "A": "made_A", "seeds": list(SEEDS)}
    return Params.model_validate(
        {
            "suite": {"name": "made", "title": "A made-up suite", "root": ".", "file": "params.yaml", "out": str(out)},
            "datasets": {"made": {"origin": {"kind": "folder", "source": "nowhere"}, "split": {}}},
            "frames": {"made": {"dataset": "made"}},
            "teachers": {"ear": {"kind": "cnn14", "weights": "avsynth"}},
            "features": {"made_A": {"dataset": "made", "teacher": "ear", "input": "spectrogram/made"}},
            "recipes": {"short": {"width": 0.2, "frames": 8, "size": 32, "epochs": 12}},
            "jobs": {
                "uni_modal": job | {"method": "uni_modal", "A": "none", "runs": {"uni_modal": {}}},
                "kd": job | {"method": "kd", "runs": {"kd": {"teachers": "A"}}},
                "mnf_csc": job
                | {
                    "method": "mnf_csc",
                    "runs": {
                        "mnf_csc": {"teachers": "A"},
                        "mnf_csc-no_triplet": {"teachers": "A", "options": {"triplet": False}},
                        "mnf_csc-audio": {"teachers": "A", "options": {"strategy": "audio"}},
                    },
                },
            },
            "report": report,
        }
    )


def write_suite(params: Params) -> None:
    """Write all inputs of figures and report, with numbers drawn from a fixed seed."""
    rng = np.random.default_rng(7)
    index = _index(rng)
    write_index(params.index("made"), index)
    _stores(params, index, rng)
    write_json(
        params.path("teacher_head", "made_A") / "metrics.json",
        {
            "accuracy": {"train": 0.9, "distilled": 0.6, "val": 0.61, "test": 0.58},
            "agreement": 0.5,
            "classes": 6,
            "cross_fit": 5,
            "majority": 0.17,
            "clips": {"val": 40, "test": 60},
        },
    )
    tests = index[(index["split"] == "test") & (index["status"] == "ok")]
    for job, entry in params.jobs.items():
        history, metrics, per_class, confusion, scores, detection = [], [], [], [], [], []
        for run in entry.runs:
            for seed in entry.seeds:
                level = LEVELS[run] + rng.normal(0, 0.015)
                history += _history(run, seed, level, rng)
                metrics += _metrics(run, seed, level, len(tests), rng)
                shares = np.clip(level + rng.normal(0, 0.1, len(CLASSES)), 0, 1)
                for name, share in zip(CLASSES, shares, strict=True):
                    per_class.append({"run": run, "seed": seed, "class": name, "clips": 10, "accuracy": share})
                confusion += _confusion(run, seed, shares, rng)
                if entry.method == "mnf_csc":
                    scored, found = _scores(run, seed, index, rng)
                    scores += scored
                    detection += found
                write_clips(params, run, seed, tests["id"], metrics)
        write_csv(params.path("train", job) / "history.csv", pd.DataFrame(history))
        write_csv(params.path("evaluate", job) / "metrics.csv", pd.DataFrame(metrics))
        write_csv(params.path("evaluate", job) / "per_class.csv", pd.DataFrame(per_class))
        write_csv(params.path("evaluate", job) / "confusion.csv", pd.DataFrame(confusion))
        if scores:
            write_csv(params.path("evaluate", job) / "scores.csv", pd.DataFrame(scores))
            write_csv(params.path("evaluate", job) / "detection.csv", pd.DataFrame(detection))


def write_clips(params: Params, run: str, seed: int, ids: pd.Series, metrics: list[dict[str, Any]]) -> None:
    """Write values by test clip whose means are the `metrics` of a run and seed.

    They differ between clips in the same way for all runs, so that a difference between runs varies by seed alone."""
    by_clip = np.linspace(-0.3, 0.3, len(ids))
    means = {row["metric"]: row["value"] for row in metrics if (row["run"], row["seed"]) == (run, seed)}
    arrays = {metric: value + by_clip for metric, value in means.items() if metric in CLIP_METRICS}
    path = params.evaluated(run) / f"seed-{seed}.npz"
    write_arrays(path, ids=ids.to_numpy("U"), **arrays)


def stage(name: str, params: Params) -> Stage:
    """A stage whose run is a Recorder."""
    return Stage(name, None, params, Recorder())  # type: ignore[arg-type]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _index(rng: np.random.Generator) -> pd.DataFrame:
    rows = []
    for label, name in enumerate(CLASSES):
        for group in range(6):
            for clip in range(3):
                audio = "silent" if (label, group, clip) == (2, 1, 1) else "yes"
                corrupt = (label, group, clip) == (3, 5, 2)
                rows.append(
                    {
                        "id": f"{name}/g{group}_c{clip}",
                        "file": f"{name}/g{group}_c{clip}.mp4",
                        "label": label,
                        "class": name,
                        "group": f"g{group}",
                        "split": ["train", "train", "train", "val", "test", "test"][group],
                        "start": 0.0,
                        "end": 3.0,
                        "seconds": 3.0,
                        "audio": "no" if corrupt else audio,
                        "status": "corrupt" if corrupt else "ok",
                        "reason": "moov atom not found" if corrupt else "digital silence" if audio != "yes" else "",
                        "relevant": "yes" if rng.random() < 0.7 else "no",
                        "correlation": "strong" if label % 3 else "weak",
                        "music_db": -10.0,
                    }
                )
    return pd.DataFrame(rows)


def _stores(params: Params, index: pd.DataFrame, rng: np.random.Generator) -> None:
    with (
        StoreWriter(params.path("frames", "made"), "uint8") as frames,
        StoreWriter(params.path("spectrogram", "made"), "float32") as spectrograms,
    ):
        rows, columns = np.mgrid[:42, :56]
        for clip in index[index["status"] == "ok"].itertuples():
            picture = np.full((12, 42, 56, 3), 90 + 20 * (clip.label % 6), np.uint8)
            picture += rng.integers(0, 40, picture.shape, dtype=np.uint8)
            for time in range(12):
                at = 28 + 18 * np.sin(0.5 * time + clip.label)
                picture[time, (rows - 21) ** 2 + (columns - at) ** 2 < 60] = (230, 120, 40)
            frames.put(clip.id, picture)
            if clip.audio == "yes":
                bands = np.arange(64)[None, :]
                tone = 30 * np.exp(-((bands - 20 - 12 * np.sin(np.arange(300) / 30 + clip.label)[:, None]) ** 2) / 20)
                spectrograms.put(clip.id, (rng.normal(-60, 4, (300, 64)) + tone).astype(np.float32))


def _history(run: str, seed: int, level: float, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for epoch in range(1, 13):
        grown = 1 - np.exp(-epoch / 4)
        rows.append(
            {
                "run": run,
                "seed": seed,
                "epoch": epoch,
                "lr": 3e-4,
                "loss": 2 - grown,
                "train_accuracy": 0.95 * grown,
                "val_accuracy": level * grown + rng.normal(0, 0.02),
            }
        )
    return rows


def _metrics(run: str, seed: int, level: float, queries: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    values = {"accuracy": level, "gallery": 108.0, "queries": float(queries)}
    for k, offset in ((1, -0.05), (5, 0.1), (10, 0.15)):
        values[f"R@{k}"] = level + offset + rng.normal(0, 0.01)
    for k in (100, 500):
        values[f"mAP@{k}/released"] = level - 0.1 + rng.normal(0, 0.01)
        values[f"mAP@{k}/hits"] = level - 0.12
        values[f"mAP@{k}/standard"] = level - 0.2
    return [{"run": run, "seed": seed, "metric": name, "value": value} for name, value in values.items()]


def _confusion(run: str, seed: int, shares: np.ndarray, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for label, name in enumerate(CLASSES):
        chances = np.full(len(CLASSES), (1 - shares[label]) / (len(CLASSES) - 1))
        chances[label] = shares[label]
        for other, clips in zip(CLASSES, rng.multinomial(6, chances / chances.sum()), strict=True):
            rows.append({"run": run, "seed": seed, "true": name, "predicted": other, "clips": clips})
    return rows


def _scores(
    run: str, seed: int, index: pd.DataFrame, rng: np.random.Generator
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    scores, detection = [], []
    heard = index[(index["audio"] == "yes") & index["split"].isin(["train", "test"])]
    for clip in heard.itertuples():
        shift = 0.05 if clip.relevant == "yes" else 0.0
        scores.append(
            {
                "run": run,
                "seed": seed,
                "id": clip.id,
                "split": clip.split,
                "relevant": clip.relevant,
                "mask": 0.5 + shift + rng.normal(0, 0.05),
                "tau": 0.4 + 2 * shift + rng.normal(0, 0.05),
            }
        )
    for score, value in (("mask", 0.75), ("tau", 0.5)):
        for split in ("train", "test"):
            auroc = value + rng.normal(0, 0.03)
            detection.append(
                {"run": run, "seed": seed, "score": score, "split": split, "auroc": auroc, "clips": len(heard)}
            )
    return scores, detection
