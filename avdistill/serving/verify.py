"""Follow an exported model back to dvc.lock: is it what dvc.lock records, and if not, what differs?

    python -m avdistill.serving.verify MODEL

MODEL is a folder, such as out/avsynth/export/avsynth, or a model of MLflow's registry, such as
models:/student-avsynth@best. Run it in the root of the repository. It prints one line, and exits with 1 if anything
differs. A model that was changed after its export is found out, too.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from avdistill.config.studies import in_graph_of
from avdistill.pipeline.errors import UserError, redact
from avdistill.pipeline.provenance import KINDS, NAME, files, folder_md5, locked, md5, packages, trace
from avdistill.tracking.shared import tracking_uri

SHOWN = 3  # paths of each kind in a line


def verify(model: Path, root: Path = Path()) -> tuple[bool, str]:
    """Return whether a model is the one in dvc.lock, and a line that names it, or says what differs.

    Raises UserError if it carries no provenance or there is no dvc.lock that records it."""
    try:
        about = json.loads((model / NAME).read_text(encoding="utf-8"))
        stage, lock, out = str(about["stage"]), root / about["lock"], str(about["out"])
        recorded: dict[str, dict[str, str]] = {kind: about[kind] for kind in (*KINDS, "files", "packages")}
    except FileNotFoundError:
        raise UserError(f"{model}: no {NAME}; expected a folder written by stage export") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{model / NAME}: damaged ({error})") from None
    now = files(model)
    if changed := _differences(recorded["files"], now):
        return False, f"{model}: changed since its export: {changed}"
    stages = locked(lock)
    if stage not in stages:
        target = in_graph_of(Path(about["lock"]), stage)
        raise UserError(f"{lock}: has no {stage}; run `dvc repro {target}`")
    if folder_md5(now | {NAME: md5(model / NAME)}) == stages[stage]["outs"][0]["md5"]:
        return True, f"{model}: {stage} of {lock}; {_counts(recorded)}"
    current = trace(stages, out, [path for kind in KINDS for path in recorded[kind]])
    found = {kind: _differences(recorded[kind], current[kind]) for kind in KINDS}
    found["packages"] = _versions(root, recorded, current)
    reasons = [f"{kind}: {text}" for kind, text in found.items() if text]
    return False, f"{model}: not {stage} of {lock}: {'; '.join(reasons) or 'made from the same, other bytes came out'}"


def _differences(old: dict[str, str], new: dict[str, str]) -> str:
    """Return the paths that differ, at most SHOWN of them."""
    paths = sorted(path for path in old.keys() | new if old.get(path) != new.get(path))
    more = f" and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(paths[:SHOWN]) + more


def _versions(root: Path, recorded: dict[str, dict[str, str]], current: dict[str, dict[str, str]]) -> str:
    """Return the packages whose versions differ from those in the files of stage code."""
    versions = packages(root / path for path in current["code"])
    pairs = {name: (recorded["packages"].get(name, "absent"), version) for name, version in sorted(versions.items())}
    return ", ".join(f"{name} {old} -> {new}" for name, (old, new) in pairs.items() if old != new)


def _counts(recorded: dict[str, dict[str, str]]) -> str:
    sizes = {kind: len(recorded[kind]) for kind in (*KINDS, "packages")}
    return f"{sizes['data']} data, {sizes['params']} params, {sizes['code']} code, {sizes['packages']} packages"


def _folder(model: str) -> Path:
    """Return the folder of a model; one of MLflow's registry is downloaded."""
    if "://" not in model and not model.startswith("models:"):
        return Path(model)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow.artifacts

    mlflow.set_tracking_uri(tracking_uri())
    return Path(mlflow.artifacts.download_artifacts(model))


def _main() -> None:
    model = sys.argv[1] if len(sys.argv) == 2 else os.environ.get("MODEL", "")
    try:
        if not model:
            raise UserError("MODEL: missing; expected a folder such as out/avsynth/export/avsynth")
        same, line = verify(_folder(model))
    except Exception as error:  # noqa: BLE001 - from the registry or the network
        sys.exit(f"error: {redact(' '.join(str(error).split()))}")
    print(line)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    _main()
