"""Layers that torch lacks and that the pruner knows by type."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class ChannelPad(nn.Module):
    """Every `stride`-th pixel, between zero channels: a shortcut without parameters (option A: He et al., CVPR 2016).

    Attributes:
        before: zero channels in front of the input's; a cut lowers it.
        after: zero channels behind the input's; a cut lowers it.
        stride: takes every `stride`-th row and column.
    """

    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.before = before
        self.after = after
        self.stride = stride

    @property
    def zeros(self) -> int:
        """How many zero channels there are, those in front counted first."""
        return self.before + self.after

    def remove_zeros(self, positions: Sequence[int]) -> None:
        """Take out zero channels, by their place among all of them."""
        front = sum(position < self.before for position in positions)
        self.before -= front
        self.after -= len(positions) - front

    def forward(self, x: Tensor) -> Tensor:
        """Map `[images, c, height, width]` to `[images, before + c + after, ⌈height/stride⌉, ⌈width/stride⌉]`."""
        thinned = x[:, :, :: self.stride, :: self.stride]
        return F.pad(thinned, (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """Return the numbers for `print(model)`."""
        return f"before={self.before}, after={self.after}, stride={self.stride}"
