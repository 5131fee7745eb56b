"""What a fresh machine may bring: another Python, none of Debian's venv, a broken reader, a bare home."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipeline.conftest import tiny_checkout

# Packages whose code makes bits, or that read what users have: one version for every Python that the README names.
EXACT = {"torch", "torchvision", "torchaudio", "numpy", "scipy", "scikit-learn", "librosa", "av", "decord", "pillow"}


def test_packages_that_make_bits_have_one_version_for_every_python(root: Path) -> None:
    pins = re.findall(r"^([a-z0-9-]+)==(\S+)(.*)$", (root / "requirements.lock").read_text(), re.M)
    found = {name: [(version, marker) for other, version, marker in pins if other == name] for name in EXACT}
    for name, versions in found.items():
        assert len(versions) == 1 and "python" not in versions[0][1], (name, versions)


def run_make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    # Without uv, wherever that lies.
    path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not (Path(p) / "uv").exists())
    return subprocess.run(
        ["make", *arguments, f"PYTHON={sys.executable}"],
        cwd=folder,
        env=os.environ | {"PATH": path, "MAKEFLAGS": "", "MAKELEVEL": ""} | environment,
        capture_output=True,
        text=True,
    )


@pytest.fixture
def makefile(tmp_path: Path, root: Path) -> Path:
    for name in ("Makefile", "requirements.lock"):
        shutil.copy(root / name, tmp_path / name)
    return tmp_path


def test_a_python_without_venv_gets_the_name_of_the_package(makefile: Path) -> None:
    (makefile / "ensurepip.py").write_text("raise ImportError")  # as Debian's own python3 does without python3-venv
    done = run_make(makefile, ".venv/.ready", PYTHONPATH=str(makefile))
    number = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert done.returncode and f"apt install python{number}-venv" in done.stderr
    assert not (makefile / ".venv").exists()


def test_own_videos_that_are_a_folder_are_left_alone(makefile: Path) -> None:
    """A link would be made inside of it, and both be trained on."""
    for folder in (".venv", "own/videos/class", "elsewhere/class"):
        (makefile / folder).mkdir(parents=True)
    (makefile / ".venv/.ready").touch()
    done = run_make(makefile, "own", f"VIDEOS={makefile / 'elsewhere'}")
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert done.returncode and "own/videos is a folder itself; move it away" in line
    assert [path.name for path in (makefile / "own/videos").iterdir()] == ["class"]


def test_the_backend_of_a_notebook_does_no_harm(root: Path) -> None:
    """MPLBACKEND of a notebook names a module that is not in this environment."""
    code = (
        "from avdistill.pipeline import stage; stage.run = lambda arguments: None\n"
        "import stages.__main__, matplotlib; print(matplotlib.get_backend())"
    )
    environment = os.environ | {"MPLBACKEND": "module://of_a_notebook.backend", "AV_WARM": "off"}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["agg"], done.stderr


def test_prefect_finds_a_place_where_home_has_none(tmp_path: Path, root: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()  # a home that is no folder cannot be written by anybody
    code = "import flows, os; print(os.environ.get('PREFECT_HOME'))"
    for home, expected in ((blocked / "home", str(root / "out/.prefect")), (tmp_path, "None")):
        environment = {key: value for key, value in os.environ.items() if key != "PREFECT_HOME"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env=environment | {"HOME": str(home)},
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == expected


@pytest.mark.e2e
def test_a_user_id_without_a_name_and_a_home(tmp_path: Path, root: Path) -> None:
    """As in a container: no passwd entry, and HOME not set or set."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path/sitecustomize.py").write_text(
        "import pwd\n\n\ndef getpwuid(uid):\n    raise KeyError(f'getpwuid(): uid not found: {uid}')\n\n\n"
        "pwd.getpwuid = getpwuid\n"
    )
    checkout = tiny_checkout(tmp_path, root)
    names = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "AV_TRACKING")
    for name in names:
        checkout.environment.pop(name, None)
    checkout.environment["PYTHONPATH"] = str(tmp_path / "path")
    checkout.repro("code")
    assert "runs completed" in checkout.run("python", "-m", "avdistill.tracking", "sync", "params.yaml").stdout
    assert (tmp_path / "mlflow.db").exists()
    code = "import flows, getpass, os; print(getpass.getuser(), os.environ['HOME'])"
    for home, expected in (({}, tmp_path / "out/.home"), ({"HOME": str(tmp_path)}, tmp_path)):
        assert checkout.run("python", "-c", code, **home).stdout == f"{os.getuid()} {expected}\n"
    checkout.run("python", "-c", "import prefect")
