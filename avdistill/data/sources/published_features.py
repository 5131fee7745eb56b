"""Features that a paper's authors computed and published, mapped to the clips of a dataset by name.

An archive is a tar of one .npy file a clip: `<any folder>/<class>/<clip>.npy`, float (Dt,), or (n, Dt) where the
authors kept several moments, whose mean is taken then. It is read where it lies; nothing of it is unpacked.
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

# Chen et al., CVPR 2021: PANNs' Cnn14_emb512 on every clip of UCF51 (Apache-2.0), at the commit that brought them.
COMMIT = "5c186849b00d981e32d741caebeade610050189f"
SOURCES = {
    "ccl_ucf51_audio": (
        f"https://raw.githubusercontent.com/yanbeic/CCL/{COMMIT}/datasets/UCF101/audiocnn14embed512_features.tar.gz"
    )
}
LARGEST = 1 << 24  # bytes of one clip's file


def check(features: Features) -> None:
    """Raises UserError if the archive is to be a file that is not there."""
    source = features.source
    if source is not None and not urlsplit(source).scheme and not Path(source).is_file():
        raise UserError(f"source: there is no file '{source}'; give the archive's path or URL, or leave it out")


def main(stage: Stage) -> None:
    """What stage teacher_features does for published features: features.npz and unmatched.csv (name, found_in).

    The mask is True where there is a published vector, whether or not the clip's sound is silent here."""
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
            raise UserError(f"{source}: no file has the name of a clip of dataset '{entry.dataset}'")
        write_arrays(folder / "features.npz", **arrays)
        write_csv(folder / "unmatched.csv", unmatched)
        download.unlink(missing_ok=True)
    stage.run.log_metrics(counts)
    stage.metrics(dict(counts))


def read(archive: Path) -> dict[str, np.ndarray]:
    """The vectors (Dt,) float32 of an archive by clip, the name of its file without the ending.

    Raises UserError that names the archive, and the member that is not such a vector, stands twice, or has a name that
    leads out of a folder. Nothing is ever unpickled."""
    vectors: dict[str, np.ndarray] = {}
    try:
        with tarfile.open(archive) as members:
            for member in members:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise UserError(f"{archive}: {member.name!r}: the name leads out of the archive")
                # macOS adds a hidden twin of every file to an archive.
                if not member.isfile() or name.suffix != ".npy" or name.name.startswith("."):
                    continue
                if name.stem in vectors:
                    raise UserError(f"{archive}: {member.name!r}: there are two files of that clip")
                vectors[name.stem] = _vector(archive, member, members)
    except FileNotFoundError:
        raise UserError(f"{archive}: there is no such archive") from None
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{archive}: not a whole tar archive ({' '.join(str(error).split())})") from None
    lengths = {vector.size: name for name, vector in vectors.items()}
    if len(lengths) > 1:
        told = ", ".join(f"{name} has {size}" for size, name in lengths.items())
        raise UserError(f"{archive}: expected vectors of one length; {told}")
    return vectors


def _vector(archive: Path, member: tarfile.TarInfo, members: tarfile.TarFile) -> np.ndarray:
    if member.size > LARGEST:
        raise UserError(f"{archive}: {member.name!r}: {member.size} bytes are too many for the features of one clip")
    file = members.extractfile(member)
    content = io.BytesIO(file.read() if file else b"")
    try:
        array = np.load(content, allow_pickle=False)
    except Exception as error:  # noqa: BLE001 - NumPy raises its own for each kind of damage
        raise UserError(f"{archive}: {member.name!r}: not a .npy file of numbers ({error})") from None
    if array.dtype.kind != "f" or array.ndim not in (1, 2) or not array.size or not np.isfinite(array).all():
        raise UserError(
            f"{archive}: {member.name!r}: expected finite floats (Dt,) or (n, Dt), found {array.dtype} {array.shape}"
        )
    return np.atleast_2d(array).mean(0, dtype=np.float32)


def arrange(
    vectors: dict[str, np.ndarray], index: pd.DataFrame
) -> tuple[dict[str, np.ndarray], dict[str, int], pd.DataFrame]:
    """Arrays of features.npz in the order of the index, what matched, and the names of what did not.

    Counted are `clips`, the usable ones that have sound, as those that the authors had; how many of them `matched`;
    and the `published` vectors. `unmatched` are clips without a vector ("index") and vectors without a clip
    ("archive")."""
    import pandas as pd

    names = [PurePosixPath(file).stem for file in index["file"]]
    usable = ((index["status"] == "ok") & (index["audio"] != "no")).to_numpy()
    matched = np.array([name in vectors for name in names], dtype=bool)
    features = np.zeros((len(index), next((v.size for v in vectors.values()), 0)), dtype=np.float32)
    for row in np.flatnonzero(matched):
        features[row] = vectors[names[row]]
    lacking = [names[row] for row in np.flatnonzero(usable & ~matched)]
    unused = sorted(set(vectors) - {name for name, counts in zip(names, usable, strict=True) if counts})
    unmatched = pd.DataFrame(
        {"name": lacking + unused, "found_in": ["index"] * len(lacking) + ["archive"] * len(unused)}
    )
    counts = {"clips": int(usable.sum()), "matched": int((usable & matched).sum()), "published": len(vectors)}
    arrays = {"ids": index["id"].to_numpy(dtype=str), "features": features, "mask": matched}
    return arrays, counts, unmatched
