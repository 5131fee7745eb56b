"""The table of claims: which claims of the papers hold in this suite.

A claim is a contrast between runs (avdistill/config/report.py). Its 95 % interval covers seeds and test clips
(avdistill/reporting/two_way.py). All claims of a suite are one family, whose family-wise error rate Holm's correction
limits to 5 %:

  holds           the contrast is on the expected side, with a corrected p below 0.05; of a claim of equality, the
                  interval is within ± its bound; of a claim that nothing is gained, the interval is below its bound
  does not hold   the contrast is on the other side, with a corrected p below 0.05, or its interval is within ± the
                  bound; of a claim of equality, the contrast is beyond the bound, with a corrected p below 0.05
  undecided       neither

An interval within ± the bound is a 95 % interval without correction for the number of claims.

A claim against each of several runs holds if it holds against each (p: the largest), and does not hold if it fails
against one (p: the smallest, times the number of runs).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from avdistill.config.report import Claim
from avdistill.reporting.page import (
    EMPTY,
    MINUS,
    PLUS_MINUS,
    Column,
    Plot,
    Sheet,
    TableCell,
    listed,
    plain,
    signed,
    spread,
    with_dagger,
)
from avdistill.reporting.results import Interval, holm, interval_columns, interval_of
from avdistill.reporting.significance import ALPHA
from avdistill.reporting.suite import EvaluatedSuite
from avdistill.reporting.two_way import MOST_SEEDS, Contrast

HOLDS, FAILS, UNDECIDED, MISSING = "holds", "does not hold", "undecided", "not measured"
NEAR = ("equal", "not_higher")  # claims that hold if the interval is in the bound
COUNTED = {HOLDS: "hold", FAILS: "do not hold", UNDECIDED: "undecided", MISSING: "not measured"}


class Finding(NamedTuple):
    """The contrast that decides a claim, the runs that it is with, its p, and whether its interval is in the bound."""

    contrast: Contrast
    minus: tuple[str, ...]
    p: float
    within: bool


def find(suite: EvaluatedSuite, entry: Claim) -> Finding | None:
    """Return the contrast that decides a claim; None if a run was not evaluated.

    Against each of several runs, it is the contrast that is the least in the claim's favour."""
    sides = [(run,) for run in entry.minus] if entry.against == "each" else [entry.minus]
    found = [(suite.contrasts.contrast(entry.metric, entry.runs, minus), minus) for minus in sides]
    known = [(contrast, minus) for contrast, minus in found if contrast is not None]
    if len(known) < len(found):
        return None
    favour = [side_of(entry, contrast) for contrast, _ in known]
    shown, minus = known[int(np.argmin(favour))]
    tests = [contrast.p(entry.bound if entry.expected == "equal" else 0.0) for contrast, _ in known]
    against = [p for p, side in zip(tests, favour, strict=True) if side <= 0]
    p = float(np.max(tests)) if not against else min(1.0, len(tests) * float(np.min(against)))
    near = entry.expected in NEAR
    intervals = [contrast.interval() for contrast, _ in known] if near else [shown.interval()]
    lowest = -np.inf if entry.expected == "not_higher" else -entry.bound
    within = all(lowest <= interval.low and interval.high <= entry.bound for interval in intervals)
    return Finding(shown, minus, p if not np.isnan(tests).any() else np.nan, within)


def side_of(entry: Claim, contrast: Contrast) -> float:
    """Return the contrast as far as it is in the claim's favour; above 0 if it is on the expected side."""
    mean = contrast.mean
    return {"higher": mean, "lower": -mean, "not_higher": -mean, "equal": -abs(mean)}[entry.expected]


def decide(entry: Claim, finding: Finding | None, p_holm: float) -> str:
    """Return the verdict on a claim from its contrast and the corrected p."""
    if finding is None:
        return MISSING
    if finding.within and entry.expected in NEAR:
        return HOLDS
    if p_holm < ALPHA:
        return HOLDS if side_of(entry, finding.contrast) > 0 else FAILS
    return FAILS if finding.within else UNDECIDED


def claims_table(suite: EvaluatedSuite) -> pd.DataFrame:
    """Return one row per claim, in the order of params; numbers in points.

    Columns: id, claim, metric, runs, minus (the runs that the shown contrast is with), expected, bound, reported;
    difference (an interval over seeds and clips); groups (of test clips; 1 for metrics without values by clip);
    sd_seed, sd_group, sd_residual (see two_way.py); p, p_holm; smallest_effect (found with a probability of 80 %, at a
    level of 0.05 / number of tested claims); verdict; seeds_needed (if undecided; infinity: over MOST_SEEDS)."""
    entries = suite.params.report.claims
    found = {name: find(suite, entry) for name, entry in entries.items()}
    p_holm = dict(zip(found, holm([finding.p if finding else np.nan for finding in found.values()]), strict=True))
    level = level_of(found.values())
    rows = []
    for name, entry in entries.items():
        finding, verdict = found[name], decide(entry, found[name], p_holm[name])
        contrast = finding.contrast if finding else Contrast(np.nan, np.nan, np.nan, np.nan, 0, 0)
        needed = np.nan
        if verdict == UNDECIDED:
            needed = contrast.seeds_to_decide(level, entry.bound, entry.expected)
            needed = float(np.maximum(needed, contrast.seeds + 1))  # NaN stays NaN
        row: dict[str, Any] = {
            "id": name,
            "claim": entry.claim,
            "metric": entry.metric,
            "runs": " ".join(entry.runs),
            "minus": " ".join(finding.minus if finding else entry.minus),
            "expected": entry.expected,
            "bound": entry.bound,
            "reported": ", ".join(
                f"{label}\N{NO-BREAK SPACE}{signed(value)}" for label, value in entry.reported.items()
            ),
            **interval_columns("difference", contrast.interval()),
            "groups": contrast.groups,
            **{f"sd_{part}": float(np.sqrt(getattr(contrast, part))) for part in ("seed", "group", "residual")},
            "p": finding.p if finding else np.nan,
            "p_holm": p_holm[name],
            "smallest_effect": contrast.smallest_effect(level),
            "verdict": verdict,
            "seeds_needed": needed,
        }
        rows.append(row)
    return pd.DataFrame(rows)


def level_of(findings: Iterable[Finding | None]) -> float:
    """Return the level of a single claim's test that limits the family-wise error rate: ALPHA / tested claims."""
    return ALPHA / max(1, sum(finding is not None and not np.isnan(finding.p) for finding in findings))


def claims_sheet(suite: EvaluatedSuite, table: pd.DataFrame) -> Sheet:
    """Return the sheet of the claims: the paper's contrast, ours, and the verdict; those that are decided first."""
    columns = [Column("", number=False), Column("claim", number=False), Column("paper", number=False, first=True)]
    columns += [Column("here", first=True), Column("", number=False), Column("could find", first=True)]
    columns += [Column("verdict", number=False, first=True)]
    entries = suite.params.report.claims
    reach = reach_of(table, entries)
    rows, places = [], []
    decided = table["verdict"].isin([HOLDS, FAILS])
    for row in pd.concat([table[decided], table[~decided]]).to_dict("records"):
        reported, interval = entries[row["id"]].reported, interval_of(row, "difference")
        sides = [runs for runs in (row["runs"].split(), row["minus"].split()) if runs]
        title = f"{f' {MINUS} '.join(map(listed, sides))}\n{suite.tooltip(*(run for runs in sides for run in runs))}"
        measured = f"{row['metric']}: {f' {MINUS} '.join(map(side, sides))}"
        place = beside(tuple(reported.values()), interval)
        if reported and interval.defined:
            places.append(place)
        details = (place, what_decides(row, interval))
        look = {HOLDS: "strong holds", FAILS: "strong fails"}.get(row["verdict"], "dim")
        rows.append(
            [
                TableCell(row["id"], look="strong"),
                TableCell(row["claim"], title, "wrap", detail=measured),
                TableCell(row["reported"] or EMPTY, look="wrap" if reported else "dim"),
                TableCell(spread(interval, sign=True), title),
                TableCell("", plot=contrast_plot(interval, tuple(reported.values()), reach)),
                TableCell(plain(row["smallest_effect"]) if not row["smallest_effect"] > 100 else "over 100"),
                TableCell(row["verdict"], look=look, detail="; ".join(filter(None, details))),
            ]
        )
    counts = {verdict: int((table["verdict"] == verdict).sum()) for verdict in COUNTED}
    notes = [
        f"Points. Here: mean {PLUS_MINUS} half of the 95 % interval, which covers {suite.coverage()}; AUROC and share "
        "of classes less one half. Could find: the smallest effect that this suite "
        f"finds with a probability of 80 %. Verdict: after Holm's correction for all {len(table)} claims, so that a "
        "claim can be undecided although its interval excludes 0; below it, how many seeds would decide it if the "
        "contrast stays as it is, or that no number of seeds would, but more test clips. Below or above the paper: the "
        "interval excludes all of the paper's numbers."
    ]
    legend = f"Rings: paper. Diamond and line: here, with its interval. Dashed: zero. Cut at {PLUS_MINUS}{reach:.0f}."
    counted = [f"{count} {verdict if count == 1 else COUNTED[verdict]}" for verdict, count in counts.items() if count]
    caption = f"Claims: {', '.join(counted)}"
    if outside := sum(map(bool, places)):
        caption += f". Intervals that exclude the paper's numbers: {outside} of {len(places)}"
    return Sheet("claims", caption, columns, rows, with_dagger(rows, notes), legend)


def side(runs: list[str]) -> str:
    """Return the runs on one side of a contrast, or how many there are."""
    return runs[0] if len(runs) == 1 else f"mean of {len(runs)} runs"


def beside(reported: tuple[float, ...], interval: Interval) -> str:
    """Return on which side of all reported values the interval is; empty if it includes one, or none is reported."""
    if reported and interval.high < min(reported):
        return "below the paper"
    return "above the paper" if reported and interval.low > max(reported) else ""


def what_decides(row: dict[str, Any], interval: Interval) -> str:
    """Return what would decide an undecided claim; empty for other verdicts."""
    needed = row["seeds_needed"]
    if row["verdict"] != UNDECIDED:
        return ""
    if not interval.defined:
        return "one seed" if interval.seeds == 1 else "no variation"
    if np.isnan(needed):
        return "more test clips"
    return f"about {needed:.0f} seeds" if needed < np.inf else f"over {MOST_SEEDS} seeds"


def reach_of(table: pd.DataFrame, entries: dict[str, Claim]) -> float:
    """Return the end (points) of the axis that all plots share: what nine tenths of the numbers do not exceed."""
    numbers = np.abs(table[["difference", "difference_low", "difference_high"]].to_numpy(dtype=float)).ravel()
    numbers = np.concatenate([numbers, [abs(value) for entry in entries.values() for value in entry.reported.values()]])
    numbers = numbers[~np.isnan(numbers)]
    return max(2.0, float(np.ceil(np.quantile(numbers, 0.9)))) if len(numbers) else 2.0


def contrast_plot(interval: Interval, reported: tuple[float, ...], reach: float) -> Plot:
    """Return the plot of a contrast on an axis from -`reach` to `reach` points, at whose ends it is cut."""

    def at(value: float) -> float | None:
        return None if np.isnan(value) else round(50 + 46 * float(np.clip(value / reach, -1, 1)), 1)

    rings = tuple(place for value in reported if (place := at(value)) is not None)
    words = [f"paper {', '.join(map(signed, reported))}"] if reported else []
    words += [f"here {spread(interval, sign=True)}"] if interval.seeds else []
    return Plot(50, at(interval.low), at(interval.high), at(interval.mean), rings, ", ".join(words))
