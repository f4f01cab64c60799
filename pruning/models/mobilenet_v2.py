"""MobileNet v2 whose first block expands too, for ImageNet and for small images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from pruning.models.family import register
from pruning.models.widths import check_widths

EXPANSIONS = (1, 6, 6, 6, 6, 6, 6)
BLOCKS = (1, 2, 3, 4, 3, 3, 1)
"""For each of the seven stages."""


class Block(nn.Module):
    """1×1 convolution to the inner width, depthwise 3×3, 1×1 without activation; a shortcut where one is given."""

    def __init__(
        self,
        in_width: int,
        inner_width: int,
        width: int,
        stride: int,
        shortcut: nn.Module | None,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, inner_width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner_width)
        self.conv2 = nn.Conv2d(inner_width, inner_width, 3, stride, padding=1, groups=inner_width, bias=False)
        self.bn2 = nn.BatchNorm2d(inner_width)
        self.conv3 = nn.Conv2d(inner_width, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.shortcut = shortcut
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Map `[images, in_width, height, width]` to `[images, width, ⌈height/stride⌉, ⌈width/stride⌉]`."""
        inner = self.activation(self.bn1(self.conv1(x)))
        inner = self.activation(self.bn2(self.conv2(inner)))
        projected: Tensor = self.bn3(self.conv3(inner))
        return projected if self.shortcut is None else projected + self.shortcut(x)


class MobileNetV2(nn.Module):
    """Seven stages of inverted residual blocks between two plain convolutions.

    Paper: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018.
    Differs: the first block has a 1×1 convolution in front as well, as in the network that DCP cuts. For small images
    the first two strides of 2 are 1, activations are not bounded by 6, and a stage that starts with stride 1 has a 1×1
    convolution with batch norm as its shortcut.

    Args:
        small_images: the variant for images of 32×32.
        num_classes: outputs.
        in_channels: channels of an image.
        widths: channels of the first convolution, of the seven stages and of the last convolution.
        inner_widths: channels inside each of the 17 blocks; input times expansion unless given.
    """

    def __init__(
        self,
        small_images: bool,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (32, 16, 24, 32, 64, 96, 160, 320, 1280),
        inner_widths: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        stem, *stages, last = check_widths("mobilenet_v2", "widths", widths, 9)
        inner = _expanded(stem, stages) if inner_widths is None else inner_widths
        inner = check_widths("mobilenet_v2", "inner_widths", inner, sum(BLOCKS))
        self.activation = F.relu if small_images else F.relu6
        self.conv1 = nn.Conv2d(in_channels, stem, 3, 1 if small_images else 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layers = nn.Sequential(*self._blocks(small_images, stem, stages, inner))
        self.conv2 = nn.Conv2d(stages[-1], last, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(last)
        self.linear = nn.Linear(last, num_classes)

    def _blocks(self, small_images: bool, width: int, stages: Sequence[int], inner: Sequence[int]) -> list[Block]:
        strides = (1, 1, 2, 2, 1, 2, 1) if small_images else (1, 2, 2, 2, 1, 2, 1)
        blocks: list[Block] = []
        for after, count, first_stride in zip(stages, BLOCKS, strides, strict=True):
            for number in range(count):
                stride = first_stride if number == 0 else 1
                shortcut: nn.Module | None = nn.Identity() if number else None
                if small_images and number == 0 and stride == 1:
                    shortcut = nn.Sequential(nn.Conv2d(width, after, 1, bias=False), nn.BatchNorm2d(after))
                blocks.append(Block(width, inner[len(blocks)], after, stride, shortcut, self.activation))
                width = after
        return blocks

    def forward(self, x: Tensor) -> Tensor:
        """Map `[images, in_channels, height, width]` to logits `[images, num_classes]`."""
        x = self.layers(self.activation(self.bn1(self.conv1(x))))
        x = self.activation(self.bn2(self.conv2(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _expanded(stem: int, stages: Sequence[int]) -> list[int]:
    inner, width = [], stem
    for after, count, expansion in zip(stages, BLOCKS, EXPANSIONS, strict=True):
        inner += [width * expansion, *[after * expansion] * (count - 1)]
        width = after
    return inner


register("mobilenet_v2_expand", input_shape=(3, 224, 224), paper_groups=("layers.*.conv1",))(
    partial(MobileNetV2, False)
)
register("mobilenet_v2_cifar", input_shape=(3, 32, 32), paper_groups=("layers.*.conv1",))(partial(MobileNetV2, True))
