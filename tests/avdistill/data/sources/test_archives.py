from __future__ import annotations

import gzip
import io
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rarfile

from avdistill.data.sources import archives
from avdistill.data.sources.archives import unpack
from avdistill.pipeline.errors import UserError
from tests.helpers.packed import LINK, write_rar

CONTENTS = {
    "UCF-101/Archery/v_Archery_g01_c01.avi": np.random.default_rng(0).bytes(70_000),
    "UCF-101/Archery/it's a b.avi": b"",
    "UCF-101/Surfing/v_Surfing_g01_c01.avi": np.random.default_rng(1).bytes(512),
    "README": b"read me",
}


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            if "/" in name.strip("/"):
                folder = tarfile.TarInfo(name.rpartition("/")[0])
                folder.type = tarfile.DIRTYPE
                tar.addfile(folder)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_tar_gz(path: Path, members: dict[str, bytes]) -> None:
    write_tar(path, members, "w:gz")


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("UCF-101/", "")
        for name, content in members.items():
            file.writestr(name, content)


WRITERS = [write_tar, write_tar_gz, write_zip, write_rar]
each_type = pytest.mark.parametrize("write", WRITERS, ids=["tar", "tar.gz", "zip", "rar"])
Writer = Callable[[Path, dict[str, bytes]], None]


def found(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones included."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if not p.is_dir()}


@each_type
def test_all_members(write: Writer, tmp_path: Path) -> None:
    write(tmp_path / "archive", CONTENTS)  # no extension, so only the first bytes give the type
    paths = unpack(tmp_path / "archive", tmp_path / "out")
    assert paths == [tmp_path / "out" / name for name in CONTENTS]
    assert found(tmp_path / "out") == CONTENTS


@each_type
def test_wanted_members(write: Writer, tmp_path: Path) -> None:
    write(tmp_path / "archive", CONTENTS)
    paths = unpack(tmp_path / "archive", tmp_path / "out", lambda name: "Surfing/" in name)
    assert paths == [tmp_path / "out/UCF-101/Surfing/v_Surfing_g01_c01.avi"]
    assert [*found(tmp_path / "out")] == ["UCF-101/Surfing/v_Surfing_g01_c01.avi"]


@each_type
def test_what_is_there_is_left_alone(write: Writer, tmp_path: Path) -> None:
    write(tmp_path / "archive", CONTENTS)
    there, half = "UCF-101/Archery/v_Archery_g01_c01.avi", "UCF-101/Surfing/v_Surfing_g01_c01.avi"
    for name, content in {there: bytes(70_000), half: CONTENTS[half][:100]}.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True)
        (tmp_path / "out" / name).write_bytes(content)
    assert len(unpack(tmp_path / "archive", tmp_path / "out")) == len(CONTENTS)
    assert found(tmp_path / "out") == CONTENTS | {there: bytes(70_000)}


@each_type
@pytest.mark.parametrize(
    "name", ["../out.avi", "a/../../out.avi", "/tmp/out.avi", "a/..", "C:/out.avi", "..\\out.avi", "\\\\host\\x"]
)
def test_a_path_that_leads_out_is_refused(write: Writer, tmp_path: Path, name: str) -> None:
    write(tmp_path / "archive", {"good.avi": b"video", name: b"evil"})
    with pytest.raises(UserError) as error:
        unpack(tmp_path / "archive", tmp_path / "deep/out", lambda member: member == "good.avi")
    assert str(error.value).startswith(f"{tmp_path / 'archive'}: ")
    assert str(error.value).endswith("refused, the path leads out of the folder")
    assert set(found(tmp_path)) <= {"archive", "deep/out/good.avi"}
    assert not Path("/tmp/out.avi").exists()


def tar_of(kind: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with tarfile.open(path, "w") as tar:
            member = tarfile.TarInfo("odd")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)

    return write


def zip_of(mode: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        member = zipfile.ZipInfo("odd")
        member.external_attr = mode << 16
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(member, "/etc/passwd")

    return write


@pytest.mark.parametrize(
    ("write", "what"),
    [
        (tar_of(tarfile.SYMTYPE), "a link"),
        (tar_of(tarfile.LNKTYPE), "a link"),
        (tar_of(tarfile.CHRTYPE), "a device"),
        (tar_of(tarfile.FIFOTYPE), "a device"),
        (zip_of(stat.S_IFLNK | 0o777), "a link"),
        (zip_of(stat.S_IFCHR), "a device"),
        (lambda path: write_rar(path, {"odd": b"/etc/passwd"}, mode=LINK), "a link"),
    ],
)
def test_only_files_and_folders_come_out(write: Callable[[Path], None], what: str, tmp_path: Path) -> None:
    write(tmp_path / "archive")
    with pytest.raises(UserError, match=f"archive: 'odd': refused, {what}; only files and folders are unpacked"):
        unpack(tmp_path / "archive", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_fills_the_memory(tmp_path: Path, kind: bytes) -> None:
    """64 MB of zeros, 64 kB in the archive."""
    header = tarfile.TarInfo("odd")
    header.type, header.size = kind, 1 << 26
    with gzip.open(tmp_path / "archive", "wb", compresslevel=1) as file:
        file.write(header.tobuf() + bytes(header.size) + bytes(1024))
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="archive: the archive is damaged"):
            unpack(tmp_path / "archive", tmp_path / "out")
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_member_that_is_longer_than_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = io.BytesIO(bytes(5_000_000))
    bomb = archives.Member("bomb", 4_000_000, "file", lambda: source)
    (tmp_path / "archive").touch()
    monkeypatch.setattr(archives, "_members", lambda _: iter([bomb]))
    with pytest.raises(
        UserError, match="archive: 'bomb': refused, longer than the 4000000 bytes that the archive declares"
    ):
        unpack(tmp_path / "archive", tmp_path / "out")
    assert found(tmp_path / "out") == {}


def test_a_zip_that_hides_its_size(tmp_path: Path) -> None:
    write_zip(tmp_path / "archive", {"bomb": bytes(5_000_000)})
    content = (tmp_path / "archive").read_bytes()
    (tmp_path / "archive").write_bytes(content.replace(struct.pack("<I", 5_000_000), struct.pack("<I", 1000)))
    with pytest.raises(UserError, match="archive: 'bomb': the archive is damaged"):
        unpack(tmp_path / "archive", tmp_path / "out")
    assert found(tmp_path / "out") == {}


def test_more_than_the_disk_has_room_for(tmp_path: Path) -> None:
    member = tarfile.TarInfo("bomb")
    member.size = 10**17
    (tmp_path / "archive").write_bytes(member.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(UserError, match=r"archive: 'bomb': needs 100000000\.0 GB, [\d.]+ GB are free"):
        unpack(tmp_path / "archive", tmp_path / "out")


@each_type
def test_an_archive_that_ends_too_early(write: Writer, tmp_path: Path) -> None:
    write(tmp_path / "whole", CONTENTS)
    content = (tmp_path / "whole").read_bytes()
    for share in (0.0, 0.2, 0.5, 0.9):
        (tmp_path / "archive").write_bytes(content[: int(share * 70_000)])
        with pytest.raises(UserError) as error:
            unpack(tmp_path / "archive", tmp_path / "out")
        assert "the archive is damaged" in str(error.value)
        assert str(error.value).endswith("delete it and run again to download it again")
        assert "\n" not in str(error.value)
        assert found(tmp_path / "out") == {}


@each_type
def test_a_flipped_bit(write: Writer, tmp_path: Path) -> None:
    write(tmp_path / "archive", CONTENTS)
    content = bytearray((tmp_path / "archive").read_bytes())
    content[40_000] ^= 16
    (tmp_path / "archive").write_bytes(content)
    if write is write_tar:  # has no checksums of contents
        unpack(tmp_path / "archive", tmp_path / "out")
        return
    with pytest.raises(UserError, match="the archive is damaged"):
        unpack(tmp_path / "archive", tmp_path / "out")


def test_what_is_no_archive(tmp_path: Path) -> None:
    for content in (b"<html>Please log in</html>" * 50, gzip.compress(b"no tar" * 500), b"PK\x03\x04 and so on"):
        (tmp_path / "archive").write_bytes(content)
        with pytest.raises(UserError, match="archive: the archive is damaged"):
            unpack(tmp_path / "archive", tmp_path / "out")
    with pytest.raises(UserError, match="nothing: there is no such archive"):
        unpack(tmp_path / "nothing", tmp_path / "out")


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    write_zip(tmp_path / "archive", {"a/b": b"video"})
    (tmp_path / "a").touch()
    with pytest.raises(UserError, match=r"archive: 'a/b': cannot be written to .*a/b"):
        unpack(tmp_path / "archive", tmp_path)


def test_a_compressed_rar_needs_a_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(rarfile, "CURRENT_SETUP", None)
    write_rar(tmp_path / "archive", {"a": b"video"}, method=0x33)
    with pytest.raises(UserError) as error:
        unpack(tmp_path / "archive", tmp_path / "out")
    assert str(error.value) == (
        f"{tmp_path / 'archive'}: 'a': compressed RAR members need one of unrar, unar, 7z or bsdtar, found none; "
        "run `apt install unar`, or `apt install libarchive-tools` for bsdtar"
    )


def test_passwords_and_solid_archives(tmp_path: Path) -> None:
    write_rar(tmp_path / "locked.rar", {"a": b"video"}, flags=0x0004)
    with pytest.raises(UserError, match=r"locked\.rar: needs a password"):
        unpack(tmp_path / "locked.rar", tmp_path / "out")
    write_rar(tmp_path / "solid.rar", {"a": b"video"}, solid=True)
    with pytest.raises(UserError, match=r"solid\.rar: a solid RAR"):
        unpack(tmp_path / "solid.rar", tmp_path / "out")
    write_zip(tmp_path / "locked.zip", {"a": b"video"})
    content = bytearray((tmp_path / "locked.zip").read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"locked\.zip: needs a password"):
        unpack(tmp_path / "locked.zip", tmp_path / "out")
