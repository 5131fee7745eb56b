"""What the tests of the figures share."""

from __future__ import annotations

from pathlib import Path

import pytest

from avdistill.config.schema import Params
from tests.helpers.pictured import pictured_params, write_pictured


@pytest.fixture(scope="session")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Params:
    """The whole suite; its files are not to be changed."""
    params = pictured_params(tmp_path_factory.mktemp("pictured"))
    write_pictured(params)
    return params


@pytest.fixture
def other(tmp_path: Path) -> Params:
    """The same suite in a folder of its own, to be changed."""
    params = pictured_params(tmp_path)
    write_pictured(params)
    return params
