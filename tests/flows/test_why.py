"""How `python -m flows.why` shows what differs between two files of stage check or code."""

from __future__ import annotations

from typing import Any

import pytest

from flows.why import _differences


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"lr": 0.003}, {"lr": 0.006}, [(("lr",), "0.003", "0.006")]),
        ({"kd": {"recipe": "small"}}, {"kd": {"recipe": "longer"}}, [(("kd", "recipe"), "small", "longer")]),
        ({}, {"warmup": 1}, [(("warmup",), "absent", "1")]),
        ({"jobs": ["kd"]}, {}, [(("jobs",), '["kd"]', "absent")]),
        ({}, {"sp": {"method": "sp", "runs": {"sp": {"teachers": "A"}}}}, [(("sp",), "absent", "{…}")]),
        ({"sp": {"method": "sp"}}, {}, [(("sp",), "{…}", "absent")]),
        ({"lr": 0.003}, {"lr": 0.003}, []),
    ],
)
def test_differences_are_short(old: Any, new: Any, expected: list[tuple[tuple[str, ...], str, str]]) -> None:
    assert list(_differences(old, new)) == expected
