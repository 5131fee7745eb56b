from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from avdistill.config.report import CLIP_METRICS
from avdistill.config.schema import Params
from avdistill.data.index import read_index
from avdistill.data.loader import ClipSet, to_input
from avdistill.pipeline.stage import Stage
from avdistill.tracking.journal import start
from avdistill.training.task import task_of
from avdistill.training.teachers import teacher_tables
from avdistill.training.trainer import Trainer
from stages import evaluate, train
from stages.evaluate import attention


def attended(
    params: Params, tmp_path: Path, run: str, name: str = "mnf_csc"
) -> tuple[Trainer, ClipSet, dict[str, np.ndarray]]:
    """An untrained student, the clips, and what the attention of its distiller picks."""
    with start("train", name, params) as tracked:
        trainer = Trainer(task_of(params, run, 0, "cpu", tmp_path, tracked))
    clips = ClipSet(trainer.task.index, trainer.task.store, ("train", "test"))
    device = torch.device("cpu")
    teachers = teacher_tables(trainer.task, clips, device)
    arrays = attention(trainer.student, trainer.distiller, clips, teachers, trainer.recipe, device)
    return trainer, clips, arrays


def test_attention_is_of_the_first_window_of_each_test_clip_with_sound(tiny: Params, tmp_path: Path):
    recipe = tiny.recipes["small"].model_copy(update={"size": 32, "frames": 4})
    params = tiny.model_copy(update={"recipes": {"small": recipe}})
    trainer, clips, found = attended(params, tmp_path, "mnf_csc")
    rows = clips.rows[(clips.rows["split"] == "test") & (clips.rows["audio"] == "yes")]
    assert found["ids"].tolist() == rows["id"].tolist()
    assert found["weights"].shape == (len(rows), 1, 6, 6)
    np.testing.assert_allclose(found["weights"].sum((1, 2, 3)), 1, atol=1e-5)

    # One clip by hand: q = t~, k = the map's positions, the mean over heads of softmax(q k / sqrt(D)).
    name = rows["id"].iloc[4]
    frames = torch.from_numpy(clips.store[name].copy())
    window = frames[torch.arange(4) % len(frames)][:, :, 2:22]  # 20 x 24 pixels, centred
    small = torch.nn.functional.interpolate(
        window.permute(0, 3, 1, 2), (32, 32), mode="bilinear", antialias=True, align_corners=False
    )
    with torch.no_grad():
        output = trainer.student(to_input(small.permute(0, 2, 3, 1)[None], recipe.normalisation))
        stored = np.load(params.path("teacher_features", "avsynth_audio") / "features.npz")
        sound = torch.from_numpy(stored["features"][stored["ids"].tolist().index(name)])[None]
        module = trainer.distiller
        query = module.purify(output.feature, module.project(sound))
        d = query.shape[1]
        weight, bias = module.attention.in_proj_weight, module.attention.in_proj_bias
        heads = module.attention.num_heads
        q = (query @ weight[:d].T + bias[:d]).reshape(heads, d // heads)
        k = (output.map[0] @ weight[d : 2 * d].T + bias[d : 2 * d]).reshape(-1, heads, d // heads)
        expected = torch.einsum("hd,phd->hp", q, k).div((d // heads) ** 0.5).softmax(1).mean(0)
    np.testing.assert_allclose(found["weights"][4].ravel(), expected.numpy(), atol=1e-5)


def test_a_strategy_without_attention_has_none(tiny: Params, tmp_path: Path):
    _, _, found = attended(tiny, tmp_path, "mnf_csc-audio", "mnf_csc")
    assert len(found["ids"]) == len(found["weights"]) == 0 and found["weights"].ndim == 4


def test_each_metric_is_the_mean_of_its_values_by_clip(tiny: Params, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("avdistill.pipeline.devices.cores", lambda: 1)  # PyTorch refuses to fork after autograd
    for name, module in (("train", train), ("evaluate", evaluate)):
        with start(name, "uni_modal", tiny) as tracked:
            module.main(Stage(name, "uni_modal", tiny, tracked))
    folder = tiny.path("evaluate", "uni_modal")
    index = read_index(tiny.index("avsynth"))
    measured = pd.read_csv(folder / "metrics.csv").set_index(["seed", "metric"])["value"]
    for seed in (0, 1):
        with np.load(folder / "uni_modal" / f"seed-{seed}.npz") as arrays:
            assert arrays["ids"].tolist() == index[index["split"] == "test"]["id"].tolist()
            for metric in CLIP_METRICS:
                assert arrays[metric].shape == arrays["ids"].shape
                assert np.nanmean(arrays[metric]) == pytest.approx(measured[seed, metric], abs=1e-15)
