"""What SECURITY.md promises of the code: nothing that is read is executed, and no shell reads anything."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("avdistill", "benchmarks", "flows", "models", "stages")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

# Calls that execute what they read, whatever their arguments are.
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.spawnl", "os.spawnv", "commands.getoutput",
    "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell",
    "pickle.load", "pickle.loads", "pickle.Unpickler", "dill.load", "joblib.load", "shelve.open", "marshal.loads",
    "pd.read_pickle", "pandas.read_pickle", "torch.jit.load", "torch.hub.load",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "tempfile.mktemp", "shutil.unpack_archive",
}  # fmt: skip
# Calls that are safe with these arguments, and only with them.
REQUIRED = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
STARTS = {f"subprocess.{name}" for name in ("run", "Popen", "call", "check_call", "check_output")}


def problems(source: str) -> Iterator[str]:
    """Calls in a program that could execute what it reads."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        where = f"line {call.lineno}: {name}"
        if name in FORBIDDEN or name.endswith(".extractall"):
            yield where
        if name in REQUIRED:
            argument, value = REQUIRED[name]
            found = given.get(argument)
            if not (isinstance(found, ast.Constant) and found.value is value):
                yield f"{where} without {argument}={value}"
        shell = given.get("shell")
        if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
            yield f"{where} with a shell"
        if name in STARTS and (not call.args or isinstance(call.args[0], ast.Constant | ast.JoinedStr | ast.BinOp)):
            yield f"{where} of a text"


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(ROOT)) for path in FILES])
def test_nothing_that_is_read_is_executed(path: Path) -> None:
    assert list(problems(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=flag)",
        "yaml.load(text, Loader)",
        "os.system(text)",
        "subprocess.run(f'ls {name}')",
        "subprocess.run(names, shell=True)",
        "subprocess.run('ls ' + name)",
        "tar.extractall(folder)",
        "pickle.loads(data)",
    ],
)
def test_the_search_finds_it(line: str) -> None:
    assert len(list(problems(line))) >= 1


def test_commands_of_the_graph_hold_names_only() -> None:
    """DVC hands commands to a shell. What stands in them is checked to be a name before any of them runs."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name, stage in stages.items():
        command = stage.get("do", stage)["cmd"]
        assert set(re.findall(r"\$\{([^}]*)\}", command)) <= {"suite.file", "key", "item"}, name
        assert re.fullmatch(rf"python -m stages {name} \$\{{suite\.file\}}( \$\{{(key|item)\}})?", command), name


def test_no_file_is_a_link() -> None:
    """One was committed by accident (.venv), and where it led was there on one machine only."""
    listed = subprocess.run(["git", "ls-files", "--stage"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    assert not [line for line in listed.stdout.splitlines() if line.startswith("120000")]


def test_servers_listen_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import model, ui

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    for server in ui.servers(5000, 4200):
        assert server.command[server.command.index("--host") + 1] == "127.0.0.1"
    assert model.HOST == "127.0.0.1"
    assert "--host" not in (ROOT / "Makefile").read_text()
