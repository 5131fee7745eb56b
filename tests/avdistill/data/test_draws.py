"""Which draw of a teacher a seed has."""

from __future__ import annotations

from pathlib import Path

from avdistill.data.draws import draw_of, draws_of, of_draw
from tests.helpers.teaching import suite

DRAWN = {"kind": "cnn14", "weights": "avsynth", "draws": 3}
ONE = {"kind": "resnet10", "weights": "avsynth"}
TRUTH = {"kind": "truth", "column": "heard"}


def test_draw_0_has_the_paths_of_the_only_draw() -> None:
    assert Path("a") / of_draw(0) / "b" == Path("a/b") and Path("a") / of_draw(2) / "b" == Path("a/draw-2/b")
    assert of_draw(0) + "loss" == "loss" and of_draw(2) + "loss" == "draw-2/loss"


def test_seeds_are_divided_among_the_draws_of_the_teachers_that_have_several(tmp_path: Path) -> None:
    params = suite(tmp_path, teachers={"ear": DRAWN, "eye": ONE, "oracle": TRUTH})
    assert [draw_of(params, seed, "ear") for seed in (0, 1, 2, 3, 100)] == [0, 1, 2, 0, 1]
    for name in ("eye", "oracle", "none"):
        assert draws_of(params, name) == 1 and draw_of(params, 5, name) == 0
    assert draws_of(params) == 3 and draw_of(params, 5) == 2


def test_a_suite_whose_teachers_have_one_draw(tmp_path: Path) -> None:
    for teachers in ({}, {"eye": ONE, "oracle": TRUTH}):
        params = suite(tmp_path, teachers=teachers)
        assert draws_of(params) == 1 and draw_of(params, 7) == 0
