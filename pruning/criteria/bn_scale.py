"""Batch-norm scale: a channel that its batch norm multiplies by nearly zero is hardly heard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pruning.criteria import ScoreCriterion, register
from pruning.errors import RankingError
from pruning.groups import ChannelGroup, Slice, tensor_of


@register("bn_scale")
class BatchNormScale(ScoreCriterion):
    """Sum of the absolute scales |γ| of every batch norm that a channel goes through.

    Paper: Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017.
    Differs: used on any trained weights, the paper trains with an L1 penalty on γ; the paper knows one batch norm a
    channel, here those of all layers tied by residual sums, depthwise convolutions and pre-activation are added.
    """

    name: ClassVar[str] = "bn_scale"

    def score(self, group: ChannelGroup, model: nn.Module) -> Tensor:
        """Return `Σ |γ|` over each channel's batch norms, float64 `[channels]`.

        Raises:
            RankingError: the group goes through no batch norm with a scale.
        """
        scales = [
            tensor_of(model, part.tensor).detach().double()[torch.tensor(part.positions)].abs().sum(dim=1)
            for part in _scales(group, model)
        ]
        if not scales:
            raise RankingError(f"criterion '{self.name}', group '{group.name}': expected a batch norm, got none")
        return torch.stack(scales).sum(dim=0)


def _scales(group: ChannelGroup, model: nn.Module) -> Iterator[Slice]:
    for part in group.carried:
        if isinstance(model.get_submodule(part.layer), _BatchNorm) and part.tensor.endswith(".weight"):
            yield part
