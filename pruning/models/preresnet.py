"""ResNet-56 with pre-activation, the variant that DCP and CCP cut."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from pruning.models.family import register
from pruning.models.widths import check_widths


class Block(nn.Module):
    """Batch norm and ReLU before each of two 3×3 convolutions.

    The first block of a stage gives its shortcut the activated input, the others the raw one.
    """

    def __init__(self, in_width: int, inner_width: int, width: int, stride: int, first: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv1 = nn.Conv2d(in_width, inner_width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner_width)
        self.conv2 = nn.Conv2d(inner_width, width, 3, padding=1, bias=False)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(in_width, width, 1, stride, bias=False)
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        """Map `[images, in_width, height, width]` to `[images, width, ⌈height/stride⌉, ⌈width/stride⌉]`."""
        activated = F.relu(self.bn1(x))
        inner = F.relu(self.bn2(self.conv1(activated)))
        total: Tensor = self.conv2(inner) + self.shortcut(activated if self.first else x)
        return total


class PreResNet(nn.Module):
    """Three stages of equally many blocks; 1×1 convolutions where a shortcut changes shape.

    Paper: He et al., Identity Mappings in Deep Residual Networks, ECCV 2016.

    Args:
        depth: 6·n + 2 layers: n blocks a stage.
        num_classes: outputs.
        in_channels: channels of an image.
        widths: channels of the three stages.
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
        first, second, third = check_widths(f"preresnet{depth}", "widths", widths, 3)
        full = [width for width in widths for _ in range(blocks)]
        inner = full if inner_widths is None else inner_widths
        inner = check_widths(f"preresnet{depth}", "inner_widths", inner, 3 * blocks)
        self.conv1 = nn.Conv2d(in_channels, first, 3, padding=1, bias=False)
        self.layer1 = _stage(first, first, inner[:blocks], stride=1)
        self.layer2 = _stage(first, second, inner[blocks : 2 * blocks], stride=2)
        self.layer3 = _stage(second, third, inner[2 * blocks :], stride=2)
        self.bn = nn.BatchNorm2d(third)
        self.fc = nn.Linear(third, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[images, in_channels, height, width]` to logits `[images, num_classes]`."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = F.relu(self.bn(x))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def _stage(in_width: int, width: int, inner_widths: Sequence[int], stride: int) -> nn.Sequential:
    first, *others = inner_widths
    blocks = [Block(in_width, first, width, stride, first=True)]
    return nn.Sequential(*blocks, *(Block(width, inner, width, stride=1, first=False) for inner in others))


register("preresnet56", input_shape=(3, 32, 32), paper_groups=("layer?.*.conv1",))(partial(PreResNet, 56))
