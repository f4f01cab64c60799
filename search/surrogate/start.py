"""The first candidates: random directions that meet budgets, and what a prior alone would choose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from search.surrogate.ladder import Integers, Ladder, Vector
from search.surrogate.prior import Prior

SPREADS = (0.0, 0.2, 0.5, 1.0)
"""Deviations of the logarithms of a direction's widths."""
HALVINGS = 12
ROUNDS = 3
"""How often what a channel costs is asked."""
PRICES = np.log(1e-6), np.log(1e6)
"""From harm for nothing to cost for nothing."""

Cost = Callable[[Integers], Vector]
"""From widths `[policies, groups]` to what each costs, `[policies]`; it never falls as a width grows."""


def directions(ladder: Ladder, cost: Cost, budgets: Vector, rng: np.random.Generator) -> Integers:
    """Return states `[budgets, groups]`: random shares of the widths, scaled until no more fits the budget.

    Where even the narrowest widths cost more than the budget, it is those.
    """
    spreads = rng.choice(SPREADS, size=(len(budgets), 1))
    return _along(spreads * rng.normal(size=(len(budgets), len(ladder.rungs))), ladder, cost, budgets)


def least_harm(ladder: Ladder, cost: Cost, prior: Prior, budgets: Vector) -> Integers:
    """Return states `[budgets, groups]` that fit the budgets and, by a prior, do little harm.

    If a channel of a group cost the same at any width, the best widths would be those that each group chooses by
    itself at one price: the least harm + price·cost. What a channel costs is asked at even widths, then at those that
    were found; the round that did least harm counts.
    """
    harm = [prior.harm[name][rungs] for name, rungs in zip(ladder.names, ladder.rungs, strict=True)]
    typical = max(sum(of_group[0] for of_group in harm), np.finfo(float).tiny)
    best = states = _along(np.zeros((len(budgets), len(harm))), ladder, cost, budgets)
    for _ in range(ROUNDS):
        slopes = _slopes(ladder, cost, states)

        def chosen(cheapness: Vector, slopes: Vector = slopes) -> Integers:
            costs = np.exp(-cheapness)[:, None] * slopes
            levels = [
                (of_group / typical + costs[:, [group]] * ladder.rungs[group]).argmin(axis=1)
                for group, of_group in enumerate(harm)
            ]
            return np.stack(levels, axis=1)

        states = _dearest(chosen, ladder, cost, budgets, *PRICES)
        better = _total(harm, states) < _total(harm, best)
        best = np.where(better[:, None], states, best)
    return best


def _total(harm: list[Vector], states: Integers) -> Vector:
    total: Vector = np.sum([of_group[states[:, group]] for group, of_group in enumerate(harm)], axis=0)
    return total


def _along(logs: Vector, ladder: Ladder, cost: Cost, budgets: Vector) -> Integers:
    far = np.log(ladder.full.max()) + 1 + np.abs(logs).max(initial=0)

    def scaled(scale: Vector) -> Integers:
        return ladder.nearest(ladder.full * np.exp(logs + scale[:, None]))

    return _dearest(scaled, ladder, cost, budgets, -far, far)


def _dearest(
    state: Callable[[Vector], Integers], ladder: Ladder, cost: Cost, budgets: Vector, low: float, high: float
) -> Integers:
    """Bisect the scalars, `[budgets]`, of states whose cost grows with them; return the dearest within the budgets."""
    lows, highs = np.full(len(budgets), low), np.full(len(budgets), high)
    for _ in range(HALVINGS):
        middle = (lows + highs) / 2
        fits = cost(ladder.widths(state(middle))) <= budgets
        lows, highs = np.where(fits, middle, lows), np.where(fits, highs, middle)
    return state(lows)


def _slopes(ladder: Ladder, cost: Cost, states: Integers) -> Vector:
    """Return what a channel of each group costs at some states, as a part of the uncut cost, `[states, groups]`."""
    widths = ladder.widths(states)
    whole, slopes = cost(ladder.full[None])[0], np.zeros(widths.shape)
    for group, full in enumerate(ladder.full.tolist()):
        without, with_all = widths.copy(), widths.copy()
        without[:, group], with_all[:, group] = ladder.rungs[group][0], full
        span = max(full - int(ladder.rungs[group][0]), 1)
        slopes[:, group] = (cost(with_all) - cost(without)) / (whole * span)
    return slopes
