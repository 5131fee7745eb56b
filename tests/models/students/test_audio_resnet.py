"""Audio students against torchvision's networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet34, resnet50

from models.students import build_student


@pytest.mark.parametrize(("name", "reference"), [("resnet34_audio", resnet34), ("resnet50_audio", resnet50)])
def test_with_copied_weights_the_output_is_that_of_torchvision(name, reference):
    torch.manual_seed(0)
    student, other = build_student(name, 7).eval(), reference(num_classes=7).eval()
    other.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    other.conv1.load_state_dict(student.stem[0].state_dict())
    other.bn1.load_state_dict(student.stem[1].state_dict())
    for level, stage in enumerate(student.stages, start=1):
        other.get_submodule(f"layer{level}").load_state_dict(stage.state_dict())
    other.fc.load_state_dict(student.fc.state_dict())
    logmel = torch.randn(2, 1, 70, 64) * 20 - 50
    with torch.inference_mode():
        standard = student.bands(logmel.transpose(1, 3)).transpose(1, 3)
        torch.testing.assert_close(student(logmel).logits, other(standard), rtol=1e-4, atol=1e-3)


def test_width_scales_the_channels():
    assert build_student("resnet10_audio", 3, 0.25).stage_dims == (16, 32, 64, 128)
    assert build_student("resnet50_audio", 3, 0.25).stage_dims == (64, 128, 256, 512)
