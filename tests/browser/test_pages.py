"""The pages as a reader meets them, in headless Chromium: MLflow's, Prefect's, and the report.

Screenshots stay in out/browser/. Chromium is found on the PATH, or named by CHROMIUM."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright import sync_api

from tests.helpers.servers import free_port, running
from tests.pipeline.conftest import Checkout, checkout

pytestmark = pytest.mark.browser
__all__ = ["checkout"]  # a fixture

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = ("--disable-background-networking", "--disable-component-update", "--no-first-run", "--no-sandbox")
PATIENCE = 60_000  # ms: the pages load megabytes of scripts, and MLflow's asks its database


class Pages:
    """The two servers over the tiny suite, which a flow has run, and a browser."""

    def __init__(self, checkout: Checkout, browser: Any, mlflow: str, prefect: str, shots: Path) -> None:
        self.checkout, self.browser, self.mlflow, self.prefect, self.shots = checkout, browser, mlflow, prefect, shots

    def open(self, address: str) -> Any:
        page = self.browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        return page

    def shoot(self, page: Any, name: str) -> None:
        page.screenshot(path=self.shots / f"{name}.png")
        page.close()

    def ask(self, address: str, **body: Any) -> Any:
        request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request, timeout=30))


@pytest.fixture(scope="module")
def pages(checkout: Checkout, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    assert chromium, f"no browser: install one of {', '.join(NAMES)}, or name it by CHROMIUM"
    shots = root / "out" / "browser"
    shots.mkdir(parents=True, exist_ok=True)
    ports, home = (free_port(), free_port()), tmp_path_factory.mktemp("prefect")
    mlflow, prefect = (f"http://127.0.0.1:{port}" for port in ports)
    environment = checkout.environment | {"PREFECT_HOME": str(home)}
    command = [sys.executable, "-m", "flows.ui", "--mlflow-port", str(ports[0]), "--prefect-port", str(ports[1])]
    with running(command, f"{prefect}/api/health", home / "ui.log", environment, checkout.folder):
        checkout.run(sys.executable, "-m", "flows.paper", PREFECT_HOME=str(home), PREFECT_API_URL=f"{prefect}/api")
        checkout.make("sync")
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=list(QUIET))
            yield Pages(checkout, browser, mlflow, prefect, shots)
            browser.close()


def runs(pages: Pages, stage: str) -> list[dict[str, Any]]:
    """MLflow's runs of a stage, the latest first."""
    api = f"{pages.mlflow}/api/2.0/mlflow"
    (experiment,) = (
        found
        for found in pages.ask(f"{api}/experiments/search", max_results=100)["experiments"]
        if found["name"] == "avsynth"
    )
    found = pages.ask(
        f"{api}/runs/search", experiment_ids=[experiment["experiment_id"]], filter=f"tags.stage = '{stage}'"
    )
    return [run["info"] for run in found["runs"]]


def test_mlflow_lists_the_runs(pages: Pages) -> None:
    page = pages.open(f"{pages.mlflow}/#/experiments/{runs(pages, 'evaluate')[0]['experiment_id']}/runs")
    for name in ("evaluate mnf_csc", "train kd", "report"):
        page.get_by_text(name, exact=True).first.wait_for()
    pages.shoot(page, "mlflow-runs")


def test_mlflow_shows_a_chart_by_epoch(pages: Pages) -> None:
    run = next(run for run in runs(pages, "train") if "seed" in run["run_name"])
    page = pages.open(f"{pages.mlflow}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}/model-metrics")
    page.get_by_text("loss_ce", exact=True).first.wait_for()
    page.locator(".js-plotly-plot svg.main-svg").first.wait_for()
    pages.shoot(page, "mlflow-metrics")


def test_mlflow_shows_a_figure(pages: Pages) -> None:
    (run, *_) = runs(pages, "figures")
    figure = "training_curves.png"
    page = pages.open(f"{pages.mlflow}/#/experiments/{run['experiment_id']}/runs/{run['run_id']}/artifacts/{figure}")
    image = page.locator("img").last
    image.wait_for()
    page.wait_for_function("() => [...document.images].some(image => image.naturalWidth > 400)")
    pages.shoot(page, "mlflow-figure")


def test_prefect_shows_the_flow_its_log_and_its_table(pages: Pages) -> None:
    (run,) = pages.ask(f"{pages.prefect}/api/flow_runs/filter")
    page = pages.open(f"{pages.prefect}/runs/flow-run/{run['id']}")
    page.get_by_text(run["name"]).first.wait_for()
    page.get_by_text("Completed").first.wait_for()
    page.get_by_text(re.compile("Running stage")).first.wait_for()
    pages.shoot(page, "prefect-flow")
    artifacts = pages.ask(f"{pages.prefect}/api/artifacts/filter", artifacts={"key": {"any_": ["stages-avsynth"]}})
    page = pages.open(f"{pages.prefect}/artifacts/artifact/{artifacts[0]['id']}")
    page.get_by_text("train@mnf_csc").first.wait_for()
    pages.shoot(page, "prefect-table")


def test_the_report_asks_nobody(pages: Pages) -> None:
    page = pages.browser.new_page(viewport={"width": 1200, "height": 900})
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((pages.checkout.folder / "out/avsynth/report/index.html").as_uri())
    assert page.locator("table").count() > 3
    assert page.evaluate("() => [...document.images].every(image => image.naturalWidth > 0)")
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    page.screenshot(path=pages.shots / "report.png", full_page=True)
    page.close()
