"""Unpack untrusted tar, tar.gz, zip and RAR archives without writing outside the target folder.

Only files and folders are extracted. An archive with a path that leads out of the folder, a link or a device is
refused, even if that member is not wanted.
"""

from __future__ import annotations

import gzip
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import IO, NamedTuple, cast

from avdistill.pipeline.errors import UserError
from avdistill.pipeline.progress import progress

CHUNK = 1 << 20  # bytes
MOST_NAME = 1 << 20  # bytes of a tar's header, such as a long name; tarfile reads it into memory
RAR_TOOLS = "unrar, unar, 7z or bsdtar"


class Member(NamedTuple):
    """A member of an archive. `size`: declared size in bytes; `kind`: "file", "folder", "a link" or "a device"."""

    name: str
    size: int
    kind: str
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, folder: Path, wanted: Callable[[str], bool] | None = None) -> list[Path]:
    """Unpack the files for whose name (with "/") `wanted` is true, by default all, into `folder`; return their paths.

    An existing file of the member's size is kept, so an interrupted call resumes. Each file is written under a
    temporary name and renamed when it has the declared size and, if the archive has checksums, the right one.
    Uncompressed members of a RAR are read here; compressed ones need one of RAR_TOOLS.
    Raises UserError naming archive and member for a path outside `folder`, a link, a device, a password, damage, a
    missing tool, or a full disk.
    """
    import rarfile

    if not archive.is_file():
        raise UserError(f"{archive}: there is no such archive")
    unpacked: list[Path] = []
    name = ""
    try:
        for member in progress(_members(archive), f"unpack {archive.name}"):
            name = member.name
            if not _inside(name):
                raise UserError(f"{archive}: {name!r}: refused, the path leads out of the folder")
            if member.kind not in {"file", "folder"}:
                raise UserError(f"{archive}: {name!r}: refused, {member.kind}; only files and folders are unpacked")
            if member.kind == "file" and (wanted is None or wanted(name)):
                unpacked.append(_write(archive, member, folder / name))
    except rarfile.RarCannotExec:
        raise UserError(
            f"{archive}: {name!r}: compressed RAR members need one of {RAR_TOOLS}, found none; run `apt install unar`, "
            "or `apt install libarchive-tools` for bsdtar"
        ) from None
    except (
        rarfile.Error,
        tarfile.TarError,
        zipfile.BadZipFile,
        NotImplementedError,
        zlib.error,
        struct.error,
        gzip.BadGzipFile,
        EOFError,
    ) as error:
        where = f"{archive}: {name!r}" if name else str(archive)
        reason = " ".join(str(error).split()) or type(error).__name__
        other = ", or the RAR tool cannot read it (unar reads most)" if isinstance(error, rarfile.Error) else ""
        raise UserError(
            f"{where}: the archive is damaged{other} ({reason}); delete it and run again to download it again"
        ) from None
    return unpacked


def _inside(name: str) -> bool:
    """Return whether a path stays below its folder on every system: "a\\..\\b" and "C:b" lead out on Windows."""
    path = PureWindowsPath(name)
    return bool(path.parts) and not path.anchor and ".." not in path.parts and "\0" not in name


def _write(archive: Path, member: Member, path: Path) -> Path:
    """Extract one member to `path`, atomically."""
    if path.is_file() and path.stat().st_size == member.size:
        return path
    where = f"{archive}: {member.name!r}"
    partial = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if member.size > free:
            raise UserError(f"{where}: needs {member.size / 1e9:.1f} GB, {free / 1e9:.1f} GB are free in {path.parent}")
        with partial.open("wb") as file, member.open() as source:
            while chunk := source.read(CHUNK):
                if file.tell() + len(chunk) > member.size:
                    raise UserError(f"{where}: refused, longer than the {member.size} bytes that the archive declares")
                file.write(chunk)
            if file.tell() < member.size:
                raise EOFError(f"{file.tell()} of {member.size} bytes")
        partial.replace(path)
    except gzip.BadGzipFile:
        raise
    except OSError as error:
        raise UserError(f"{where}: cannot be written to {path}: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            partial.unlink()
    return path


def _members(archive: Path) -> Iterator[Member]:
    """Yield the members of an archive in its order. The first bytes, not the name, decide the archive type."""
    with archive.open("rb") as file:
        first = file.read(6)
    if first == b"Rar!\x1a\x07":
        return _rar(archive)
    if first[:4] in {b"PK\x03\x04", b"PK\x05\x06"}:
        return _zip(archive)
    return _tar(archive, compressed=first[:2] == b"\x1f\x8b")


class ShortHeader(tarfile.TarInfo):
    """A member of a tar whose extended header is of a reasonable size: gzip makes gigabytes of it from nothing."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo:
        if not self.isreg() and self.size > MOST_NAME:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        return super()._proc_member(tar)  # type: ignore[misc]  # a hook of tarfile for subclasses, without a type


def _tar(archive: Path, compressed: bool) -> Iterator[Member]:
    """Read a tar as a stream: seeking back in gzip would decompress from the start again."""

    def opener(member: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
        return lambda: cast(IO[bytes], tar.extractfile(member))

    with gzip.open(archive) if compressed else archive.open("rb") as stream:
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|", tarinfo=ShortHeader) as tar:
            for member in tar:
                plain = "file" if member.isfile() else "folder" if member.isdir() else ""
                kind = plain or ("a link" if member.issym() or member.islnk() else "a device")
                yield Member(member.name, member.size, kind, opener(member))
        while stream.read(CHUNK):  # gzip's checksum is at the end, so read up to it
            pass


def _zip(archive: Path) -> Iterator[Member]:
    def opener(member: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
        return lambda: file.open(member)

    with zipfile.ZipFile(archive) as file:
        if any(member.flag_bits & 1 for member in file.infolist()):
            raise UserError(f"{archive}: needs a password")
        for member in file.infolist():
            type_ = stat.S_IFMT(member.external_attr >> 16)  # 0 if the zip was made on Windows
            plain = "folder" if member.is_dir() else "file" if type_ in {0, stat.S_IFREG} else ""
            kind = plain or ("a link" if type_ == stat.S_IFLNK else "a device")
            yield Member(member.filename, member.file_size, kind, opener(member))


def _rar(archive: Path) -> Iterator[Member]:
    import rarfile

    def opener(member: rarfile.RarInfo) -> Callable[[], IO[bytes]]:
        return lambda: file.open(member)

    with rarfile.RarFile(archive, errors="strict") as file:
        if file.needs_password():
            raise UserError(f"{archive}: needs a password")
        if file.is_solid():
            raise UserError(
                f"{archive}: a solid RAR, from which single files can be extracted only very slowly; unpack it with "
                "another tool and set `videos` to the folder"
            )
        for member in file.infolist():
            plain = "folder" if member.is_dir() else "file" if member.is_file() and member.file_redir is None else ""
            yield Member(member.filename, member.file_size, plain or "a link", opener(member))
