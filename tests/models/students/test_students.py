"""Students against torchvision's networks, and the shapes that they promise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.students import STUDENTS, build_student


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_r2plus1d_18_is_torchvision_s():
    video = pytest.importorskip("torchvision.models.video")
    torch.manual_seed(0)
    theirs = video.r2plus1d_18(num_classes=400)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    ours = build_student("r2plus1d_18", 400)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert count(ours) == count(theirs) == 31_505_325
    clips = torch.randn(2, 3, 4, 24, 32)
    with torch.no_grad():
        output = ours.eval()(clips)
        torch.testing.assert_close(output.logits, theirs.eval()(clips), atol=1e-4, rtol=1e-4)


def gflop(student: nn.Module) -> float:
    """Operations of all convolutions and linear layers for a clip of 16x112x112, in 1e9."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        student(torch.empty(1, 3, 16, 112, 112))
    return counter.get_total_flops() / 1e9


def test_r2plus1d_10_is_the_programs_up_to_its_shortcuts():
    with torch.device("meta"):
        plain, theirs = build_student("r2plus1d_10", 51), build_student("r2plus1d_10_factored", 51)
    assert count(plain) == 14_391_640 and count(plain) - count(theirs) == 174
    assert round(gflop(plain), 2) == 42.67 and round(gflop(theirs), 2) == 42.72
    # The shortcuts as both programs build them: 64 -> 42 -> 128, 128 -> 85 -> 256, 256 -> 170 -> 512 channels.
    for level, middle in ((2, 42), (3, 85), (4, 170)):
        spatial, norm, relu, temporal = theirs.get_submodule(f"layer{level}.0.downsample.0")
        assert (spatial.out_channels, norm.num_features, temporal.in_channels) == (middle, middle, middle)
        assert (spatial.stride, temporal.stride) == ((1, 2, 2), (2, 1, 1)) and isinstance(relu, nn.ReLU)
        assert spatial.bias is None and temporal.bias is None
    with torch.device("meta"):
        output = theirs(torch.empty(2, 3, 16, 112, 112))
    assert output.map.shape == (2, 98, 512)


def test_the_small_student_keeps_4_x_4_positions():
    student = build_student("r2plus1d_10_small", 5, 0.125)
    assert student.grid(8, 24, 24) == (1, 4, 4)
    with torch.device("meta"):
        plain, small = build_student("r2plus1d_10", 51), build_student("r2plus1d_10_small", 51)
    assert count(plain) == count(small)


@pytest.mark.parametrize("name", ["r2plus1d_10", "r2plus1d_10_factored", "r2plus1d_18"])
@pytest.mark.parametrize("width", [1 / 64, 0.1875, 1.0])
def test_width_scales_the_channels(name, width):
    with torch.device("meta"):
        student = build_student(name, 7, width)
        output = student(torch.empty(2, 3, 8, 32, 32))
    planes = round(64 * width)
    assert student.stage_dims == (planes, 2 * planes, 4 * planes, 8 * planes)
    assert student.feature_dim == student.stage_dims[-1]
    assert output.logits.shape == (2, 7)
    assert output.map.shape == (2, 4, 8 * planes)
    assert [stage.shape for stage in output.stages] == [(2, dim) for dim in student.stage_dims]


@pytest.mark.parametrize("name", list(STUDENTS))
def test_output_keeps_its_contract(name):
    torch.manual_seed(0)
    heard = name.endswith("_audio")
    student = build_student(name, 7, 1 / 16)
    output = student(torch.randn(2, 1, 70, 64) * 20 - 50 if heard else torch.randn(2, 3, 8, 32, 32))
    assert output.logits.shape == (2, 7)
    assert output.feature.shape == (2, student.feature_dim)
    assert [stage.shape for stage in output.stages] == [(2, dim) for dim in student.stage_dims]
    assert (output.feature >= 0).all()
    torch.testing.assert_close(output.map.mean(1), output.feature)
    torch.testing.assert_close(output.stages[-1], output.feature)
    torch.testing.assert_close(student.fc(output.feature), output.logits)
    output.logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    assert not any(part.requires_grad for part in (output.detach().logits, *output.detach().stages))


def test_tiny_and_single_frames_do_not_crash():
    student = build_student("r2plus1d_10", 3, 1 / 16).eval()
    assert student(torch.randn(1, 3, 1, 8, 8)).logits.isfinite().all()


def test_initialised_like_torchvision():
    torch.manual_seed(0)
    student = build_student("r2plus1d_10", 3, 0.5)
    weight = student.get_submodule("layer3.0.conv1.0.0").weight
    fan_out = weight.shape[0] * 9
    assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.02)
    assert student.fc.bias.eq(0).all()


@pytest.mark.parametrize(
    ("name", "width", "words"),
    [("r2plus1d", 1.0, "r2plus1d_10"), ("r2plus1d_10", 0.0, "width"), ("resnet34_audio", 1.5, "width")],
)
def test_wrong_names_and_widths_are_errors(name, width, words):
    with pytest.raises(ValueError, match=words):
        build_student(name, 3, width)
