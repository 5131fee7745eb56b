"""Image teachers: residual networks (He et al., CVPR 2016) on single frames, as torchvision builds them."""

from __future__ import annotations

from torch import Tensor, nn

from models.outputs import TeacherOutput
from models.resnet import MaxPool2d, initialise, residual_stages, stage_dims


class ImageResNet(nn.Module):
    """ResNet-10 (one basic block per stage), -34 or -50 with `width` times the published number of channels.

    With width 1 it loads torchvision's state dicts."""

    def __init__(self, classes: int = 1000, depth: int = 34, width: float = 1.0) -> None:
        super().__init__()
        (self.layer1, self.layer2, self.layer3, self.layer4), planes = residual_stages(depth, width)
        self.conv1 = nn.Conv2d(3, planes, 7, 2, 3, bias=False)
        self.bn1, self.relu, self.maxpool = nn.BatchNorm2d(planes), nn.ReLU(inplace=True), MaxPool2d(3, 2, 1)
        self.block_dims = stage_dims(depth, width)
        self.feature_dim = self.block_dims[-1]
        self.fc = nn.Linear(self.feature_dim, classes)
        initialise(self)

    def forward(self, images: Tensor) -> TeacherOutput:
        """Compute the output for `images` (B, 3, H, W), normalised as the weights expect.

        `blocks` are the pooled outputs of the four residual stages."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        blocks = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            blocks.append(x.mean((2, 3)))
        return TeacherOutput(blocks[-1], self.fc(blocks[-1]), tuple(blocks))
