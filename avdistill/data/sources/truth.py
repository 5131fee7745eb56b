"""Features of an oracle, a teacher of kind `truth`: the value of a column of index.csv for each clip, one-hot.

A dataset may have columns of its own in clips.csv, which the index keeps, such as a hidden variable of generated clips.
A student with such a teacher shows whether it helps at all to know that variable during training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from avdistill.data.files import write_arrays
from avdistill.data.index import read_index
from avdistill.pipeline.errors import UserError, nearest
from avdistill.pipeline.stage import Stage

if TYPE_CHECKING:
    import pandas as pd


def main(stage: Stage) -> None:
    """Write features.npz: stage teacher_features for a teacher of kind `truth`. Raises UserError as `one_hot` does."""
    entry = stage.params.features[stage.item or ""]
    column = str(stage.params.teachers[entry.teacher].column)
    path = stage.input("split", entry.dataset) / "index.csv"
    try:
        arrays = one_hot(read_index(path), column)
    except ValueError as error:
        raise UserError(f"{stage.params.suite.file}: teachers.{entry.teacher}.column: {path}: {error}") from None
    stage.run.log_params({"features": entry.model_dump(), "column": column})
    with stage.output() as folder:
        write_arrays(folder / "features.npz", **arrays)
    counts = {"clips": len(arrays["ids"]), "with_input": int(arrays["mask"].sum()), "values": len(arrays["values"])}
    stage.run.log_metrics(counts)


def one_hot(index: pd.DataFrame, column: str) -> dict[str, np.ndarray]:
    """Return the arrays of features.npz in the order of the index.

    `ids` (N,); `features` (N, V) float32, one-hot; `mask` (N,) bool, False for a clip that is not usable or whose value
    is empty, whose feature is zero; `values` (V,), the values of the other clips as sorted text. Raises ValueError if
    the index has no such column, or the column no value."""
    if column not in index:
        raise ValueError(f"there is no column '{column}'; {nearest(column, index.columns)}")
    given = index[column]
    text = given.astype(str).mask(given.isna(), "").to_numpy(dtype=str)
    mask = (text != "") & (index["status"] == "ok").to_numpy(dtype=bool)
    values = np.unique(text[mask])
    if not len(values):
        raise ValueError(f"column '{column}' is empty for all usable clips; expected a value for some of them")
    features = ((text[:, None] == values) & mask[:, None]).astype(np.float32)
    return {"ids": index["id"].to_numpy(dtype=str), "features": features, "mask": mask, "values": values}
