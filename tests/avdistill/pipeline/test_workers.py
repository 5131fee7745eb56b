from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import signal
import time
import traceback

import pytest

from avdistill.pipeline.errors import UserError
from avdistill.pipeline.workers import Fallback, each


def hang() -> None:
    """Holds the interpreter's lock for good, as C code may: no thread of this process runs any more."""
    re.match(r"(a+)+$", "a" * 60 + "b")


def square(number: int) -> int:
    time.sleep(0.02 * (number % 3))
    if number == 7:
        raise UserError("seven is broken")
    if number == 11:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 13:
        hang()
    if number == 100:
        raise ZeroDivisionError
    return number * number


@pytest.fixture(params=["1", "2"])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AV_CORES", request.param)


def test_results_come_in_order_and_errors_stay_with_their_item(cores: None, capfd: pytest.CaptureFixture[str]) -> None:
    items = list(range(16))
    results = list(each(square, items, "square", limit=2.0))
    assert [item for item, _ in results] == items
    for item, result in results:
        if item == 7:
            assert isinstance(result, UserError)
            assert str(result) == "seven is broken"
        elif item == 11:
            assert "died" in str(result)
        elif item == 13:
            assert str(result) == "no result after 2 s; the worker process was killed"
        else:
            assert result == item * item
    # A slow machine sees lines of progress.
    said = [line for line in capfd.readouterr().err.splitlines() if not re.match(r"square: \d+/16 ", line)]
    assert not said, "workers end without a word"


def other(number: int) -> int:
    if number == 11:
        raise UserError("eleven is broken for both")
    return -number


def test_another_function_takes_over_after_seconds(cores: None) -> None:
    """Where the first one hangs or crashes, and only there."""
    began = time.monotonic()
    limits = Fallback(other, lambda number: 2.0 + number / 100)
    results = dict(each(square, [6, 7, 11, 13, 14], "square", fallback=limits))
    assert time.monotonic() - began < 60
    assert (results[6], results[13], results[14]) == (36, -13, 196)
    assert [str(results[number]) for number in (7, 11)] == ["seven is broken", "eleven is broken for both"]


def test_a_programming_error_is_raised() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        list(each(square, [1, 100, 2], "square"))
    assert "in square" in "".join(traceback.format_exception(caught.value)), "it does not say where"


def test_nothing_runs_on_after_the_reader_has_left(cores: None) -> None:
    before = set(multiprocessing.active_children())
    results = each(square, [1, 13, 13, 13], "square")
    assert next(results) == (1, 1)
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 30
    assert set(multiprocessing.active_children()) == before


def test_a_function_that_no_other_process_can_import() -> None:
    with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
        list(each(lambda number: number, [1, 2], "nothing"))


def test_no_items() -> None:
    assert list(each(square, [], "square")) == []
