"""When does distillation help? The gain of methods in each setting, beside what predicts it from features.

The settings are `report.settings` of params. A gain is a contrast between runs over seeds and test clips
(avdistill/reporting/two_way.py). All gains are one family, whose family-wise error rate Holm's correction limits to
5 %:

  higher, lower   corrected p below 0.05
  not higher      the 95 % interval, without correction, is below BOUND: nothing is gained
  undecided       none of these

The predictors (avdistill/reporting/information.py) use the features of the setting's teacher and those of the student
without a teacher, of its first seed, on test clips, which no student was trained on. Of a teacher with several draws,
the features are those of draw 0. The share of wrong labels is estimated from the teacher alone
(avdistill/reporting/teacher_heads.py). The accuracy of the teacher's linear layer is the predictor that Xue et al.
(ICLR 2023) reject. Both are averaged over the teacher's draws.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from avdistill.config.report import ComparedSetting
from avdistill.config.schema import Params
from avdistill.data.files import read_arrays
from avdistill.data.index import read_index
from avdistill.reporting import results
from avdistill.reporting.contrasts import Contrasts
from avdistill.reporting.information import NOISE, Predictor, predictor_of
from avdistill.reporting.page import (
    EMPTY,
    MINUS,
    NOT_RUN,
    PLUS_MINUS,
    Column,
    Sheet,
    TableCell,
    gain_cell,
    plain,
    with_dagger,
)
from avdistill.reporting.results import holm, interval_columns, interval_of
from avdistill.reporting.significance import ALPHA
from avdistill.reporting.suite import EvaluatedSuite
from avdistill.reporting.suite_tables import teachers_table
from avdistill.reporting.teacher_heads import WRONG

BOUND = 1.0  # points; a smaller gain counts as none, as in a claim that nothing is gained
FEWEST = 8  # settings, for a statement about the predictors
DECIMALS = 4  # of the predictors: more would depend on the processor
# Predictors, each with the value above which it predicts a gain; NaN: only its order counts.
PREDICTORS = {
    "beyond_label": NOISE,
    "margin": 0.0,
    "log_odds_margin": 0.0,
    "gamma": 0.0,
    "cka": np.nan,
    "wrong_labels": WRONG,
    "teacher_accuracy": np.nan,
}
WORDS = {"cka": "CKA"}


class PairedFeatures(NamedTuple):
    """Features of teacher (N, Dt) and student (N, Ds), labels (N,) and groups (N,) of the same test clips."""

    teacher: np.ndarray
    student: np.ndarray
    labels: np.ndarray
    groups: np.ndarray


def gains_table(params: Params, measured: pd.DataFrame, contrasts: Contrasts) -> pd.DataFrame:
    """Return one row per setting and method; settings without evaluated runs, or without a baseline, are left out.

    Columns: setting, title, baseline, accuracy (percent; mean of the baseline over seeds), sd (over seeds); method,
    run, gain (points, an interval over seeds and clips), p, p_holm, verdict (empty: not measured)."""
    rows = []
    for name, entry in params.report.settings.items():
        accuracy = 100 * results.by_seed(measured, entry.baseline, "accuracy").dropna()
        found = {run: contrasts.contrast("accuracy", (run,), (entry.baseline,)) for run in entry.runs.values()}
        if accuracy.empty or not any(found.values()):
            continue
        setting = {"setting": name, "title": entry.title, "baseline": entry.baseline}
        setting |= {"accuracy": accuracy.mean(), "sd": accuracy.std()}
        for method, run in entry.runs.items():
            contrast = found[run]
            gain = interval_columns("gain", contrast.interval() if contrast else results.UNKNOWN)
            p = contrast.p() if contrast else np.nan
            rows.append({**setting, "method": method, "run": run, **gain, "p": p})
    columns = ["setting", "title", "baseline", "accuracy", "sd", "method", "run"]
    table = pd.DataFrame(rows, columns=[*columns, *interval_columns("gain", results.UNKNOWN), "p"])
    table["p_holm"] = holm(table["p"])
    table["verdict"] = [verdict_of(row) for row in table.to_dict("records")]
    return table


def verdict_of(row: dict[str, Any]) -> str:
    """Return the verdict on the gain of a row; empty if it was not measured."""
    if not row["gain_seeds"]:
        return ""
    if row["p_holm"] < ALPHA:
        return "higher" if row["gain"] > 0 else "lower"
    return "not higher" if row["gain_high"] <= BOUND else "undecided"


def features_of(params: Params, entry: ComparedSetting) -> PairedFeatures | None:
    """Return the features of a setting.

    The student is that of the first seed that converged. Clips without valid features of the teacher are left out. None
    if a file is missing, or all clips are of one group."""
    job = params.runs()[entry.baseline][0]
    paths = [
        params.evaluated(entry.baseline) / f"seed-{seed}.npz" for seed in params.jobs[job].seeds_of(entry.baseline)
    ]
    student = next((path for path in paths if path.exists()), None)
    teacher = params.path("teacher_features", entry.A) / "features.npz"
    if student is None or not teacher.exists():
        return None
    seen = read_arrays(student, ("ids", "labels", "features"))
    heard = read_arrays(teacher, ("ids", "features", "mask"))
    row = pd.Index(heard["ids"]).get_indexer(seen["ids"])
    valid = (row >= 0) & heard["mask"][row]
    index = read_index(params.index(params.jobs[job].dataset)).set_index("id")
    groups = index.loc[seen["ids"][valid], "group"].to_numpy(dtype=str)
    if len(set(groups)) < 2:
        return None
    teacher_features, student_features = heard["features"][row[valid]], seen["features"][valid]
    return PairedFeatures(teacher_features.astype(float), student_features.astype(float), seen["labels"][valid], groups)


def predictors(params: Params, entry: ComparedSetting) -> dict[str, float]:
    """Return the columns of the predictors of a setting; NaN without features."""
    clips = features_of(params, entry)
    found = predictor_of(*clips) if clips else Predictor(*[np.nan] * len(Predictor._fields))
    values = {"I(T;Y)": found.teacher, "I(S;Y)": found.student, "I(TS;Y)": found.both, "I(T;S)": found.shared}
    values |= {f"I(T;S) {name}": getattr(found, name) for name in ("log_odds", "nearest", "contrastive")}
    names = [name for name in (*PREDICTORS, "alpha", "beta") if hasattr(Predictor, name)]
    values |= {name: getattr(found, name) for name in names}
    return {"clips": len(clips.labels) if clips else 0, **{name: round(values[name], DECIMALS) for name in values}}


def predictors_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per predictor and method: how well the predictor agrees with the gains of `gains_table`.

    Columns: predictor, method; agree, decided (in how many of the settings whose gain is decided a gain is predicted
    if and only if there is one; agree is NaN for a predictor of which only the order counts); rho (Spearman's, over
    settings); settings."""
    rows = []
    for predictor, least in PREDICTORS.items():
        for method, known in table.dropna(subset=["gain", predictor]).groupby("method", sort=False):
            decided = known[known["verdict"] != "undecided"]
            agree = ((decided[predictor] > least) == (decided["verdict"] == "higher")).sum()
            ranks = known[[predictor, "gain"]].rank()
            varied = len(ranks) > 1 and bool((ranks.nunique() > 1).all())
            row = {"predictor": predictor, "method": method, "decided": len(decided)}
            row["agree"] = np.nan if np.isnan(least) else int(agree)
            rho = ranks[predictor].corr(ranks["gain"]) if varied else np.nan
            rows.append({**row, "rho": rho, "settings": len(known)})
    return pd.DataFrame(rows, columns=["predictor", "method", "agree", "decided", "rho", "settings"])


def settings_table(suite: EvaluatedSuite) -> pd.DataFrame:
    """Return `gains_table` of a suite with the predictors of each setting, and the ids of the MLflow runs.

    Further columns: clips (on which the predictors are computed); I(T;Y), I(S;Y), I(TS;Y), I(T;S) (nats; NaN without
    features) and the other estimates of I(T;S); the predictors, alpha and beta; mlflow_run and mlflow_baseline, the
    runs that evaluated them."""
    table = gains_table(suite.params, suite.measured, suite.contrasts)
    found = {name: predictors(suite.params, suite.params.report.settings[name]) for name in table["setting"].unique()}
    for column in next(iter(found.values()), {}):
        table[column] = table["setting"].map({name: values[column] for name, values in found.items()})
    rows = {row["features"]: row for row in teachers_table(suite).to_dict("records")}
    teachers = {name: rows.get(suite.params.report.settings[name].A, {}) for name in found}
    share = {name: round(row.get("wrong labels", np.nan) / 100, DECIMALS) for name, row in teachers.items()}
    table["wrong_labels"] = table["setting"].map(share)
    table["teacher_accuracy"] = table["setting"].map({name: row.get("test", np.nan) for name, row in teachers.items()})
    for side in ("run", "baseline"):
        table[f"mlflow_{side}"] = [suite.mlflow_ids(run)["evaluate"] for run in table[side]]
    return table


def settings_sheet(suite: EvaluatedSuite, table: pd.DataFrame, agreement: pd.DataFrame) -> Sheet:
    """Return the sheet of `settings_table`: one row per setting, with the gain of each method and the predictors."""
    methods = list(dict.fromkeys(table["method"]))
    columns = [
        Column("setting", number=False),
        Column("accuracy", "no teacher", first=True),
        Column("sd", "no teacher"),
    ]
    columns += [Column(method, "gain", first=not number) for number, method in enumerate(methods)]
    columns += [Column(words(name), "predictor", first=not number) for number, name in enumerate(PREDICTORS)]
    rows = []
    for _, found in table.groupby("setting", sort=False):
        setting = found.iloc[0]
        base = setting["baseline"]
        cells = [TableCell(setting["title"], look="wrap")]
        cells += [TableCell(plain(setting[name]), suite.tooltip(base)) for name in ("accuracy", "sd")]
        gains = {row["method"]: row for row in found.to_dict("records")}
        for method in methods:
            row = gains.get(method)
            gain = interval_of(row, "gain") if row else results.UNKNOWN
            title = suite.tooltip(row["run"], base) if row else ""
            cells.append(gain_cell(gain, row["verdict"], title) if row and gain.seeds else NOT_RUN)
        for name, least in PREDICTORS.items():
            text = plain(setting[name]) if name == "teacher_accuracy" else hundredths(setting[name])
            cells.append(TableCell(text, look="dim" if setting[name] <= least else ""))
        rows.append(cells)
    notes = [
        f"Accuracy in percent: mean and standard deviation over seeds. Gain: method {MINUS} student without a teacher, "
        f"in points, mean {PLUS_MINUS} half of the 95 % interval, which covers {suite.coverage()}; bold "
        f"if p is below {ALPHA:g} after Holm's correction for all {table['p'].count()} gains.",
        "Predictors, from the features T of the setting's teacher (also beside methods with another one), the features "
        "S of the student without a teacher and the labels Y of test clips; dim where no gain is predicted. Beyond "
        "label: what T and S share given the label, I(T;S|Y), in nats (Gaussian estimate; a gain is predicted above "
        f"{NOISE:g}, which independent features do not reach). Margin: I(T;S) {MINUS} I(S;Y), in nats (Xie 2025). "
        "Log odds margin: the same with the log-odds that linear layers on T and S give, as in Xie's theorem for two "
        "classes. Gamma: the share of I(T,S;Y) that both T and S have (Xue 2023; negative: they tell more together). "
        "CKA: similarity of T and S, 0 to 1. Wrong labels: the share of wrong labels among training clips, estimated "
        "from how much less often the teacher's predictions agree with them than with those of test clips (a gain is "
        f"predicted above {WRONG:g}). Teacher accuracy: of the linear layer on T, in percent. CKA and teacher accuracy "
        "have no value above which they would predict a gain. settings.csv has further estimates of I(T;S).",
        *agreement_notes(agreement),
    ]
    return Sheet("settings", "Gain by setting", columns, rows, with_dagger(rows, notes))


def agreement_notes(agreement: pd.DataFrame) -> list[str]:
    """Return one note per predictor: in how many settings it is right about each method, and Spearman's rho."""
    if agreement.empty or agreement["settings"].max() < FEWEST:
        return [f"Do the predictors tell where a method helps? No claim: fewer than {FEWEST} settings."]
    notes = []
    for predictor, found in agreement.groupby("predictor", sort=False):
        said = []
        for row in found.to_dict("records"):
            if row["settings"] < FEWEST:
                said.append(f"{row['method']} no claim: fewer than {FEWEST} settings")
                continue
            rho = f"rho {hundredths(row['rho'])} (n = {row['settings']})"
            counted = "" if np.isnan(row["agree"]) else f"{row['agree']:.0f} of {row['decided']}, "
            said.append(f"{row['method']} {counted}{rho}")
        notes.append(f"Right with {words(str(predictor))}: {'; '.join(said)}.")
    how = (
        "Right: in how many of the settings whose gain is decided a gain is predicted if and only if there is one. "
        f"Decided: bold, or the interval is below {BOUND:g} point, which is no gain. Rho: Spearman's, over n settings."
    )
    return [*notes, how]


def words(predictor: str) -> str:
    """Return the heading of a predictor."""
    return WORDS.get(predictor, predictor.replace("_", " "))


def hundredths(value: float) -> str:
    """Format a number with two decimals; a dash for NaN."""
    return EMPTY if np.isnan(value) else f"{value:.2f}".replace("-", MINUS)
