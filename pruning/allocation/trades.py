"""Trade rungs of one group for rungs of another, where single steps leave too much of a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]

REACHES = (1, 2, 4, 8)
"""How many steps a group may give or take in one trade: no more than it needs."""

AT_ONCE = 4096
"""So many trades are priced together, to bound the memory."""


def trade(
    price: Callable[[Integers], Integers], state: Integers, least: Integers, top: Integers, budget: int, enough: float
) -> Integers:
    """Trade until `enough` is spent: as few rungs as bring that about, or else what spends most, again and again.

    Args:
        price: from states `[states, groups]` to costs `[states]`.
        state: rungs `[groups]` within the budget.
        least: no group gives more than leaves it that many rungs.
        top: no group takes more than brings it there.
        budget: what no trade goes beyond.
        enough: where to stop.
    """
    spent = int(price(state[None])[0])
    while spent < enough:
        best, dearest = state, spent
        for before, reach in zip((0, *REACHES), REACHES, strict=False):
            for trades in _trades(state, state - least, top - state, before, reach):
                costs = price(trades)
                costs = np.where(costs > budget, 0, costs)
                if costs.max(initial=0) > dearest:
                    best, dearest = trades[costs.argmax()], int(costs.max())
            if dearest >= enough:
                break
        if dearest == spent:
            break
        state, spent = best, dearest
    return state


def _trades(state: Integers, down: Integers, up: Integers, before: int, reach: int) -> Iterator[Integers]:
    """Yield states, `[states, groups]`, in which one group takes 1 to `reach` rungs and one other, or none, gives some.

    Those within the reach `before` are left out.
    """
    rungs = np.arange(1, reach + 1)
    takes, gives = rungs[:, None] <= up, rungs <= down[:, None]  # [rungs, groups], [groups, rungs]
    taken, taker = np.nonzero(takes & (rungs > before)[:, None])
    yield _moved(state, taker, rungs[taken], taker, 0 * taken)
    further = np.maximum(rungs[:, None], rungs) > before
    others = ~np.eye(len(state), dtype=np.bool_)[:, None, None, :]
    trades = np.nonzero(gives[:, :, None, None] & takes & further[:, :, None] & others)
    for start in range(0, len(trades[0]), AT_ONCE):
        giver, given, taken, taker = (index[start : start + AT_ONCE] for index in trades)
        yield _moved(state, taker, rungs[taken], giver, rungs[given])


def _moved(state: Integers, taker: Integers, taken: Integers, giver: Integers, given: Integers) -> Integers:
    states = np.tile(state, (len(taker), 1))
    row = np.arange(len(taker))
    states[row, taker] += taken
    states[row, giver] -= given
    return states
