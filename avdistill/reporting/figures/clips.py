"""Figures of real clips: what they look and sound like, what a student attends to and finds, what a teacher hears."""

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
    RED,
    WIDTH,
    Drawn,
    NoDataError,
    arrays,
    bare,
    by_lot,
    index_of,
    new_figure,
    outputs,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

CLASSES_SHOWN = 12  # on the contact sheet
THUMBNAIL = 80  # pixels
SOUNDS = " Foreign sound: it does not belong to the action. Shared sound: that of several classes."
VIDEOS, LOUDEST = 6, 5  # in which a teacher's classes are shown, and how many of them


def opened(params: Params, entry: str) -> Store:
    """The store of an entry such as frames/ucf51. Raises NoDataError if it is not there."""
    try:
        return Store(params.path(*entry.split("/")))
    except UserError as error:
        raise NoDataError(str(error)) from None


def pictures(params: Params, dataset: str) -> str:
    """The first entry of frames that a dataset has. Raises NoDataError if it has none."""
    for name, frames in params.frames.items():
        if frames.dataset == dataset:
            return f"frames/{name}"
    raise NoDataError(f"the suite takes no frames of {dataset}")


def contact_sheet(params: Params, dataset: str) -> Drawn:
    """A training clip of each class: four of its frames, and its log-mel beneath."""
    index = index_of(params, dataset)
    frames, sounds = opened(params, pictures(params, dataset)), opened(params, f"spectrogram/{dataset}")
    usable = index[index["id"].map(lambda key: key in frames and key in sounds)]
    usable = usable[usable["split"] == "train"].sort_values("id")
    if usable.empty:
        raise NoDataError("no training clip has both frames and sound")
    # Another place in each class: clips that come first often share a scene.
    classes = enumerate(rows for _, rows in usable.groupby("class", sort=True))
    clips = pd.DataFrame([rows.iloc[7 * number % len(rows)] for number, rows in classes])
    total = len(clips)
    clips = clips.iloc[np.unique(np.linspace(0, total - 1, min(total, CLASSES_SHOWN)).round().astype(int))]
    columns = min(range(3, 6), key=lambda number: (-len(clips) % number, -number)) if len(clips) > 3 else 3
    rows = -(-len(clips) // columns)
    strips = [film_strip(frames[key]) for key in clips["id"]]
    heights = [max(strip.shape[0] / strip.shape[1] for strip in strips), 0.36]  # as shares of a clip's width
    levels = np.concatenate([sounds[key].ravel() for key in clips["id"]])
    low, high = np.percentile(levels, [5, 99.8])
    size = (0.35 + sum(heights) * WIDTH / columns) * rows
    figure, axes = new_figure(size, 2 * rows, columns, gridspec_kw={"height_ratios": heights * rows})
    figure.set_layout_engine("constrained", h_pad=0.02, hspace=0)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, (clip, strip) in enumerate(zip(clips.to_dict("records"), strips, strict=True)):
        top, bottom = axes[2 * (number // columns) : 2 * (number // columns) + 2, number % columns]
        top.imshow(strip)
        top.set_title(clip["class"], fontsize=8, pad=3)
        top.set_title(truth(clip), fontsize=7, pad=3, loc="right", color=GREY)
        show_sound(bottom, sounds[clip["id"]], low, high)
    caption = (
        "A training clip of each class, four of its frames and, beneath, its log-mel spectrogram (64 "
        "bands, low ones at the bottom; time from left to right)."
    )
    if len(clips) < total:
        caption += f" {len(clips)} of {total} classes are shown."
    if "relevant" in clips.columns:
        caption += SOUNDS
    return Drawn(figure, caption, clips[[c for c in clips.columns if c not in ("status", "reason")]])


def film_strip(frames: np.ndarray) -> np.ndarray:
    """Four frames (T, H, W, 3), from the first to the last, side by side with white gaps."""
    chosen = frames[np.linspace(0, len(frames) - 1, 4).round().astype(int)]
    gap = np.full((frames.shape[1], max(1, frames.shape[2] // 30), 3), 255, np.uint8)
    return np.concatenate([piece for frame in chosen for piece in (frame, gap)][:-1], axis=1)


def show_sound(axis: Axes, sound: np.ndarray, low: float, high: float) -> None:
    """A log-mel spectrogram (T, 64), as many moments of it as there are pixels to show."""
    moments = np.array_split(sound, min(len(sound), 100))
    axis.imshow(
        np.stack([moment.mean(0) for moment in moments], axis=1),
        origin="lower", aspect="auto", cmap="magma", vmin=low, vmax=high, interpolation="nearest",
    )  # fmt: skip


def truth(clip: dict[str, Any]) -> str:
    """What the dataset knows of a clip's sound, where it is not simply that of its class."""
    if clip.get("relevant") == "no":
        return "foreign sound"
    return "shared sound" if clip.get("correlation") == "weak" else ""


def attention_maps(params: Params) -> Drawn:
    """Xia Fig. 4: where audio-guided attention looks, over frames of test clips."""
    from avdistill.data.loader import centre_crop, take_window  # here, because torch takes seconds

    asked = params.report.figures.attention
    assert asked is not None
    job = params.runs()[asked.run][0]
    entry, window = params.jobs[job], params.recipes[params.jobs[job].recipe].frames
    found = arrays(params.path("evaluate", job) / asked.run / "attention.npz")
    weights = dict(zip(found["ids"].tolist(), found["weights"], strict=True))
    index, frames = index_of(params, entry.dataset), opened(params, entry.input)
    clips = with_both_kinds(index[index["id"].isin(set(weights))], asked.clips)
    if clips.empty:
        raise NoDataError(f"{asked.run} pays attention to no test clip")
    scores = results.gather(params, "evaluate", "scores.csv", ("run", "seed", "id", "split", "relevant"))
    scores = scores[(scores["run"] == asked.run) & (scores["seed"] == entry.seeds_of(asked.run)[0])].set_index("id")
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
        moment = int(grid.sum((1, 2)).argmax())
        number = int((moment + 0.5) * window / len(grid))
        square = take_window(frames[clip["id"]], 0, window)[number : number + 1]
        square = centre_crop(square, min(square.shape[1:3]))[0]
        heat = show_heat(axis, square, grid[moment], high)
        known = {"yes": "sound belongs", "no": "foreign sound"}.get(clip.get("relevant", ""), "")
        tau = float(scores["tau"].get(clip["id"], np.nan)) if "tau" in scores else np.nan
        notes = [*filter(None, [known]), *([f"τ {tau:.2f}"] if not np.isnan(tau) else [])]
        axis.set_title(clip["class"], fontsize=8.5, pad=3)
        axis.text(0, -0.05, " · ".join(notes), fontsize=7.5, color=GREY, va="top")
        values = {f"at_{t}_{y}_{x}": value for (t, y, x), value in np.ndenumerate(grid)}
        data.append(
            {"run": asked.run, "id": clip["id"], "class": clip["class"], "relevant": clip.get("relevant", "")}
            | {"tau": tau, "frame": number, **values}
        )
    bar = figure.colorbar(heat, ax=axes.ravel().tolist(), label="attention (1: spread evenly)", shrink=0.7, pad=0.01)
    bar.outline.set_visible(False)
    moments, height, width = found["weights"].shape[1:]
    caption = (
        f"{asked.run}, first seed: test clips, and where the attention that their sound guides looks in their first "
        f"window, as multiples of attention spread evenly over the student's last map ({moments} in time, {height} "
        f"by {width} in the picture; between them the colour is interpolated). Shown at the time that gets most."
    )
    if "relevant" in clips.columns and clips["relevant"].isin(["yes", "no"]).any():
        caption += (
            " Clips sampled at random, as many whose sound belongs to the action as whose sound is foreign, of "
            "the same "
            "classes. τ: the temperature of the clip with its own sound, which is to be low where the sound is foreign."
        )
    else:
        caption += " Clips sampled at random, from as many classes as there are."
    return Drawn(figure, caption, pd.DataFrame(data))


def show_heat(axis: Axes, square: np.ndarray, heat: np.ndarray, high: float) -> AxesImage:
    """A frame (S, S, 3), and beside it the same in grey under a heat map (H', W') of values from 0 to `high`."""
    left, right = (0, 1, 0, 1), (1.04, 2.04, 0, 1)
    axis.imshow(square, extent=left)
    axis.imshow(square.mean(2), extent=right, cmap="gray", vmin=0, vmax=255)
    look: dict[str, Any] = {"cmap": "inferno", "vmin": 0, "vmax": high, "alpha": 0.6, "interpolation": "bilinear"}
    shown = axis.imshow(heat, extent=right, **look)
    axis.set(xlim=(0, 2.04), ylim=(0, 1))
    return shown


def with_both_kinds(clips: pd.DataFrame, number: int) -> pd.DataFrame:
    """`number` clips by lot. Where it is known whose sound belongs, half are of each kind, from the same classes."""
    if "relevant" not in clips.columns or clips["relevant"].nunique() < 2:
        return by_lot(clips, number)
    yes, no = (clips[clips["relevant"] == kind] for kind in ("yes", "no"))
    first = by_lot(yes[yes["class"].isin(set(no["class"]))], number // 2)
    second = by_lot(no[no["class"].isin(set(first["class"]))], number // 2)
    return pd.concat([half.sort_values(["class", "id"]) for half in (first, second)])


def retrieval_gallery(params: Params) -> Drawn:
    """Chen Fig. 5: test clips, and the training clips that are nearest to each in the space of features."""
    import torch  # here, because it takes seconds

    from models.metrics import neighbours

    asked = params.report.figures.retrieval
    assert asked is not None
    entry = params.jobs[params.runs()[asked.runs[0]][0]]
    index, frames = index_of(params, entry.dataset).set_index("id"), opened(params, entry.input)
    found = {run: outputs(params, run) for run in asked.runs}
    tests = index[index.index.isin(found[asked.runs[0]]["ids"])].reset_index()
    queries = by_lot(tests, asked.queries).sort_values("id")
    rows = []
    for run, known in found.items():
        place = {clip: number for number, clip in enumerate(known["ids"].tolist())}
        vectors = known["features"][[place[clip] for clip in queries["id"]]]
        gallery = torch.from_numpy(known["gallery_features"])
        (near,) = neighbours(torch.from_numpy(vectors), gallery, asked.shown)
        for query, numbers in zip(queries.to_dict("records"), near.tolist(), strict=True):
            for rank, clip in enumerate(known["gallery_ids"][numbers].tolist(), start=1):
                name = index["class"][clip]
                row = {"query": query["id"], "query_class": query["class"], "run": run, "rank": rank}
                rows.append(row | {"id": clip, "class": name, "right": name == query["class"]})
    data = pd.DataFrame(rows)
    height, width = frames[queries["id"].iloc[0]].shape[1:3]
    count = len(asked.runs) * len(queries)
    cell = WIDTH / (1.25 + asked.shown)
    figure, axes = new_figure(
        0.2 + count * (0.26 + cell * min(1.0, height / width)), count, 1 + asked.shown,
        gridspec_kw={"width_ratios": [1.25, *[1.0] * asked.shown]},
    )  # fmt: skip
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    pairs = [(query, run) for query in queries["id"] for run in asked.runs]
    for (first, *others), (query, run) in zip(axes, pairs, strict=True):
        first.set_axis_off()
        if run == asked.runs[0]:
            picture(first, frames[query])
            first.set_title(f"query: {index['class'][query]}", fontsize=8, fontweight="bold", pad=3)
        shown = data[(data["query"] == query) & (data["run"] == run)].to_dict("records")
        for axis, row in zip(others, shown, strict=False):
            color, mark = (BLUE, "✓") if row["right"] else (RED, "✗")
            picture(axis, frames[row["id"]])
            axis.spines[:].set(visible=True, color=color, linewidth=2.2)
            axis.set_title(f"{mark} {row['class']}", fontsize=7, color=color, pad=3)
        for axis in others[len(shown) :]:
            axis.set_axis_off()
        others[0].set_ylabel("\n".join(run.split("-")), fontsize=7.5)
    caption = (
        "Test clips (left) and, from the left, the training clips nearest to each by the cosine of their features, for "
        f"{', '.join(asked.runs)}, first seed. Blue with a tick: of the query's class; red with a cross: of "
        f""
        "another. Queries sampled at random, each of another class where there are enough; each clip by its "
        "middle frame."
    )
    return Drawn(figure, caption, data)


def picture(axis: Axes, frames: np.ndarray) -> None:
    """The middle frame of a clip (T, H, W, 3), in few pixels, so that galleries stay small files."""
    from PIL import Image

    middle = Image.fromarray(frames[len(frames) // 2])
    middle.thumbnail((THUMBNAIL, THUMBNAIL))
    axis.imshow(np.asarray(middle), interpolation="nearest")
    axis.set_anchor("W")
    bare(axis)
    axis.set(xticks=[], yticks=[])


def heard_classes(params: Params) -> Drawn:
    """Chen Fig. 6: which of its own classes an audio teacher hears in test clips."""
    entry = params.features[params.report.figures.heard]
    found = arrays(params.path("teacher_features", params.report.figures.heard) / "features.npz")
    if "probabilities" not in found:
        raise NoDataError(f"features {params.report.figures.heard} have no probabilities of the teacher's classes")
    description = params.path("teachers", entry.teacher) / "teacher.json"
    if not description.exists():
        raise NoDataError(f"there is no {description}")
    names = json.loads(description.read_text(encoding="utf-8"))["classes"]
    names = names or [f"class {number}" for number in range(found["probabilities"].shape[1])]
    index = index_of(params, entry.dataset)
    frames, sounds = opened(params, pictures(params, entry.dataset)), opened(params, entry.input)
    known = dict(zip(found["ids"][found["mask"]].tolist(), found["probabilities"][found["mask"]], strict=True))
    usable = index[(index["split"] == "test") & index["id"].map(lambda key: key in frames and key in known)]
    clips = by_lot(usable, VIDEOS).sort_values("id")
    if clips.empty:
        raise NoDataError("no test clip has both frames and sound")
    height, width = frames[clips["id"].iloc[0]].shape[1:3]
    ratios = [1.25 * min(1.6, width / height), 2.4, 2.6]
    figure, axes = new_figure(0.5 + 0.95 * len(clips), len(clips), 3, gridspec_kw={"width_ratios": ratios})
    low, high = np.percentile(np.concatenate([sounds[key].ravel() for key in clips["id"]]), [5, 99.8])
    most = 100 * max(float(known[clip].max()) for clip in clips["id"])
    rows = []
    for (left, middle, right), clip in zip(axes, clips.to_dict("records"), strict=True):
        chances = known[clip["id"]].astype(np.float64)
        loudest = np.argsort(-chances, kind="stable")[:LOUDEST]
        picture(left, frames[clip["id"]])
        left.set_title(clip["class"], fontsize=8.5, pad=3)
        show_sound(middle, sounds[clip["id"]], low, high)
        bare(middle)
        middle.set(xticks=[], yticks=[])
        middle.set_title(truth(clip), fontsize=7.5, pad=3, color=GREY)
        right.barh(range(len(loudest)), 100 * chances[loudest], height=0.7, color=BLUE)
        for place, number in enumerate(loudest):
            right.text(
                100 * chances[number] + 0.015 * most, place, f"{100 * chances[number]:.0f}", va="center", fontsize=7
            )
        right.set_yticks(range(len(loudest)), [shortened(names[number]) for number in loudest], fontsize=7.5)
        right.set(xlim=(0, 1.1 * most), xticks=[])
        bare(right)
        right.invert_yaxis()
        rows += [
            {"id": clip["id"], "class": clip["class"], "heard": names[number], "probability": chances[number]}
            for number in loudest
        ]
    axes[0, 2].set_title("probability (%)", fontsize=8, pad=3, color=GREY)
    caption = (
        f"Test clips by their middle frame and log-mel spectrogram, and the {LOUDEST} of its own classes to which "
        f"teacher {entry.teacher} gives the highest probability. Clips sampled at random, each of another class where "
        "there are enough."
    )
    if "relevant" in clips.columns:
        caption += SOUNDS
    return Drawn(figure, caption, pd.DataFrame(rows))


def shortened(name: str, length: int = 26) -> str:
    """A name that is not longer than `length` characters."""
    return name if len(name) <= length else f"{name[: length - 1].rstrip()}…"
