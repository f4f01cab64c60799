"""GoogLeNet (Inception v1) for small images, the variant that HRank, CHIP and APIB cut."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pruning.errors import OptionError
from pruning.models.family import register
from pruning.models.widths import check_widths

FULL_WIDTHS = {
    "a3": (64, 96, 128, 16, 32, 32, 32),
    "b3": (128, 128, 192, 32, 96, 96, 64),
    "a4": (192, 96, 208, 16, 48, 48, 64),
    "b4": (160, 112, 224, 24, 64, 64, 64),
    "c4": (128, 128, 256, 24, 64, 64, 64),
    "d4": (112, 144, 288, 32, 64, 64, 64),
    "e4": (256, 160, 320, 32, 128, 128, 128),
    "a5": (256, 160, 320, 32, 128, 128, 128),
    "b5": (384, 192, 384, 48, 128, 128, 128),
}
"""Inception → channels of its seven convolutions, in the order of `Inception`."""


class Inception(nn.Module):
    """Four branches side by side; the 5×5 convolution is two of 3×3.

    Args:
        in_width: input channels.
        widths: channels of the 1×1; the 3×3's reduction, the 3×3; the 5×5's reduction, its first half, its second;
            the 1×1 behind the pooling.
    """

    def __init__(self, in_width: int, widths: Sequence[int]) -> None:
        super().__init__()
        single, reduced3, full3, reduced5, middle5, full5, pooled = widths
        self.branch1x1 = nn.Sequential(*_unit(in_width, single, 1))
        self.branch3x3 = nn.Sequential(*_unit(in_width, reduced3, 1), *_unit(reduced3, full3, 3))
        self.branch5x5 = nn.Sequential(
            *_unit(in_width, reduced5, 1), *_unit(reduced5, middle5, 3), *_unit(middle5, full5, 3)
        )
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), *_unit(in_width, pooled, 1))
        self.width = single + full3 + full5 + pooled

    def forward(self, x: Tensor) -> Tensor:
        """Map `[images, in_width, height, width]` to `[images, sum of the branches, height, width]`."""
        return torch.cat([self.branch1x1(x), self.branch3x3(x), self.branch5x5(x), self.branch_pool(x)], dim=1)


@register(
    "googlenet_cifar",
    input_shape=(3, 32, 32),
    paper_groups=("inception_*.branch3x3.0", "inception_*.branch5x5.0", "inception_*.branch5x5.3"),
)
class GoogLeNetCifar(nn.Module):
    """Nine inceptions behind one 3×3 convolution, max-pooling in front of the third and the eighth.

    Paper: Szegedy et al., Going Deeper with Convolutions, CVPR 2015.
    Differs: stem and poolings for images of 32×32, batch norm, no auxiliary heads.

    Args:
        num_classes: outputs.
        in_channels: channels of an image.
        stem_width: channels of the first convolution.
        widths: for each inception the channels of its seven convolutions, in the order of `Inception`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        stem_width: int = 192,
        widths: Sequence[Sequence[int]] = tuple(FULL_WIDTHS.values()),
    ) -> None:
        super().__init__()
        if len(widths) != len(FULL_WIDTHS):
            raise OptionError(f"model 'googlenet_cifar', widths: expected 9 rows, got {len(widths)}")
        self.pre_layers = nn.Sequential(*_unit(in_channels, stem_width, 3))
        width = stem_width
        for name, row in zip(FULL_WIDTHS, widths, strict=True):
            inception = Inception(width, check_widths("googlenet_cifar", f"widths of {name}", row, 7))
            self.add_module(f"inception_{name}", inception)
            width = inception.width
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[images, in_channels, height, width]` to logits `[images, num_classes]`."""
        x = self.pre_layers(x)
        for name in FULL_WIDTHS:
            if name in ("a4", "a5"):
                x = self.maxpool(x)
            x = self.get_submodule(f"inception_{name}")(x)
        logits: Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits


def _unit(in_width: int, width: int, kernel: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(in_width, width, kernel, padding=kernel // 2), nn.BatchNorm2d(width), nn.ReLU()
