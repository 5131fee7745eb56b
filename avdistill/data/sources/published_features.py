"""Features that a paper's authors published, matched to the clips of a dataset by file name.

The archive is a tar with one .npy file per clip: `<any folder>/<class>/<clip>.npy`, float (Dt,), or (n, Dt) for n
moments of the clip, which are averaged. It is read as it is, without unpacking.
"""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np

from avdistill.config.schema import Features
from avdistill.data.files import write_arrays, write_csv
from avdistill.data.index import read_index
from avdistill.pipeline.errors import UserError
from avdistill.pipeline.stage import Stage

if TYPE_CHECKING:
    import pandas as pd

# Chen et al., CVPR 2021: PANNs' Cnn14_emb512 on every clip of UCF51 (Apache-2.0), pinned to the commit that added them.
COMMIT = "5c186849b00d981e32d741caebeade610050189f"
SOURCES = {
    "ccl_ucf51_audio": (
        f"https://raw.githubusercontent.com/yanbeic/CCL/{COMMIT}/datasets/UCF101/audiocnn14embed512_features.tar.gz"
    )
}
LARGEST = 1 << 24  # bytes of one clip's .npy file


def check(features: Features) -> None:
    """Check the archive. Raises UserError if `source` is a path and there is no such file."""
    source = features.source
    if source is not None and not urlsplit(source).scheme and not Path(source).is_file():
        raise UserError(f"source: there is no file '{source}'; expected the archive's path or URL, or no `source`")


def main(stage: Stage) -> None:
    """Write features.npz and unmatched.csv (name, found_in): stage teacher_features for published features.

    The mask is true for every clip with a published vector, even if its sound is silent in this dataset."""
    from avdistill.data.sources.http import fetch

    entry = stage.params.features[stage.item or ""]
    index = read_index(stage.input("split", entry.dataset) / "index.csv")
    source = entry.source or SOURCES[str(entry.published)]
    stage.run.log_params({"features": entry.model_dump(), "source": source})
    with stage.output(key=source) as folder:
        archive, download = Path(source), folder / "archive.tar.gz"
        if urlsplit(source).scheme:
            archive = fetch(source, download, label=str(entry.published))
        arrays, counts, unmatched = arrange(read(archive), index)
        if not counts["matched"]:
            raise UserError(f"{source}: no .npy file is named like a clip of dataset '{entry.dataset}'")
        write_arrays(folder / "features.npz", **arrays)
        write_csv(folder / "unmatched.csv", unmatched)
        download.unlink(missing_ok=True)
    stage.run.log_metrics(counts)


def read(archive: Path) -> dict[str, np.ndarray]:
    """Read the vectors (Dt,) float32 of an archive, by clip (the file name without its extension).

    Raises UserError naming the archive, and the member that is no such vector, occurs twice, or whose path leads out
    of the archive. Never unpickles."""
    vectors: dict[str, np.ndarray] = {}
    try:
        with tarfile.open(archive) as members:
            for member in members:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise UserError(f"{archive}: {member.name!r}: the path leads out of the archive")
                # tar on macOS adds a hidden file "._<name>" for every file.
                if not member.isfile() or name.suffix != ".npy" or name.name.startswith("."):
                    continue
                if name.stem in vectors:
                    raise UserError(f"{archive}: {member.name!r}: two files of clip {name.stem!r}")
                vectors[name.stem] = _vector(archive, member, members)
    except FileNotFoundError:
        raise UserError(f"{archive}: there is no such archive") from None
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{archive}: not a complete tar archive ({' '.join(str(error).split())})") from None
    lengths = {vector.size: name for name, vector in vectors.items()}
    if len(lengths) > 1:
        found = ", ".join(f"{name} has {size}" for size, name in lengths.items())
        raise UserError(f"{archive}: expected vectors of one length; {found}")
    return vectors


def _vector(archive: Path, member: tarfile.TarInfo, members: tarfile.TarFile) -> np.ndarray:
    if member.size > LARGEST:
        raise UserError(f"{archive}: {member.name!r}: expected at most {LARGEST} bytes, found {member.size}")
    file = members.extractfile(member)
    content = io.BytesIO(file.read() if file else b"")
    try:
        array = np.load(content, allow_pickle=False)
    except Exception as error:  # noqa: BLE001 - NumPy raises many classes of errors for damaged files
        raise UserError(f"{archive}: {member.name!r}: not a .npy file of numbers ({error})") from None
    if array.dtype.kind != "f" or array.ndim not in (1, 2) or not array.size or not np.isfinite(array).all():
        raise UserError(
            f"{archive}: {member.name!r}: expected finite floats (Dt,) or (n, Dt), found {array.dtype} {array.shape}"
        )
    return np.atleast_2d(array).mean(0, dtype=np.float32)


def arrange(
    vectors: dict[str, np.ndarray], index: pd.DataFrame
) -> tuple[dict[str, np.ndarray], dict[str, int], pd.DataFrame]:
    """Match the vectors to the clips of the index by file name.

    Returns the arrays of features.npz in the order of the index; the counts `clips` (usable clips with an audio stream,
    which are those of the authors), `matched` (those of them with a vector) and `published` (vectors in the archive);
    and a table of what is unmatched: clips without a vector ("index") and vectors without a clip ("archive")."""
    import pandas as pd

    names = [PurePosixPath(file).stem for file in index["file"]]
    usable = ((index["status"] == "ok") & (index["audio"] != "no")).to_numpy()
    matched = np.array([name in vectors for name in names], dtype=bool)
    features = np.zeros((len(index), next((v.size for v in vectors.values()), 0)), dtype=np.float32)
    for row in np.flatnonzero(matched):
        features[row] = vectors[names[row]]
    missing = [names[row] for row in np.flatnonzero(usable & ~matched)]
    unused = sorted(set(vectors) - {name for name, is_usable in zip(names, usable, strict=True) if is_usable})
    unmatched = pd.DataFrame(
        {"name": missing + unused, "found_in": ["index"] * len(missing) + ["archive"] * len(unused)}
    )
    counts = {"clips": int(usable.sum()), "matched": int((usable & matched).sum()), "published": len(vectors)}
    arrays = {"ids": index["id"].to_numpy(dtype=str), "features": features, "mask": matched}
    return arrays, counts, unmatched
