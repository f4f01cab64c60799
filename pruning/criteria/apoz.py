"""APoZ: a channel that is zero nearly everywhere says little."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from pruning.criteria import StreamingCriterion, register
from pruning.errors import OptionError
from pruning.groups import ChannelGroups
from pruning.ranking import NestedRanking
from pruning.streaming import Reading


@register("apoz")
class APoZ(StreamingCriterion):
    """Minus the average share of zeros in the channel's map, over images and places.

    Paper: Hu et al., Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures,
    arXiv 2016.
    Differs: ranks within a group, where the paper trims what exceeds its layer's mean by a standard deviation, retrains
    and repeats. The map is taken where the channel is read, behind a pool if there is one; of a channel that is read in
    several places the mean over the maps counts.

    Args:
        images: how many images to look at, the first ones of the batches; None takes all.
    """

    name: ClassVar[str] = "apoz"

    def __init__(self, images: int | None = None) -> None:
        if images is not None and images < 1:
            raise OptionError(f"criterion 'apoz', images: expected at least 1, got {images}")
        self.images = images

    def watcher(self, model: nn.Module, groups: ChannelGroups) -> _Zeros:  # noqa: ARG002
        """See `StreamingCriterion.watcher`."""
        return _Zeros(groups)


class _Zeros:
    def __init__(self, groups: ChannelGroups) -> None:
        self.shares = {name: torch.zeros(group.width, dtype=torch.float64) for name, group in groups.items()}
        self.maps = dict.fromkeys(groups, 0)

    def see(self, reading: Reading) -> None:
        if reading.repeated:
            return
        maps, name = reading.maps, reading.group.name
        zeros = (maps == 0).mean(dim=(2, 3), dtype=torch.float64)
        zeros[maps.isnan().any(dim=3).any(dim=2)] = torch.nan
        self.shares[name] += zeros.sum(dim=0).cpu()
        self.maps[name] += len(maps)

    def ranking(self) -> NestedRanking:
        scores = {name: -share / max(1, self.maps[name]) for name, share in self.shares.items()}
        return NestedRanking.from_scores(APoZ.name, scores)
