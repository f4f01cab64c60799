"""VGG-16 and VGG-19 with batch norm for small images: one linear layer behind the convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from pruning.models.family import register
from pruning.models.widths import check_widths

CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Depth → convolutions in front of each of the five poolings."""


def all_but_last(depth: int) -> tuple[str, ...]:
    """Return the convolutions of a VGG with batch norm that the papers cut: the last one feeds the classifier."""
    places: list[str] = []
    place = 0
    for count in CONVOLUTIONS[depth]:
        places += [f"features.{place + 3 * number}" for number in range(count)]
        place += 3 * count + 1  # convolution, batch norm, ReLU each; one pooling
    return tuple(places[:-1])


class VGGCifar(nn.Module):
    """Max-pooling behind the first four groups of convolutions, average pooling to one pixel behind the fifth.

    Paper: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015.
    Differs: batch norm, and one linear layer, as the pruning papers use it.

    Args:
        depth: 16 or 19, layers of the original.
        num_classes: outputs.
        in_channels: channels of an image.
        widths: channels of every convolution; 64, 128, 256, 512 and 512 by group unless given.
    """

    def __init__(
        self, depth: int, num_classes: int = 10, in_channels: int = 3, widths: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        counts = CONVOLUTIONS[depth]
        full = [width for width, count in zip((64, 128, 256, 512, 512), counts, strict=True) for _ in range(count)]
        widths = check_widths(f"vgg{depth}_bn_cifar", "widths", full if widths is None else widths, sum(counts))
        remaining = iter(widths)
        layers: list[nn.Module] = []
        for count in counts:
            for _ in range(count):
                width = next(remaining)
                layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                in_channels = width
            layers.append(nn.MaxPool2d(2))
        layers[-1] = nn.AdaptiveAvgPool2d(1)  # 2×2 for images of 32×32
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[images, in_channels, height, width]`, at least 16×16, to logits `[images, num_classes]`."""
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


for _depth in (16, 19):
    register(f"vgg{_depth}_bn_cifar", input_shape=(3, 32, 32), paper_groups=all_but_last(_depth))(
        partial(VGGCifar, _depth)
    )
