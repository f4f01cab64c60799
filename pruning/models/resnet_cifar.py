"""ResNet-20 to 110 for small images, with shortcuts that have no parameters (option A)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from pruning.errors import OptionError
from pruning.layers import ChannelPad
from pruning.models.family import register
from pruning.models.widths import check_widths


class Block(nn.Module):
    """Two 3×3 convolutions beside a shortcut."""

    def __init__(self, in_width: int, inner_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, inner_width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner_width)
        self.conv2 = nn.Conv2d(inner_width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(in_width, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[images, in_width, height, width]` to `[images, width, ⌈height/stride⌉, ⌈width/stride⌉]`."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


class ResNetCifar(nn.Module):
    """Three stages of equally many blocks.

    Paper: He et al., Deep Residual Learning for Image Recognition, CVPR 2016, §4.2.

    Args:
        depth: 6·n + 2 layers: n blocks a stage.
        num_classes: outputs.
        in_channels: channels of an image.
        widths: channels of the three stages, never fewer than the stage before has.
        inner_widths: channels between the two convolutions of each block; those of the stage unless given.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        inner_widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        first, second, third = check_widths(f"resnet{depth}", "widths", widths, 3)
        if not first <= second <= third:
            raise OptionError(f"model 'resnet{depth}', widths: expected no stage narrower than the last, got {widths}")
        full = [width for width in widths for _ in range(blocks)]
        inner = full if inner_widths is None else inner_widths
        inner = check_widths(f"resnet{depth}", "inner_widths", inner, 3 * blocks)
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, first, inner[:blocks], stride=1)
        self.layer2 = _stage(first, second, inner[blocks : 2 * blocks], stride=2)
        self.layer3 = _stage(second, third, inner[2 * blocks :], stride=2)
        self.linear = nn.Linear(third, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[images, in_channels, height, width]` to logits `[images, num_classes]`."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _shortcut(in_width: int, width: int, stride: int) -> nn.Module:
    if stride == 1 and in_width == width:
        return nn.Identity()
    zeros = width - in_width
    return ChannelPad(before=zeros // 2, after=zeros - zeros // 2, stride=stride)


def _stage(in_width: int, width: int, inner_widths: Sequence[int], stride: int) -> nn.Sequential:
    first, *others = inner_widths
    blocks = [Block(in_width, first, width, stride)]
    return nn.Sequential(*blocks, *(Block(width, inner, width, stride=1) for inner in others))


for _depth in (20, 32, 44, 56, 110):
    register(f"resnet{_depth}", input_shape=(3, 32, 32), paper_groups=("layer?.*.conv1",))(partial(ResNetCifar, _depth))
