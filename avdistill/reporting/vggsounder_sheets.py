"""The sheets of the report on VGGSounder's labels, from the table of avdistill/reporting/vggsounder_tables.py."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from avdistill.data.sources.vggsounder import VERSION
from avdistill.reporting.page import (
    EMPTY,
    MINUS,
    PLUS_MINUS,
    Column,
    Sheet,
    TableCell,
    plain,
    spread,
    symbol,
    with_dagger,
)
from avdistill.reporting.results import interval_of, percent
from avdistill.reporting.suite import EvaluatedSuite
from avdistill.reporting.vggsounder_tables import LABEL, MORE_TRUTHS, SETS, TRUTHS

SOUND_NOTE = (
    "AUROC of clip scores, mean over seeds, with the 95 % interval over source videos (bootstrap). Bold: the "
    "interval excludes 0.5 (chance), or 0 for a difference; coloured: below. own: the clip's class is seen and "
    "heard, against one of the two; clean: all that is heard is seen, without music and voice-over; music: no "
    "background music. Within classes: mean over classes with at least 5 clips of both kinds. cos(s, t): features "
    "of student and teacher as they are; head: the teacher's linear layer; agreement: probability that head and "
    "student name one class; loudness: mean power of the spectrogram."
)
MORE_NOTE = (
    "own heard: the clip's class is heard, against seen only; shared: some label is seen and heard, against none; own "
    "speechless and clean speechless: own and clean without the clips in which speech is heard."
)
HEADINGS = {"cosine": "cos(s, t)", "head_label": "head: p(y)", "head_certainty": "head: certainty"}
Rows = dict[tuple[str, str, str], dict[str, Any]]  # of the table by run, measure and `on`


def vggsounder_sheets(suite: EvaluatedSuite, table: pd.DataFrame) -> list[Sheet]:
    """Return the sheets of recognition (one row per run) and of the sound (one row per run and clip score)."""
    known = {(row["run"], row["measure"], row["on"]): row for row in table.to_dict("records")}
    sheets = [
        recognition_sheet(suite, table, known),
        sound_sheet(suite, known, "vggsounder-sound", "Does the sound belong?", TRUTHS, SOUND_NOTE),
        sound_sheet(suite, known, "vggsounder-sound-more", "The same by other truths", MORE_TRUTHS, MORE_NOTE),
    ]
    return [sheet for sheet in sheets if sheet.rows]


def recognition_sheet(suite: EvaluatedSuite, table: pd.DataFrame, known: Rows) -> Sheet:
    """Return the sheet of recognition: one row per run, and one of VGGSound's own label."""
    measures = ("hit@1", "F1@1", "AP")
    columns = [Column("run", number=False)]
    columns += [Column(on, name, first=on == SETS[0]) for name in measures for on in SETS]
    columns += [Column(name, "any", first=name == "κ_V") for name in ("κ_V", "repairs", "κ_A")]
    keys = [(name, on) for name in measures for on in SETS]
    keys += [(name, "any") for name in ("kappa_V", "repairs", "kappa_A")]
    rows = []
    for run in dict.fromkeys(table["run"]):
        measured = [known.get((run, *key)) for key in keys]
        if run == LABEL:
            texts, title = [plain(100 * row["value"]) if row else EMPTY for row in measured], ""
        else:
            texts = [spread(percent(interval_of(row, "value"))) if row else EMPTY for row in measured]
            title = suite.tooltip(run)
        rows.append([TableCell(run), *(TableCell(text, title) for text in texts)])
    counts = {row["on"]: row["clips"] for row in reversed(table[table["measure"] == "hit@1"].to_dict("records"))}
    notes = [
        f"Percent, mean {PLUS_MINUS} half of the 95 % interval over seeds. hit@1: top-1 class among the labels; F1@1: "
        "micro-F1 of the top-1 class as the only label, which cannot find a second label of a clip; AP: average "
        "precision, mean over classes; on labels that are seen "
        f"({counts['visible']:,} test clips), heard ({counts['audible']:,}), or both ({counts['both']:,}). κ_V: clips "
        "that the student without a teacher hits and this run misses, with any label; repairs: the reverse; κ_A: clips "
        f"with sound that the audio teacher's head hits and this run misses. {LABEL}: that of the clip in VGGSound as "
        "the prediction."
    ]
    return Sheet("vggsounder", "Recognition on VGGSounder", columns, rows, with_dagger(rows, notes))


def sound_sheet(suite: EvaluatedSuite, known: Rows, name: str, caption: str, truths: Iterable[str], note: str) -> Sheet:
    """Return the sheet of the sound by some truths: one row per run and clip score; `note` explains the truths."""
    columns = [Column("run", number=False), Column("score", number=False)]
    for on in truths:
        group = on.replace("_", " ")
        columns += [Column("AUROC", group, first=True), Column(f"{MINUS} cos(s, t)", group)]
        columns += [Column("within classes", group), Column("clips", group)]
    rows = []
    for run, score in dict.fromkeys((run, name[6:]) for run, name, _ in known if name.startswith("auroc/")):
        cells = [TableCell(run), TableCell(HEADINGS.get(score, symbol(score)))]
        for on in truths:
            areas = {kind: known.get((run, f"{kind}/{score}", on)) for kind in ("auroc", "gain", "within")}
            cells += [area_cell(row, kind, suite.tooltip(run)) for kind, row in areas.items()]
            cells.append(TableCell(f"{known[run, f'auroc/{score}', on]['clips']:,}"))
        rows.append(cells)
    return Sheet(name, caption, columns, rows, [note])


def area_cell(row: dict[str, Any] | None, kind: str, title: str) -> TableCell:
    """Return the cell of an AUROC, or of a `gain` in it, with its interval."""
    if row is None or np.isnan(row["value"]):
        return TableCell(EMPTY, title, "dim")
    area, chance = interval_of(row, "value"), 0.0 if kind == "gain" else 0.5
    looks = ["strong" if area.excludes(chance) else "", "lower" if area.mean < chance else ""]
    text, *ends = (f"{value:.2f}".replace("-", MINUS) for value in area[:3])
    return TableCell(text, title, " ".join(filter(None, looks)), detail=" to ".join(ends))


def vggsounder_text() -> str:
    """Return the introduction of the section."""
    return (
        f"VGGSounder {VERSION} (Zverev et al., ICCV 2025) labels what is seen and what is heard in the test clips of "
        "VGGSound. The methods do not see these labels."
    )
