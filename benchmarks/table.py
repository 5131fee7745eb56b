"""Markdown page of the results, with a goal and a value for each kind of machine."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from benchmarks.harness import KINDS, Benchmark, Kind

NAMES: dict[Kind, str] = {"cpu": "CPU", "gpu": "GPU"}
NOTHING = "\N{EN DASH}"
HEAD = """# Benchmarks

`make bench` writes this page: it replaces the columns of the kind of machine that it runs on. Do not edit it by hand.
A speed-up is the median of several ratios, with both implementations timed alternately in one process. A value in
brackets misses its goal.
"""


def page(benchmarks: Mapping[str, Benchmark], results: Mapping[Kind, Mapping[str, Any]]) -> str:
    """Return the page. `results` maps the kind of machine to what `harness.keep` wrote; empty if not measured yet."""
    lines = [HEAD, *(_machine(kind, results.get(kind, {})) for kind in KINDS), ""]
    lines.append("| what | against | goal CPU | CPU | goal GPU | GPU |")
    lines.append("|---|---|---|---|---|---|")
    for one in benchmarks.values():
        cells = [one.what, one.against or NOTHING]
        for kind in KINDS:
            cells += [_goal(one, kind), _value(one, kind, results)]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## How each is measured", ""]
    for one in benchmarks.values():
        lines += [f"**{one.what}** (`{one.name}`). {_words(one)}", ""]
        for kind in KINDS:
            if row := _row(one, kind, results):
                lines += [f"- {NAMES[kind]}, {row['date']}: {_detail(row['detail'])}"]
                if one.limit and one.keeps(row["value"], kind) is False:
                    lines += [f"- {NAMES[kind]}, what limits it: {one.limit}"]
        lines += [""]
    return "\n".join(lines).rstrip().replace("\n\n\n", "\n\n") + "\n"


def _row(one: Benchmark, kind: Kind, results: Mapping[Kind, Mapping[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = results.get(kind, {}).get("rows", {}).get(one.name, {})
    return row


def _machine(kind: Kind, result: Mapping[str, Any]) -> str:
    """Describe a machine on one line."""
    if not result:
        return f"- {NAMES[kind]}: not measured yet"
    where = result["machine"]
    dates = sorted({row["date"] for row in result["rows"].values()})
    parts = [where["gpu"], where["processor"], where["vectors"], f"{where['cores']} cores"]
    parts += [f"{where['memory_gib']} GiB", where["system"]]
    parts += [f"{name} {number}" for name, number in where["versions"].items()]
    days = " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "no rows"
    return f"- {NAMES[kind]} ({days}): {', '.join(part for part in parts if part)}"


def _goal(one: Benchmark, kind: Kind) -> str:
    goal = one.goals.get(kind)
    return NOTHING if goal is None else f"{'≥' if one.unit == 'x' else '≤'} {_number(goal, one.unit)}"


def _value(one: Benchmark, kind: Kind, results: Mapping[Kind, Mapping[str, Any]]) -> str:
    """Format a value, in brackets if it misses its goal."""
    row = _row(one, kind, results)
    if not row:
        return NOTHING if kind not in one.goals else ""
    text = _number(row["value"], one.unit)
    return f"({text})" if one.keeps(row["value"], kind) is False else text


def _number(value: float, unit: str) -> str:
    """Format a value with three digits and its unit."""
    digits = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return {"x": f"{digits}x", "exponent": f"n^{value:.2f}"}.get(unit, f"{digits} {unit}")


def _words(one: Benchmark) -> str:
    """Return a benchmark's docstring as one paragraph."""
    return " ".join((inspect.getdoc(one.function) or "").split())


def _detail(detail: Mapping[str, Any]) -> str:
    """Format the details of a value on one line."""

    def text(value: Any) -> str:
        if isinstance(value, float):
            return f"{value:.3g}"
        if isinstance(value, list):
            return ", ".join(map(text, value))
        return ", ".join(f"{k} {text(v)}" for k, v in value.items()) if isinstance(value, dict) else str(value)

    return "; ".join(f"{name} {text(value)}" for name, value in detail.items())
