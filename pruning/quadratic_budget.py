"""The best channels to remove from all groups at once under a budget: min ½·zᵀSz − uᵀz where z must save enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pruning.quadratic import ROUNDING, Choice, Mask, Vector, descend, evaluate, shift_for

Integers = NDArray[np.int64]

LINEARISATIONS = 4
"""Where the groups' savings multiply, they are taken as linear so many times, each where the last result lies."""
FIRST = 8
"""Of so many channels of each group the best pair is sought before all are asked."""


@dataclass(frozen=True)
class Demand:
    """What a removal has to save, and how many channels of each group it may take.

    The channels of a group stand side by side.

    Attributes:
        sizes: channels of each group, int64 `[groups]`.
        most: how many of each group may go, int64 `[groups]`.
        saved: from numbers of removed channels, int64 `[states, groups]`, what each state saves. It grows with every
            number, and the more is gone from some groups the less the others save.
        need: what has to be saved.
    """

    sizes: Integers
    most: Integers
    saved: Callable[[Integers], Integers]
    need: int

    @cached_property
    def owners(self) -> NDArray[np.intp]:
        """The group of each channel."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    @cached_property
    def starts(self) -> Integers:
        """The first channel of each group."""
        return np.cumsum(self.sizes) - self.sizes

    def count(self, z: Vector | Mask) -> Vector:
        """Return how much of each group is in z, `[groups]`."""
        counts: Vector = np.add.reduceat(z.astype(np.float64), self.starts)
        return counts

    def suffices(self, states: Integers) -> NDArray[np.bool_]:
        """Return which states save enough without taking too much of a group."""
        enough: NDArray[np.bool_] = self.saved(states) >= self.need
        return enough & (states <= self.most).all(axis=1)


def choose_within(S: Vector, u: Vector, demand: Demand, starts: Sequence[Mask] = ()) -> Choice:
    """Choose channels with a small ½·zᵀSz − uᵀz that save what is demanded.

    The convex relaxation, whose savings are linear, is rounded. From there and from each of `starts` channels are
    removed, given back and exchanged one for one as long as that helps. The best result is returned.

    Args:
        S: symmetric and positive semidefinite, `[channels, channels]`.
        u: `[channels]`.
        demand: can be met.
        starts: sets that meet it; the result is not worse than any.

    Returns:
        The set with its value and a bound that no set below the demand goes under. Where groups' savings multiply, the
        bound is that of the savings at full width, which are larger than the true ones: it holds but is less sharp.
    """
    linear = _tangent(demand, np.zeros_like(demand.sizes))
    z, bound = _relax(S, u, linear, np.minimum(1.0, (demand.most / demand.sizes)[demand.owners]))
    for _ in range(0 if _is_linear(demand) else LINEARISATIONS):
        state = np.minimum(np.rint(demand.count(z)).astype(np.int64), demand.most)
        z, _ = _relax(S, u, _tangent(demand, state), z)
    results = [exchange(S, u, demand, start) for start in (_rounded(S, u, demand, z), *starts)]
    values = [evaluate(S, u, result) for result in results]
    best = int(np.argmin(values))
    return Choice(results[best], values[best], min(bound, values[best]))


# ── the relaxation ───────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Linear:
    """Points 0 ≤ z ≤ 1 with at most `most` of each group and Σ price·z ≥ need.

    Attributes:
        price: of a channel of each group, float64 `[groups]`, the largest 1.
    """

    demand: Demand
    price: Vector
    need: float

    def nearest(self, y: Vector) -> Vector:
        """Return the nearest point: clip(y + min(λ·price, s)), s a group's shift to its most, λ to the need."""
        most = np.full(len(self.price), np.inf)
        while True:
            shifts = self._shifts(y, most)
            z = np.clip(y + shifts[self.demand.owners], 0, 1)
            over = (self.demand.count(z) > self.demand.most + 1e-9) & np.isinf(most)
            if not over.any():
                return z
            for group in np.flatnonzero(over):
                start, size = self.demand.starts[group], self.demand.sizes[group]
                most[group] = -shift_for(y[start : start + size], float(self.demand.most[group]))

    def _shifts(self, y: Vector, most: Vector) -> Vector:
        """Return min(λ·price, most) with the smallest λ ≥ 0 that meets the need: Newton's steps within bisection."""
        owners, prices = self.demand.owners, self.price[self.demand.owners]
        low, high, rate = 0.0, np.inf, 0.0
        for _ in range(100):
            shifts = np.minimum(rate * self.price, most)
            z = y + shifts[owners]
            missing = self.need - float(prices @ np.clip(z, 0, 1))
            if abs(missing) <= ROUNDING * len(y) or (rate == 0 and missing <= 0):
                break
            low, high = (rate, high) if missing > 0 else (low, rate)
            free = (z > 0) & (z < 1) & (shifts < most)[owners]
            slope = float(prices[free] @ prices[free])
            rate = rate + missing / slope if slope else np.inf
            if not low < rate < high:
                rate = (low + high) / 2 if high < np.inf else 2 * max(low, 0.5)
        return shifts

    def least(self, slope: Vector) -> float:
        """Return the smallest slope·z: of each group the smallest slopes, then what is cheapest for its price."""
        demand = self.demand
        order = np.lexsort((slope, demand.owners))
        eligible = order[np.arange(len(order)) - demand.starts[demand.owners] < demand.most[demand.owners]]
        slopes, prices = slope[eligible], self.price[demand.owners[eligible]]
        free = slopes <= 0
        value, missing = float(slopes[free].sum()), self.need - float(prices[free].sum())
        if missing <= 0:
            return value
        slopes, prices = slopes[~free], prices[~free]
        cheapest = np.argsort(slopes / prices)
        shares = np.clip((missing - np.cumsum(prices[cheapest])) / prices[cheapest] + 1, 0, 1)
        return value + float(shares @ slopes[cheapest])


def _relax(S: Vector, u: Vector, linear: _Linear, start: Vector) -> tuple[Vector, float]:
    return descend(S, u, linear.nearest(start), linear.nearest, linear.least)


def _tangent(demand: Demand, state: Integers) -> _Linear:
    """Return the demand with savings that are linear and right near a state."""
    groups = np.eye(len(state), dtype=np.int64)
    below, above = state - groups * (state > 0), state + groups * (state < demand.sizes)
    steps = (above - below).sum(axis=1)
    price = (demand.saved(above) - demand.saved(below)) / steps
    if not state.any():  # at full width the first channel saves most, whatever else goes
        price = demand.saved(groups).astype(np.float64)
    need = float(price @ state) + demand.need - float(demand.saved(state[None])[0])
    size = float(price.max())
    price = np.maximum(price / size, 1e-12)
    return _Linear(demand, price, min(need / size, float(price @ demand.most)))


def _is_linear(demand: Demand) -> bool:
    """Return whether savings add up: a polynomial of degree 2 is linear if all pairs of steps do."""
    single = np.eye(len(demand.sizes), dtype=np.int64)
    one = demand.saved(single)
    pairs = (single[:, None] + single).reshape(-1, len(single))
    return bool((demand.saved(pairs) == (one[:, None] + one).reshape(-1)).all())


# ── from there to whole channels ─────────────────────────────────────────────────────────────────────────────────────


def _rounded(S: Vector, u: Vector, demand: Demand, z: Vector) -> Mask:
    """Return the larger half of z, and more, the cheapest for what they save, until the demand is met."""
    ranks = np.empty(len(z), dtype=np.int64)
    ranks[np.lexsort((-z, demand.owners))] = np.arange(len(z)) - demand.starts[demand.owners]
    chosen = (z > 0.5) & (ranks < demand.most[demand.owners])
    slope, diagonal = S @ chosen - u, np.diagonal(S) / 2
    state = demand.count(chosen).astype(np.int64)
    groups = np.eye(len(state), dtype=np.int64)
    while demand.saved(state[None])[0] < demand.need:
        saves = (demand.saved(state + groups) - demand.saved(state[None])).astype(np.float64)
        saves[state >= demand.most] = 0
        price = saves[demand.owners]
        rest = ~chosen & (price > 0)
        cost = np.where(rest, (slope + diagonal) / np.maximum(price, 1), np.inf)
        channel = int(cost.argmin())
        chosen[channel] = True
        slope += S[channel]
        state[demand.owners[channel]] += 1
    return chosen


def exchange(S: Vector, u: Vector, demand: Demand, chosen: Mask) -> Mask:
    """Remove one channel more, give one back, or one for another, whichever helps most, until nothing helps.

    Args:
        S: symmetric, `[channels, channels]`.
        u: `[channels]`.
        demand: what the set meets, and goes on to meet.
        chosen: bool `[channels]`.
    """
    chosen, diagonal = chosen.copy(), np.diagonal(S) / 2
    slope = S @ chosen - u
    least = ROUNDING * float(np.abs(slope).max() + diagonal.max())
    few = True
    while True:
        removing, returning = slope + diagonal, diagonal - slope  # what the value changes by
        state = demand.count(chosen).astype(np.int64)
        allowed = _allowed(demand, state)
        outside = np.flatnonzero(~chosen), removing
        inside = np.flatnonzero(chosen), returning
        if few:
            outside, inside = ((_first(demand, *side), side[1]) for side in (outside, inside))
        change, p, q = min(_changes(S, demand, allowed, inside, outside), default=(0.0, -1, -1))
        if change < -least:
            for channel, sign in ((p, -1), (q, 1)):
                if channel >= 0:
                    chosen[channel] = sign > 0
                    slope += sign * S[channel]
            few = True
        elif few:
            few = False
        else:
            return chosen


def _allowed(demand: Demand, state: Integers) -> NDArray[np.bool_]:
    """Return of which group one may come back while one of which group goes, `[groups + 1, groups + 1]`, last: none."""
    groups = len(state)
    steps = np.eye(groups + 1, groups, dtype=np.int64)
    states = (state - steps[:, None] + steps).reshape(-1, groups)
    return demand.suffices(states).reshape(groups + 1, groups + 1)


def _first(demand: Demand, channels: NDArray[np.intp], change: Vector) -> NDArray[np.intp]:
    """Return the channels of each group that change the value best."""
    order = channels[np.lexsort((change[channels], demand.owners[channels]))]
    owners = demand.owners[order]
    ranks = np.arange(len(order)) - np.searchsorted(owners, owners)
    return order[ranks < FIRST]


def _changes(
    S: Vector,
    demand: Demand,
    allowed: NDArray[np.bool_],
    inside: tuple[NDArray[np.intp], Vector],
    outside: tuple[NDArray[np.intp], Vector],
) -> Iterator[tuple[float, int, int]]:
    """Yield the best change of each kind with the channel that comes back and the one that goes, −1 for none."""
    (back, returning), (gone, removing) = inside, outside
    returning, removing = returning[back], removing[gone]
    of_back, of_gone = demand.owners[back], demand.owners[gone]
    alone = np.where(allowed[of_back, -1], returning, np.inf)
    if len(back):
        yield float(alone.min()), int(back[alone.argmin()]), -1
    alone = np.where(allowed[-1, of_gone], removing, np.inf)
    if len(gone):
        yield float(alone.min()), -1, int(gone[alone.argmin()])
    if len(back) and len(gone):
        change = returning[:, None] + removing - S[np.ix_(back, gone)]
        change[~allowed[of_back[:, None], of_gone]] = np.inf
        row, column = np.unravel_index(change.argmin(), change.shape)
        yield float(change[row, column]), int(back[row]), int(gone[column])
