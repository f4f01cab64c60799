"""APoZ: a channel that is zero nearly everywhere says little."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pruning.criteria import StreamingCriterion, register
from pruning.errors import OptionError
from pruning.groups import ChannelGroups
from pruning.map_scores import MapScores


@register("apoz")
class APoZ(StreamingCriterion):
    """Minus the average share of zeros in the channel's map, over images and places.

    Paper: Hu et al., Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures,
    arXiv 2016.
    Differs: ranks within a group, where the paper trims what exceeds its layer's mean by a standard deviation, retrains
    and repeats. The map is taken where the channel is read, behind a pool if there is one; of a channel that is read in
    several places the maps' averages are summed.

    Args:
        images: how many images to look at, the first ones of the batches; None takes all.
    """

    name: ClassVar[str] = "apoz"

    def __init__(self, images: int | None = None) -> None:
        if images is not None and images < 1:
            raise OptionError(f"criterion 'apoz', images: expected at least 1, got {images}")
        self.images = images

    def watcher(self, model: nn.Module, groups: ChannelGroups) -> MapScores:  # noqa: ARG002
        """See `StreamingCriterion.watcher`."""
        return MapScores(self.name, groups, _minus_zeros)


def _minus_zeros(maps: Tensor) -> Tensor:
    """Return minus the share of zeros in every map, float64 `[images, channels]`; NaN for a map that has one."""
    shares = (maps == 0).mean(dim=(2, 3), dtype=torch.float64)
    return -shares.masked_fill(maps.isnan().any(dim=3).any(dim=2), torch.nan)
