"""How many channels each group keeps under a budget. One file a rule."""

from __future__ import annotations

from typing import Protocol

from pruning.cost import CostModel
from pruning.groups import ChannelGroups
from pruning.policy import CriterionSpec
from pruning.ranking import Ranking
from pruning.registry import Registry


class Allocation(Protocol):
    """Spends a budget of MACs on the groups of a network, or says by itself how wide they are."""

    @property
    def budgeted(self) -> bool:
        """Whether the widths follow from a budget; else the options fix them, and no budget is looked at."""
        ...

    @property
    def looks_at_ranking(self) -> bool:
        """Whether the widths follow from a ranking, too."""
        ...

    @property
    def ranked_by(self) -> CriterionSpec | None:
        """Whose ranking it looks at; None: the policy's own criterion's, or none at all."""
        ...

    def widths(
        self, groups: ChannelGroups, cost: CostModel, macs: int | None, ranking: Ranking | None = None
    ) -> dict[str, int]:
        """Return how many channels each of `groups` keeps.

        If budgeted, the network then costs at most `macs`, and at least 99 % of it wherever such widths are near
        (`budget.project`); a budget above the full cost gives the full widths.

        Args:
            groups: the groups that share the cut, all of the network's or some; the others keep all their channels.
            cost: the cost of the whole network.
            macs: the budget, multiply-accumulates of one image; None only where `budgeted` is false.
            ranking: for rules that look at one; see `ranked_by`.

        Raises:
            PolicyError: a budget below what the narrowest widths cost, or none where one is needed.
            RankingError: a rule that needs scores did not get them.
        """
        ...


ALLOCATIONS: Registry[Allocation] = Registry("allocation", "pruning.allocation")
register = ALLOCATIONS.register

__all__ = ["ALLOCATIONS", "Allocation", "register"]
