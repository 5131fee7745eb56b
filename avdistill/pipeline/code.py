"""What code and packages the outputs of a stage depend on, found by following imports.

DVC compares files. It knows neither which of a hundred modules a stage uses nor which PyTorch is installed, so stage
`code` writes, for each stage and item, one small file that every other stage depends on:

    <out>/code/<stage>/<item>.json      modules (digest of each), files that they read, packages (version of each)

A module counts by its syntax tree without docstrings: comments, docstrings and formatting change nothing. Imports are
followed wherever they stand, late ones too; what is imported by a computed name (methods, datasets) is added by
`entry_points`.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from avdistill.config.schema import Params
from avdistill.config.types import NO_TEACHER

ROOT = Path(__file__).resolve().parents[2]
OURS = ("avdistill", "models", "stages")

# Packages whose code makes bits, by the name that they are imported by.
PACKAGES = {
    "PIL": "pillow",
    "av": "av",
    "decord": "decord",
    "librosa": "librosa",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "pandas": "pandas",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "torch": "torch",
    "torchaudio": "torchaudio",
    "torchvision": "torchvision",
}

# Modules that cannot change what a stage makes, and why. They are not followed either.
INERT = {
    "avdistill.config": "params reach a stage through the files of stage check, which hold defaults too",
    "avdistill.tracking": "sends to MLflow what a stage has made",
    "avdistill.data.sources.archives": "unpacks what was downloaded",
    "avdistill.data.sources.http": "brings files, which are compared with their checksums",
    "avdistill.data.sources.youtube": "brings videos; a change of code must not fetch them again",
    "avdistill.pipeline.code": "is this",
    "avdistill.pipeline.errors": "words errors",
    "avdistill.pipeline.progress": "draws bars",
    "avdistill.pipeline.stage": "gives outputs their final names",
    "avdistill.pipeline.warm": "starts processes",
}
# Stages that read videos through the module of their dataset's origin, with the section that names the dataset.
BY_ORIGIN = {"split": "datasets", "frames": "frames", "spectrogram": "datasets", "mix_noise": "noise_mixes"}
# Origins whose data are made, or listed, here. All others are downloaded: a download survives every change of code.
MADE_HERE = ("avsynth", "folder")


class Module(NamedTuple):
    """What is known of a module of ours: its digest, what it imports, and the data files of ours that it names."""

    digest: str
    imports: frozenset[str]
    files: tuple[Path, ...]


def describe(stage: str, item: str | None, params: Params, root: Path = ROOT) -> dict[str, dict[str, str]]:
    """The modules, files and packages that the outputs of a stage depend on, each with its digest or version."""
    return closure(entry_points(stage, item, params), root)


def entry_points(stage: str, item: str | None, params: Params) -> list[str]:
    """The modules where a stage begins: its own, and those that it imports by computed names."""
    if stage == "download":
        kind = params.datasets[str(item)].origin.kind
        return [f"avdistill.data.datasets.{kind}"] if kind in MADE_HERE else []
    found = [f"stages.{stage}"]
    if stage in BY_ORIGIN:
        entry = getattr(params, BY_ORIGIN[stage])[str(item)]
        dataset = str(item) if BY_ORIGIN[stage] == "datasets" else entry.dataset
        found.append(f"avdistill.data.datasets.{params.datasets[dataset].origin.kind}")
    if stage in ("train", "evaluate"):
        job = params.jobs[str(item)]
        found.append(f"models.distillers.{job.method}")
        if job.S != NO_TEACHER:
            found.append(f"models.distillers.{params.jobs[job.S.partition('/')[0]].method}")
    if stage == "cost":
        runs = [*params.report.cost, params.report.baseline]
        found += [f"models.distillers.{params.jobs[params.runs()[run][0]].method}" for run in runs]
    return sorted({name for name in found if module_file(name)})  # of an unknown method, stage check says more


def closure(modules: list[str], root: Path = ROOT) -> dict[str, dict[str, str]]:
    """What `modules` import, directly or not: digests of our modules and of their files, versions of packages."""
    seen: dict[str, Module] = {}
    packages: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in seen or any(name == inert or name.startswith(f"{inert}.") for inert in INERT):
            continue
        seen[name] = read(name, root)
        for imported in seen[name].imports:
            if imported.partition(".")[0] in OURS:
                waiting.append(imported)
            else:
                packages.add(imported)
    files = sorted({file for module in seen.values() for file in module.files})
    return {
        "modules": {name: seen[name].digest for name in sorted(seen)},
        "files": {file.relative_to(root).as_posix(): _sha256(file.read_bytes()) for file in files},
        "packages": {PACKAGES[name]: installed(PACKAGES[name]) for name in sorted(packages)},
    }


def files_of(module: str) -> list[Path]:
    """The files of ours that a module needs to be imported, whether they can change outputs or not."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name.partition(".")[0] in OURS and name not in seen:
            seen.add(name)
            waiting += read(name).imports
    return sorted(file for file in map(module_file, seen) if file is not None)


def module_file(name: str, root: Path = ROOT) -> Path | None:
    """The file of a module of ours; None where there is no such module."""
    path = root / name.replace(".", "/")
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


@cache
def read(name: str, root: Path = ROOT) -> Module:
    """Parse a module of ours. Raises ImportError if there is none of that name."""
    file = module_file(name, root)
    if file is None:
        raise ImportError(f"there is no module {name} in {root}")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imports, names = set(_packages_above(name)), set()
    for node in _nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                imports |= {alias.name, *_packages_above(alias.name)}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports |= {node.module, *_packages_above(node.module)}
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            imports |= {each for each in inner if each.partition(".")[0] in OURS and module_file(each, root)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    ours = {each for each in imports if each.partition(".")[0] in OURS}
    others = {each.partition(".")[0] for each in imports} & PACKAGES.keys()
    named = [path for path in _data_files(root) if path.name in names]
    return Module(_sha256(ast.unparse(_without_docstrings(tree)).encode()), frozenset(ours | others), tuple(named))


@cache
def installed(package: str) -> str:
    """Version of an installed package without its build ("+cu130"), or `absent`."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return "absent"


@cache
def _data_files(root: Path) -> tuple[Path, ...]:
    """Tables and templates that lie beside our modules."""
    files = [path for package in OURS for path in sorted((root / package).rglob("*.*"))]
    return tuple(path for path in files if path.suffix not in (".py", ".pyc") and path.is_file())


def _packages_above(name: str) -> list[str]:
    """Packages whose __init__ runs before a module of ours: a.b.c -> [a, a.b]."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))] if parts[0] in OURS else []


def _nodes(tree: ast.AST) -> Any:
    """All nodes but those under `if TYPE_CHECKING`."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
