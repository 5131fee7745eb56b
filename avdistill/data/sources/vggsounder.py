"""VGGSounder (Zverev et al., ICCV 2025, arXiv 2508.08237): what is heard and seen in the test clips of VGGSound.

The labels are in the official wheel on PyPI, version 1.0 (Apache-2.0): one row per clip and label, with its modality
(A: heard, V: seen, AV: both) and three properties of the clip. They cover 15,069 of the 15,446 test clips. The wheel is
only read, not installed. clips.csv and the index have the labels as COLUMNS.
"""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdistill.data.sources.http import fetch
from avdistill.pipeline.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

VERSION = "1.0"
WHEEL = f"vggsounder-{VERSION}-py3-none-any.whl"
SHA256 = "c5d9dadcbad8a23379c0f977d96b6a14c627f623933f20185f4431c0eeb5537a"
OFFICIAL = "https://files.pythonhosted.org/packages/b0/76/0d4203300f052c17e83dab9cceec89708e3a9be100f04395032336eaafa6"
TABLE = "vggsounder/data/vggsounder+background-music.csv"  # all clips; the other table leaves out those with music
FLAGS = ("background_music", "static_image", "voice_over")
# Of a clip: its labels that are heard and that are seen, joined by SEPARATOR; `yes` or `no`. Empty without labels.
COLUMNS = ("audible", "visible", *FLAGS)
SEPARATOR = "|"


def download(base: str, folder: Path) -> Path:
    """Return the wheel, downloaded from the URL `base` into `folder` unless it is there. Raises UserError."""
    return fetch(f"{base}/{WHEEL}", folder / WHEEL, sha256=SHA256)


def read(wheel: Path) -> pd.DataFrame:
    """Read the labels: one row per clip, in the order of the table, with `id` (<video>_<start>) and COLUMNS.

    Raises UserError if the file is no such wheel."""
    import pandas as pd

    clips: dict[str, dict[str, Any]] = {}
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(TABLE) as file:
            for row in csv.DictReader(io.TextIOWrapper(file, "utf-8", newline="")):
                flags = {flag: {"True": "yes", "False": "no"}[row[flag]] for flag in FLAGS}
                clip = clips.setdefault(row["video_id"], {"audible": [], "visible": [], **flags})
                if flags != {flag: clip[flag] for flag in FLAGS} or SEPARATOR in row["label"]:
                    raise ValueError(f"clip '{row['video_id']}': contradictory rows, or '{SEPARATOR}' in a label")
                for modality in {"A": ["audible"], "V": ["visible"], "AV": ["audible", "visible"]}[row["modality"]]:
                    clip[modality].append(row["label"])
    except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{wheel}: cannot be read as a wheel of VGGSounder {VERSION} ({error})") from None
    rows = [
        {"id": name, **clip, **{key: SEPARATOR.join(clip[key]) for key in ("audible", "visible")}}
        for name, clip in clips.items()
    ]
    return pd.DataFrame(rows, columns=["id", *COLUMNS])


def add(clips: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Return the clips (column `id`), in their order, with the labels of the test split as COLUMNS.

    Raises UserError if a clip of another split has labels."""
    joined = clips.merge(labels, on="id", how="left", validate="one_to_one").fillna(dict.fromkeys(COLUMNS, ""))
    for name in joined["id"][(joined["audible"] + joined["visible"] != "") & (joined["split"] != "test")]:
        raise UserError(f"clip '{name}' has labels of VGGSounder; expected it in the test split")
    return joined
