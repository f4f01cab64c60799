"""CPMC: a channel is worth its weights in two layers, and the less the more multiply-accumulates it takes."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from pruning.auxiliary import AuxiliaryLosses
from pruning.cost import CostModel
from pruning.criteria import Batches, calibration, register
from pruning.errors import OptionError
from pruning.groups import ChannelGroups
from pruning.ranking import NestedRanking


@register("cpmc")
class CPMC:
    """v/max v + a·(1 − f/max f) + b·(1 − p/max p), for the weights v and the costs f and p of a channel.

    v is the sum of the absolute values of the weights that make the channel and of those that read it, its maximum that
    of the group. f and p are the multiply-accumulates and the parameters that go with one channel of the uncut network,
    their maxima those of the groups that are ranked. Every term lies between 0 and 1, so scores of different groups
    compare as they are: this is meant for the allocation `global` with `normalise: none`. Within a group the costs are
    the same for all channels and v alone decides.

    Paper: Yan et al., Channel Pruning via Multi-Criteria based on Weight Dependency, IJCNN 2021. That weights, cost and
    parameters count together, the next layer's weights included, and that one threshold cuts all layers is from its
    abstract; the formula is inferred: the paper's text was not to be had.
    Differs: whether v is first divided by p changes nothing, as the group's maximum is divided out. f and p are exact,
    with batch norm's parameters, biases, depthwise filters and every layer that makes or reads a coupled channel;
    depthwise filters do not count in v.

    Args:
        macs_weight: a, at least 0.
        params_weight: b, at least 0.
    """

    name: ClassVar[str] = "cpmc"
    needs_data: ClassVar[bool] = True  # the size of one image: costs depend on it
    uses_auxiliary: ClassVar[bool] = False

    def __init__(self, macs_weight: float = 1.0, params_weight: float = 1.0) -> None:
        for option, weight in (("macs_weight", macs_weight), ("params_weight", params_weight)):
            if not 0 <= weight < math.inf:
                raise OptionError(f"criterion 'cpmc', {option}: expected a number of at least 0, got {weight}")
        self.macs_weight, self.params_weight = macs_weight, params_weight

    def rank(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        batches: Batches | None = None,
        auxiliary: AuxiliaryLosses | None = None,  # noqa: ARG002
    ) -> NestedRanking:
        """Order every group by its scores; see `Criterion.rank`. Of the images the first one's size is looked at."""
        image, _ = next(calibration(batches, self.name, model, images=1))
        macs, params = (_cheapness(costs) for costs in _costs_of_a_channel(model, groups, image))
        scores = {}
        for name, group in groups.items():
            value = _absolute(group.filters(model)) + _absolute(group.read_weights(model))
            scores[name] = _shares(value) + self.macs_weight * macs[name] + self.params_weight * params[name]
        return NestedRanking.from_scores(self.name, scores)


def _costs_of_a_channel(
    model: nn.Module, groups: ChannelGroups, image: Tensor
) -> tuple[dict[str, int], dict[str, int]]:
    """Return for each group the multiply-accumulates and the parameters that a cut of one channel saves."""
    cost = CostModel(model, groups, image)
    without = {name: cost.cost({name: group.width - 1}) for name, group in groups.items()}
    macs = {name: cost.full.macs - other.macs for name, other in without.items()}
    params = {name: cost.full.params - other.params for name, other in without.items()}
    return macs, params


def _cheapness(costs: dict[str, int]) -> dict[str, float]:
    most = max(costs.values(), default=0)
    return {name: 1 - cost / most if most else 1.0 for name, cost in costs.items()}


def _absolute(weights: Tensor) -> Tensor:
    return weights.double().abs().sum(dim=1)


def _shares(value: Tensor) -> Tensor:
    most = value.max()
    return torch.where(most == 0, value, value / most)  # a group of zeros stays zero
