"""Stage download: the videos of a dataset, and the list of its clips."""

from __future__ import annotations

from avdistill.data import datasets
from avdistill.pipeline import code
from avdistill.pipeline.stage import Stage


def main(stage: Stage) -> None:
    """Bring the videos of `stage.item` into its folder, or list those that are used where they lie."""
    from avdistill.data.files import digest

    name = str(stage.item)
    origin = stage.params.datasets[name].origin
    kind = datasets.of(origin)
    kind.check(origin)
    stage.run.log_params(origin.model_dump())
    with stage.output(key=repr(origin), keep=origin.kind not in code.MADE_HERE) as folder:
        kind.download(origin, folder)
        clips = datasets.clips(folder)
    path = stage.params.path("download", name)
    stage.run.log_metrics({"clips": len(clips), "classes": clips["class"].nunique()})
    stage.run.log_dataset(name=name, path=path, digest=digest(path / datasets.CLIPS), context="download")
