"""CNN14 against an independent implementation, and what holds for every teacher."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types

import pytest
import torch
from torch import nn

from models.logmel import log_mel
from models.teachers import KINDS, build_teacher
from models.teachers.cnn14 import Cnn14, load_panns


@pytest.fixture(scope="module")
def panns():
    """The package's file of networks alone: importing the package itself downloads files."""
    spec = importlib.util.find_spec("panns_inference")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("panns_inference is not installed")
    package = types.ModuleType("panns_reference")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["panns_reference"] = package
    torch.manual_seed(0)
    network = importlib.import_module("panns_reference.models").Cnn14(32_000, 1024, 320, 64, 50, 14_000, 527)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
            module.bias.data.uniform_(-0.1, 0.1)
    network.bn0.running_mean.fill_(-40)
    network.bn0.running_var.fill_(400)
    return network.eval()


@pytest.mark.parametrize("embedding", [2048, 512])
def test_cnn14_is_panns(panns, embedding):
    torch.manual_seed(1)
    panns.fc1, panns.fc_audioset = nn.Linear(2048, embedding), nn.Linear(embedding, 527)
    ours = Cnn14(527, embedding).eval()
    load_panns(ours, panns.state_dict())
    sound = torch.randn(2, 20_000) * torch.tensor([[0.1], [0.001]])
    with torch.no_grad():
        expected, output = panns(sound), ours(log_mel(sound))
    assert output.embedding.shape == (2, embedding)
    assert expected["embedding"].abs().mean() > 0.01
    torch.testing.assert_close(output.embedding, expected["embedding"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.logits, expected["clipwise_output"].logit(), atol=1e-4, rtol=1e-4)
    assert [block.shape[1] for block in output.blocks] == list(ours.block_dims) == [64, 128, 256, 512, 1024, 2048]


@pytest.mark.filterwarnings("ignore:.*meta parameter")
def test_checkpoints_that_do_not_fit_are_refused(panns):
    state = dict(panns.state_dict())
    wrong = state | {"logmel_extractor.melW": state["logmel_extractor.melW"] * 1.01}
    with torch.device("meta"):
        model = Cnn14(527, panns.fc1.out_features)
    with pytest.raises(ValueError, match="mel bands"):
        load_panns(model, wrong)
    with pytest.raises(RuntimeError, match="conv_block6"):
        load_panns(model, {name: value for name, value in state.items() if "conv_block6.conv2" not in name})


@pytest.mark.parametrize("kind", ["resnet34", "resnet50"])
def test_resnet_is_torchvision_s(kind):
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    theirs, ours = getattr(models, kind)(num_classes=9).eval(), build_teacher(kind, 9).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 40, 48)
    torch.testing.assert_close(ours(images).logits, theirs(images), atol=1e-4, rtol=1e-4)  # layouts differ


@pytest.mark.parametrize("frames", [1, 5, 31, 32, 33, 100])
def test_short_sound(frames):
    torch.manual_seed(0)
    teacher = build_teacher("cnn14", 4, 1 / 16).eval()
    logmel = torch.randn(2, frames, 64)
    output = teacher(logmel)
    assert output.embedding.isfinite().all()
    if 32 % frames == 0:
        torch.testing.assert_close(teacher(logmel.repeat(1, 32 // frames, 1)).embedding, output.embedding)
    with pytest.raises(ValueError, match="no frames"):
        teacher(torch.zeros(2, 0, 64))


@pytest.mark.parametrize("kind", KINDS)
def test_output_keeps_its_contract(kind):
    torch.manual_seed(0)
    teacher = build_teacher(kind, 6, 1 / 16 if kind == "cnn14" else 1.0, 24 if kind == "cnn14" else None)
    batch = torch.randn(3, 40, 64) if kind == "cnn14" else torch.randn(3, 3, 32, 32)
    teacher.eval()
    output = teacher(batch)
    assert output.embedding.shape == (3, teacher.feature_dim)
    assert output.logits.shape == (3, 6)
    assert [block.shape for block in output.blocks] == [(3, dim) for dim in teacher.block_dims]
    assert (output.embedding >= 0).all()
    torch.testing.assert_close(teacher(batch).embedding, output.embedding)


def test_embedding_is_dropped_out_in_train_mode_only():
    torch.manual_seed(0)
    teacher = build_teacher("cnn14", 6, 1 / 16)
    batch = torch.randn(4, 64, 64)
    assert not torch.equal(teacher(batch).embedding, teacher(batch).embedding)
    assert torch.equal(teacher.eval()(batch).embedding, teacher(batch).embedding)


@pytest.mark.parametrize(
    ("kind", "width", "embedding", "words"),
    [
        ("cnn41", 1.0, None, "cnn14"),
        ("cnn14", 0.0, None, "width"),
        ("resnet10", 0.5, 512, "embedding 256"),
        ("resnet34", 1.0, 256, "embedding 512"),
    ],
)
def test_wrong_kinds_and_widths_are_errors(kind, width, embedding, words):
    with pytest.raises(ValueError, match=words):
        build_teacher(kind, 3, width, embedding)
