"""L1: filters with small weights make small feature maps."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pruning.criteria import ScoreCriterion, register
from pruning.groups import ChannelGroup


@register("l1", "weight_sum")
class L1(ScoreCriterion):
    """Sum of the absolute weights of a channel's filters; "weight sum" in the papers of ThiNet and DCP.

    Paper: Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017.
    Differs: channels tied through residual sums are scored by all filters that make them; the paper asks the filters
    of the projection shortcut alone.
    """

    name: ClassVar[str] = "l1"

    def score(self, group: ChannelGroup, model: nn.Module) -> Tensor:
        """Return `Σ |w|` over each channel's filters, float64 `[channels]`."""
        return group.filters(model).abs().sum(dim=1, dtype=torch.float64)
