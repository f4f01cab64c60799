"""Random DCP: channels are drawn, and fitted as DCP fits them; what DCP's choice is measured against."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

from torch import nn

from pruning.auxiliary import AuxiliaryLosses
from pruning.criteria import Batches, register
from pruning.criteria.dcp import DCP
from pruning.criteria.random import Random
from pruning.greedy import GreedyRanking
from pruning.groups import ChannelGroups


@register("random_dcp")
class RandomDCP:
    """Channels join in random order; after each, all that joined are fitted to L = L_M + λ·L_S.

    Paper: Zhuang et al., Discrimination-aware Channel Pruning for Deep Neural Networks, NeurIPS 2018, §4.

    Args:
        seed: of the draw, as for `random`.
        rate: and all others: as for `dcp`.
        epsilon: see `dcp`.
        loss_weight: see `dcp`.
        reconstruction_weight: see `dcp`.
        learning_rate: see `dcp`.
        momentum: see `dcp`.
        weight_decay: see `dcp`.
        images: see `dcp`.
        complete: see `dcp`.
        cache_gib: see `dcp`.
        mode: see `dcp`.
        growth: see `dcp`.
        share: see `dcp`.
    """

    name: ClassVar[str] = "random_dcp"
    needs_data: ClassVar[bool] = True
    uses_auxiliary: ClassVar[bool] = True

    def __init__(
        self,
        seed: int = 0,
        rate: float | None = None,
        epsilon: float | None = None,
        loss_weight: float = 1.0,
        reconstruction_weight: float = 1.0,
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        images: int | None = None,
        complete: bool = True,
        cache_gib: float = 4.0,
        mode: Literal["exact", "fast"] = "exact",
        growth: float = 1.5,
        share: int = 1,
    ) -> None:
        self._random = Random(seed)
        self._dcp = DCP(
            rate=rate,
            epsilon=epsilon,
            loss_weight=loss_weight,
            reconstruction_weight=reconstruction_weight,
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            images=images,
            complete=complete,
            cache_gib=cache_gib,
            mode=mode,
            growth=growth,
            share=share,
        )

    def rank(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        batches: Batches | None = None,
        auxiliary: AuxiliaryLosses | None = None,
    ) -> GreedyRanking:
        """Select on a copy; see `Criterion.rank`."""
        return self.select(copy.deepcopy(model), model, groups, batches, auxiliary)

    def select(
        self,
        network: nn.Module,
        baseline: nn.Module,
        groups: ChannelGroups,
        batches: Batches | None,
        auxiliary: AuxiliaryLosses | None = None,
    ) -> GreedyRanking:
        """Rank the channels of `groups` in `network`, and leave each group cut; see `DCP.select`."""
        orders = {name: order.tolist() for name, order in self._random.rank(network, groups).orders.items()}
        return self._dcp.select(network, baseline, groups, batches, auxiliary, orders=orders, criterion=self.name)
