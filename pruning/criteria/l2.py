"""L2: the Euclidean norm of the filters."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from pruning.criteria import ScoreCriterion, register
from pruning.groups import ChannelGroup


@register("l2")
class L2(ScoreCriterion):
    """Euclidean norm of all filters that make a channel, taken as one vector.

    Paper: He et al., Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks, IJCAI 2018.
    Differs: used once on trained weights; the paper sets filters to zero and recomputes it every training epoch.
    """

    name: ClassVar[str] = "l2"

    def score(self, group: ChannelGroup, model: nn.Module) -> Tensor:
        """Return `√ Σ w²` over each channel's filters, float64 `[channels]`."""
        return group.filters(model).double().square().sum(dim=1).sqrt()
