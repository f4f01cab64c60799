"""MobileNet v1, for ImageNet and for small images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from pruning.models.family import register
from pruning.models.widths import check_widths


class Block(nn.Module):
    """A depthwise 3×3 convolution, then a 1×1 convolution."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, in_width, 3, stride, padding=1, groups=in_width, bias=False)
        self.bn1 = nn.BatchNorm2d(in_width)
        self.conv2 = nn.Conv2d(in_width, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[images, in_width, height, width]` to `[images, width, ⌈height/stride⌉, ⌈width/stride⌉]`."""
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)))


class MobileNetV1(nn.Module):
    """Thirteen blocks behind one 3×3 convolution.

    Paper: Howard et al., MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications, 2017.

    Args:
        strides: of the first convolution and of each block.
        num_classes: outputs.
        in_channels: channels of an image.
        widths: channels of the first convolution and of each block.
    """

    def __init__(
        self,
        strides: tuple[int, ...],
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024),
    ) -> None:
        super().__init__()
        widths = check_widths("mobilenet_v1", "widths", widths, len(strides))
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, strides[0], padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        shapes = zip(widths[:-1], widths[1:], strides[1:], strict=True)
        self.layers = nn.Sequential(*(Block(before, after, stride) for before, after, stride in shapes))
        self.linear = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[images, in_channels, height, width]` to logits `[images, num_classes]`."""
        x = self.layers(F.relu(self.bn1(self.conv1(x))))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


_IMAGENET = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
_CIFAR = (1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 2)

# DCP cuts every width but the classifier's input; on CIFAR-10 the other 1024 stay too.
register("mobilenet_v1", input_shape=(3, 224, 224), paper_groups=("conv1", "layers.?.conv2", "layers.1[01].conv2"))(
    partial(MobileNetV1, _IMAGENET)
)
register("mobilenet_v1_cifar", input_shape=(3, 32, 32), paper_groups=("conv1", "layers.?.conv2", "layers.10.conv2"))(
    partial(MobileNetV1, _CIFAR)
)
