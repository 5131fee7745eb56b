from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from avdistill.config.schema import Params
from avdistill.reporting.figures import MAX_BYTES, new_figure, save
from stages import figures
from tests.helpers.pictured import FIGURES, pictured_params, write_pictured
from tests.helpers.synthetic import read_json, stage, suite_params, write_suite

ALL = ["accuracy", *FIGURES, "confusion", "clips_made"]


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Params:
    params = pictured_params(tmp_path_factory.mktemp("suite"))
    write_pictured(params)
    return params


@pytest.fixture(scope="module")
def drawn(params: Params) -> Path:
    made = stage("figures", params)
    figures.main(made)
    assert len(made.run.logged("log_artifact")) == len(ALL)  # type: ignore[attr-defined]
    return params.path("figures")


def test_every_figure_is_small_and_lies_beside_its_data(drawn: Path):
    listing = read_json(drawn / "figures.json")
    assert sorted(entry["name"] for entry in listing) == sorted(ALL)
    for entry in listing:
        assert (drawn / entry["file"]).stat().st_size < 150_000
        with Image.open(drawn / entry["file"]) as image:
            assert image.width > 500 and np.asarray(image.convert("L")).std() > 5
        assert len(pd.read_csv(drawn / entry["data"])) > 0 and entry["caption"].endswith(".")


def test_figures_are_the_same_every_time(params: Params, drawn: Path):
    before = {path.name: path.read_bytes() for path in drawn.iterdir()}
    figures.main(stage("figures", params))
    assert {path.name: path.read_bytes() for path in drawn.iterdir()} == before


def test_figures_that_params_do_not_ask_for_are_not_listed(tmp_path: Path):
    params = suite_params(tmp_path, figures={"scores": ["mnf_csc"]})
    write_suite(params)
    assert list(figures.wanted(params)) == ["accuracy", "scores", "confusion", "clips_made"]


def test_figures_without_data_are_named_with_the_reason(tmp_path: Path):
    params = suite_params(tmp_path)
    write_suite(params)
    (params.path("evaluate", "mnf_csc") / "scores.csv").unlink()
    (params.path("spectrogram", "made") / "store.json").unlink()
    listing = [figures.draw(params, name, tmp_path) for name in figures.wanted(params)]
    absent = {entry["name"]: entry["absent"] for entry in listing if "absent" in entry}
    assert set(absent) == {"scores", "clips_made"}
    assert "scores" in absent["scores"] and "spectrogram" in absent["clips_made"]


def test_no_suite_at_all_draws_nothing(tmp_path: Path):
    params = pictured_params(tmp_path)
    figures.main(stage("figures", params))
    listing = read_json(tmp_path / "figures" / "figures.json")
    assert len(listing) == len(ALL) and all("absent" in entry for entry in listing)


def test_a_picture_that_compresses_badly_is_brought_under_the_limit(tmp_path: Path):
    figure, axes = new_figure(8)
    axes[0, 0].imshow(np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8))
    save(figure, tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size <= MAX_BYTES
