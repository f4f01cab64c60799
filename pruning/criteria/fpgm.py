"""FPGM: a filter near the centre of its layer can be replaced by the others."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pruning.criteria import ScoreCriterion, register
from pruning.groups import ChannelGroup


@register("fpgm")
class FPGM(ScoreCriterion):
    """Sum of the distances from each filter to every other filter of its group.

    Paper: He et al., Filter Pruning via Geometric Median for Deep Convolutional Neural Networks, CVPR 2019.
    Differs: used once on trained weights, the authors recompute it every training epoch; channels with several makers
    are compared by all their filters side by side, the authors treat each layer by itself.
    """

    name: ClassVar[str] = "fpgm"

    def score(self, group: ChannelGroup, model: nn.Module) -> Tensor:
        """Return `Σ_i ‖w_j − w_i‖` for each channel j (equations 4 to 6), float64 `[channels]`."""
        filters = group.filters(model).double()  # [channels, weights]
        # The matrix-product form of cdist cancels badly between near-equal filters.
        return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(dim=1)
