"""Find the code and packages that the outputs of a stage depend on, by following imports.

DVC only compares files. To rerun a stage when its code or a package changes, stage `code` writes one small file per
stage and item, which is a dependency of that stage:

    <out>/code/<stage>/<item>.json      digests of modules and of the data files that they read, versions of packages

The digest of a module is that of its syntax tree without docstrings, so comments, docstrings and formatting do not
count. Imports are followed everywhere, also inside functions; modules that are imported by a computed name (methods,
datasets) are added by `entry_points`.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from avdistill.config.items import dataset_of
from avdistill.config.schema import Params
from avdistill.config.types import NO_TEACHER

ROOT = Path(__file__).resolve().parents[2]
OURS = ("avdistill", "models", "stages")

# Packages that can change outputs: import name -> distribution name.
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

# Modules that cannot change the outputs of a stage, and why. Their imports are not followed.
INERT = {
    "avdistill.config": "params are tracked through the files of stage check, which include defaults",
    "avdistill.tracking": "sends finished results to MLflow",
    "avdistill.data.sources.archives": "unpacks downloaded archives",
    "avdistill.data.sources.google_drive": "downloads files",
    "avdistill.data.sources.http": "downloads files, which are verified by checksums",
    "avdistill.data.sources.youtube": "downloads videos; a change of code must not download them again",
    "avdistill.data.sources.zenodo": "reads checksums of downloaded files",
    "avdistill.pipeline.code": "is this module",
    "avdistill.pipeline.errors": "formats error messages",
    "avdistill.pipeline.progress": "shows progress",
    "avdistill.pipeline.stage": "moves outputs to their final paths",
    "avdistill.pipeline.warm": "starts processes",
}
# Stages that read videos through the module of their dataset's origin.
BY_ORIGIN = ("split", "frames", "spectrogram", "mix_noise")
# Kinds of origin that are generated or listed locally. Downloads of other kinds are kept when the code changes.
MADE_HERE = ("avsynth", "folder")


class Module(NamedTuple):
    """A module of this project: its digest, the modules and packages it imports, the data files that it names."""

    digest: str
    imports: frozenset[str]
    files: tuple[Path, ...]


def file_of(folder: Path, stage: str, item: str | None) -> Path:
    """Return the file in the folder of stage code on which a stage depends."""
    return folder / stage / f"{item}.json" if item else folder / f"{stage}.json"


def describe(stage: str, item: str | None, params: Params, root: Path = ROOT) -> dict[str, dict[str, str]]:
    """Return the modules, files and packages that a stage depends on, each with its digest or version."""
    return closure(entry_points(stage, item, params), root)


def entry_points(stage: str, item: str | None, params: Params) -> list[str]:
    """Return the module of a stage, and the modules that it imports by a computed name."""
    if stage == "download":
        kind = params.datasets[str(item)].origin.kind
        return [f"avdistill.data.datasets.{kind}"] if kind in MADE_HERE else []
    found = [f"stages.{stage}"]
    if stage in BY_ORIGIN:
        dataset = params.datasets[str(dataset_of(stage, item, params))]
        found.append(f"avdistill.data.datasets.{dataset.origin.kind}")
    if stage in ("train", "evaluate"):
        job = params.jobs[str(item)]
        found.append(f"models.distillers.{job.method}")
        if job.S != NO_TEACHER:
            found.append(f"models.distillers.{params.jobs[job.S.partition('/')[0]].method}")
    if stage == "cost":
        runs = [*params.report.cost, params.report.baseline]
        found += [f"models.distillers.{params.jobs[params.runs()[run][0]].method}" for run in runs]
    return sorted({name for name in found if module_file(name)})  # stage check reports unknown methods


def closure(modules: list[str], root: Path = ROOT) -> dict[str, dict[str, str]]:
    """Return digests of all modules that `modules` import, and of their data files, and the versions of packages."""
    seen: dict[str, Module] = {}
    packages: set[str] = set()
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name in seen or any(name == inert or name.startswith(f"{inert}.") for inert in INERT):
            continue
        seen[name] = read(name, root)
        for imported in seen[name].imports:
            if imported.partition(".")[0] in OURS:
                pending.append(imported)
            else:
                packages.add(imported)
    files = sorted({file for module in seen.values() for file in module.files})
    return {
        "modules": {name: seen[name].digest for name in sorted(seen)},
        "files": {file.relative_to(root).as_posix(): _sha256(file.read_bytes()) for file in files},
        "packages": {PACKAGES[name]: installed(PACKAGES[name]) for name in sorted(packages)},
    }


def files_of(module: str) -> list[Path]:
    """Return the source files of this project that importing `module` needs, including those of INERT modules."""
    seen: set[str] = set()
    pending = [module]
    while pending:
        name = pending.pop()
        if name.partition(".")[0] in OURS and name not in seen:
            seen.add(name)
            pending += read(name).imports
    return sorted(file for file in map(module_file, seen) if file is not None)


def module_file(name: str, root: Path = ROOT) -> Path | None:
    """Return the file of a module of this project, or None if there is no such module."""
    path = root / name.replace(".", "/")
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


@cache
def read(name: str, root: Path = ROOT) -> Module:
    """Parse a module of this project. Raises ImportError if there is no such module."""
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
    """Return the version of a package without its build tag ("+cu130"), or "absent"."""
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return "absent"


@cache
def _data_files(root: Path) -> tuple[Path, ...]:
    """Return the data files (tables, templates) of our packages."""
    files = [path for package in OURS for path in sorted((root / package).rglob("*.*"))]
    return tuple(path for path in files if path.suffix not in (".py", ".pyc") and path.is_file())


def _packages_above(name: str) -> list[str]:
    """Return the packages whose __init__ runs before a module of ours: a.b.c -> [a, a.b]."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))] if parts[0] in OURS else []


def _nodes(tree: ast.AST) -> Any:
    """Yield all nodes except those under `if TYPE_CHECKING`."""
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            pending += node.orelse
        else:
            pending += ast.iter_child_nodes(node)


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
