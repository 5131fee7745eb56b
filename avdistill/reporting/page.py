"""Building blocks of the report page: table layout and number formatting.

Each table (`Sheet`) is built once and rendered as HTML and as Markdown.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avdistill.reporting.results import Interval

TEMPLATES = Path(__file__).with_name("templates")
MINUS, PLUS_MINUS = "\N{MINUS SIGN}", "\N{PLUS-MINUS SIGN}"
ONE_SEED = "\N{DAGGER}"
EMPTY = "\N{EN DASH}"
SIGNIFICANT = ("higher", "lower")  # verdicts; the other one is "undecided"


class Plot(NamedTuple):
    """A difference drawn as inline SVG: positions from 0 to 100; None is not drawn."""

    zero: float
    low: float | None
    high: float | None
    mean: float | None
    reported: tuple[float, ...]
    label: str


class TableCell(NamedTuple):
    """A table cell: text, tooltip, CSS classes in `look` (any of strong, dim, lower, mono, wrap, holds, fails), a plot
    in place of the text, and `detail`, smaller, on a line below the text."""

    text: str
    title: str = ""
    look: str = ""
    plot: Plot | None = None
    detail: str = ""


NOT_RUN = TableCell("not run", look="dim")


class Column(NamedTuple):
    """A table column. Columns of one `group` are adjacent; `first` adds space before a group."""

    heading: str
    group: str = ""
    number: bool = True
    first: bool = False


@dataclass
class Sheet:
    """A table as displayed; `name` is the stem of its Markdown file."""

    name: str
    caption: str
    columns: list[Column]
    rows: list[list[TableCell]]
    notes: list[str] = field(default_factory=list)
    legend: str = ""  # of the plots, which the Markdown version omits

    def groups(self) -> list[tuple[str, int]]:
        """Return the column groups and their widths, for the upper header row."""
        found: list[tuple[str, int]] = []
        for column in self.columns:
            if found and found[-1][0] == column.group and not column.first:
                found[-1] = (column.group, found[-1][1] + 1)
            else:
                found.append((column.group, 1))
        return found

    def markdown(self) -> str:
        """Return the table as Markdown, without its plots."""
        kept = [number for number in range(len(self.columns)) if not any(row[number].plot for row in self.rows)]
        columns = [self.columns[number] for number in kept]
        lines = [
            " | ".join(escape_markdown(f"{column.group} {column.heading}".strip()) for column in columns),
            " | ".join("---:" if column.number else "---" for column in columns),
        ]
        for row in self.rows:
            marks = ["**" if "strong" in row[number].look.split() else "" for number in kept]
            texts = [escape_markdown(row[number].text) for number in kept]
            details = [f" ({escape_markdown(detail)})" if (detail := row[number].detail) else "" for number in kept]
            cells = zip(marks, texts, details, strict=True)
            lines.append(" | ".join(f"{mark}{text}{mark}{detail}" for mark, text, detail in cells))
        table = "\n".join(f"| {line} |" for line in lines)
        return "\n\n".join([f"### {escape_markdown(self.caption)}", table, *map(escape_markdown, self.notes)]) + "\n"


@dataclass
class Section:
    """A section of a chapter, with its text, tables and figures; `folded` tables are collapsed."""

    name: str
    title: str
    text: list[str] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    folded: list[Sheet] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Chapter:
    """A chapter of the page, listed in the table of contents."""

    name: str
    title: str
    text: list[str] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)


def signed(value: float) -> str:
    """Format a difference with its sign and one decimal; without a sign if it rounds to zero."""
    text = f"{value:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def plain(value: float) -> str:
    """Format a number with one decimal; a dash for NaN."""
    return EMPTY if np.isnan(value) else f"{value:.1f}".replace("-", MINUS)


def spread(interval: Interval, digits: int = 1, sign: bool = False) -> str:
    """Format a mean and the half-width of its interval as `61.2 ± 2.3`; with a dagger if the interval is undefined."""
    if not interval.seeds:
        return EMPTY
    mean = signed(interval.mean) if sign else f"{interval.mean:.{digits}f}"
    return f"{mean} {PLUS_MINUS} {interval.half:.{digits}f}" if interval.defined else f"{mean} {ONE_SEED}"


def gain_cell(gain: Interval, verdict: str, title: str = "") -> TableCell:
    """Return the cell of a difference: bold if significant, coloured if negative."""
    negative = gain.mean < 0 and signed(gain.mean) != "0.0"
    looks = ["strong" if verdict in SIGNIFICANT else "", "lower" if negative else ""]
    return TableCell(spread(gain, sign=True), title, " ".join(filter(None, looks)) if gain.seeds else "dim")


def probability(value: float) -> str:
    """Format a p value with three decimals; a dash for NaN."""
    return EMPTY if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def plural(number: int, noun: str) -> str:
    """Format a count with its noun: `1 seed`, `5 seeds`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def listed(words: Iterable[str]) -> str:
    """Join words: `a`, `a and b`, `a, b and c`."""
    words = list(words)
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def escape_markdown(text: str) -> str:
    """Escape text so that Markdown shows it literally, also inside a table."""
    return "".join(f"\\{character}" if character in "|\\`*_[]<>" else character for character in text)


def reported_cell(value: float, text: str) -> TableCell:
    """Return the cell of a number from a paper, which may be missing (NaN)."""
    return TableCell(EMPTY, "not reported in the paper", "dim") if np.isnan(value) else TableCell(text)


def symbol(score: str) -> str:
    """Return the papers' symbol for a clip score."""
    return {"tau": "τ"}.get(score, score)


def with_dagger(rows: list[list[TableCell]], notes: list[str]) -> list[str]:
    """Return the notes, with an explanation of the dagger if a cell contains one."""
    used = any(ONE_SEED in cell.text for row in rows for cell in row)
    return [*notes, f"{ONE_SEED} No interval: one seed, or the same difference in all seeds."] if used else notes


def render(**values: Any) -> str:
    """Render the page; all values are HTML-escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(**values).lstrip()
