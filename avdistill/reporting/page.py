"""What the report's page is made of: tables as they are read, numbers as they are written, and claims in words.

A table (`Sheet`) is made once and written twice, as HTML and as Markdown. A claim says no more than its test: "a gain"
or "a loss" only where avdistill/reporting/significance.py found one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avdistill.reporting.results import Interval

TEMPLATES = Path(__file__).with_name("templates")
MINUS, PLUS_MINUS = "\N{MINUS SIGN}", "\N{PLUS-MINUS SIGN}"
ONE_SEED = "\N{DAGGER}"
EMPTY = "\N{EN DASH}"
LISTED = 6  # longer lists of runs are summed up


class Plot(NamedTuple):
    """A gain as a picture: positions from 0 to 100; None is not drawn."""

    zero: float
    low: float | None
    high: float | None
    mean: float | None
    reported: float | None
    label: str


class TableCell(NamedTuple):
    """A table's cell: its text, what a pointer over it shows, and its look (any of strong, dim, lower, mono)."""

    text: str
    title: str = ""
    look: str = ""
    plot: Plot | None = None


NOT_RUN = TableCell("not run", look="dim")


class Column(NamedTuple):
    """A table's column. Columns of one group stand next to each other; `first` sets a group apart."""

    heading: str
    group: str = ""
    number: bool = True
    first: bool = False


@dataclass
class Sheet:
    """A table as it is read: `name` is that of its Markdown file."""

    name: str
    caption: str
    columns: list[Column]
    rows: list[list[TableCell]]
    notes: list[str] = field(default_factory=list)
    legend: str = ""  # of the plots, which Markdown does not have

    def groups(self) -> list[tuple[str, int]]:
        """Groups of columns with their widths, for the upper line of the head."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.group and not column.first:
                found[-1] = (column.group, found[-1][1] + 1)
            else:
                found.append((column.group, 1))
        return found

    def markdown(self) -> str:
        """The table in Markdown, without its plots."""
        kept = [number for number in range(len(self.columns)) if not any(row[number].plot for row in self.rows)]
        columns = [self.columns[number] for number in kept]
        lines = [
            " | ".join(escape_markdown(f"{column.group} {column.heading}".strip()) for column in columns),
            " | ".join("---:" if column.number else "---" for column in columns),
        ]
        for row in self.rows:
            marks = ["**" if "strong" in row[number].look.split() else "" for number in kept]
            texts = [escape_markdown(row[number].text) for number in kept]
            lines.append(" | ".join(f"{mark}{text}{mark}" for mark, text in zip(marks, texts, strict=True)))
        table = "\n".join(f"| {line} |" for line in lines)
        return "\n\n".join([f"### {escape_markdown(self.caption)}", table, *map(escape_markdown, self.notes)]) + "\n"


@dataclass
class Section:
    """A part of a chapter."""

    name: str
    title: str
    text: list[str] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    folded: list[Sheet] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Chapter:
    """A part of the page: what answers one question of a reader."""

    name: str
    title: str
    text: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)


def signed(value: float) -> str:
    """A difference with its sign and one decimal; no sign where it rounds to zero."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def plain(value: float) -> str:
    """A number with one decimal; a dash where there is none."""
    return EMPTY if np.isnan(value) else f"{value:.1f}".replace("-", MINUS)


def spread(interval: Interval, digits: int = 1, sign: bool = False) -> str:
    """A mean with half of its interval, as in `61.2 ± 2.3`; with a dagger where the interval is undefined."""
    if not interval.seeds:
        return EMPTY
    mean = signed(interval.mean) if sign else f"{interval.mean:.{digits}f}"
    return f"{mean} {PLUS_MINUS} {interval.half:.{digits}f}" if interval.defined else f"{mean} {ONE_SEED}"


def gain_cell(gain: Interval, found: str, title: str = "") -> TableCell:
    """A gain: bold where it may be claimed, coloured where it is below zero."""
    looks = ["strong" if found else "", "lower" if gain.mean < 0 and signed(gain.mean) != "0.0" else ""]
    return TableCell(spread(gain, sign=True), title, " ".join(filter(None, looks)) if gain.seeds else "dim")


def probability(value: float) -> str:
    """A p value with three digits after the point; a dash where there is none."""
    return EMPTY if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def claim(name: str, base: str, gain: Interval, found: str, where: str = "") -> str:
    """One sentence that says what the difference of two runs in accuracy allows to be said."""
    size = f"{abs(gain.mean):.1f}"
    side = "level with" if size == "0.0" else f"{size} points {'above' if gain.mean > 0 else 'below'}"
    sentence = f"{where}{name} is {side} {base}"
    if not gain.defined:
        why = (
            "one seed"
            if gain.seeds == 1
            else f"the same difference in all {gain.seeds} seeds, so its spread is unknown"
        )
        return f"{sentence} ({why}): no difference can be claimed."
    interval = f"95 % interval {plain(gain.low)} to {plain(gain.high)}, {plural(gain.seeds, 'seed')}"
    if found:
        return f"{sentence} ({interval}): a {found}."
    corrected = " after correction for the number of comparisons" if gain.excludes(0) else ""
    return f"{sentence} ({interval}): no difference can be claimed{corrected}."


def verdicts(gains: Mapping[str, Interval], found: Mapping[str, str], base: str) -> str:
    """Sentences that say which of several runs gain over what they are compared with, which lose, and on which side
    the others are. `found` has the claims by run. What is claimed is named; of the others, many are summed up."""
    sides: dict[str, list[str]] = {side: [] for side in ("gain", "loss", "higher", "level", "lower")}
    for run, gain in sorted(gains.items(), key=lambda entry: -entry[1].mean):
        mean = signed(gain.mean)
        side = "level" if mean == "0.0" else "higher" if gain.mean > 0 else "lower"
        sides[found.get(run) or side].append(f"{run} {mean}")
    sentences = []
    if sides["gain"]:
        sentences.append(f"A gain over {base}: {listed(sides['gain'])}.")
    if sides["loss"]:
        sentences.append(f"A loss against {base}: {listed(sides['loss'])}.")
    if rest := [f"{side} {some(sides[side])}" for side in ("higher", "level", "lower") if sides[side]]:
        untested = sum(not gain.defined for gain in gains.values())
        count = "" if untested == len(gains) else f"{untested} of them "
        aside = f" ({count}not tested: one seed)" if untested else ""
        which = "the others" if sentences else "any" if len(gains) > 1 else "it"
        sentences.append(f"No difference from {base} can be claimed for {which}{aside}: {'; '.join(rest)}.")
    return " ".join(sentences)


def plural(number: int, noun: str) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    words = list(words)
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def some(runs: list[str]) -> str:
    """Runs in their order; of many, how many and the ends."""
    return listed(runs) if len(runs) <= LISTED else f"{len(runs)} runs, from {runs[0]} to {runs[-1]}"


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, also inside a table."""
    return "".join(f"\\{character}" if character in "|\\`*_[]<>" else character for character in text)


def reported_cell(value: float, text: str) -> TableCell:
    """A number of a paper, which may be missing there."""
    return TableCell(EMPTY, "the paper gives no number", "dim") if np.isnan(value) else TableCell(text)


def symbol(score: str) -> str:
    """What a score is called in the papers."""
    return {"tau": "τ"}.get(score, score)


def with_dagger(rows: list[list[TableCell]], notes: list[str]) -> list[str]:
    """The notes, and what the dagger means where one is used."""
    used = any(ONE_SEED in cell.text for row in rows for cell in row)
    return [*notes, f"{ONE_SEED} No interval: one seed, or the same difference in all seeds."] if used else notes


def render(**values: Any) -> str:
    """The page, with everything that comes from outside escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(**values).lstrip()
