"""Stage figures: draw each figure as a PNG, with its data as a CSV file beside it.

A figure without data is skipped, with the reason in figures.json. To add a figure, write a function in
`avdistill.reporting.figures` that returns a `Drawn` or raises `NoDataError`, and add it to `FIGURES`; unless every
suite has it, also add a key of its name to `avdistill.config.report.Figures`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from avdistill.config.report import Figures
from avdistill.config.schema import Params
from avdistill.data.files import write_csv, write_json
from avdistill.pipeline.devices import run_parallel
from avdistill.pipeline.stage import Stage
from avdistill.reporting.figures import STYLE, Drawn, NoDataError, classes, clips, runs, save

FIGURES: dict[str, tuple[str, Callable[[Params], Drawn]]] = {
    "accuracy": ("Accuracy of all runs", runs.accuracy_of_runs),
    "training_curves": ("Training curves of the strategies (Xia Fig. 3)", runs.training_curves),
    "attention": ("Audio-guided attention (Xia Fig. 4)", clips.attention_maps),
    "gain_per_class": ("Gain over the baseline by class (Chen Fig. 3)", classes.gain_per_class),
    "large": ("Recognition and retrieval on the large dataset (Chen Fig. 4)", runs.large_set),
    "retrieval": ("Retrieved clips (Chen Fig. 5)", clips.retrieval_gallery),
    "embedding": ("Features of training and test clips (Chen Fig. 5)", classes.feature_maps),
    "heard": ("Classes predicted by the audio teacher (Chen Fig. 6)", clips.heard_classes),
    "noise": ("Accuracy against noise in the sound", runs.noise_curve),
    "scores": ("Mask and τ of clips with relevant and irrelevant sound", runs.score_histograms),
    "settings": ("Gain by setting", runs.gain_by_setting),
    "confusion": ("Confusion matrices", classes.confusion_matrices),
}


def wanted(params: Params) -> dict[str, tuple[str, Callable[[Params], Drawn]]]:
    """Return the figures of the suite by name: title and drawing function."""
    found = {
        name: figure
        for name, figure in FIGURES.items()
        if (name not in Figures.model_fields or getattr(params.report.figures, name))
        and (name != "settings" or params.report.settings)
    }
    for dataset, entry in params.datasets.items():
        found[f"clips_{dataset}"] = (f"Clips of {dataset}", partial(clips.contact_sheet, dataset=dataset))
        if getattr(entry.origin, "vggsounder", False):
            found[f"loudness_{dataset}"] = (f"Loudness of {dataset}", partial(clips.loudness, dataset=dataset))
    return found


def draw(params: Params, name: str, folder: Path) -> dict[str, str]:
    """Draw a figure and write it and its data to `folder`; return its entry for figures.json."""
    from matplotlib import rc_context

    title, make = wanted(params)[name]
    with rc_context(STYLE):
        try:
            drawn = make(params)
        except NoDataError as reason:
            return {"name": name, "title": title, "absent": str(reason)}
        write_csv(folder / f"{name}.csv", drawn.data)
        save(drawn.figure, folder / f"{name}.png")
    return {"name": name, "title": title, "caption": drawn.caption, "file": f"{name}.png", "data": f"{name}.csv"}


def main(stage: Stage) -> None:
    """Draw every figure that has data, and list all figures in figures.json."""
    with stage.output() as folder:
        calls = [(stage.params, name, folder) for name in wanted(stage.params)]
        listing = run_parallel(draw, calls, "cpu", "figures")
        for path in sorted(folder.glob("*.png")):
            stage.run.log_artifact(path)
        write_json(folder / "figures.json", listing)
