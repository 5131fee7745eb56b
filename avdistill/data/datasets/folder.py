"""folder: the user's videos, used in place: `<source>/<class>/<clip>`, one folder per class.

The groups come from the first of these that is given:

- `<source>/groups.csv`: columns file (`<class>/<clip>`), group, and optionally split.
- `group_pattern`: a regular expression with one (group), searched in the file name.
- Neither: each clip is a group of its own, so clips of one recording may be in both train and test.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from avdistill.config.origins import Folder
from avdistill.data.datasets import CLIPS
from avdistill.pipeline.errors import UserError, nearest

if TYPE_CHECKING:
    import pandas as pd

VIDEO_TYPES = re.compile(r"\.(3gp|asf|avi|flv|gif|m2ts|m4v|mkv|mov|mp4|mpe?g|mts|mxf|og[gv]|ts|vob|webm|wmv)", re.I)
GROUPS = "groups.csv"


def check(origin: Folder) -> None:
    """Check the folder and groups.csv. Raises UserError, also if there are videos of fewer than two classes."""
    classes = {file.parts[0] for file in _files(origin)}
    if not classes:
        raise UserError(f"source: {origin.source}: expected one folder of videos per class, found none")
    if len(classes) == 1:
        raise UserError(f"source: {origin.source}: expected two or more classes, found only '{classes.pop()}'")
    _listing(origin)


def videos(origin: Folder, folder: Path) -> Path:
    """Return the source folder: videos are used in place."""
    return Path(origin.source)


def download(origin: Folder, folder: Path) -> None:
    """Write clips.csv, and files.csv with the file sizes, so that DVC notices replaced files."""
    import pandas as pd

    from avdistill.data.files import write_csv

    listing = _listing(origin)
    sizes = [(Path(origin.source) / file).stat().st_size for file in listing["file"]]
    write_csv(folder / "files.csv", pd.DataFrame({"file": listing["file"], "size": sizes}))
    write_csv(folder / CLIPS, listing)


def _files(origin: Folder) -> list[Path]:
    """Return the video files (extension in VIDEO_TYPES, not hidden), relative to the source, sorted."""
    source = Path(origin.source)
    if not source.is_dir():
        raise UserError(f"source: {origin.source}: there is no such folder")
    found = []
    for folder in source.iterdir():
        if folder.is_dir() and not folder.name.startswith("."):
            found += [file for file in folder.rglob("*") if VIDEO_TYPES.fullmatch(file.suffix) and file.is_file()]
    files = sorted(file.relative_to(source) for file in found if not file.name.startswith("."))
    for file in files:
        try:
            str(file).encode()
        except UnicodeEncodeError:
            raise UserError(f"source: {file.as_posix()!a}: the file name is not valid UTF-8; rename the file") from None
    return files


def _listing(origin: Folder) -> pd.DataFrame:
    """Return the table of clips; id and file are the path below the source, with "/" on every system."""
    import pandas as pd

    files = _files(origin)
    table = pd.DataFrame({"id": [file.as_posix() for file in files], "file": [file.as_posix() for file in files]})
    table["class"] = [file.parts[0] for file in files]
    if (Path(origin.source) / GROUPS).exists():
        return table.join(_read_groups(origin, table["file"].tolist()).set_index("file"), on="file")
    if origin.group_pattern is not None:
        pattern = re.compile(origin.group_pattern)
        found = [pattern.search(file.name) for file in files]
        for file, match in zip(files, found, strict=True):
            if match is None or not match[1]:
                raise UserError(f"group_pattern: {origin.group_pattern!r} does not match the file name {file.name!r}")
        # Numbers in file names count within a class: "g01" of two classes are different recordings.
        table["group"] = [f"{file.parts[0]}/{match[1]}" for file, match in zip(files, found, strict=True) if match]
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
    listed = table["file"].tolist()
    for file in sorted(set(listed) - set(files)):
        raise UserError(f"{path}: there is no video '{file}' in {origin.source}; {nearest(file, files)}")
    for file in sorted(set(files) - set(listed)):
        raise UserError(f"{path}: no row for '{file}'; expected one row for every video")
    for file in table["file"][table["file"].duplicated()]:
        raise UserError(f"{path}: '{file}' occurs twice")
    return table[["file", "group", *(["split"] if "split" in table else [])]]
