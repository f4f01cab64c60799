"""The widths that each searched group may take, and what all of them together cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pruning import ChannelGroups, CostModel
from search.errors import SearchError

Integers = NDArray[np.int64]
Vector = NDArray[np.float64]

BATCH = 10_000
"""Policies whose cost is counted at a time: their columns stay in the processor's cache."""


@dataclass(frozen=True)
class Ladder:
    """A state is a rung for each searched group, int64 `[groups]`; the other groups keep all their channels.

    Attributes:
        names: the searched groups.
        rungs: of each group the widths it may have, ascending, int64 `[widths]`; the last is its full width.
        cost: of the whole network.
    """

    names: tuple[str, ...]
    rungs: tuple[Integers, ...]
    cost: CostModel

    @classmethod
    def of(
        cls, groups: ChannelGroups, cost: CostModel, least: Mapping[str, int] | None = None, *, round_to: int = 1
    ) -> Ladder:
        """Return all multiples of `round_to` filters from the least width of each group on, and its full width.

        Args:
            groups: the searched ones.
            cost: of the whole network.
            least: the narrowest width of each group; none stands for the groups' own minimum.
            round_to: at least 1.
        """
        if round_to < 1:
            raise SearchError(f"round_to: expected at least 1, got {round_to}")
        rungs = []
        for name, group in groups.items():
            narrowest = max(group.minimum, (least or {}).get(name, 1))
            step = group.step(round_to)
            first = -(-narrowest // step) * step
            rungs.append(np.array([*range(first, group.width, step), group.width], dtype=np.int64))
        return cls(tuple(groups), tuple(rungs), cost)

    @property
    def full(self) -> Integers:
        """The uncut widths, `[groups]`."""
        return np.array([rungs[-1] for rungs in self.rungs], dtype=np.int64)

    @property
    def top(self) -> Integers:
        """The state in which nothing is cut, `[groups]`."""
        return np.array([len(rungs) - 1 for rungs in self.rungs], dtype=np.int64)

    def widths(self, states: Integers) -> Integers:
        """Return widths `[policies, groups]` of states `[policies, groups]`."""
        columns = [rungs[states[:, index]] for index, rungs in enumerate(self.rungs)]
        return np.stack(columns, axis=1) if columns else states

    def nearest(self, widths: NDArray[np.floating] | Integers) -> Integers:
        """Return the states `[policies, groups]` nearest to widths; half-way the narrower rung."""
        halves = [(rungs[:-1] + rungs[1:]) / 2 for rungs in self.rungs]
        return np.stack([np.searchsorted(half, widths[:, index]) for index, half in enumerate(halves)], axis=1)

    def matrix(self, policies: Sequence[Mapping[str, int]]) -> Integers:
        """Return widths `[policies, groups]` of policies by group name; a group that is not named is uncut."""
        full = dict(zip(self.names, self.full.tolist(), strict=True))
        rows = [[policy.get(name, full[name]) for name in self.names] for policy in policies]
        return np.array(rows, dtype=np.int64).reshape(len(policies), len(self.names))

    def costs(self, widths: Integers) -> tuple[Integers, Integers]:
        """Return exact MACs and parameters, int64 `[policies]` each, at widths `[policies, groups]`."""
        counted = [self.cost.costs(batch) for batch in self._batches(widths)]
        empty = np.zeros(0, dtype=np.int64)
        macs, params = zip(*counted, strict=True) if counted else ((empty,), (empty,))
        return np.concatenate(macs), np.concatenate(params)

    def _batches(self, widths: Integers) -> Iterator[Integers]:
        columns = [self.cost.groups.index(name) for name in self.names]
        for start in range(0, len(widths), BATCH):
            part = widths[start : start + BATCH]
            batch = np.tile(self.cost.widths, (len(part), 1))
            batch[:, columns] = part
            yield batch
