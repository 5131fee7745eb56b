from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from avdistill.data.files import digest, read_arrays
from avdistill.data.index import read_index, write_index
from avdistill.data.packed import Store, StoreWriter
from avdistill.pipeline.errors import UserError


def written(folder: Path, arrays: dict[str, np.ndarray], dtype: str = "uint8", shard_bytes: int = 1 << 30) -> Store:
    with StoreWriter(folder, dtype, shard_bytes) as writer:
        for key, array in arrays.items():
            writer.put(key, array)
    return Store(folder)


@given(
    arrays=st.dictionaries(
        st.text(min_size=1).filter(lambda s: not s.endswith("\0")),
        hnp.arrays(np.uint8, st.tuples(st.integers(1, 4), st.integers(1, 3))),
        max_size=8,
    ),
    shard_bytes=st.integers(1, 40),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_read_is_what_was_written(tmp_path_factory: pytest.TempPathFactory, arrays, shard_bytes) -> None:
    store = written(tmp_path_factory.mktemp("store"), arrays, shard_bytes=shard_bytes)
    assert set(store) == set(arrays)
    for key, array in arrays.items():
        assert np.array_equal(store[key], array)
        assert store.shape(key) == array.shape
    store.verify()


def test_an_interrupted_writer_goes_on_at_the_last_whole_shard(tmp_path: Path) -> None:
    arrays = {f"clip {number}": np.full((4, 2), number, dtype=np.float32) for number in range(7)}
    whole = written(tmp_path / "whole", arrays, "float32", shard_bytes=64)
    writer = StoreWriter(tmp_path / "broken", "float32", shard_bytes=64)
    for key in list(arrays)[:5]:
        writer.put(key, arrays[key])
    writer.file.close()  # a kill: clip 4 was begun in a third shard that never got its name

    again = StoreWriter(tmp_path / "broken", "float32", shard_bytes=64)
    assert [key in again for key in arrays] == [True] * 4 + [False] * 3
    for key in arrays:
        if key not in again:
            again.put(key, arrays[key])
    again.close()
    resumed = Store(tmp_path / "broken")
    assert resumed.checksums == whole.checksums
    assert all(np.array_equal(resumed[key], whole[key]) for key in arrays)


def test_a_store_without_its_description_is_not_finished(tmp_path: Path) -> None:
    written(tmp_path, {"a": np.zeros(3, np.uint8)})
    (tmp_path / "store.json").unlink()
    with pytest.raises(UserError, match="no finished store"):
        Store(tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "listing", "json", "version"])
def test_damage_is_an_error_that_names_the_file(tmp_path: Path, damage: str) -> None:
    written(tmp_path, {"a": np.zeros((30, 30), np.uint8)})
    if damage == "truncate":
        (tmp_path / "shard-00000.bin").write_bytes(b"0" * 10)
    elif damage == "listing":
        (tmp_path / "shard-00000.npz").write_bytes(b"PK\x03\x04 nonsense")
    elif damage == "json":
        (tmp_path / "store.json").write_text("{")
    else:
        (tmp_path / "store.json").write_text('{"version": 99, "dtype": "uint8", "shards": {}}')
    with pytest.raises(UserError, match=str(tmp_path)):
        Store(tmp_path)


def test_a_flipped_bit_is_found_by_verify(tmp_path: Path) -> None:
    store = written(tmp_path, {"a": np.zeros((30, 30), np.uint8)})
    shard = tmp_path / "shard-00000.bin"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(bytes(data))
    with pytest.raises(UserError, match="checksum"):
        store.verify()


def test_arrays_are_never_pickles(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", a=np.array([{"run": "me"}], dtype=object))
    with pytest.raises(UserError, match=r"evil\.npz: damaged"):
        read_arrays(tmp_path / "evil.npz")


def test_only_the_arrays_that_are_asked_for_are_read(tmp_path: Path) -> None:
    arrays = {name: np.full(3, number) for number, name in enumerate(("ids", "block_0", "block_1", "blocks"))}
    arrays["evil"] = np.array([{"run": "me"}], dtype=object)  # to read it would be an error
    np.savez(tmp_path / "a.npz", **arrays)
    found = read_arrays(tmp_path / "a.npz", ("ids", "block_*", "absent_*"))
    assert {name: values.tolist() for name, values in found.items()} == {
        "ids": [0] * 3, "block_0": [1] * 3, "block_1": [2] * 3
    }  # fmt: skip


def test_the_index_keeps_names_that_look_like_missing_values(tmp_path: Path) -> None:
    row = {
        "id": "NA",
        "file": "None/x.mp4",
        "label": 0,
        "class": "None",
        "group": "nan",
        "split": "train",
        "start": 0.0,
    }
    row |= {"end": 1.5, "seconds": 1.5, "audio": "no", "status": "ok", "reason": "", "relevant": "yes"}
    write_index(tmp_path / "index.csv", pd.DataFrame([row]))
    read = read_index(tmp_path / "index.csv").iloc[0].to_dict()
    assert read == row


def test_the_digest_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = digest(tmp_path / "a")
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    renamed = digest(tmp_path / "a")
    (tmp_path / "a" / "y").write_text("2")
    assert len({first, renamed, digest(tmp_path / "a")}) == 3
