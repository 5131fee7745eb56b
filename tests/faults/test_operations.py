"""Every operation on files that a stage does, failed and cut off, one after the other: nothing is lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.faults.operations import COUNT, FAIL, KILL, KILLED, Operations, Outcome, digests, leftovers, points
from tests.faults.record import count, record
from tests.pipeline.conftest import keep_jobs, tiny_checkout

pytestmark = pytest.mark.faults

MOST = 24  # points of a stage that are tried, unless ALL=1
FEW = {"teachers": 4, "check": 12, "download": 12}  # where a run takes more than a second, or all points are alike

# What a stage gives to worker processes, it does by itself, so that a fault ends both; and trainings write a checkpoint
# after each step.
PREPARE = """
from importlib import import_module
from avdistill.config.items import ITEMS
from avdistill.pipeline import stage, workers
from avdistill.pipeline.errors import UserError
from avdistill.training.checkpoints import Checkpoints

for name in ITEMS:
    import_module(f"stages.{name}")

def each(function, items, *_):
    for item in items:
        try:
            yield item, function(item)
        except UserError as error:
            yield item, error

def due(self):
    self.wait()
    return True

workers._results, Checkpoints.due = each, due
"""
# In the order of the graph.
STAGES: list[tuple[str, str | None]] = [
    ("check", None),
    ("download", "avsynth"),
    ("split", "avsynth"),
    ("frames", "avsynth"),
    ("spectrogram", "avsynth"),
    ("mix_noise", "avsynth_0db"),
    ("teachers", "audio"),
    ("teachers", "motion"),
    ("teacher_features", "avsynth_audio"),
    ("teacher_head", "avsynth_audio"),
    ("train", "uni_modal"),
    ("train", "mnf_csc"),
    ("evaluate", "uni_modal"),
    ("evaluate", "mnf_csc"),
    ("export", "avsynth"),
    ("cost", None),
    ("figures", None),
    ("report", None),
]


class Suite:
    """A tiny suite whose stages are run one after the other, without DVC."""

    def __init__(self, folder: Path, root: Path, place: Path) -> None:
        checkout = tiny_checkout(folder, root)
        file = folder / "params.yaml"
        raw = yaml.safe_load(file.read_text())
        keep_jobs(raw, ("uni_modal", "mnf_csc"), {"mnf_csc": ("mnf_csc",)})
        raw["features"] = {"avsynth_audio": raw["features"]["avsynth_audio"]}
        for job in raw["jobs"].values():
            job["seeds"] = [0]
        raw["report"] |= {"cost": [], "figures": {}}
        file.write_text(yaml.safe_dump(raw, sort_keys=False))
        self.out = folder / "out/avsynth"
        self.done: list[tuple[str, str | None]] = []
        environment = checkout.environment | {
            "AV_CORES": "1",
            "AV_TRACKING": "off",
            "MPLBACKEND": "agg",
            "OMP_NUM_THREADS": "1",
            "SOURCE_DATE_EPOCH": "1700000000",
        }
        self.operations = Operations(place, self.out, folder, environment, PREPARE)

    def run(self, stage: str, item: str | None, mode: int = COUNT, at: int = 0) -> Outcome:
        """Run a stage."""
        return self.operations.run(f"stage.run({[stage, 'params.yaml', *filter(None, [item])]})", mode, at)

    def run_before(self, stage: str, item: str | None) -> None:
        """Run the stages before this one, unless that is done."""
        for earlier in STAGES[len(self.done) : STAGES.index((stage, item))]:
            outcome = self.run(*earlier)
            assert outcome.code == 0, outcome.printed
            self.done.append(earlier)

    def remove(self, files: dict[str, str]) -> None:
        """Delete files, and folders that are empty then, and what unfinished stages left."""
        for name in files:
            path = self.out / name
            path.unlink(missing_ok=True)
            while path.parent != self.out and path.parent.is_dir() and not any(path.parent.iterdir()):
                path = path.parent
                path.rmdir()
        for name in (".partial", ".tracking"):
            shutil.rmtree(self.out / name, ignore_errors=True)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Suite]:
    made = Suite(tmp_path_factory.mktemp("operations"), root, tmp_path_factory.mktemp("layer"))
    yield made
    made.operations.end()


@pytest.mark.parametrize(("stage", "item"), STAGES)
def test_each_operation_of_a_stage(suite: Suite, stage: str, item: str | None) -> None:
    """Then the stage runs again, and every file is that of an undisturbed run."""
    suite.run_before(stage, item)
    before = digests(suite.out) if suite.out.exists() else {}
    whole = suite.run(stage, item)
    assert whole.code == 0, whole.printed
    after = digests(suite.out)
    made = {name: digest for name, digest in after.items() if before.get(name) != digest}
    assert made and not leftovers(suite.out)
    suite.remove(made)
    operations = suite.run(stage, item).operations  # the first run made folders that others have in common
    suite.done.append((stage, item))
    tried = points(operations, count(FEW.get(stage, MOST)))
    for mode in (FAIL, KILL):
        for at in tried:
            suite.remove(made)
            first = suite.run(stage, item, mode=mode, at=at)
            place = (
                f"{stage}@{item}, {mode=}, operation {at} of {len(operations)}: {first.hit}\n{first.printed[-2000:]}"
            )
            assert first.hit, f"not reached: {place}"
            assert first.code == KILLED if mode == KILL else first.code in (0, 1), f"exit code {first.code}: {place}"
            # The key of a download that is cut short is one that matches none.
            found = digests(suite.out, without=(".tracking", ".partial", ".downloads"))
            found.pop(
                f"{stage}/{item or ''}/.key".replace("//", "/"), None
            )  # the last one to go, of an output that is whole
            halves = {name for name, digest in found.items() if after.get(name) != digest}
            assert not halves, f"half-written: {halves}: {place}"
            second = suite.run(stage, item)
            assert second.code == 0, f"{place}\n{second.printed[-3000:]}"
            assert digests(suite.out) == after, place
            assert not leftovers(suite.out), f"{leftovers(suite.out)}: {place}"
    note = f"{len(tried)} of {len(operations)} operations, each failed once and cut off once"
    record("operations", f"{stage}{'@' + item if item else ''}", 2 * len(tried), note=note)
