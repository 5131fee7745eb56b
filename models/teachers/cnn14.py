"""CNN14, the audio teacher: Kong et al., "PANNs: Large-Scale Pretrained Audio Neural Networks", TASLP 2020.

Parameter names are those of PANNs' published checkpoints. `models.logmel` replaces the front end that the checkpoints
contain (STFT and mel filters). SpecAugment and mixup, which PANNs uses in pre-training, are not implemented here.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from models.logmel import MELS, mel_filters
from models.outputs import TeacherOutput

SHORTEST = 32  # frames; five poolings by two reduce them to one


class ConvBlock(nn.Module):
    """Two 3x3 convolutions, each followed by batch norm and ReLU."""

    def __init__(self, planes_in: int, planes_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(planes_in, planes_out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(planes_out, planes_out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes_out)
        self.bn2 = nn.BatchNorm2d(planes_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, planes_in, T, F) to (B, planes_out, T, F)."""
        x = functional.relu_(self.bn1(self.conv1(x)))
        return functional.relu_(self.bn2(self.conv2(x)))


class Cnn14(nn.Module):
    """CNN14 on log-mel spectrograms.

    `classes`: 527 for AudioSet. `embedding`: 2048, or 512 for the variant Cnn14_emb512, whose features Chen 2021
    published; None means 2048 * width. `width` multiplies the channels (64 to 2048)."""

    def __init__(self, classes: int = 527, embedding: int | None = None, width: float = 1.0) -> None:
        super().__init__()
        planes = [1] + [max(1, round(64 * width)) * 2**level for level in range(6)]
        self.feature_dim = planes[-1] if embedding is None else embedding
        self.block_dims = tuple(planes[1:])
        self.bn0 = nn.BatchNorm2d(MELS)
        for number in range(1, 7):
            self.add_module(f"conv_block{number}", ConvBlock(planes[number - 1], planes[number]))
        self.fc1 = nn.Linear(planes[-1], self.feature_dim)
        self.fc_audioset = nn.Linear(self.feature_dim, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, logmel: Tensor) -> TeacherOutput:
        """Compute the output for `logmel` (B, T, 64) in dB; logits are those before the sigmoid.

        An input of fewer than 32 frames is repeated until it has 32, because the poolings would leave no frame.
        Raises ValueError if T is 0. In train mode dropout is active (0.2 after each block, 0.5 before and after fc1)
        and also applies to the embedding."""
        frames = logmel.shape[1]
        if frames == 0:
            raise ValueError("CNN14: the spectrogram has no frames")
        if frames < SHORTEST:
            logmel = logmel.repeat(1, -(-SHORTEST // frames), 1)[:, :SHORTEST]
        x = self.bn0(logmel[:, None].transpose(1, 3)).transpose(1, 3)
        blocks = []
        for number in range(1, 7):
            x = self.get_submodule(f"conv_block{number}")(x)
            x = functional.avg_pool2d(x, 2) if number < 6 else x
            blocks.append(x.mean((2, 3)))
            x = functional.dropout(x, 0.2, self.training)
        x = x.mean(3)
        x = functional.dropout(x.amax(2) + x.mean(2), 0.5, self.training)
        x = functional.relu(self.fc1(x))
        return TeacherOutput(functional.dropout(x, 0.5, self.training), self.fc_audioset(x), tuple(blocks))


def load_panns(model: Cnn14, state_dict: Mapping[str, Tensor]) -> None:
    """Load the weights of a PANNs checkpoint (its entry "model") into `model`, strictly.

    The checkpoint's front end is dropped after its mel filters have been compared with those of `models.logmel`.
    Raises ValueError if they differ by more than 1e-4 of a band's peak, and torch's RuntimeError if names or shapes
    do not match."""
    filters = state_dict.get("logmel_extractor.melW")
    if filters is not None:
        ours = mel_filters()
        if filters.shape != ours.shape or ((filters.cpu() - ours).abs() > 1e-4 * ours.amax(0)).any():
            raise ValueError("the checkpoint was trained on other mel bands; expected 64 Slaney bands of 50-14000 Hz")
    front_end = ("spectrogram_extractor.", "logmel_extractor.")
    model.load_state_dict({name: value for name, value in state_dict.items() if not name.startswith(front_end)})
