"""Figures of clips: contact sheet, attention maps, retrieved clips, and classes predicted by an audio teacher."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from avdistill.config.schema import Params
from avdistill.data.packed import Store
from avdistill.pipeline.errors import UserError
from avdistill.reporting import results
from avdistill.reporting.figures import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    WIDTH,
    Drawn,
    NoDataError,
    arrays,
    bare,
    index_of,
    new_figure,
    outputs,
    sample_by_class,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

CLASSES_SHOWN = 12  # on the contact sheet
THUMBNAIL = 80  # pixels
SOUND_KINDS = " Irrelevant sound: not of the action. Shared sound: common to several classes."
VIDEOS, TOP_CLASSES = 6, 5  # clips, and predicted classes of each, in the figure of the audio teacher


def open_store(params: Params, entry: str) -> Store:
    """Open the store of an entry such as frames/ucf51. Raises NoDataError if it is missing."""
    try:
        return Store(params.path(*entry.split("/")))
    except UserError as error:
        raise NoDataError(str(error)) from None


def frames_entry(params: Params, dataset: str) -> str:
    """Return the first `frames` entry of a dataset. Raises NoDataError if it has none."""
    for name, frames in params.frames.items():
        if frames.dataset == dataset:
            return f"frames/{name}"
    raise NoDataError(f"the suite has no frames of {dataset}")


def contact_sheet(params: Params, dataset: str) -> Drawn:
    """Draw four frames and the log-mel spectrogram of one training clip per class."""
    index = index_of(params, dataset)
    frames, sounds = open_store(params, frames_entry(params, dataset)), open_store(params, f"spectrogram/{dataset}")
    usable = index[index["id"].map(lambda key: key in frames and key in sounds)]
    usable = usable[usable["split"] == "train"].sort_values("id")
    if usable.empty:
        raise NoDataError("no training clip has both frames and sound")
    # A different position in each class: the first clips of a class often share a scene.
    classes = enumerate(rows for _, rows in usable.groupby("class", sort=True))
    clips = pd.DataFrame([rows.iloc[7 * number % len(rows)] for number, rows in classes])
    total = len(clips)
    clips = clips.iloc[np.unique(np.linspace(0, total - 1, min(total, CLASSES_SHOWN)).round().astype(int))]
    columns = min(range(3, 6), key=lambda number: (-len(clips) % number, -number)) if len(clips) > 3 else 3
    rows = -(-len(clips) // columns)
    strips = [film_strip(frames[key]) for key in clips["id"]]
    heights = [max(strip.shape[0] / strip.shape[1] for strip in strips), 0.36]  # relative to the width of a clip
    low, high = np.percentile(np.concatenate([sounds[key].ravel() for key in clips["id"]]), [5, 99.8])
    size = (0.35 + sum(heights) * WIDTH / columns) * rows
    figure, axes = new_figure(size, 2 * rows, columns, gridspec_kw={"height_ratios": heights * rows})
    figure.set_layout_engine("constrained", h_pad=0.02, hspace=0)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (clip, strip) in enumerate(zip(clips.to_dict("records"), strips, strict=True)):
        top, bottom = axes[2 * (number // columns) : 2 * (number // columns) + 2, number % columns]
        top.imshow(strip)
        top.set_title(clip["class"], fontsize=8, pad=3)
        top.set_title(sound_kind(clip), fontsize=7, pad=3, loc="right", color=GREY)
        show_sound(bottom, sounds[clip["id"]], low, high)
    caption = (
        "One training clip per class: four frames, and its log-mel spectrogram (64 bands, time from left to right)."
    )
    if len(clips) < total:
        caption += f" {len(clips)} of {total} classes are shown."
    if "relevant" in clips.columns:
        caption += SOUND_KINDS
    return Drawn(figure, caption, clips[[c for c in clips.columns if c not in ("status", "reason")]])


def loudness(params: Params, dataset: str) -> Drawn:
    """Draw a histogram of the loudness of the test clips with labels of VGGSounder, with and without background music.

    Its data are the loudness of each clip, in dB: the mean power over all frames and bands of its spectrogram."""
    index, sounds = index_of(params, dataset), open_store(params, f"spectrogram/{dataset}")
    if "background_music" not in index:
        raise NoDataError(f"{dataset} has no labels of VGGSounder")
    clips = index[(index["background_music"] != "") & index["id"].map(lambda key: key in sounds)]
    if clips.empty:
        raise NoDataError("no test clip has both labels of VGGSounder and sound")
    levels = [10 * np.log10(np.mean(10 ** (sounds[key].astype(np.float64) / 10))) for key in clips["id"]]
    data = clips[["id", "background_music"]].assign(loudness=np.round(levels, 3))
    figure, axes = new_figure(2.2)
    axis, edges = axes[0, 0], np.histogram_bin_edges(data["loudness"], bins=30)
    for music, color, label in (("no", BLUE, "no background music"), ("yes", ORANGE, "background music")):
        values = data["loudness"][data["background_music"] == music]
        share = np.histogram(values, edges)[0] / max(len(values), 1)
        axis.stairs(share, edges, fill=True, color=color, alpha=0.28)
        axis.stairs(share, edges, color=color, linewidth=1.3, label=f"{label} ({len(values):,} clips)")
    axis.set_xlabel("loudness (dB)")
    axis.set_ylabel("share of clips")
    axis.legend()
    return Drawn(figure, "Loudness of the test clips with labels of VGGSounder: mean power of the spectrogram.", data)


def film_strip(frames: np.ndarray) -> np.ndarray:
    """Place four evenly spaced frames of (T, H, W, 3) side by side with white gaps."""
    chosen = frames[np.linspace(0, len(frames) - 1, 4).round().astype(int)]
    gap = np.full((frames.shape[1], max(1, frames.shape[2] // 30), 3), 255, np.uint8)
    return np.concatenate([piece for frame in chosen for piece in (frame, gap)][:-1], axis=1)


def show_sound(axis: Axes, sound: np.ndarray, low: float, high: float) -> None:
    """Show a log-mel spectrogram (T, 64), averaged over time to at most 100 columns."""
    pieces = np.array_split(sound, min(len(sound), 100))
    axis.imshow(
        np.stack([piece.mean(0) for piece in pieces], axis=1),
        origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, interpolation="nearest",
    )  # fmt: skip


def sound_kind(clip: dict[str, Any]) -> str:
    """Return `irrelevant sound` or `shared sound` if the dataset labels a clip so; else an empty string."""
    if clip.get("relevant") == "no":
        return "irrelevant sound"
    return "shared sound" if clip.get("correlation") == "weak" else ""


def attention_maps(params: Params) -> Drawn:
    """Draw Xia Fig. 4: audio-guided attention over frames of test clips."""
    from avdistill.data.loader import centre_crop, take_window  # importing torch takes seconds

    settings = params.report.figures.attention
    assert settings is not None
    job = params.runs()[settings.run][0]
    entry, window = params.jobs[job], params.recipes[params.jobs[job].recipe].frames
    found = arrays(params.evaluated(settings.run) / "attention.npz")
    weights = dict(zip(found["ids"].tolist(), found["weights"], strict=True))
    index, frames = index_of(params, entry.dataset), open_store(params, entry.input)
    clips = sample_both_kinds(index[index["id"].isin(set(weights))], settings.clips)
    if clips.empty:
        raise NoDataError(f"{settings.run} has no attention map of a test clip")
    scores = results.gather(params, "evaluate", "scores.csv", ("run", "seed", "id", "split", "relevant"))
    seed = entry.seeds[0]
    scores = scores[(scores["run"] == settings.run) & (scores["seed"] == seed)].set_index("id")
    size = found["weights"][0].size
    high = size * max(float(weights[clip].max()) for clip in clips["id"])
    columns = min(4, -(-len(clips) // 2))
    rows = -(-len(clips) // columns)
    figure, axes = new_figure(rows * (0.42 + 0.47 * (WIDTH - 0.9) / columns), rows, columns)
    for axis in axes.flat:
        axis.set_axis_off()
    data = []
    for axis, clip in zip(axes.flat, clips.to_dict("records"), strict=False):
        grid = size * weights[clip["id"]]
        time = int(grid.sum((1, 2)).argmax())
        number = int((time + 0.5) * window / len(grid))
        square = take_window(frames[clip["id"]], 0, window)[number : number + 1]
        square = centre_crop(square, min(square.shape[1:3]))[0]
        heat = show_heat(axis, square, grid[time], high)
        known = {"yes": "relevant sound", "no": "irrelevant sound"}.get(clip.get("relevant", ""), "")
        tau = float(scores["tau"].get(clip["id"], np.nan)) if "tau" in scores else np.nan
        notes = [*filter(None, [known]), *([f"τ {tau:.2f}"] if not np.isnan(tau) else [])]
        axis.set_title(clip["class"], fontsize=8.5, pad=3)
        axis.text(0, -0.05, " · ".join(notes), fontsize=7.5, color=GREY, va="top")
        values = {f"at_{t}_{y}_{x}": value for (t, y, x), value in np.ndenumerate(grid)}
        data.append(
            {"run": settings.run, "id": clip["id"], "class": clip["class"], "relevant": clip.get("relevant", "")}
            | {"tau": tau, "frame": number, **values}
        )
    bar = figure.colorbar(heat, ax=axes.ravel().tolist(), label="attention (1: uniform)", shrink=0.7, pad=0.01)
    bar.outline.set_visible(False)
    times, height, width = found["weights"].shape[1:]
    caption = (
        f"{settings.run}, first seed: audio-guided attention in the first window of test clips, relative to uniform "
        f"attention. Grid {times}x{height}x{width} (time, height, width), interpolated; shown at the time step with "
        "the most attention."
    )
    if "relevant" in clips.columns and clips["relevant"].isin(["yes", "no"]).any():
        caption += (
            " Clips sampled at random, half with relevant and half with irrelevant sound, from the same classes. "
            "τ: temperature of a clip with its own sound, expected to be low for irrelevant sound."
        )
    else:
        caption += " Clips sampled at random, from as many classes as possible."
    return Drawn(figure, caption, pd.DataFrame(data))


def show_heat(axis: Axes, square: np.ndarray, heat: np.ndarray, high: float) -> AxesImage:
    """Show a frame (S, S, 3), and beside it a heat map (H', W') with values from 0 to `high` over the grey frame."""
    left, right = (0, 1, 0, 1), (1.04, 2.04, 0, 1)
    axis.imshow(square, extent=left)
    axis.imshow(square.mean(2), extent=right, cmap="gray", vmin=0, vmax=255)
    look: dict[str, Any] = {"cmap": "inferno", "vmin": 0, "vmax": high, "alpha": 0.6, "interpolation": "bilinear"}
    shown = axis.imshow(heat, extent=right, **look)
    axis.set(xlim=(0, 2.04), ylim=(0, 1))
    return shown


def sample_both_kinds(clips: pd.DataFrame, number: int) -> pd.DataFrame:
    """Sample `number` clips at random; if relevance is labelled, half of each kind, from the same classes."""
    if "relevant" not in clips.columns or clips["relevant"].nunique() < 2:
        return sample_by_class(clips, number)
    yes, no = (clips[clips["relevant"] == kind] for kind in ("yes", "no"))
    first = sample_by_class(yes[yes["class"].isin(set(no["class"]))], number // 2)
    second = sample_by_class(no[no["class"].isin(set(first["class"]))], number // 2)
    return pd.concat([half.sort_values(["class", "id"]) for half in (first, second)])


def retrieval_gallery(params: Params) -> Drawn:
    """Draw Chen Fig. 5: test clips and the training clips nearest to each in feature space."""
    import torch  # the import takes seconds

    from models.metrics import neighbours

    settings = params.report.figures.retrieval
    assert settings is not None
    entry = params.jobs[params.runs()[settings.runs[0]][0]]
    index, frames = index_of(params, entry.dataset).set_index("id"), open_store(params, entry.input)
    found = {run: outputs(params, run) for run in settings.runs}
    tests = index[index.index.isin(found[settings.runs[0]]["ids"])].reset_index()
    queries = sample_by_class(tests, settings.queries).sort_values("id")
    rows = []
    for run, known in found.items():
        row_of = {clip: number for number, clip in enumerate(known["ids"].tolist())}
        vectors = known["features"][[row_of[clip] for clip in queries["id"]]]
        gallery = torch.from_numpy(known["gallery_features"])
        (near,) = neighbours(torch.from_numpy(vectors), gallery, settings.shown)
        for query, numbers in zip(queries.to_dict("records"), near.tolist(), strict=True):
            for rank, clip in enumerate(known["gallery_ids"][numbers].tolist(), start=1):
                name = index["class"][clip]
                row = {"query": query["id"], "query_class": query["class"], "run": run, "rank": rank}
                rows.append(row | {"id": clip, "class": name, "right": name == query["class"]})
    data = pd.DataFrame(rows)
    height, width = frames[queries["id"].iloc[0]].shape[1:3]
    count = len(settings.runs) * len(queries)
    cell = WIDTH / (1.25 + settings.shown)
    figure, axes = new_figure(
        0.2 + count * (0.26 + cell * min(1.0, height / width)), count, 1 + settings.shown,
        gridspec_kw={"width_ratios": [1.25, *[1.0] * settings.shown]},
    )  # fmt: skip
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    pairs = [(query, run) for query in queries["id"] for run in settings.runs]
    for (first, *others), (query, run) in zip(axes, pairs, strict=True):
        first.set_axis_off()
        if run == settings.runs[0]:
            show_frame(first, frames[query])
            first.set_title(f"query: {index['class'][query]}", fontsize=8, fontweight="bold", pad=3)
        shown = data[(data["query"] == query) & (data["run"] == run)].to_dict("records")
        for axis, row in zip(others, shown, strict=False):
            color, mark = (BLUE, "✓") if row["right"] else (RED, "✗")
            show_frame(axis, frames[row["id"]])
            axis.spines[:].set(visible=True, color=color, linewidth=2.2)
            axis.set_title(f"{mark} {row['class']}", fontsize=7, color=color, pad=3)
        for axis in others[len(shown) :]:
            axis.set_axis_off()
        others[0].set_ylabel("\n".join(run.split("-")), fontsize=7.5)
    caption = (
        "Test clips (left) and the training clips with the most similar features (cosine), nearest first, for "
        f"{', '.join(settings.runs)}, first seed; middle frames. Blue tick: class of the query; red cross: another "
        "class. Queries sampled at random, from different classes if possible."
    )
    return Drawn(figure, caption, data)


def show_frame(axis: Axes, frames: np.ndarray) -> None:
    """Show the middle frame of a clip (T, H, W, 3) as a thumbnail, which keeps the figure's file small."""
    from PIL import Image

    middle = Image.fromarray(frames[len(frames) // 2])
    middle.thumbnail((THUMBNAIL, THUMBNAIL))
    axis.imshow(np.asarray(middle), interpolation="nearest")
    axis.set_anchor("W")
    bare(axis)
    axis.set(xticks=[], yticks=[])


def heard_classes(params: Params) -> Drawn:
    """Draw Chen Fig. 6: the classes that an audio teacher predicts for test clips."""
    entry = params.features[params.report.figures.heard]
    found = arrays(params.path("teacher_features", params.report.figures.heard) / "features.npz")
    if "probabilities" not in found:
        raise NoDataError(f"features {params.report.figures.heard} lack the probabilities of the teacher's classes")
    description = params.path("teachers", entry.teacher) / "teacher.json"
    if not description.exists():
        raise NoDataError(f"{description} is missing")
    names = json.loads(description.read_text(encoding="utf-8"))["classes"]
    names = names or [f"class {number}" for number in range(found["probabilities"].shape[1])]
    index = index_of(params, entry.dataset)
    frames, sounds = open_store(params, frames_entry(params, entry.dataset)), open_store(params, entry.input)
    known = dict(zip(found["ids"][found["mask"]].tolist(), found["probabilities"][found["mask"]], strict=True))
    usable = index[(index["split"] == "test") & index["id"].map(lambda key: key in frames and key in known)]
    clips = sample_by_class(usable, VIDEOS).sort_values("id")
    if clips.empty:
        raise NoDataError("no test clip has both frames and sound")
    height, width = frames[clips["id"].iloc[0]].shape[1:3]
    ratios = [1.25 * min(1.6, width / height), 2.4, 2.6]
    figure, axes = new_figure(0.5 + 0.95 * len(clips), len(clips), 3, gridspec_kw={"width_ratios": ratios})
    low, high = np.percentile(np.concatenate([sounds[key].ravel() for key in clips["id"]]), [5, 99.8])
    most = 100 * max(float(known[clip].max()) for clip in clips["id"])
    rows = []
    for (left, middle, right), clip in zip(axes, clips.to_dict("records"), strict=True):
        probabilities = known[clip["id"]].astype(np.float64)
        top = np.argsort(-probabilities, kind="stable")[:TOP_CLASSES]
        show_frame(left, frames[clip["id"]])
        left.set_title(clip["class"], fontsize=8.5, pad=3)
        show_sound(middle, sounds[clip["id"]], low, high)
        bare(middle)
        middle.set(xticks=[], yticks=[])
        middle.set_title(sound_kind(clip), fontsize=7.5, pad=3, color=GREY)
        right.barh(range(len(top)), 100 * probabilities[top], height=0.7, color=BLUE)
        for y, number in enumerate(top):
            right.text(
                100 * probabilities[number] + 0.015 * most,
                y,
                f"{100 * probabilities[number]:.0f}",
                va="center",
                fontsize=7,
            )
        right.set_yticks(range(len(top)), [shortened(names[number]) for number in top], fontsize=7.5)
        right.set(xlim=(0, 1.1 * most), xticks=[])
        bare(right)
        right.invert_yaxis()
        rows += [
            {"id": clip["id"], "class": clip["class"], "heard": names[number], "probability": probabilities[number]}
            for number in top
        ]
    axes[0, 2].set_title("probability (%)", fontsize=8, pad=3, color=GREY)
    caption = (
        f"Middle frame and log-mel spectrogram of test clips, and the {TOP_CLASSES} most probable classes of teacher "
        f"{entry.teacher}. Clips sampled at random, from different classes if possible."
    )
    if "relevant" in clips.columns:
        caption += SOUND_KINDS
    return Drawn(figure, caption, pd.DataFrame(rows))


def shortened(name: str, length: int = 26) -> str:
    """Cut a name to at most `length` characters, ending in an ellipsis."""
    return name if len(name) <= length else f"{name[: length - 1].rstrip()}…"
