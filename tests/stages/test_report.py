from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from avdistill.config.schema import Params
from avdistill.data.index import read_index, write_index
from avdistill.pipeline.errors import UserError
from avdistill.reporting import page
from avdistill.reporting.page import Column, Sheet, TableCell
from stages import figures, report
from tests.helpers import both_papers
from tests.helpers.synthetic import read_json, stage, suite_params, write_suite

VOID = {"meta", "img", "br", "line", "circle", "path", "link", "input"}


class Page(HTMLParser):
    """Text of a page, and what it would load; checks that elements are closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.loads += [values[name] for name in ("src", "srcset", "data", "action") if name in values]
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if "href" in values else []
        assert tag not in ("script", "link", "iframe")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Params:
    params = suite_params(tmp_path_factory.mktemp("suite"))
    write_suite(params)
    figures.main(stage("figures", params))
    return params


@pytest.fixture
def made(params: Params, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The report's folder, made at a fixed time with runs that were tracked."""
    ids = {("evaluate", "kd", seed): f"{seed}" * 32 for seed in range(5)}
    monkeypatch.setattr("avdistill.reporting.suite.ledger", lambda params: {**ids, ("train", "kd"): "abcdef0123456789"})
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    report.main(stage("report", params))
    return params.path("report")


def test_page_is_whole_and_loads_nothing(made: Path):
    read = Page((made / "index.html").read_text())
    assert len(read.loads) == 6 and all(source.startswith("data:image/png;base64,") for source in read.loads)
    assert len(read.ids) == len(set(read.ids))
    assert {link.removeprefix("#") for link in read.links} <= set(read.ids)
    assert "1970-01-01 00:00 UTC" in read.text
    for words in ("A made-up suite", "could find", "Irrelevant sound", "Gallery of 108 videos: mAP@500"):
        assert words in read.text
    assert "nan" not in read.text.lower().split()


def test_same_inputs_same_page(made: Path, params: Params):
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    report.main(stage("report", params))
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before


def test_table_beside_the_paper(made: Path):
    table = pd.read_csv(made / "tables" / "xia_1.csv").set_index(["method", "metric"])
    assert len(table) == 9 * 4
    kd = table.loc[("KD", "accuracy")]
    assert (kd["reported"], kd["run"], kd["ours_seeds"]) == (65.8, "kd", 5)
    assert kd["ours_low"] < kd["ours"] < kd["ours_high"]
    assert kd["difference"] == pytest.approx(kd["ours"] - 65.8)
    assert kd["mlflow_evaluate"].split()[0] == "0:" + "0" * 32 and kd["mlflow_train"] == "all:abcdef0123456789"
    markdown = (made / "tables" / "xia_1-scores.md").read_text()
    assert f"| KD | kd | 65.8 | {kd['ours']:.1f} \N{PLUS-MINUS SIGN} {kd['ours_high'] - kd['ours']:.1f} |" in markdown
    assert "xID" not in markdown, "the suite does not run it"


def test_the_claims_come_first_and_are_decided_by_the_numbers(made: Path, params: Params):
    text = " ".join(Page((made / "index.html").read_text()).text.split())
    assert "A made-up suite Warning: teacher ear was trained on generated data only" in text
    assert "use a published checkpoint. Claims: 2 hold, 1 does not hold claim paper here could find verdict X1" in text
    table = pd.read_csv(made / "tables" / "claims.csv").set_index("id")
    difference = 100 * (seeds(params, "mnf_csc") - seeds(params, "uni_modal"))
    expected = stats.ttest_1samp(difference, 0)
    row = table.loc["X1"]
    assert row["difference"] == pytest.approx(difference.mean())
    # Groups of different sizes make the t test over seeds an approximation.
    assert row["p"] == pytest.approx(expected.pvalue, rel=0.05)
    assert [row["difference_low"], row["difference_high"]] == pytest.approx(expected.confidence_interval(), rel=0.05)
    assert table["verdict"].tolist() == ["holds", "does not hold", "holds"]
    assert (made / "tables" / "claims.md").read_text().startswith("### Claims: 2 hold, 1 does not hold")


def seeds(params: Params, run: str) -> np.ndarray:
    """Accuracy of a run by seed, as evaluate wrote it."""
    table = pd.read_csv(params.path("evaluate", params.runs()[run][0]) / "metrics.csv")
    return table[(table["run"] == run) & (table["metric"] == "accuracy")]["value"].to_numpy()


def test_numbers_for_dvc(made: Path, params: Params):
    assert "proposed" not in read_json(made.parent.parent / "metrics" / f"{params.suite.name}.json")
    params = params.model_copy(update={"report": params.report.model_copy(update={"proposed": "mnf_csc"})})
    report.main(stage("report", params))
    metrics = read_json(made.parent.parent / "metrics" / f"{params.suite.name}.json")
    assert metrics["baseline"]["accuracy"] == pytest.approx(100 * seeds(params, "uni_modal").mean(), abs=0.005)
    difference = metrics["proposed"]["accuracy"] - metrics["baseline"]["accuracy"]
    assert metrics["gain"]["accuracy"] == pytest.approx(difference, abs=0.011)
    assert metrics["gain"]["low"] < metrics["gain"]["accuracy"] < metrics["gain"]["high"]
    areas = pd.read_csv(params.path("evaluate", params.runs()["mnf_csc"][0]) / "detection.csv")
    areas = areas[(areas["run"] == "mnf_csc") & (areas["split"] == "test")].groupby("score")["auroc"].mean()
    assert set(metrics["auroc"]) == set(areas.index) and len(areas) == 2
    assert metrics["auroc"]["mask"] == pytest.approx(100 * areas["mask"], abs=0.005)
    assert metrics["claims"] == {"hold": 2, "do_not_hold": 1, "undecided": 0, "not_measured": 0}
    assert sum(len(values) for values in metrics.values()) <= 18, "more than fit a screen"
    plots = made.parent.parent / "plots"
    shown = {path.parent.name: pd.read_csv(path) for path in plots.glob(f"*/{params.suite.name}.csv")}
    assert {name: list(table.columns) for name, table in shown.items()} == {
        "claims": ["claim", "difference", "low", "high"],
        "curves": ["run", "split", "epoch", "accuracy"],
        "confusion": ["actual", "predicted"],
        "noise": ["curve", "snr", "accuracy"],
    }
    claims = pd.read_csv(made / "tables" / "claims.csv")
    assert shown["claims"]["difference"].tolist() == pytest.approx(claims["difference"].tolist(), abs=0.005)
    for end in ("low", "high"):
        assert shown["claims"][end].tolist() == pytest.approx(claims[f"difference_{end}"].tolist(), abs=0.005)
    assert shown["claims"]["claim"].str.startswith("X1 ").sum() == 1
    assert shown["curves"].empty or shown["curves"]["accuracy"].between(0, 100).all()


def test_names_from_outside_are_shown_not_run(tmp_path: Path):
    params = suite_params(tmp_path)
    write_suite(params)
    index = params.index("made")
    rows = read_index(index)
    reasons = rows["reason"].str.replace("moov atom not found", "<script>alert(1)</script>|`x`", regex=False)
    write_index(index, rows.assign(reason=reasons))
    report.main(stage("report", params))
    html = (tmp_path / "report" / "index.html").read_text()
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert r"\<script\>alert(1)\</script\>\|\`x\`" in (tmp_path / "report" / "tables" / "reasons-made.md").read_text()


def test_one_seed_claims_nothing(tmp_path: Path):
    params = suite_params(tmp_path)
    write_suite(params)
    for job in params.jobs:
        for name in ("metrics", "detection"):
            path = params.path("evaluate", job) / f"{name}.csv"
            if path.exists():
                table = pd.read_csv(path)
                table[table["seed"] == 0].to_csv(path, index=False)
        for path in params.path("evaluate", job).glob("*/seed-[1-9].npz"):
            path.unlink()
    report.main(stage("report", params))
    text = " ".join(Page((tmp_path / "report" / "index.html").read_text()).text.split())
    assert "Claims: 3 undecided" in text and "undecided one seed" in text and "\N{DAGGER} No interval" in text
    assert "no tracked runs" in text


def test_several_teachers_and_missing_numbers(tmp_path: Path):
    table = {
        "title": "Chen",
        "source": "chen2021",
        "table": 1,
        "reported_dataset": "activitynet",
        "metrics": ["accuracy"],
        "rows": {"baseline": "uni_modal", "CCL/AI": "mnf_csc", "RKD/A": "kd"},
    }
    params = suite_params(tmp_path, tables={"chen_1": table})
    write_suite(params)
    report.main(stage("report", params))
    levels = (tmp_path / "report" / "tables" / "chen_1-scores.md").read_text()
    ccl, rkd = (next(line for line in levels.splitlines() if line.startswith(f"| {name} |")) for name in ("CCL", "RKD"))
    assert ccl.startswith("| CCL | mnf\\_csc | 36.5 | not run |  | 46.3 | not run |  | 47.3 | 6")
    assert rkd.startswith(f"| RKD | kd | {page.EMPTY} | 5") and rkd.endswith(
        f"| 34.3 | not run |  | {page.EMPTY} | not run |  |"
    )
    assert len([line for line in levels.splitlines() if line.startswith("| ")]) == 2 + 3, "rows that are run"


def test_what_is_not_evaluated_is_named(tmp_path: Path):
    params = suite_params(tmp_path)
    with pytest.raises(UserError, match="no job has been evaluated"):
        report.main(stage("report", params))
    assert not (tmp_path / "report").exists()
    write_suite(params)
    shutil.rmtree(params.path("evaluate", "mnf_csc"))
    report.main(stage("report", params))
    text = " ".join(Page((tmp_path / "report" / "index.html").read_text()).text.split())
    assert "not evaluatedmnf_csc" in text and "Claims: 3 not measured" in text
    scores = (tmp_path / "report" / "tables" / "xia_1-scores.md").read_text()
    assert "| KD | kd | 65.8 |" in scores and "MNF" not in scores


def test_when_it_helps_comes_after_the_claims(tmp_path: Path):
    runs = {"KD": "kd", "MNF+CSC": "mnf_csc"}
    main = {"title": "Main setting", "baseline": "uni_modal", "runs": runs, "A": "made_A"}
    params = suite_params(tmp_path, settings={"main": main})
    write_suite(params)
    report.main(stage("report", params))
    read = Page((tmp_path / "report" / "index.html").read_text())
    assert read.links[:3] == ["#top", "#when", "#gain-by-setting"] and len(read.ids) == len(set(read.ids))
    text = " ".join(read.text.split())
    assert "When does it help? Gain by setting" in text and "No claim: fewer than 8 settings" in text
    tables = tmp_path / "report" / "tables"
    assert pd.read_csv(tables / "settings.csv")["verdict"].tolist() == ["lower", "higher"]
    assert "| Main setting |" in (tables / "settings.md").read_text()
    assert "settings" in figures.wanted(params) and "settings" not in figures.wanted(suite_params(tmp_path))


def test_head_of_a_table_groups_columns():
    columns = [
        Column("run"),
        Column("paper", "R@1", first=True),
        Column("here", "R@1"),
        Column("paper", "mAP", first=True),
    ]
    sheet = Sheet(
        "s", "caption", columns, [[TableCell("a|b", look="strong"), TableCell("1"), TableCell("2"), TableCell("3")]]
    )
    assert sheet.groups() == [("", 1), ("R@1", 2), ("mAP", 1)]
    assert (
        "| **a\\|b** | 1 | 2 | 3 |" in sheet.markdown()
        and "| run | R@1 paper | R@1 here | mAP paper |" in sheet.markdown()
    )


def test_date_must_be_seconds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UserError, match="SOURCE_DATE_EPOCH"):
        report.date()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Params, Path]:
    """The report of a suite of the size of both papers."""
    params = both_papers.suite_params(tmp_path_factory.mktemp("both"))
    both_papers.write_suite(params)
    report.main(stage("report", params))
    return params, params.path("report")


def test_contents_lead_to_each_paper_and_to_what_is_beyond(both: tuple[Params, Path]):
    read = Page((both[1] / "index.html").read_text())
    chapters = ["#top", "#xia2023", "#chen2021", "#beyond", "#all-runs", "#how"]
    assert [link for link in read.links if link in chapters] == chapters
    for section in ("table-xia_4", "table-chen_3", "tests", "noise", "sound", "cost", "studies", "runs-chen"):
        assert f"#{section}" in read.links and section in read.ids
    assert len(read.ids) == len(set(read.ids)) and {link[1:] for link in read.links} <= set(read.ids)


def test_every_sheet_is_markdown_too(both: tuple[Params, Path]):
    folder = both[1] / "tables"
    sheets = {path.stem for path in folder.glob("*.md")}
    for name in both[0].report.tables:
        assert (folder / f"{name}.csv").exists() and any(sheet.startswith(f"{name}-gains") for sheet in sheets)
    assert {"chen_2-gains-R@5", "chen_2-scores-R@10", "tests-baseline", "tests-proposed", "tests-table"} <= sheets
    assert {"noise", "detection", "cost", "studies", "runs-xia", "runs-chen", "runs-large"} <= sheets
    assert "nan" not in " ".join(path.read_text() for path in folder.glob("*.md")).split()


def test_a_table_of_several_teachers_has_a_row_a_method(both: tuple[Params, Path]):
    gains = (both[1] / "tables" / "chen_1-gains.md").read_text().splitlines()
    assert gains[2].count("|") == 9 and "audio teacher paper" in gains[2] and "both teachers here" in gains[2]
    assert len([line for line in gains if line.startswith("| ")]) == 2 + 9
    assert any(line.startswith("| CCL | ccl-{A,I,AI} | +7.4 |") for line in gains)
    assert any(line.startswith("| baseline | uni\\_modal | baseline |") for line in gains)
    long = pd.read_csv(both[1] / "tables" / "chen_1.csv")
    assert len(long) == 27 and long.set_index(["method", "setup"]).loc[("CMC", "AI"), "run"] == "cmc-AI"


def test_rows_that_are_not_run_are_left_out(both: tuple[Params, Path]):
    levels = (both[1] / "tables" / "xia_4-scores.md").read_text()
    assert "KD-noise" not in levels and "| KD | tagging-kd | 50.6 | " in levels


def test_tables_that_the_suite_does_not_name_are_named(made: Path):
    assert "Not in this suite: Tables 3 and 4." in Page((made / "index.html").read_text()).text


def test_tests_in_the_report_are_those_of_scipy(both: tuple[Params, Path]):
    params, folder = both
    table = pd.read_csv(folder / "tables" / "tests.csv", keep_default_na=False).set_index(["run", "base", "metric"])
    row = table.loc[("mnf_csc", "kd", "accuracy")]
    expected = stats.ttest_rel(seeds(params, "mnf_csc"), seeds(params, "kd"))
    assert float(row["p"]) == pytest.approx(expected.pvalue, rel=1e-6)
    interval = 100 * np.array(expected.confidence_interval(0.95))
    assert [float(row["difference_low"]), float(row["difference_high"])] == pytest.approx(interval.tolist())
    assert (row["kind"], row["family"], row["verdict"]) == ("proposed", "xia", "higher")
    assert table.loc[("large-ccl", "large-uni_modal", "accuracy"), "p"] == ""
    markdown = (folder / "tables" / "tests-baseline.md").read_text()
    assert "| xia | kd | uni\\_modal | **" in markdown and "large-ccl" in markdown.split("Not tested")[1]


def test_noise_and_cost(both: tuple[Params, Path]):
    params, folder = both
    noise = (folder / "tables" / "noise.md").read_text()
    rows = [line for line in noise.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows] == [
        "| SNR",
        "| ---",
        "| clean",
        "| 10 dB",
        "| 0 dB",
        f"| {page.MINUS}10 dB",
    ]
    ours = 100 * (seeds(params, "noise_10db-mnf") - seeds(params, "noise_10db-no_mnf")).mean()
    assert f"{ours:+.1f}".replace("-", page.MINUS) in rows[3]
    cost = (folder / "tables" / "cost.md").read_text()
    assert "| crd-A | crd | A | uni\\_modal | 8,576 | 3.8 | 26.0 | **1.04** | 1.03 to 1.05 | 17.2 | 1.00 |" in cost
    assert "one thread" in cost and "autograd" in cost
    gradients = (folder / "tables" / "gradients.md").read_text()
    assert "| kd | kd | 0.9 | 0.25 |" in gradients and f"| crd-A | crd | 0.004 | {page.EMPTY} |" in gradients
    assert "relative to the plain cross-entropy's" in gradients
    assert re.search(r'<td class="[^"]*\bdim\b[^"]*"[^>]*>0\.004<', (folder / "index.html").read_text()), "in fact off"
