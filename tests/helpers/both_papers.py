"""A made-up suite of the size of both papers, about 50 runs, with what the report reads of them; for its tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from avdistill.config.schema import Params
from avdistill.data.files import write_csv
from avdistill.data.index import write_index
from tests.helpers.synthetic import write_clips

XIA = {
    "KD": "kd",
    "CRD": "crd-A",
    "RKD": "rkd-A",
    "xID": "xid",
    "CCL": "ccl-A",
    "KD-noise": "kd_noise",
    "RC-MC": "rc_mc",
}
CHEN = {
    "FitNet": "fitnet",
    "PKT": "pkt",
    "COR": "cckd",
    "RKD": "rkd",
    "CRD": "crd",
    "IFD": "ifd",
    "CMC": "cmc",
    "CCL": "ccl",
}
CCL_ABLATIONS = {
    "CCL w/o composition": "ccl_no_composition",
    "CCL w/ L_ct": "ccl_ct",
    "CCL w/o L_nce": "ccl_no_nce",
    "CCL w/o L_JSD": "ccl_no_jsd",
}
TAGGING = {"KD": "kd", "CRD": "crd", "CCL": "ccl", "MNF+CSC": "mnf_csc"}  # KD-noise is not run
NOISE = {"clean": "", 10.0: "noise_10db", 0.0: "noise_0db", -10.0: "noise_-10db"}


def suite_params(out: Path) -> Params:
    """Params of the suite: studies xia (3 seeds), chen (1 seed), noise (3) and large (1)."""
    jobs: dict[str, Any] = {}
    studies: dict[str, dict[str, Any]] = {
        "xia": {"title": "Xia's methods", "jobs": []},
        "chen": {"title": "Chen's methods", "jobs": []},
        "noise": {"title": "Noise", "jobs": []},
        "large": {"title": "A large set", "jobs": []},
    }

    def add(study: str, name: str, method: str, runs: list[str], **changes: Any) -> None:
        job = {"method": method, "dataset": "made", "input": "frames/made", "recipe": "short", "A": "ear", "I": "eye"}
        seeds = [0, 1, 2] if study in ("xia", "noise") else [0]
        entries = {run: {"teachers": run.rpartition("-")[2] if run[-2:] in ("-A", "-I", "AI") else ""} for run in runs}
        jobs[name] = job | {"seeds": seeds, "runs": entries} | changes
        studies[study]["jobs"].append(name)

    add("xia", "uni_modal", "uni_modal", ["uni_modal"])
    for run in XIA.values():
        add("xia", run, run.partition("-")[0], [run])
    strategies = ["mnf_csc-audio", "mnf_csc-audio_visual"]
    ablations = ["mnf_csc-no_triplet", "mnf_csc-no_contrast", "mnf_csc-no_triplet-no_contrast"]
    add("xia", "mnf_csc", "mnf_csc", ["mnf_csc", *strategies, *ablations, "mnf_csc-no_mask"])
    sound = {"input": "spectrogram/made", "recipe": "sound"}
    add("xia", "tagging-uni_modal", "uni_modal", ["tagging-uni_modal"], **sound)
    for method in TAGGING.values():
        add("xia", f"tagging-{method}", method, [f"tagging-{method}"], **sound)
    for stem in CHEN.values():
        own = [f"{stem}-{setup}" for setup in ("A", "I", "AI") if f"{stem}-{setup}" not in jobs]
        add("chen", f"chen-{stem}", stem, own)
    for stem in CCL_ABLATIONS.values():
        add("chen", stem, "ccl", [f"{stem}-{setup}" for setup in ("A", "I", "AI")])
    for stem in list(NOISE.values())[1:]:
        add("noise", stem, "mnf_csc", [f"{stem}-mnf", f"{stem}-no_mnf"])
    for method in ("uni_modal", "crd", "cmc", "ccl"):
        add("large", f"large-{method}", method, [f"large-{method}"], recipe="large")

    setups = {f"{row}/{setup}": f"{stem}-{setup}" for row, stem in CHEN.items() for setup in ("A", "I", "AI")}
    ablated = {f"{row}/{setup}": f"{stem}-{setup}" for row, stem in CCL_ABLATIONS.items() for setup in ("A", "I", "AI")}
    ccl = {f"CCL/{setup}": f"ccl-{setup}" for setup in ("A", "I", "AI")}
    retrieval = ["accuracy", "R@1", "mAP@100", "mAP@500"]
    xia_1 = {"Uni-modal": "uni_modal", **XIA, "MNF+CSC": "mnf_csc"}
    xia_2 = {
        "MNF+CSC w/o L_t, w/o L_cl": "mnf_csc-no_triplet-no_contrast",
        "MNF+CSC w/o L_cl": "mnf_csc-no_contrast",
        "MNF+CSC w/o L_t": "mnf_csc-no_triplet",
        "MNF+CSC": "mnf_csc",
    }
    xia_3 = {"w/o MNF": "noise_0db-no_mnf", "w/ MNF": "noise_0db-mnf"}
    xia_4 = {"Uni-modal": "tagging-uni_modal"} | {row: f"tagging-{method}" for row, method in TAGGING.items()}
    tables = {
        "xia_1": _table("xia2023", 1, "Action recognition and video retrieval", retrieval, xia_1),
        "xia_2": _table("xia2023", 2, "What each loss contributes", retrieval, xia_2),
        "xia_3": _table("xia2023", 3, "Sound mixed with that of another class", retrieval, xia_3),
        "xia_4": _table("xia2023", 4, "Audio tagging", ["accuracy"], xia_4, "kinetics_sound"),
        "chen_1": _table("chen2021", 1, "Action recognition", ["accuracy"], {"baseline": "uni_modal", **setups}),
        "chen_2": _table("chen2021", 2, "Retrieval", ["R@1", "R@5", "R@10"], {"baseline": "uni_modal", **setups}),
        "chen_3": _table("chen2021", 3, "Ablation of CCL", ["accuracy"], {"baseline": "uni_modal", **ablated, **ccl}),
    }
    noise = {
        "with MNF": {snr: f"{stem}-mnf" if stem else "mnf_csc" for snr, stem in NOISE.items()},
        "without MNF": {snr: f"{stem}-no_mnf" if stem else "mnf_csc-no_mask" for snr, stem in NOISE.items()},
    }
    recipe = {"width": 0.2, "frames": 8, "size": 32, "epochs": 12}
    return Params.model_validate(
        {
            "suite": {
                "name": "both",
                "title": "Both papers, made up",
                "root": ".",
                "file": "params.yaml",
                "out": str(out),
            },
            "datasets": {"made": {"origin": {"kind": "folder", "source": "nowhere"}, "split": {}}},
            "frames": {"made": {"dataset": "made"}},
            "teachers": {
                "ear": {"kind": "cnn14", "weights": "avsynth"},
                "eye": {"kind": "resnet10", "weights": "avsynth"},
            },
            "features": {
                "ear": {"dataset": "made", "teacher": "ear", "input": "spectrogram/made"},
                "eye": {"dataset": "made", "teacher": "eye", "input": "frames/made"},
            },
            "recipes": {
                "short": recipe,
                "sound": recipe | {"student": "resnet10_audio"},
                "large": recipe | {"epochs": 9},
            },
            "jobs": jobs,
            "studies": studies,
            "report": {
                "baseline": "uni_modal",
                "proposed": "mnf_csc",
                "cost": ["uni_modal", "kd", "crd-A", "ccl-AI", "mnf_csc"],
                "tables": tables,
                "figures": {"noise": noise},
            },
        }
    )


def _table(source: str, number: int, title: str, metrics: list[str], rows: dict[str, str], on: str = "ucf51") -> Any:
    title = f"{'Xia' if source == 'xia2023' else 'Chen'} Table {number}: {title}"
    return {"title": title, "source": source, "table": number, "reported_dataset": on, "metrics": metrics, "rows": rows}


def write_suite(params: Params) -> None:
    """Write what evaluate and cost would leave, with numbers drawn from a fixed seed."""
    rng = np.random.default_rng(3)
    shared = rng.normal(0, 0.02, 3)  # what a seed does to every run
    index = _index()
    write_index(params.index("made"), index)
    for job, entry in params.jobs.items():
        metrics, detection = [], []
        for run in entry.runs:
            level = 0.6 + {"uni_modal": 0.0, "mnf_csc": 0.08, "kd": -0.06}.get(entry.method, rng.normal(0.01, 0.03))
            for seed in entry.seeds:
                reached = level + shared[seed] + rng.normal(0, 0.002)
                values = {"accuracy": reached, "gallery": 250.0, "queries": 240.0}
                values |= {f"R@{k}": reached - 0.05 + 0.005 * k + rng.normal(0, 0.01) for k in (1, 5, 10)}
                for k in (100, 500):
                    values |= {f"mAP@{k}/{form}": reached - 0.1 for form in ("released", "hits", "standard")}
                metrics += [{"run": run, "seed": seed, "metric": key, "value": value} for key, value in values.items()]
                write_clips(params, run, seed, index["id"], metrics)
                for score, mean in (("mask", 0.75), ("tau", 0.45)) if entry.method == "mnf_csc" else ():
                    for split in ("train", "test"):
                        auroc = mean + rng.normal(0, 0.02)
                        detection.append(
                            {"run": run, "seed": seed, "score": score, "split": split, "auroc": auroc, "clips": 240}
                        )
        write_csv(params.path("evaluate", job) / "metrics.csv", pd.DataFrame(metrics))
        if detection:
            write_csv(params.path("evaluate", job) / "detection.csv", pd.DataFrame(detection))
    rows = []
    for number, run in enumerate(params.report.cost):
        job = params.jobs[params.runs()[run][0]]
        about = {"run": run, "method": job.method, "teachers": job.runs[run].teachers, "baseline": "uni_modal"}
        size = {"device": "cpu", "student_parameters": 227_612, "added_parameters": 4_288 * number}
        step = {"seconds": 0.025 * (1 + 0.02 * number), "relative": 1 + 0.02 * number}
        ends = {"relative_low": 0.99 + 0.02 * number, "relative_high": 1.01 + 0.02 * number}
        rows.append(about | size | step | ends | {"memory": 18_000_000.0, "memory_relative": 1.0})
    write_csv(params.path("cost") / "cost.csv", pd.DataFrame(rows))
    terms = [("uni_modal", "ce", 1.0, 1.0), ("kd", "kd", 0.9, 0.25), ("crd-A", "crd", 0.004, np.nan)]
    gradients = pd.DataFrame(terms, columns=["run", "term", "start", "end"])
    write_csv(params.path("cost") / "gradients.csv", gradients)


def _index() -> pd.DataFrame:
    """240 test clips: 10 classes, 12 groups of each, 2 clips of each."""
    rows = [(label, f"c{label}_g{group:02d}", clip) for label in range(10) for group in range(12) for clip in range(2)]
    index = pd.DataFrame(rows, columns=["label", "group", "id"])
    index["id"] = index["group"] + "_" + index["id"].astype(str)
    times = {"start": 0.0, "end": 3.0, "seconds": 3.0}
    return index.assign(
        **{"file": index["id"] + ".mp4", "class": "class " + index["label"].astype(str), "split": "test"},
        **times, audio="yes", status="ok", reason="",
    )  # fmt: skip
