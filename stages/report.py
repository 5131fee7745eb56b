"""Stage report: the claims of the papers with verdicts, when distillation helps, their tables compared with our runs.

Writes to report/:
  index.html      self-contained page
  tables/*.csv    data of the tables, with the full ids of the MLflow runs behind the numbers
  tables/*.md     the tables as shown on the page

and, for DVC's own commands, the files of avdistill/reporting/headlines.py.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import struct
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from avdistill.data.files import write_csv, write_text
from avdistill.data.index import read_index
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.stage import Stage
from avdistill.reporting import results
from avdistill.reporting.claims import claims_sheet, claims_table
from avdistill.reporting.extra_tables import (
    cost_sheet,
    cost_table,
    detection_sheet,
    detection_table,
    gradients_sheet,
    gradients_table,
    noise_sheet,
    noise_table,
    teacher_warning,
    tests_sheets,
    tests_table,
)
from avdistill.reporting.headlines import write_headlines
from avdistill.reporting.page import Chapter, Section, listed, render
from avdistill.reporting.paper_tables import PAPERS, SHORT, datasets_note, paper_section, paper_table
from avdistill.reporting.settings import predictors_table, settings_sheet, settings_table
from avdistill.reporting.suite import EvaluatedSuite
from avdistill.reporting.suite_tables import (
    dataset_sheet,
    dataset_table,
    reasons_sheet,
    recipes_sheet,
    runs_notes,
    runs_sheet,
    runs_table,
    seen_in_training,
    studies_sheet,
    studies_table,
    teachers_sheet,
    teachers_table,
)
from avdistill.reporting.vggsounder_sheets import vggsounder_sheets, vggsounder_text
from avdistill.reporting.vggsounder_tables import vggsounder_table

PAPER_FIGURES = {
    "xia2023": ("training_curves", "attention"),
    "chen2021": ("gain_per_class", "large", "retrieval", "embedding", "heard"),
}
PACKAGES = (
    "torch",
    "torchvision",
    "torchaudio",
    "numpy",
    "pandas",
    "scipy",
    "av",
    "decord",
    "dvc",
    "mlflow",
    "prefect",
)


def made_facts(stage: Stage, suite: EvaluatedSuite) -> list[tuple[str, str]]:
    """Return the provenance of the page: params file, commit, seeds, device, packages."""
    params = suite.params
    tags = stage.run.tags
    commit = tags.get("mlflow.source.git.commit", "unknown")
    changed = " with uncommitted changes" if tags.get("git.dirty") == "true" else ""
    seeds = sorted({seed for job in params.jobs.values() for seed in job.seeds})
    selection = sorted({params.recipes[job.recipe].selection for job in params.jobs.values()})
    splits = {
        "val": "validation split",
        "test": "test split (as in the papers)",
        "last": "none (last epoch)",
    }
    missing = [job for job in params.jobs if not any(run in suite.evaluated for run in params.jobs[job].runs)]
    return [
        ("not evaluated", listed(missing) or "no job"),
        ("params file", f"{params.suite.file} (suite {params.suite.name})"),
        ("git commit", f"{commit}{changed}"),
        ("seeds", ", ".join(map(str, seeds))),
        ("epoch selected on", listed(splits[name] for name in selection)),
        ("device", params.device),
        ("machine", f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"),
        ("packages", ", ".join(f"{name} {found}" for name in PACKAGES if (found := installed(name)))),
        ("MLflow", "run ids in tables/*.csv and in tooltips" if suite.ledger else "no tracked runs"),
    ]


def installed(package: str) -> str:
    """Return the version of a package; empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def inlined(folder: Path, entry: dict[str, str]) -> dict[str, Any]:
    """Return an entry of figures.json with its PNG as base64, and its width and height in pixels."""
    data = (folder / entry["file"]).read_bytes()
    width, height = struct.unpack(">II", data[16:24])  # the PNG's first chunk, IHDR
    return {**entry, "image": base64.b64encode(data).decode("ascii"), "width": width, "height": height}


def date() -> str:
    """Return the time from SOURCE_DATE_EPOCH if set, which makes the page reproducible, else now. Raises UserError."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    if given and not given.isdigit():
        raise UserError(f"SOURCE_DATE_EPOCH: expected seconds since 1970, found {given!r}")
    moment = datetime.fromtimestamp(int(given), UTC) if given else datetime.now(UTC)
    return moment.strftime("%Y-%m-%d %H:%M UTC")


class DrawnFigures:
    """The figures drawn by stage figures, each shown once."""

    def __init__(self, folder: Path) -> None:
        file = folder / "figures.json"
        listing = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        self.left = {entry["name"]: inlined(folder, entry) for entry in listing if "file" in entry}
        self.absent = [f"{entry['title']}: {entry['absent']}." for entry in listing if "absent" in entry]

    def take(self, *names: str) -> list[dict[str, Any]]:
        """Remove and return the named figures that exist and have not been shown."""
        return [self.left.pop(name) for name in names if name in self.left]


def settings_chapter(suite: EvaluatedSuite, tables: dict[str, pd.DataFrame], figures: DrawnFigures) -> Chapter:
    """Return the chapter of `report.settings`: in which settings distillation helps, and what predicts it."""
    tables["settings"] = settings_table(suite)
    sections = []
    if len(tables["settings"]):
        tables["predictors"] = predictors_table(tables["settings"])
        sheet = settings_sheet(suite, tables["settings"], tables["predictors"])
        sections.append(Section("gain-by-setting", sheet.caption, [], [sheet], figures=figures.take("settings")))
    return Chapter("when", "When does it help?", [], sections)


def paper_chapter(
    suite: EvaluatedSuite, source: str, tables: dict[str, pd.DataFrame], figures: DrawnFigures
) -> Chapter:
    """Return the chapter of one paper: its tables and figures, and the numbers of the tables not in the suite."""
    chosen = {name: table for name, table in suite.params.report.tables.items() if table.source == source}
    lacking = sorted(set(results.paper_tables(source)) - {table.table for table in chosen.values()})
    missing = f"Not in this suite: Table{'s' * (len(lacking) > 1)} {listed(map(str, lacking))}." if lacking else ""
    sections = []
    for name, table in chosen.items():
        tables[name] = paper_table(suite, table)
        sections.append(paper_section(suite, name, table, tables[name]))
    if drawn := figures.take(*PAPER_FIGURES[source]):
        sections.append(Section(f"figures-{source}", f"Figures of {SHORT[source]}", figures=drawn))
    text = [f"{PAPERS[source]}. {missing}".strip(), datasets_note(suite, chosen.values())]
    return Chapter(source, SHORT[source], [paragraph for paragraph in text if paragraph], sections)


def beyond_chapter(suite: EvaluatedSuite, tables: dict[str, pd.DataFrame], figures: DrawnFigures) -> Chapter:
    """Return the chapter of results beyond the papers: tests, noise, clip scores, VGGSounder, cost."""
    sections = []
    tables["tests"] = tests_table(suite)
    if sheets := tests_sheets(suite, tables["tests"]):
        sections.append(Section("tests", "Significance tests", [], sheets[:1], sheets[1:]))
    tables["noise"] = noise_table(suite)
    if len(tables["noise"]):
        sections.append(
            Section(
                "noise", "Noise in the sound", [], [noise_sheet(suite, tables["noise"])], figures=figures.take("noise")
            )
        )
    tables["detection"] = detection_table(suite)
    if len(tables["detection"]):
        text = (
            "The dataset labels whether the sound of a clip is relevant, that is, of the action. The methods do not "
            "see this label; their clip scores are compared with it."
        )
        sheets = [detection_sheet(suite, tables["detection"])]
        sections.append(Section("sound", "Irrelevant sound", [text], sheets, figures=figures.take("scores")))
    tables["vggsounder"] = vggsounder_table(suite)
    if len(tables["vggsounder"]):
        sheets = vggsounder_sheets(suite, tables["vggsounder"])
        drawn = figures.take(*(f"loudness_{dataset}" for dataset in suite.params.datasets))
        sections.append(Section("vggsounder", "VGGSounder", [vggsounder_text()], sheets, figures=drawn))
    tables["cost"] = cost_table(suite.params)
    if len(tables["cost"]):
        sheets = [cost_sheet(tables["cost"], suite.ledger.get(("cost", None)))]
        tables["gradients"] = gradients_table(suite.params)
        if len(tables["gradients"]):
            sheets.append(gradients_sheet(tables["gradients"]))
        sections.append(Section("cost", "Cost of the methods", [], sheets))
    return Chapter("beyond", "Beyond both papers", [], sections)


def runs_chapter(suite: EvaluatedSuite, tables: dict[str, pd.DataFrame], figures: DrawnFigures) -> Chapter:
    """Return the chapter of all runs by study."""
    tables["studies"], tables["runs"] = studies_table(suite), runs_table(suite)
    text, sections = runs_notes(tables["runs"]), []
    if len(tables["studies"]):
        sections.append(Section("studies", "Studies", [], [studies_sheet(tables["studies"])]))
    for study, rows in tables["runs"].groupby("study", sort=False):
        sheet = runs_sheet(suite, str(study), rows)
        title = suite.params.studies[str(study)].title if study else sheet.caption
        sections.append(Section(sheet.name, title, [], [sheet]))
    if drawn := figures.take("accuracy", "confusion"):
        sections.append(Section("figures-runs", "Figures of all runs", figures=drawn))
    return Chapter("all-runs", "All runs", text, sections)


def data_chapter(suite: EvaluatedSuite, tables: dict[str, pd.DataFrame], figures: DrawnFigures) -> Chapter:
    """Return the chapter of teachers and datasets."""
    params, sections = suite.params, []
    tables["teachers"] = teachers_table(suite)
    if len(tables["teachers"]):
        sheet = teachers_sheet(tables["teachers"], seen_in_training(params))
        sections.append(Section("teachers", "Accuracy of the teachers", sheets=[sheet]))
    for name in params.datasets:
        path = params.index(name)
        if path.exists():
            index = read_index(path)
            tables[f"dataset-{name}"] = dataset_table(index)
            reasons = [sheet for sheet in [reasons_sheet(name, index)] if sheet.rows]
            sheets = [dataset_sheet(name, tables[f"dataset-{name}"])]
            clips = figures.take(f"clips_{name}")
            sections.append(Section(f"dataset-{name}", f"Dataset {name}", [], sheets, reasons, clips))
    if figures.left:
        sections.append(Section("more", "More figures", figures=figures.take(*figures.left)))
    return Chapter("data", "Teachers and data", [], sections)


def build(stage: Stage, folder: Path) -> None:
    """Write the tables and the page to `folder`."""
    params = stage.params
    suite = EvaluatedSuite(params)
    figures = DrawnFigures(params.path("figures"))
    tables = {"claims": claims_table(suite)}
    claims = [claims_sheet(suite, tables["claims"])] if params.report.claims else []
    chapters = [settings_chapter(suite, tables, figures)] if params.report.settings else []
    chapters += [paper_chapter(suite, source, tables, figures) for source in PAPERS]
    chapters += [make(suite, tables, figures) for make in (beyond_chapter, runs_chapter, data_chapter)]
    absent = ["Figures without data in this suite. " + " ".join(figures.absent)] if figures.absent else []
    made = Section(
        "made", "Recipes, versions, seeds", absent, folded=[recipes_sheet(params)], facts=made_facts(stage, suite)
    )
    chapters.append(Chapter("how", "Provenance", [], [made]))
    chapters = [chapter for chapter in chapters if chapter.sections]

    for name, table in tables.items():
        if len(table.columns):
            write_csv(folder / "tables" / f"{name}.csv", table)
    sections = [section for chapter in chapters for section in chapter.sections]
    for sheet in (*claims, *(sheet for section in sections for sheet in (*section.sheets, *section.folded))):
        write_text(folder / "tables" / f"{sheet.name}.md", sheet.markdown())
    page = render(
        title=params.suite.title,
        file=params.suite.file,
        warning=teacher_warning(suite),
        claims=claims,
        chapters=chapters,
        date=date(),
    )
    write_text(folder / "index.html", page)
    write_headlines(suite, tables["claims"])
    log_accuracy(stage, tables["runs"])


def log_accuracy(stage: Stage, runs: pd.DataFrame) -> None:
    """Log the mean accuracy of every run to MLflow, as fractions."""
    known = runs.dropna(subset=["accuracy"])
    stage.run.log_metrics({f"accuracy/{row['run']}": row["accuracy"] / 100 for row in known.to_dict("records")})


def main(stage: Stage) -> None:
    """Write the report of a suite."""
    results.check_tables(stage.params)
    with stage.output() as folder:
        build(stage, folder)
        stage.run.log_artifact(folder / "index.html")
        for table in sorted((folder / "tables").glob("*.csv")):
            stage.run.log_artifact(table, "tables")
    print(f"report: {stage.params.path(stage.name) / 'index.html'}")
