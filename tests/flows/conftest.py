"""The suite and the server of the tests with other machines."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.helpers.servers import prefect_server
from tests.pipeline.conftest import Checkout, keep_jobs, tiny_checkout


@pytest.fixture
def suite(tmp_path: Path, root: Path) -> Checkout:
    """The project with one job of the tiny suite, all of it committed."""
    made = tiny_checkout(tmp_path / "first", root)
    raw = yaml.safe_load((made.folder / "params.yaml").read_text())
    keep_jobs(raw, ("uni_modal",), {})
    raw["jobs"]["uni_modal"]["init"] = "none"
    raw |= {"noise_mixes": {}, "features": {}, "teachers": {}, "exports": []}
    raw["report"] |= {"cost": [], "claims": {}, "figures": {}, "proposed": None}
    (made.folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    shutil.copy(root / "prefect.yaml", made.folder)
    shutil.copy(root / ".dvc/.gitignore", made.folder / ".dvc")
    shutil.copytree(root / "deploy", made.folder / "deploy")
    made.environment |= {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "AV_TRACKING": "off",
        "PREFECT_LOGGING_LEVEL": "ERROR",
    }
    made.environment |= {f"GIT_{who}_{what}": "t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    made.run("git", "add", "--all")
    made.run("git", "commit", "--quiet", "--message", "tiny")
    return made


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prefect server; its address. A flow without one starts its own, which takes seconds."""
    home = tmp_path_factory.mktemp("prefect")
    with prefect_server(os.environ | {"PREFECT_HOME": str(home)}, home) as url:
        yield url
