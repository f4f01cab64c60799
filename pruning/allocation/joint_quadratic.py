"""Joint quadratic: the channels of all groups compete in one quadratic loss; the widths are what is left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pruning.allocation import register
from pruning.allocation.budget import Direction, project, required
from pruning.cost import CostModel
from pruning.criteria import CRITERIA
from pruning.errors import OptionError, RankingError
from pruning.groups import ChannelGroups
from pruning.policy import CriterionSpec
from pruning.quadratic import Mask, Vector, evaluate
from pruning.quadratic_budget import Demand, choose_within
from pruning.ranking import QuadraticRanking, Ranking


@register("joint_quadratic")
@dataclass(frozen=True)
class JointQuadratic:
    """The widths of the cheapest cut under the budget: min ½·zᵀSz − uᵀz over the channels of all groups at once.

    S has the terms between groups too: of two layers that say the same one may be cut. What a channel saves is its true
    cost at the widths around it. Which channels of a group go is left to the ranking, group by group; widths with which
    this costs more than with uniform ones are not returned. Each budget has its own optimum: a larger one can leave a
    group a little narrower.

    The approach to one constraint for all layers is this project's own; Peng et al. (Collaborative Channel Pruning,
    ICML 2019) solve one such problem for each layer.

    Args:
        minimum_share: every group keeps at least this share of its channels, so that none collapses.
        round_to: widths are multiples of so many filters, or the group's full width.
        criterion: options of `ccp` beside `joint`, whose model of the loss is looked at whichever criterion chooses the
            channels. Without them it is the policy's own criterion's, which then has to be `ccp` with `joint: true`.
    """

    budgeted: ClassVar[bool] = True
    looks_at_ranking: ClassVar[bool] = True

    minimum_share: float = 0.1
    round_to: int = 1
    criterion: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.minimum_share <= 1:
            raise OptionError(f"minimum_share: expected 0 to 1, got {self.minimum_share}")
        if self.ranked_by is not None:
            CRITERIA.build("ccp", **self.ranked_by.options)  # refuses what it does not take

    @property
    def ranked_by(self) -> CriterionSpec | None:
        """See `Allocation.ranked_by`."""
        return None if self.criterion is None else CriterionSpec(name="ccp", options={**self.criterion, "joint": True})

    def widths(
        self, groups: ChannelGroups, cost: CostModel, macs: int | None, ranking: Ranking | None = None
    ) -> dict[str, int]:
        """Return the widths of `groups`; see `Allocation.widths`.

        Raises:
            RankingError: a ranking that does not know S between groups, as `ccp` with `joint: true` does.
        """
        share = Fraction(str(self.minimum_share))
        least = {name: max(group.minimum, math.ceil(share * group.width)) for name, group in groups.items()}
        loss = _Loss(_joint(ranking, groups), groups)
        uniform = project(groups, cost, _even(groups, least), macs, round_to=self.round_to)
        demand = _demand(groups, cost, least, required(macs))
        even = project(groups, cost, _even(groups, least), macs)  # whole steps, where `round_to` has larger ones
        best = choose_within(loss.S, loss.u, demand, [loss.removed(even)]).chosen
        removed = demand.count(best).astype(int).tolist()
        wished = {name: width - gone for (name, width), gone in zip(groups.widths.items(), removed, strict=True)}
        found = project(groups, cost, _through(groups, least, wished), macs, round_to=self.round_to)
        return min((found, uniform), key=loss.of_cut)


class _Loss:
    """What the ranking says of cuts of some groups."""

    def __init__(self, ranking: QuadraticRanking, groups: ChannelGroups) -> None:
        self._ranking, self._widths = ranking, groups.widths
        ends = np.cumsum([len(u) for u in ranking.linear.values()])
        first = dict(zip(ranking.linear, [0, *ends.tolist()], strict=False))
        channels = np.concatenate([first[name] + np.arange(width) for name, width in groups.widths.items()])
        assert ranking.joint is not None
        self.S: Vector = ranking.joint.numpy()[np.ix_(channels, channels)]
        self.u: Vector = np.concatenate([ranking.linear[name].numpy() for name in groups])

    def removed(self, widths: dict[str, int]) -> Mask:
        """Return what the ranking removes at some widths, bool `[channels]`."""
        masks: list[NDArray[np.bool_]] = []
        for name, full in self._widths.items():
            masks.append(np.ones(full, dtype=bool))
            masks[-1][list(self._ranking.keep(name, widths[name]))] = False
        return np.concatenate(masks)

    def of_cut(self, widths: dict[str, int]) -> float:
        """Return ½·zᵀSz − uᵀz of it."""
        return evaluate(self.S, self.u, self.removed(widths))


def _joint(ranking: Ranking | None, groups: ChannelGroups) -> QuadraticRanking:
    if not isinstance(ranking, QuadraticRanking) or ranking.joint is None:
        got = "no ranking" if ranking is None else f"ranking '{ranking.criterion}' without"
        expected = "expected S over all groups, as criterion ccp with joint: true gives"
        raise RankingError(f"allocation 'joint_quadratic': {expected}, got {got}")
    for name, width in groups.widths.items():
        if name not in ranking.linear or len(ranking.linear[name]) != width:
            known = ", ".join(f"{other} {len(u)}" for other, u in ranking.linear.items())
            raise RankingError(f"allocation 'joint_quadratic', group '{name}': expected {width} channels, got {known}")
    return ranking


def _demand(groups: ChannelGroups, cost: CostModel, least: dict[str, int], macs: int) -> Demand:
    columns = [cost.groups.index(name) for name in groups]
    sizes = np.array([*groups.widths.values()], dtype=np.int64)

    def saved(removed: NDArray[np.int64]) -> NDArray[np.int64]:
        widths = np.tile(cost.widths, (len(removed), 1))
        widths[:, columns] -= removed
        return cost.full.macs - cost.costs(widths)[0]

    return Demand(sizes, sizes - np.array([*least.values()], dtype=np.int64), saved, cost.full.macs - macs)


def _even(groups: ChannelGroups, least: dict[str, int]) -> Direction:
    return lambda t: {name: max(least[name], t * width) for name, width in groups.widths.items()}


def _through(groups: ChannelGroups, least: dict[str, int], wished: dict[str, int]) -> Direction:
    """Return the way from the narrowest widths to the full ones through the wished ones."""

    def direction(t: float) -> dict[str, float]:
        return {
            name: least[name] + (wished[name] - least[name]) * 2 * t
            if t <= 0.5
            else wished[name] + (full - wished[name]) * (2 * t - 1)
            for name, full in groups.widths.items()
        }

    return direction
