"""Files with bits turned over, cut off, or in each other's place: an error with its name, never a wrong result."""

from __future__ import annotations

import io
import pickle
import random
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from avdistill.config.schema import Teacher
from avdistill.data import media
from avdistill.data.files import read_arrays, write_arrays
from avdistill.data.index import read_index, write_index
from avdistill.data.jpeg import encode
from avdistill.data.packed import Store, StoreWriter
from avdistill.data.sources import archives
from avdistill.pipeline.errors import UserError
from avdistill.training.tensors import load_state, load_tensors, save_tensors
from stages.teachers import load_checkpoint
from tests.faults.record import count, record
from tests.helpers.teaching import cnn14, index_of, save_panns

pytestmark = pytest.mark.faults

SECONDS = 20  # no reader of a file of this size may take longer


class Case(NamedTuple):
    """A file, how it is read, and what is read where it is whole."""

    folder: Path
    files: list[Path]
    read: Callable[[], Any]


def flipped(data: bytes, choose: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(choose.choice([1, 1, 1, 8])):
        changed[choose.randrange(len(changed))] ^= 1 << choose.randrange(8)
    return bytes(changed)


def cut(data: bytes, choose: random.Random) -> bytes:
    return data[: choose.randrange(len(data))]


def zeroed(data: bytes, choose: random.Random) -> bytes:
    """A block that was never written, as after a loss of power."""
    place = choose.randrange(len(data))
    return data[:place] + bytes(len(data[place : place + 512])) + data[place + 512 :]


def replaced(data: bytes, choose: random.Random) -> bytes:
    """Another file in its place."""
    buffer = io.BytesIO()
    np.savez(buffer, a=np.arange(5))
    pickled = pickle.dumps(Bomb())
    return choose.choice([b"", b"\n", b"<html>404</html>", buffer.getvalue(), pickled, choose.randbytes(len(data))])


class Bomb:
    """What unpickles it runs code."""

    def __reduce__(self) -> Any:
        return exploded, ()


def exploded() -> None:
    raise SystemExit("code of a file was executed")


def same(first: Any, second: Any) -> bool:
    if isinstance(first, dict):
        return (
            isinstance(second, dict) and first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
        )
    if isinstance(first, pd.DataFrame):
        return first.equals(second)
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return np.array_equal(first, second)


def frames(seed: int = 0) -> np.ndarray:
    y, x, t = np.mgrid[:24, :32, :5].astype(float)
    wave = 127 + 100 * np.sin((x + seed) / 5 + t / 3 + y / 7)
    return np.stack([wave, wave[::-1], wave[:, ::-1]], axis=-1).transpose(2, 0, 1, 3).clip(0, 255).astype(np.uint8)


def index(folder: Path) -> Case:
    rows = [
        {"id": f"c{n}", "file": f"x/{n}.mp4", "class": f"class {n % 3}", "group": f"g{n}", "split": "train"}
        for n in range(30)
    ]
    write_index(folder / "index.csv", index_of(rows))
    return Case(folder, [folder / "index.csv"], lambda: read_index(folder / "index.csv"))


def raw_store(folder: Path) -> Case:
    with StoreWriter(folder, "float32", shard_bytes=4000) as store:
        for number in range(6):
            store.put(f"c{number}", np.random.default_rng(number).normal(size=(9, 30)).astype(np.float32))
    files = [path for path in sorted(folder.iterdir()) if path.suffix != ".json"]
    return Case(folder, files, lambda: {key: store[key] for store in [Store(folder)] for key in store})


def jpeg_store(folder: Path) -> Case:
    with StoreWriter(folder, "uint8", encoding="jpeg") as store:
        for number in range(4):
            store.put(f"c{number}", encode(frames(number), 90))
    files = [path for path in sorted(folder.iterdir()) if path.suffix != ".json"]
    return Case(folder, files, lambda: {key: np.asarray(store[key]) for store in [Store(folder)] for key in store})


def features(folder: Path) -> Case:
    arrays = {"ids": np.array(["a", "b"]), "features": np.random.default_rng(0).normal(size=(2, 64))}
    names = tuple(arrays)
    write_arrays(folder / "features.npz", **arrays)
    return Case(folder, [folder / "features.npz"], lambda: read_arrays(folder / "features.npz", names))


def student(folder: Path) -> Case:
    path = folder / "seed-0.pt"
    save_tensors(path, {"run": "kd", "seed": 0, "student": {"weight": torch.randn(40, 40)}})
    return Case(folder, [path], lambda: load_state(path, torch.device("cpu"), "kd", 0)["student"])


def teacher(folder: Path) -> Case:
    path = folder / "weights.pt"
    save_tensors(path, {"weight": torch.randn(40, 40)})
    return Case(folder, [path], lambda: load_tensors(path))


def foreign_teacher(folder: Path) -> Case:
    """A checkpoint of today's torch; those of before 2020 have no checksums, see below."""
    path, model = folder / "x.pth", cnn14()
    torch.save({"model": model.state_dict()}, path)
    settings = Teacher(kind="cnn14", width=1 / 16, weights=str(path))
    return Case(folder, [path], lambda: load_checkpoint(settings, path).state_dict())


def archive(folder: Path, write: Callable[[Path, dict[str, bytes]], None], name: str) -> Case:
    path, contents = folder / name, {f"d/{n}.bin": random.Random(n).randbytes(700) for n in range(4)}
    write(path, contents)

    def read() -> dict[str, bytes]:
        shutil.rmtree(folder / "out", ignore_errors=True)
        made = archives.unpack(path, folder / "out", lambda name: name.startswith("d/"))
        if not made:  # another archive in its place
            raise UserError(f"{path}: has none of the clips")
        return {file.name: np.frombuffer(file.read_bytes(), np.uint8) for file in made}

    return Case(folder, [path], read)


def write_zip(path: Path, contents: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in contents.items():
            file.writestr(name, data)


def write_tar(path: Path, contents: dict[str, bytes], mode: Literal["w", "w:gz"] = "w") -> None:
    with tarfile.open(path, mode) as file:
        for name, data in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))


CASES: dict[str, Callable[[Path], Case]] = {
    "index of clips": index,
    "store, raw": raw_store,
    "store, JPEGs": jpeg_store,
    "features": features,
    "student": student,
    "teacher": teacher,
    "checkpoint of others": foreign_teacher,
    "zip": lambda folder: archive(folder, write_zip, "a.zip"),
    "tar.gz": lambda folder: archive(folder, partial(write_tar, mode="w:gz"), "a.tar.gz"),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Case]]:
    yield request.param, CASES[request.param](tmp_path)


def test_damage_is_an_error_that_names_the_file(case: tuple[str, Case]) -> None:
    """Or it changes nothing of what is read: a zip archive has places that mean nothing."""
    name, (folder, files, read) = case
    whole, number, harmless = read(), count(200), 0
    for seed in range(number):
        choose = random.Random(seed)
        path = choose.choice(files)
        content = path.read_bytes()
        path.write_bytes(choose.choice([flipped, flipped, cut, zeroed, replaced])(content, choose))
        started = time.monotonic()
        try:
            found = read()
        except UserError as error:
            assert str(folder) in str(error) and "\n" not in str(error), error
        else:
            assert same(whole, found), f"damage {seed} of {path.name} went unnoticed"
            harmless += 1
        assert time.monotonic() - started < SECONDS
        path.write_bytes(content)
    assert same(whole, read())
    record("files", f"damage to a file: {name}", number, note=f"{harmless} times in unused bytes")


def test_files_in_each_other_s_place(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_tensors(
            tmp_path / f"seed-{seed}.pt", {"run": "kd", "seed": seed, "student": {"w": torch.full((3,), seed)}}
        )
        with StoreWriter(tmp_path / f"store {seed}", "uint8") as store:
            store.put("c", np.full((20, 20), seed, np.uint8))
        rows = [{"id": f"c{seed}", "file": "x", "class": "a", "group": "g", "split": "train"}]
        write_index(tmp_path / f"split {seed}/index.csv", index_of(rows))
    tried = 0
    for names, read in (
        (["seed-{}.pt"], lambda: load_state(tmp_path / "seed-0.pt", torch.device("cpu"), "kd", 0)),
        (["store {}/shard-00000.bin"], lambda: Store(tmp_path / "store 0")["c"]),
        (["store {}/shard-00000.npz"], lambda: Store(tmp_path / "store 0")["c"]),
        (["store {}/shard-00000.bin", "store {}/shard-00000.npz"], lambda: Store(tmp_path / "store 0")["c"]),
        (["split {}/index.csv"], lambda: read_index(tmp_path / "split 0/index.csv")),
    ):
        read()
        for name in names:
            swap(tmp_path / name.format(0), tmp_path / name.format(1))
        with pytest.raises(UserError, match=str(tmp_path)):
            read()
        tried += 1
        for name in names:
            swap(tmp_path / name.format(0), tmp_path / name.format(1))
        read()
    record("files", "two files in each other's place", tried)


def swap(first: Path, second: Path) -> None:
    between = first.with_name("between")
    first.replace(between)
    second.replace(first)
    between.replace(second)


@pytest.mark.parametrize("kind", ["cnn14 of 2020", "tar"])
def test_what_has_no_checksum_is_an_error_or_read(kind: str, tmp_path: Path) -> None:
    """Neither code nor a hang; that bits of the content are others, nobody could know. Published ones have a sum."""
    if kind == "tar":
        case = archive(tmp_path, write_tar, "a.tar")
    else:
        path = save_panns(cnn14(), tmp_path / "x.pth")
        settings = Teacher(kind="cnn14", width=1 / 16, weights=str(path))
        case = Case(tmp_path, [path], lambda: load_checkpoint(settings, path))
    content, number = case.files[0].read_bytes(), count(100)
    for seed in range(number):
        choose = random.Random(seed)
        change = choose.choice([flipped, cut, zeroed, replaced])
        case.files[0].write_bytes(change(content[:4000], choose) + (b"" if change is cut else content[4000:]))
        started = time.monotonic()
        try:
            case.read()
        except UserError as error:
            assert str(tmp_path) in str(error) and "\n" not in str(error), error
        assert time.monotonic() - started < SECONDS
    record("files", f"damage to a file without checksums: {kind}", number, note="no code ran, no process hung")


def test_videos(tmp_path: Path) -> None:
    """What comes out of a damaged video is what the codec makes of it; but it comes, or an error with the name does."""
    path = tmp_path / "v.mp4"
    random_sound = np.random.default_rng(0).normal(scale=0.1, size=32_000)
    media.write_video(path, np.concatenate([frames(seed) for seed in range(4)]), 10, random_sound)
    content, number = path.read_bytes(), count(200)
    for seed in range(number):
        choose = random.Random(seed)
        path.write_bytes(choose.choice([flipped, flipped, cut, zeroed, replaced])(content, choose))
        started = time.monotonic()
        media.probe(path)
        for read in (lambda: media.read_frames(path, 5, 16), lambda: media.read_audio(path)):
            try:
                made = read()
                assert made.dtype in (np.uint8, np.float32)
            except UserError as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error), error
        assert time.monotonic() - started < SECONDS
    record("files", "damage to a file: video", number, note="an error with its name, or the frames that can be decoded")
