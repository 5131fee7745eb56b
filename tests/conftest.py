"""What all tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from avdistill.config.schema import Params
from avdistill.pipeline.processes import cores

ROOT = Path(__file__).resolve().parents[1]

# Tests run side by side on every core; several threads each would only be in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Stages that tests call write journals only; tests of tracking, and end to end, switch it on.
os.environ.setdefault("AV_TRACKING", "off")
# A shell starts background jobs deaf to Ctrl-C, and what they start in turn; tests that send one need ears.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests from end to end wait a third of their time for servers and timers. (With
    two more all of them together take as long, and each longer.)"""
    return cores() + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take minutes come first, so that no core is idle while another one works through the last."""
    slowest = ("test_paper_suite.py", "test_suite.py", "test_ablations_remote.py", "test_paper_more.py")
    rank = {name: number for number, name in enumerate(slowest)}
    items.sort(key=lambda item: (item.get_closest_marker("e2e") is None, rank.get(item.path.name, len(rank))))


@pytest.fixture(scope="session", autouse=True)
def _checkpoint_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Checkpoints that tests download, from servers of theirs, are not for the machine's user."""
    os.environ["AV_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real clips and features, where AV_SHARED (or ../shared) leads to them; the test skips elsewhere."""
    folder = Path(os.environ.get("AV_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("no real data at hand (AV_SHARED)")
    return folder


@pytest.fixture
def tiny(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Params of a tiny suite in tmp_path: split, frames, features and heads of random numbers are there already."""
    from tests.helpers.tiny import make  # late: these imports take time, and few tests need them

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AV_TRACKING", "off")
    return make(tmp_path, root)
