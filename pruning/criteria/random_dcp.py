"""Random DCP: channels are drawn, and fitted as DCP fits them; what DCP's choice is measured against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pruning.criteria import register
from pruning.criteria.dcp import DiscriminationAware
from pruning.criteria.random import Random
from pruning.discrimination.search import Choice
from pruning.groups import ChannelGroups


@register("random_dcp")
@dataclass(frozen=True, kw_only=True)
class RandomDCP(DiscriminationAware):
    """Channels join in random order; after each, all that joined fit.

    Paper: Zhuang et al., Discrimination-aware Channel Pruning for Deep Neural Networks, NeurIPS 2018, §4.

    Args:
        seed: of the draw, as for `random`. All others: see `DiscriminationAware`.
    """

    name: ClassVar[str] = "random_dcp"

    seed: int = 0

    def choice(self, groups: ChannelGroups) -> Choice:
        """See `DiscriminationAware.choice`."""
        draws = {name: Random(self.seed).draw(group) for name, group in groups.items()}
        return Choice(
            orders={name: draw.sort(descending=True, stable=True).indices.tolist() for name, draw in draws.items()}
        )
