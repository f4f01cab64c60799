"""Meet a budget by construction: the point of a direction through width space that costs just as much."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from pruning.allocation.ladder import Ladder, Measure, measure_of
from pruning.allocation.trades import trade
from pruning.cost import CostModel
from pruning.errors import PolicyError
from pruning.groups import ChannelGroups

TOLERANCE = 0.01
"""The share of a budget that may stay unspent where finer steps exist."""

RESOLUTION = 2.0**-32
"""How near to each other the bisection brings the two ends of t."""

Direction = Callable[[float], Mapping[str, float]]
"""From t in [0, 1] to the wished width of every group, which never falls as t grows.

`direction(0)` is the least that a group may keep. `direction(1)` should ask for every channel, so that the direction
passes through every budget.
"""

Integers = npt.NDArray[np.int64]
Fits = Callable[[Integers], npt.NDArray[np.bool_]]
"""From states `[states, groups]` to whether each is within the budget."""


def project(
    groups: ChannelGroups,
    cost: CostModel,
    direction: Direction,
    budget: int | None,
    *,
    round_to: int = 1,
    measure: str | Measure = "macs",
) -> dict[str, int]:
    """Return the widths along `direction` that spend `budget`, never more; a larger budget never costs less.

    One scalar is bisected. What the step to the next point of the direction would leave over is given away one channel
    at a time, in the order of the groups: first towards that point, then at most one more to each. Where more than 1 %
    is still left, the steps are coarse, and some of one group are traded for some of another: as few as suffice, or
    else what spends most, until no trade of up to eight steps each spends more.

    So at most 1 % of the budget is left, or less than any one group's next steps, up to eight, would add.

    Args:
        groups: the groups to cut; the others of the network keep all their channels.
        cost: the cost of the whole network.
        direction: wished widths; each is taken to the nearest width that the group may have.
        budget: what may be spent: multiply-accumulates of one image, parameters, or what `measure` returns.
        round_to: widths are multiples of so many filters, or the group's full width.
        measure: what the budget limits: `macs`, `params`, or a function such as `LatencyModel.microseconds`.

    Raises:
        PolicyError: `direction(0)` costs more than the budget, or there is none.
        OptionError: `round_to` below 1.
        UnknownNameError: a measure of another name.
    """
    measured, unit = measure_of(cost, measure)
    budget = required(budget, unit)
    ladder = Ladder(groups, round_to)
    price = ladder.prices(cost, measured)
    least = ladder.at_least(direction(0.0))
    lowest, highest = price(np.stack([least, ladder.top])).tolist()
    if budget < lowest:
        raise PolicyError(f"budget: expected {lowest} to {highest} {unit}, which the widths can reach, got {budget}")

    def fits(states: Integers) -> npt.NDArray[np.bool_]:
        return price(states) <= budget

    state, beyond = _bisect(ladder, direction, least, fits)
    for limit in (beyond, np.minimum(beyond + 1, ladder.top)):
        state = _fill(state, limit, fits)
    return ladder.named(trade(price, state, least, ladder.top, budget, (1 - TOLERANCE) * budget))


def required(budget: int | None, unit: str = "MACs") -> int:
    """Return a budget that there is.

    Raises:
        PolicyError: there is none.
    """
    if budget is None:
        raise PolicyError(f"budget: expected a number of {unit}, got none")
    return budget


def at_least(groups: ChannelGroups, widths: Mapping[str, float], round_to: int) -> dict[str, int]:
    """Return for each group the narrowest width it may have that is not below the given one, at most its full width.

    Raises:
        OptionError: `round_to` below 1.
    """
    ladder = Ladder(groups, round_to)
    return ladder.named(ladder.at_least(widths))


def _bisect(ladder: Ladder, direction: Direction, least: Integers, fits: Fits) -> tuple[Integers, Integers]:
    """Return the last state of the direction within the budget, and the next one; the top, where there is none."""

    def state(t: float) -> Integers:
        return np.maximum(ladder.nearest(direction(t)), least)

    low, high = 0.0, 1.0
    below, beyond = least, state(high)
    if fits(beyond[None])[0]:
        return beyond, ladder.top
    while high - low > RESOLUTION and (beyond - below).sum() > 1:
        middle = (low + high) / 2
        between = state(middle)
        if fits(between[None])[0]:
            low, below = middle, between
        else:
            high, beyond = middle, between
    return below, beyond


def _fill(state: Integers, limit: Integers, fits: Fits) -> Integers:
    """Climb towards `limit`: round after round one rung of each group, in their order, wherever it fits."""
    steps = np.eye(len(state), dtype=np.int64)
    climbing = state < limit
    while climbing.any():
        turn = np.flatnonzero(climbing)
        while len(turn):
            fitting = fits(state + steps[turn])
            climbing[turn[~fitting]] = False  # costs never fall: what does not fit now never will
            turn = turn[fitting]
            climbs = np.concatenate([state[None], state + steps[turn].cumsum(axis=0)])
            taken = int(np.append(fits(climbs[1:]), False).argmin())
            state = climbs[taken]
            climbing[turn[taken : taken + 1]] = False
            turn = turn[taken + 1 :]
        climbing &= state < limit
    return state
