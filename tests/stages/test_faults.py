"""Full disks, interruptions and damaged files, each as small as it can be; tests/faults has them large."""

from __future__ import annotations

import errno
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avdistill.config.loading import load
from avdistill.config.schema import Params
from avdistill.data import datasets, loader
from avdistill.data.files import read_arrays, write_arrays, write_text
from avdistill.data.index import read_index
from avdistill.data.packed import Store, StoreWriter
from avdistill.pipeline.errors import UserError, no_room
from avdistill.training.tensors import load_state, load_tensors, save_tensors
from avdistill.training.trainer import Trainer, train_one
from tests.helpers.teaching import stage
from tests.stages.test_train import state_of, task


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file may get larger: as on a full disk, without one."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def flip(path: Path, place: int = -100) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(bytes(data))


def test_no_room_is_told_by_errno_wherever_it_stands() -> None:
    assert no_room(ValueError(), Path("x")) is None and no_room(OSError(errno.EACCES, "no"), Path("x")) is None
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as first:
            raise RuntimeError("cannot write") from first
    except RuntimeError as error:
        assert str(no_room(error, Path("a/b"))).startswith("a/b: No space left on device (")


@pytest.mark.parametrize("kind", ["text", "arrays", "tensors"])
def test_a_file_for_which_there_is_no_room_is_named_and_the_old_one_stays(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out" / kind
    write = {
        "text": lambda n: write_text(path, "x" * n),
        "arrays": lambda n: write_arrays(path, a=np.zeros(n)),
        "tensors": lambda n: save_tensors(path, {"a": torch.zeros(n)}),
    }[kind]
    write(10)
    before = path.read_bytes()
    with files_up_to(10_000), pytest.raises(UserError, match=rf"^{path}: .* MB are free in {path.parent}"):
        write(100_000)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_store_for_which_there_is_no_room_goes_on_later(tmp_path: Path) -> None:
    arrays = {f"c{number}": np.full(6000, number, np.uint8) for number in range(5)}
    with (
        files_up_to(9_000),
        pytest.raises(UserError, match=r"shard-00001.bin: .* MB are free"),
        StoreWriter(tmp_path, "uint8", 5000) as store,
    ):
        store.put("c0", arrays["c0"])
        store.put("c1", np.concatenate([arrays["c1"], arrays["c1"]]))
    with StoreWriter(tmp_path, "uint8", 5000) as store:
        assert "c0" in store and "c1" not in store
        for key in list(arrays)[1:]:
            store.put(key, arrays[key])
    assert all(np.array_equal(Store(tmp_path)[key], array) for key, array in arrays.items())


def test_a_stage_without_room_ends_with_one_line(tmp_path: Path, root: Path) -> None:
    program = (
        "import resource\n"
        "from stages import check\n"
        "from avdistill.pipeline.stage import run\n"
        "def main(stage):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, resource.RLIM_INFINITY))\n"
        "    with stage.output() as folder, (folder / 'large').open('wb') as file:\n"
        "        file.write(bytes(10000))\n"
        "check.main = main\n"
        "run(['check', 'params.yaml'])\n"
    )
    text = (root / "params.yaml").read_text().replace("out: out/avsynth", f"out: {tmp_path}/out")
    (tmp_path / "params.yaml").write_text(text)
    (tmp_path / "stages").symlink_to(root / "stages")
    command = [sys.executable, "-c", program]
    environment = {"PATH": "/usr/bin:/bin", "AV_TRACKING": "off", "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/out/.partial/check: File too large (") and line.endswith(
        "make room and run again"
    )


@pytest.fixture
def halfway(tiny: Params, tmp_path: Path) -> Trainer:
    """A training of which two checkpoints are there, after one epoch and after two."""
    trainer = Trainer(task(tiny, tmp_path / "halves", "mnf_csc", "mnf_csc"))
    trainer.fit(1)
    Trainer(trainer.task).fit(2)
    return trainer


@pytest.mark.parametrize("damage", ["flip", "truncate", "other", "gone", "both"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_is_used(
    tiny: Params, tmp_path: Path, halfway: Trainer, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    last, previous = halfway.checkpoints.files
    assert torch.load(last, weights_only=True)["epoch"] == 2 and torch.load(previous, weights_only=True)["epoch"] == 1
    for path in (last, previous) if damage == "both" else (last,):
        if damage in ("flip", "both"):
            flip(path, path.stat().st_size // 2)
        elif damage == "truncate":
            path.write_bytes(path.read_bytes()[:-5000])
        elif damage == "other":
            save_tensors(path, torch.load(path, weights_only=True) | {"seed": 1})
        else:
            path.unlink()  # killed between the two renames of a save
    resumed = Trainer(halfway.task)
    resumed.load()
    told = capsys.readouterr().err
    assert resumed.epoch == (0 if damage == "both" else 1)
    assert told.count("\n") == {"gone": 0, "both": 2}.get(damage, 1)
    if damage != "gone":
        assert told.startswith(f"{last}: ") and "going on from the checkpoint before it" in told
    resumed.fit(4)
    whole = Trainer(task(tiny, tmp_path / "whole", "mnf_csc", "mnf_csc"))
    whole.fit(4)
    assert resumed.history == whole.history
    assert all(torch.equal(value, state_of(resumed)[name]) for name, value in state_of(whole).items())


def test_a_training_killed_before_it_deleted_its_checkpoints_leaves_none(tiny: Params, tmp_path: Path) -> None:
    job = task(tiny, tmp_path, "uni_modal", "uni_modal")
    train_one(job)
    checkpoints = Trainer(job).checkpoints.files
    for file in checkpoints:
        file.write_bytes(b"left")
    train_one(job)
    assert not any(file.exists() for file in checkpoints)


def test_a_finished_training_that_is_damaged_is_trained_again(tiny: Params, tmp_path: Path) -> None:
    job = task(tiny, tmp_path / "a", "uni_modal", "uni_modal")
    path = job.folder / "uni_modal" / "seed-0.pt"
    train_one(job)
    whole = load_tensors(path)
    flip(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=rf"{path}: damaged"):
        load_state(path, torch.device("cpu"), "uni_modal", 0)
    train_one(job)
    assert all(torch.equal(value, load_tensors(path)["student"][name]) for name, value in whole["student"].items())
    with pytest.raises(UserError, match=rf"{path}: not of run 'uni_modal' and seed 1"):
        load_state(path, torch.device("cpu"), "uni_modal", 1)


def test_a_bit_of_an_array_is_noticed_as_it_is_read(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, "uint8") as writer:
        for number in range(3):
            writer.put(f"c{number}", np.full((8, 8), number, np.uint8))
    flip(tmp_path / "shard-00000.bin", 70)
    store = Store(tmp_path)
    assert store["c0"].max() == 0 and store["c2"].min() == 2
    with pytest.raises(UserError, match=rf"{tmp_path}/shard-00000.bin: damaged .*'c1'"):
        store["c1"]


def test_a_damaged_shard_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = {f"c{number}": np.full(40, number, np.uint8) for number in range(6)}
    for name in ("whole", "resumed"):
        writer = StoreWriter(tmp_path / name, "uint8", shard_bytes=80)
        for key, array in arrays.items():
            writer.put(key, array)
        if name == "resumed":
            writer.file.close()
            flip(tmp_path / name / "shard-00001.bin", 3)
            writer = StoreWriter(tmp_path / name, "uint8", shard_bytes=80)
            assert [key for key in arrays if key in writer] == ["c0", "c1"]
            assert "shard-00001.bin: damaged" in capsys.readouterr().err
            for key in list(arrays)[2:]:
                writer.put(key, arrays[key])
        writer.close()
    assert Store(tmp_path / "resumed").checksums == Store(tmp_path / "whole").checksums


def test_an_index_that_is_not_what_was_written(tiny: Params) -> None:
    path = tiny.index("avsynth")
    text = path.read_text()
    path.write_text(text.replace(",train,", ",test,", 1))
    with pytest.raises(UserError, match=rf"{path}: damaged \(its checksum differs\)"):
        read_index(path)
    path.write_text(text)
    assert len(read_index(path)) == text.count("\n") - 1


def test_arrays_that_are_lacking_are_named(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", ids=np.arange(3))
    with pytest.raises(UserError, match=r"a.npz: damaged .*there is no array logits"):
        read_arrays(tmp_path / "a.npz", ("ids", "logits"))


def test_logits_of_other_clips(tiny: Params) -> None:
    features, head = tiny.path("teacher_features", "avsynth_audio"), tiny.path("teacher_head", "avsynth_audio")
    arrays = read_arrays(head / "logits.npz")
    write_arrays(head / "logits.npz", ids=arrays["ids"][::-1], logits=arrays["logits"])
    clips = loader.ClipSet(tiny.index("avsynth"), tiny.path("frames", "avsynth"), ("train",))
    with pytest.raises(UserError, match=r"its logits are not of the clips of"):
        loader.teacher_table(features, head, clips)


def test_a_list_of_clips_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / datasets.CLIPS).write_bytes(b'id,file\n"a\xff')
    with pytest.raises(UserError, match=rf"{tmp_path / datasets.CLIPS}: cannot be read as a table"):
        datasets.clips(tmp_path)


def test_outputs_are_replaced_whole(tiny: Params) -> None:
    made = stage(tiny, "figures", "x")
    final = tiny.path("figures", "x")
    for text in ("old", "new"):
        with made.output() as folder:
            (folder / "file").write_text(text)
            assert text == "old" or (final / "file").read_text() == "old"
    assert (final / "file").read_text() == "new"
    assert not list((Path(tiny.suite.out) / ".partial").iterdir())


@pytest.mark.parametrize("keep", [False, True])
def test_finished_work_outlives_each_step_that_fails_after_it(
    tiny: Params, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    """A training of hours, or a download of weeks, is complete, and one of the steps that give it its name fails."""
    made, final = stage(tiny, "figures", "x"), tiny.path("figures", "x")
    for number in range(20):
        shutil.rmtree(tiny.suite.out)
        with made.output(key="older", keep=keep) as folder:
            (folder / "old").write_text("")
        steps = 0

        def step(function: Callable[..., Any], *args: Any, fails: int = number, **kwargs: Any) -> Any:
            nonlocal steps
            steps += 1
            if steps == fails + 1:
                raise OSError(errno.EIO, "Input/output error")
            return function(*args, **kwargs)

        with suppress(OSError), monkeypatch.context() as patch, made.output(key="new", keep=keep) as folder:
            (folder / "work").write_text("hours")
            for name in ("mkdir", "replace", "unlink", "write_text"):
                function = getattr(Path, name)
                patch.setattr(Path, name, lambda *args, of=function, **kwargs: step(of, *args, **kwargs))
        if steps <= number:
            break
        with made.output(key="new", keep=keep) as folder:
            kept = [path.name for path in folder.iterdir() if path.name != ".key"]
            # What has its final name is whole; that of a download goes on from there.
            assert kept == ["work"] or (not keep and not kept and (final / "work").exists()), number
            (folder / "work").write_text("hours")
        assert [path.name for path in final.iterdir()] == ["work"]
        assert not list((Path(tiny.suite.out) / ".partial").iterdir())
    assert 4 <= number < 19, "all steps were tried"


def test_what_a_killed_writer_left_is_no_output(tiny: Params) -> None:
    made = stage(tiny, "figures", "x")
    with pytest.raises(RuntimeError), made.output(key="same") as folder:
        for name in ("whole", ".half.csv.123", ".video.mp4.part"):
            write_text(folder / "run" / name, "")
        raise RuntimeError
    with made.output(key="same") as folder:
        assert sorted(path.name for path in (folder / "run").iterdir()) == [".video.mp4.part", "whole"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 2026-99-99", "not valid YAML"),
        ("[", "not valid YAML"),
        ("[" * 5000, "more than 50 levels"),
        (None, "cannot be read"),
    ],
)
def test_params_that_yaml_cannot_make_anything_of(tmp_path: Path, text: str | None, expected: str) -> None:
    file = tmp_path / "params.yaml"
    file.mkdir() if text is None else file.write_text(text)
    with pytest.raises(UserError, match=expected):
        load(file)
