"""folder: anybody's videos, used where they lie: `<source>/<class>/<clip>`, a folder a class.

Which clips belong together is said by `<source>/groups.csv` (columns file, group and, where the splits are given,
split; `file` as in `<class>/<clip>`), or by `group_pattern`, a regular expression with one (group) that is searched
in the file's name, or by nobody: then each clip is a group of its own, and clips of one recording may end up in
training and in test.
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
    """Raises UserError if the folder is missing, has no videos, or has them of one class only."""
    classes = {file.parts[0] for file in _files(origin)}
    if not classes:
        raise UserError(f"source: {origin.source}: expected folders of videos, one a class, found none")
    if len(classes) == 1:
        raise UserError(f"source: {origin.source}: expected two classes or more, found '{classes.pop()}' only")
    _listing(origin)


def videos(origin: Folder, folder: Path) -> Path:
    """The source itself: nothing is copied."""
    return Path(origin.source)


def download(origin: Folder, folder: Path) -> None:
    """Write clips.csv, and files.csv with the size of each file, so that exchanged files are noticed."""
    import pandas as pd

    from avdistill.data.files import write_csv

    listing = _listing(origin)
    sizes = [(Path(origin.source) / file).stat().st_size for file in listing["file"]]
    write_csv(folder / "files.csv", pd.DataFrame({"file": listing["file"], "size": sizes}))
    write_csv(folder / CLIPS, listing)


def _files(origin: Folder) -> list[Path]:
    """Video files, relative to the source, sorted. What has no ending of VIDEO_TYPES, or is hidden, is no video."""
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
            raise UserError(f"source: {file.as_posix()!a}: the name is not valid UTF-8; rename the file") from None
    return files


def _listing(origin: Folder) -> pd.DataFrame:
    """The clips; id and file are the path below the source, with "/" on every system."""
    import pandas as pd

    files = _files(origin)
    table = pd.DataFrame({"id": [file.as_posix() for file in files], "file": [file.as_posix() for file in files]})
    table["class"] = [file.parts[0] for file in files]
    if (Path(origin.source) / GROUPS).exists():
        return table.join(_given(origin, table["file"].tolist()).set_index("file"), on="file")
    if origin.group_pattern is not None:
        pattern = re.compile(origin.group_pattern)
        found = [pattern.search(file.name) for file in files]
        for file, match in zip(files, found, strict=True):
            if match is None or not match[1]:
                raise UserError(f"group_pattern: {origin.group_pattern!r} finds no group in the name {file.name!r}")
        # The number in a file's name counts within its class: two classes' "g01" are different recordings.
        table["group"] = [f"{file.parts[0]}/{match[1]}" for file, match in zip(files, found, strict=True) if match]
    else:
        table["group"] = table["id"]
    return table


def _given(origin: Folder, files: list[str]) -> pd.DataFrame:
    """groups.csv, checked: it must have a group for every video, and must not name what is not there."""
    import pandas as pd

    path = Path(origin.source) / GROUPS
    try:
        table = pd.read_csv(path, dtype="string", keep_default_na=False)
    except (ValueError, pd.errors.ParserError) as error:
        raise UserError(f"{path}: not a table ({error})") from None
    for column in ("file", "group"):
        if column not in table:
            raise UserError(f"{path}: expected a column '{column}', found {', '.join(table.columns)}")
    listed = table["file"].tolist()
    for file in sorted(set(listed) - set(files)):
        raise UserError(f"{path}: '{file}' is not below {origin.source}; {nearest(file, files)}")
    for file in sorted(set(files) - set(listed)):
        raise UserError(f"{path}: no row for '{file}'")
    for file in table["file"][table["file"].duplicated()]:
        raise UserError(f"{path}: '{file}' stands twice")
    return table[["file", "group", *(["split"] if "split" in table else [])]]
