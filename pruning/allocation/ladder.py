"""The widths that each group may take, and what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from pruning.cost import CostModel
from pruning.errors import OptionError, UnknownNameError
from pruning.groups import ChannelGroups

Integers = npt.NDArray[np.int64]

Measure = Callable[[Integers], Integers]
"""From widths of all groups of a cost model, int64 `[policies, groups]`, to costs, int64 `[policies]`.

The columns are in the order of `CostModel.groups`. A cost never falls as a width grows.
"""

_COUNTED = {"macs": (0, "MACs"), "params": (1, "parameters")}


def measure_of(cost: CostModel, measure: str | Measure) -> tuple[Measure, str]:
    """Return what is measured, and its unit: MACs, parameters, or the µs of a predicted latency.

    Raises:
        UnknownNameError: a name other than `macs` and `params`.
    """
    if callable(measure):
        return measure, "µs"
    if measure not in _COUNTED:
        raise UnknownNameError("measure", measure, _COUNTED)
    column, unit = _COUNTED[measure]
    return lambda widths: cost.costs(widths)[column], unit


class Ladder:
    """The widths that each group may take, narrowest first: multiples of its step, and the full width.

    A step is `round_to` filters in the layers that make the channels: fewer channels where each has several filters.

    A state is a rung for each group, int64 `[groups]`, from 0 to `top`.

    Raises:
        OptionError: `round_to` below 1.
    """

    def __init__(self, groups: ChannelGroups, round_to: int) -> None:
        if round_to < 1:
            raise OptionError(f"round_to: expected at least 1, got {round_to}")
        self.names = tuple(groups)
        full = np.array([group.width for group in groups.values()], dtype=np.int64)
        step = np.array([group.step(round_to) for group in groups.values()], dtype=np.int64)
        first = -(-np.array([group.minimum for group in groups.values()], dtype=np.int64) // step) * step
        self.top = np.maximum(0, -((first - full) // step))
        rungs = np.arange(self.top.max(initial=0) + 1)
        self._widths = np.minimum(first[:, None] + step[:, None] * rungs, full[:, None])  # [groups, rungs]
        self._halfway = (self._widths[:, 1:] + self._widths[:, :-1]) / 2

    def at_least(self, wish: Mapping[str, float]) -> Integers:
        """Return the lowest state that is nowhere below the wished widths, or else at the top."""
        return np.asarray(np.minimum((self._widths < self._column(wish)).sum(axis=1), self.top))

    def nearest(self, wish: Mapping[str, float]) -> Integers:
        """Return the nearest state; half-way the narrower one."""
        return np.asarray(np.minimum((self._halfway < self._column(wish)).sum(axis=1), self.top))

    def widths(self, states: Integers) -> Integers:
        """Return the widths at states `[…, groups]`, in the same shape."""
        return np.asarray(self._widths[np.arange(len(self.names)), states])

    def named(self, state: Integers) -> dict[str, int]:
        """Return the widths of one state by group name."""
        return dict(zip(self.names, self.widths(state).tolist(), strict=True))

    def prices(self, cost: CostModel, measure: Measure) -> Callable[[Integers], Integers]:
        """Return what says the costs `[states]` of `[states, groups]`; groups that have no rungs stay whole."""
        columns = [cost.groups.index(name) for name in self.names]

        def price(states: Integers) -> Integers:
            widths = np.tile(cost.widths, (len(states), 1))
            widths[:, columns] = self.widths(states)
            return measure(widths)

        return price

    def _column(self, wish: Mapping[str, float]) -> npt.NDArray[np.float64]:
        return np.array([[wish[name]] for name in self.names], dtype=np.float64)
