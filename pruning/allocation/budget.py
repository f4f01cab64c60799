"""Meet a budget by construction: the point of a direction through width space that costs just as much."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pruning.cost import CostModel
from pruning.errors import OptionError, PolicyError
from pruning.groups import ChannelGroup, ChannelGroups

TOLERANCE = 0.01
"""The share of a budget that may stay unspent where finer steps exist."""

RESOLUTION = 2.0**-32
"""How near to each other the bisection brings the two ends of t."""

REACHES = (1, 2, 4, 8)
"""How many steps a group may give or take in one trade: no more than it needs."""

Direction = Callable[[float], Mapping[str, float]]
"""From t in [0, 1] to the wished width of every group, which never falls as t grows.

`direction(0)` is the least that a group may keep. `direction(1)` should ask for every channel, so that the direction
passes through every budget.
"""

Integers = npt.NDArray[np.int64]


def project(
    groups: ChannelGroups, cost: CostModel, direction: Direction, macs: int | None, *, round_to: int = 1
) -> dict[str, int]:
    """Return the widths along `direction` that spend `macs`, never more.

    One scalar is bisected. What the step to the next point of the direction would leave over is given away one channel
    at a time, in the order of the groups: first towards that point, then at most one more to each. Where more than 1 %
    is still left, the steps are coarse, and some of one group are traded for some of another: as few as suffice, or
    else what spends most, until no trade of up to eight steps each spends more.

    Args:
        groups: the groups to cut; the others of the network keep all their channels.
        cost: the cost of the whole network.
        direction: wished widths; each is taken to the nearest width that the group may have.
        macs: the budget, multiply-accumulates of one image.
        round_to: widths are multiples of this, or the group's full width.

    Raises:
        PolicyError: `direction(0)` costs more than the budget, or there is none.
        OptionError: `round_to` below 1.
    """
    macs = required(macs)
    ladder = _Ladder.of(groups, cost, round_to)
    least = ladder.at_least(direction(0.0))
    lowest, highest = ladder.macs(np.stack([least, ladder.top])).tolist()
    if macs < lowest:
        raise PolicyError(f"budget: expected {lowest} to {highest} MACs, which the widths can reach, got {macs}")
    state, beyond = _bisect(ladder, direction, least, macs)
    for limit in (beyond, np.minimum(beyond + 1, ladder.top)):
        state = _fill(ladder, state, limit, macs)
    return ladder.widths(_trade(ladder, state, least, macs))


def required(macs: int | None) -> int:
    """Return a budget that there is.

    Raises:
        PolicyError: there is none.
    """
    if macs is None:
        raise PolicyError("budget: expected a number of MACs, got none")
    return macs


def at_least(groups: ChannelGroups, widths: Mapping[str, float], round_to: int) -> dict[str, int]:
    """Return for each group the narrowest width it may have that is not below the given one, at most its full width.

    Raises:
        OptionError: `round_to` below 1.
    """
    found: dict[str, int] = {}
    for name, group in groups.items():
        rungs = _rungs(group, round_to)
        found[name] = int(rungs[min(int(np.searchsorted(rungs, widths[name])), len(rungs) - 1)])
    return found


@dataclass(frozen=True)
class _Ladder:
    """The widths that each group may take, narrowest first. A state is a rung for each group, int64 `[groups]`."""

    names: tuple[str, ...]
    rungs: tuple[Integers, ...]
    columns: tuple[int, ...]
    cost: CostModel

    @classmethod
    def of(cls, groups: ChannelGroups, cost: CostModel, round_to: int) -> _Ladder:
        rungs = tuple(_rungs(group, round_to) for group in groups.values())
        return cls(tuple(groups), rungs, tuple(cost.groups.index(name) for name in groups), cost)

    @property
    def top(self) -> Integers:
        return np.array([len(rungs) - 1 for rungs in self.rungs], dtype=np.int64)

    def at_least(self, wish: Mapping[str, float]) -> Integers:
        rungs = [np.searchsorted(rungs, wish[name]) for name, rungs in zip(self.names, self.rungs, strict=True)]
        return np.minimum(np.array(rungs, dtype=np.int64), self.top)

    def nearest(self, wish: Mapping[str, float]) -> Integers:
        """Return the nearest state; half-way the narrower one."""
        return np.array(
            [
                np.searchsorted((rungs[:-1] + rungs[1:]) / 2, wish[name])
                for name, rungs in zip(self.names, self.rungs, strict=True)
            ],
            dtype=np.int64,
        )

    def widths(self, state: Integers) -> dict[str, int]:
        return {name: int(rungs[rung]) for name, rungs, rung in zip(self.names, self.rungs, state, strict=True)}

    def macs(self, states: Integers) -> Integers:
        """Return the MACs `[states]` of `[states, groups]`."""
        widths = np.tile(self.cost.widths, (len(states), 1))
        for index, (column, rungs) in enumerate(zip(self.columns, self.rungs, strict=True)):
            widths[:, column] = rungs[states[:, index]]
        return self.cost.costs(widths)[0]

    def fits(self, states: Integers, macs: int) -> npt.NDArray[np.bool_]:
        return self.macs(states) <= macs


def _rungs(group: ChannelGroup, round_to: int) -> Integers:
    if round_to < 1:
        raise OptionError(f"round_to: expected at least 1, got {round_to}")
    first = -(-group.minimum // round_to) * round_to
    return np.array([*range(first, group.width, round_to), group.width], dtype=np.int64)


def _bisect(ladder: _Ladder, direction: Direction, least: Integers, macs: int) -> tuple[Integers, Integers]:
    """Return the last state of the direction within the budget, and the next one; the top, where there is none."""

    def state(t: float) -> Integers:
        return np.maximum(ladder.nearest(direction(t)), least)

    low, high = 0.0, 1.0
    if ladder.fits(state(high)[None], macs)[0]:
        return state(high), ladder.top
    while high - low > RESOLUTION:
        middle = (low + high) / 2
        if ladder.fits(state(middle)[None], macs)[0]:
            low = middle
        else:
            high = middle
    return state(low), state(high)


def _fill(ladder: _Ladder, state: Integers, limit: Integers, macs: int) -> Integers:
    """Climb towards `limit`, one rung of one group after the other, until no single rung fits."""
    while True:
        steps = np.diag(np.where(state < limit, 1, 0))
        steps = steps[steps.any(axis=1)]
        steps = steps[ladder.fits(state + steps, macs)]
        if not len(steps):
            return state
        climbs = state + steps.cumsum(axis=0)
        state = climbs[ladder.fits(climbs, macs)][-1]


def _trade(ladder: _Ladder, state: Integers, least: Integers, macs: int) -> Integers:
    """Trade rungs between two groups, as few as bring the rest below the tolerance, or else nearest to it."""
    enough, spent = (1 - TOLERANCE) * macs, int(ladder.macs(state[None])[0])
    while spent < enough:
        best, dearest = state, spent
        for reach in REACHES:
            for trades in _trades(state, least, ladder.top, reach):
                costs = ladder.macs(trades)
                costs[costs > macs] = 0
                if costs.max(initial=0) > dearest:
                    best, dearest = trades[costs.argmax()], int(costs.max())
            if dearest >= enough:
                break
        if dearest == spent:
            break
        state, spent = best, dearest
    return state


def _trades(state: Integers, least: Integers, top: Integers, reach: int) -> Iterator[Integers]:
    """Yield for each group the states, `[states, groups]`, in which it gives some rungs and another takes some."""
    groups = np.eye(len(state), dtype=np.int64)
    given, taken = np.arange(reach + 1)[:, None, None, None], np.arange(1, reach + 1)[:, None, None]
    for giver in groups:
        trades = state + (taken * groups - given * giver).reshape(-1, len(state))
        yield trades[((least <= trades) & (trades <= top)).all(axis=1)]
