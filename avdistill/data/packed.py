"""Packed stores: arrays by key in a few large files, read by memory map.

    store.json          version, element type, encoding (raw, or jpeg: see jpeg.py), SHA-256 of each file
    shard-00000.bin     the arrays, concatenated
    shard-00000.npz     index of the shard: keys (n), offsets (n, in elements), shapes (n, dims), crcs (n)

A shard is written under a temporary name and renamed when it is complete, so an interrupted writer resumes after the
last complete shard. Checksums are verified on reading: the SHA-256 of each shard's index when the store is opened, the
CRC-32 of each array when it is first read.
"""

from __future__ import annotations

import json
import math
import sys
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avdistill.data.files import AGAIN, read_arrays, sha256, write_arrays, write_json
from avdistill.data.jpeg import JpegClip
from avdistill.pipeline.errors import UserError, room_for

VERSION = 3
SHARD_BYTES = 1 << 30
ENCODINGS = ("raw", "jpeg")


class StoreWriter:
    """Write arrays of one element type by key: `with StoreWriter(folder, "uint8") as store: store.put(…)`.

    Opening the folder of an interrupted writer keeps its complete shards up to the first damaged one. `key in store`
    is true for the arrays that were kept and those written since.
    """

    def __init__(self, folder: Path, dtype: str, shard_bytes: int = SHARD_BYTES, encoding: str = "raw") -> None:
        self.folder = folder
        self.encoding = encoding
        self.dtype = np.dtype(dtype)
        self.shard_bytes = shard_bytes
        self.written: set[str] = set()
        self.checksums: dict[str, str] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for listing in sorted(folder.glob("shard-*.npz")):
            try:
                views = _views(listing, self.dtype)
                for key, view in views.items():
                    view.check(key)
            except UserError as error:
                print(f"{error}; this shard and the later ones are written again", file=sys.stderr)
                break
            self.written |= views.keys()
            self._add_checksums(listing)
        self._open_shard()

    def __contains__(self, key: str) -> bool:
        return key in self.written

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            with suppress(OSError):  # closing flushes, which fails again if the disk is full
                self.file.close()

    def put(self, key: str, array: np.ndarray) -> None:
        """Append `array` under a new key, cast to the store's element type under NumPy's "same_kind" rule.

        Raises ValueError if the key exists, TypeError if the cast is not allowed, UserError if the disk is full."""
        if key in self.written:
            raise ValueError(f"{key!r} is already in the store")
        array = np.ascontiguousarray(array.astype(self.dtype, casting="same_kind", copy=False))
        with room_for(self.folder / f"{self.name}.bin"):
            self.file.write(array.data)
        self.keys.append(key)
        self.crcs.append(zlib.crc32(array.data))
        self.shapes.append(array.shape)
        self.offsets.append(self.elements)
        self.elements += array.size
        self.written.add(key)
        if self.elements * self.dtype.itemsize >= self.shard_bytes:
            self._close_shard()
            self._open_shard()

    def close(self) -> None:
        """Write the last shard and store.json."""
        self._close_shard()
        description = {"version": VERSION, "dtype": self.dtype.name, "encoding": self.encoding}
        write_json(self.folder / "store.json", description | {"files": self.checksums})

    def _open_shard(self) -> None:
        self.name = f"shard-{len(self.checksums) // 2:05d}"
        self.file = (self.folder / f".{self.name}.partial").open("wb")
        self.keys: list[str] = []
        self.shapes: list[tuple[int, ...]] = []
        self.offsets: list[int] = []
        self.crcs: list[int] = []
        self.elements = 0

    def _close_shard(self) -> None:
        with room_for(self.folder / f"{self.name}.bin"):
            self.file.close()
        partial = self.folder / f".{self.name}.partial"
        if not self.keys:
            partial.unlink()
            return
        listing = self.folder / f"{self.name}.npz"
        listing.unlink(missing_ok=True)  # that of a damaged shard
        partial.replace(listing.with_suffix(".bin"))
        write_arrays(
            listing,
            keys=np.array(self.keys),
            offsets=np.array(self.offsets, dtype=np.int64),
            shapes=np.array(self.shapes, dtype=np.int64),
            crcs=np.array(self.crcs, dtype=np.uint32),
        )
        self._add_checksums(listing)

    def _add_checksums(self, listing: Path) -> None:
        for path in (listing.with_suffix(".bin"), listing):
            self.checksums[path.name] = sha256(path)


class _View(NamedTuple):
    """Location of an array in a shard, and the CRC-32 of its bytes."""

    data: np.memmap
    offset: int
    shape: tuple[int, ...]
    crc: int

    @property
    def end(self) -> int:
        return self.offset + math.prod(self.shape)

    @property
    def array(self) -> np.ndarray:
        return np.asarray(self.data[self.offset : self.end]).reshape(self.shape)

    def check(self, key: str) -> None:
        """Compare the array with its CRC-32. Raises UserError naming the shard if they differ."""
        if zlib.crc32(self.array.data) != self.crc:
            raise UserError(f"{self.data.filename}: damaged (the checksum of {key!r} differs); {AGAIN}")


def _views(listing: Path, dtype: np.dtype[Any]) -> dict[str, _View]:
    """Map the arrays of a shard by key without reading them. Raises UserError if one lies outside the file."""
    shard, arrays = listing.with_suffix(".bin"), read_arrays(listing)
    try:
        columns = [arrays[name].tolist() for name in ("keys", "offsets", "shapes", "crcs")]
        data = np.memmap(shard, dtype=dtype, mode="r")
        views = {key: _View(data, at, tuple(shape), crc) for key, at, shape, crc in zip(*columns, strict=True)}
        for key, view in views.items():
            if not 0 <= view.offset <= view.end <= data.size:
                raise ValueError(f"{key!r} lies outside the file")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{shard}: damaged ({error})") from None
    return views


class Store:
    """Read a finished store: `store[key]` is a read-only view of the memory map, or a `JpegClip` on such a view.

    Opening and reading raise UserError if the store is missing, damaged, or of another version."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            description = json.loads((self.folder / "store.json").read_text(encoding="utf-8"))
            version = description["version"]
            if version != VERSION:
                raise UserError(f"{self.folder}: found store version {version}, expected {VERSION}; {AGAIN}")
            self.checksums: dict[str, str] = dict(description["files"])
            dtype, self.encoding = np.dtype(description["dtype"]), description["encoding"]
            if self.encoding not in ENCODINGS:
                raise ValueError(f"unknown encoding {self.encoding!r}")
        except FileNotFoundError:
            raise UserError(f"{self.folder}: no finished store (no store.json); run the stage that writes it") from None
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.folder / 'store.json'}: damaged ({error}); {AGAIN}") from None
        self._views: dict[str, _View] = {}
        self._checked: set[str] = set()
        for name in sorted(self.checksums):
            if name.endswith(".npz"):
                self._compare(name)
                self._views |= _views(self.folder / name, dtype)

    def __len__(self) -> int:
        return len(self._views)

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __contains__(self, key: str) -> bool:
        return key in self._views

    def __getitem__(self, key: str) -> Any:
        view = self._views[key]
        if key not in self._checked:
            view.check(key)
            self._checked.add(key)
        if self.encoding == "raw":
            return view.array
        try:
            return JpegClip(view.array)
        except ValueError as error:
            raise UserError(f"{self.folder}: {key}: damaged ({error})") from None

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of an array without reading it."""
        return self._views[key].shape

    def verify(self) -> None:
        """Compare every file with its SHA-256. Raises UserError naming the first that differs."""
        for name in self.checksums:
            self._compare(name)

    def _compare(self, name: str) -> None:
        try:
            same = sha256(self.folder / name) == self.checksums[name]
        except OSError as error:
            raise UserError(f"{self.folder / name}: damaged ({error.strerror}); {AGAIN}") from None
        if not same:
            raise UserError(f"{self.folder / name}: damaged (its checksum differs); {AGAIN}")
