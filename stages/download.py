"""Stage download: download the videos of a dataset and list its clips."""

from __future__ import annotations

from avdistill.data import datasets
from avdistill.pipeline import code
from avdistill.pipeline.stage import Stage


def main(stage: Stage) -> None:
    """Write clips.csv of dataset `stage.item`, and its videos unless the user has them."""
    from avdistill.data.files import digest

    name = str(stage.item)
    origin = stage.params.datasets[name].origin
    module = datasets.of(origin)
    module.check(origin)
    stage.run.log_params(origin.model_dump())
    with stage.output(key=repr(origin), keep=origin.kind not in code.MADE_HERE) as folder:
        module.download(origin, folder)
        clips = datasets.clips(folder)
    path = stage.params.path("download", name)
    stage.run.log_metrics({"clips": len(clips), "classes": clips["class"].nunique()})
    stage.run.log_dataset(name=name, path=path, digest=digest(path / datasets.CLIPS), context="download")
