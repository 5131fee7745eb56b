"""folder: the user's videos, used in place: `<source>/<class>/<clip>`, one folder per class.

The groups come from the first of these that is given:

- `<source>/groups.csv`: columns file (`<class>/<clip>`), group, and optionally split.
- `group_pattern`: a regular expression with one (group), searched in the file name.
- Neither: each clip is a group of its own, so clips of one recording may be in both train and test.

`<source>/<split>/<class>/<clip>` and `<source>/<class>/<split>/<clip>` give the splits, too. Hidden files, folders of
the system (`@eaDir`, `__MACOSX`, …), links to folders and other types of files are left out and counted. Broken links
and `.dvcignore`, at which DVC fails, are errors, and so are classes that are links, in which it notices no change.

    python -m avdistill.data.datasets.folder FOLDER    end with one line if DVC cannot watch the folder
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from unicodedata import normalize

from avdistill.config.origins import Folder
from avdistill.data.datasets import CLIPS, print_counts
from avdistill.pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    import pandas as pd

VIDEO_TYPES = re.compile(
    r"\.(26[1456]|3g2|3gpp?2?|amv|apng|asf|av1|avc|avi|cavs|dav|dif|divx|dnxh[dr]|drc|dv|dvd|dvr-ms|evo|f4v|flv|gif|gxf"
    r"|h26[13456]|hevc|imx|ismv|ivf|k3g|kux|m1v|m2p|m2ts?|m2v|m4v|mj2|mjpe?g|mk3d|mkv|mod|mov|mp4v?|mpe?g?|mpegts|mpv"
    r"|mts|mxf|mxg|nsv|nut|obu|og[gmvx]|ps|psp|qt|r[mv]|rmvb|roq|swf|tod|tp|trp|ts|ty|vc1|viv|vob|vro|vvc|webm|wm|wmv|wtv"
    r"|xmv|xvid|y4m)",
    re.I,
)
GROUPS = "groups.csv"
# Folders that file managers, archives and storage systems make.
SYSTEM = {"@eadir", "$recycle.bin", "system volume information", "__macosx", "#recycle", "lost+found"}
# Names of folders that stand for splits: <split>/<class>/<clip> or <class>/<split>/<clip>.
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLITS |= {"test": "test", "testing": "test"}


def check(origin: Folder) -> None:
    """Check the folder and groups.csv. Raises UserError, also if there are videos of fewer than two classes."""
    files, _ = _scan(origin)
    check_for_dvc(origin.source)
    classes = set(_classes(files)[0])
    if not classes:
        raise UserError(f"source: {origin.source}: expected one folder of videos per class, found none")
    if len(classes) == 1:
        raise UserError(f"source: {origin.source}: expected two or more classes, found only '{classes.pop()}'")
    _listing(origin, files)


def check_for_dvc(source: str) -> None:
    """Raise UserError for the first entry of a folder, at any depth, which DVC cannot watch."""
    for path in sorted(Path(source).iterdir()):
        if path.is_symlink() and path.is_dir() and not _left_out(path.name):
            raise UserError(
                f"source: {path}: a link to a folder, in which DVC notices no change; put the folder itself there"
            )
    for folder, _, names in os.walk(source):
        for name in sorted(names):
            path = Path(folder) / name
            if name == ".dvcignore":
                raise UserError(f"source: {path}: DVC does not watch a folder with such a file; delete or rename it")
            if path.is_symlink() and not path.exists():
                raise UserError(f"source: {path}: a link to {path.readlink()}, which does not exist; delete the link")


def videos(origin: Folder, folder: Path) -> Path:
    """Return the source folder: videos are used in place."""
    return Path(origin.source)


def download(origin: Folder, folder: Path) -> None:
    """Write clips.csv and files.csv (sizes, so that DVC notices replaced files); print what is left out."""
    import pandas as pd

    from avdistill.data.files import write_csv

    files, left_out = _scan(origin)
    listing = _listing(origin, files)
    sizes = [(Path(origin.source) / file).stat().st_size for file in listing["file"]]
    write_csv(folder / "files.csv", pd.DataFrame({"file": listing["file"], "size": sizes}))
    write_csv(folder / CLIPS, listing)
    print_counts(origin.source, listing, left_out)


def _left_out(name: str) -> bool:
    """Return whether a file or folder of this name is hidden or the system's."""
    return name.startswith(".") or name.lower() in SYSTEM


def _scan(origin: Folder) -> tuple[list[Path], Counter[str]]:
    """Return the video files relative to the source, sorted, and how many files were left out for which reason."""
    source = Path(origin.source)
    if not source.is_dir():
        raise UserError(f"source: {origin.source}: there is no such folder")
    files: list[Path] = []
    left_out: Counter[str] = Counter()
    for path in (path for folder in source.iterdir() if folder.is_dir() for path in folder.rglob("*")):
        file = path.relative_to(source)
        if path.is_dir():
            if path.is_symlink():
                left_out["links to folders, which are not followed"] += 1
        elif any(map(_left_out, file.parts)):
            left_out["hidden files or files of the system"] += 1
        elif not path.is_file():
            left_out["neither files nor folders"] += 1
        elif not VIDEO_TYPES.fullmatch(path.suffix):
            left_out[f"files of type '{path.suffix.lower()}'"] += 1
        else:
            files.append(file)
    left_out["files beside the folders of classes"] = sum(
        path.is_file() and path.name != GROUPS for path in source.iterdir()
    )
    for file in sorted(files):
        try:
            str(file).encode()
        except UnicodeEncodeError:
            raise UserError(f"source: {file.as_posix()!a}: the file name is not valid UTF-8; rename the file") from None
    return sorted(files), +left_out


def _classes(files: list[Path]) -> tuple[list[str], list[str] | None]:
    """Return the class of each file, and its split where folders give it; else None."""

    def split_at(place: int) -> bool:
        return all(len(file.parts) > 2 and file.parts[place].lower() in SPLITS for file in files)

    for place in (0, 1):
        if files and split_at(place):
            return [file.parts[1 - place] for file in files], [SPLITS[file.parts[place].lower()] for file in files]
    return [file.parts[0] for file in files], None


def _listing(origin: Folder, files: list[Path]) -> pd.DataFrame:
    """Return the table of clips; id and file are the path below the source, with "/" on every system."""
    import pandas as pd

    table = pd.DataFrame({"id": [file.as_posix() for file in files], "file": [file.as_posix() for file in files]})
    classes, splits = _classes(files)
    table["class"] = classes
    if splits is not None:
        table["split"] = splits
    if (Path(origin.source) / GROUPS).exists():
        groups = _read_groups(origin, table["file"].tolist()).set_index("file")
        return table.drop(columns=[column for column in groups if column in table]).join(groups, on="file")
    if origin.group_pattern is not None:
        pattern = re.compile(origin.group_pattern)
        found = [pattern.search(file.name) for file in files]
        for file, match in zip(files, found, strict=True):
            if match is None or not match[1]:
                raise UserError(f"group_pattern: {origin.group_pattern!r} does not match the file name {file.name!r}")
        # Numbers in file names count within a class: "g01" of two classes are different recordings.
        table["group"] = [f"{name}/{match[1]}" for name, match in zip(classes, found, strict=True) if match]
    else:
        table["group"] = table["id"]
    return table


def _read_groups(origin: Folder, files: list[str]) -> pd.DataFrame:
    """Read groups.csv. Raises UserError unless it has exactly one row for every video and no other rows."""
    import pandas as pd

    path = Path(origin.source) / GROUPS
    try:
        table = pd.read_csv(path, dtype="string", keep_default_na=False)
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: not a CSV table ({error})") from None
    for column in ("file", "group"):
        if column not in table:
            raise UserError(f"{path}: expected a column '{column}', found {', '.join(table.columns)}")
    # A file system may spell é in two characters where the table has one, or the other way round.
    spelling = {normalize("NFC", file): file for file in files}
    table["file"] = [spelling.get(normalize("NFC", file), file) for file in table["file"]]
    listed = table["file"].tolist()
    for file in sorted(set(listed) - set(files)):
        raise UserError(f"{path}: there is no video '{file}' in {origin.source}; {nearest(file, files)}")
    for file in sorted(set(files) - set(listed)):
        raise UserError(f"{path}: no row for '{file}'; expected one row for every video")
    for file in table["file"][table["file"].duplicated()]:
        raise UserError(f"{path}: '{file}' occurs twice")
    return table[["file", "group", *(["split"] if "split" in table else [])]]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m avdistill.data.datasets.folder FOLDER")
    try:
        check_for_dvc(sys.argv[1])
    except UserError as problem:
        sys.exit(f"error: {problem}")
