"""The cheapest choice of one width for each group within a budget, as a mixed-integer linear program."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from pruning.cost import CostModel

Vector = NDArray[np.float64]
Integers = NDArray[np.int64]

SCALE = 1e3
"""What the largest term of a sum is: the solver's tolerances, about 1e-6, are absolute."""

STOPPED = 1
"""What scipy says when the time is over."""


@dataclass(frozen=True)
class Choice:
    """A width for each group.

    Attributes:
        widths: None where there are none, or the time was over before any were found.
        stopped: the time was over before there was proof that no choice is better.
        gap: how much smaller the sum of losses can be at most.
        mip_gap: the gap as a share of the sum, as the solver reports it.
    """

    widths: dict[str, int] | None
    stopped: bool = False
    gap: float = 0.0
    mip_gap: float = 0.0


def choose_levels(
    widths: Mapping[str, Integers],
    losses: Mapping[str, Vector],
    cost: CostModel,
    macs: int,
    *,
    enough: int = 0,
    seconds: float = np.inf,
) -> Choice:
    """Minimise Σ losses[group][level] with `enough` ≤ MACs of `widths[group][level]` ≤ `macs`; one level a group.

    A weight whose two axes are cut costs a product of two widths. With xᵢ = 1 for the level of one and r the channels
    removed of the other, yᵢ = xᵢ·r is the only solution of Σyᵢ = r, 0 ≤ yᵢ ≤ xᵢ·max r: linear, and exact.

    Args:
        widths: of each group those that may be chosen, ascending, int64 `[levels]`; other groups stay whole.
        losses: what each costs, float64 `[levels]`.
        cost: of the whole network.
        macs: the budget.
        enough: what is to be spent at least. If nothing is, of equal losses only the narrowest width is chosen.
        seconds: when to stop the search for a better choice.
    """
    if not enough:
        levels = {name: _undominated(losses[name]) for name in widths}
        widths = {name: widths[name][chosen] for name, chosen in levels.items()}
        losses = {name: losses[name][chosen] for name, chosen in levels.items()}
    program = _Program(widths, cost)
    objective = np.concatenate([*losses.values(), np.zeros(program.size - program.binaries)])
    scale = SCALE / max(np.abs(objective).max(), np.finfo(float).tiny * SCALE)
    while True:
        result = program.solve(objective * scale, macs, enough, seconds)
        if result.x is None:
            return Choice(None, stopped=result.status == STOPPED, gap=np.inf, mip_gap=np.inf)
        chosen = program.chosen(result.x)
        found = {name: int(widths[name][level]) for name, level in chosen.items()}
        if enough <= cost.cost(found).macs <= macs:
            if result.status != STOPPED:
                return Choice(found)
            return Choice(found, True, float(result.fun - result.mip_dual_bound) / scale, float(result.mip_gap))
        program.forbid(chosen)  # outside the budget by less than the solver's tolerance


def _undominated(losses: Vector) -> NDArray[np.intp]:
    """Return the levels that cost less than every narrower one: no other is ever needed."""
    least = np.minimum.accumulate(losses)
    return np.flatnonzero(np.append(True, losses[1:] < least[:-1]))


class _Program:
    """Variables and constraints: for each group one x a level, then the y of each pair that is multiplied."""

    def __init__(self, widths: Mapping[str, Integers], cost: CostModel) -> None:
        full = dict(zip(cost.groups, cost.widths.tolist(), strict=True))
        self.removed = {name: (full[name] - of_group).astype(float) for name, of_group in widths.items()}
        ends = np.cumsum([len(of_group) for of_group in widths.values()])
        self.first = dict(zip(widths, [0, *ends[:-1].tolist()], strict=True))
        self.binaries = self.size = int(ends[-1])
        self._rows: list[tuple[Integers, Vector, float, float]] = []  # variables, coefficients, least, most
        for name in widths:
            self._add(self._x(name), np.ones(len(widths[name])), 1, 1)
        self._macs_of(cost)

    def solve(self, objective: Vector, macs: int, enough: int, seconds: float):  # type: ignore[no-untyped-def]  # scipy has no types
        """Return scipy's least objective within a budget."""
        scale = SCALE / np.abs(self.macs).max(initial=1.0)
        budget = (np.arange(self.size), self.macs * scale, *((np.array([enough, macs]) - self.fixed) * scale))
        columns, values, least, most = zip(*self._rows, budget, strict=True)
        rows = np.repeat(np.arange(len(columns)), [len(of_row) for of_row in columns])
        places = (rows, np.concatenate(columns))
        matrix = coo_array((np.concatenate(values), places), shape=(len(columns), self.size)).tocsr()
        integral = np.arange(self.size) < self.binaries
        return milp(
            objective,
            integrality=integral.astype(int),
            bounds=Bounds(0, np.where(integral, 1, np.inf)),
            constraints=LinearConstraint(matrix, least, most),
            options={"time_limit": seconds, "mip_rel_gap": 0},
        )

    def chosen(self, x: Vector) -> dict[str, int]:
        """Return each group's level."""
        return {name: int(x[self._x(name)].argmax()) for name in self.first}

    def forbid(self, chosen: Mapping[str, int]) -> None:
        """Exclude one choice."""
        picked = np.array([self.first[name] + level for name, level in chosen.items()])
        self._add(picked, np.ones(len(picked)), 0, len(picked) - 1)

    def _x(self, name: str) -> Integers:
        return np.arange(self.first[name], self.first[name] + len(self.removed[name]))

    def _add(self, columns: Integers, values: Vector, least: float, most: float) -> None:
        self._rows.append((columns, values, least, most))

    def _macs_of(self, cost: CostModel) -> None:
        """Write the MACs as `fixed + macs · variables`: each weight's product, multiplied out."""
        self.fixed, products = cost.products()
        alone = {name: np.zeros(len(removed)) for name, removed in self.removed.items()}
        pairs: dict[tuple[str, str], int] = {}
        for product in products:
            assert len(product.axes) <= 2, "a weight has one axis that makes channels and one that reads them"
            sizes = [size for size, _ in product.axes]
            axes = [{name: n for name, n in shares.items() if name in self.removed} for _, shares in product.axes]
            self.fixed += product.factor * int(np.prod(sizes))
            for axis, shares in enumerate(axes):
                others = int(np.prod(sizes[:axis] + sizes[axis + 1 :]))
                for name, n in shares.items():
                    alone[name] -= product.factor * others * n * self.removed[name]
            for name, n in axes[0].items():
                for other, m in axes[1].items() if len(axes) == 2 else ():
                    if name == other:
                        alone[name] += product.factor * n * m * self.removed[name] ** 2
                    else:
                        # The group with fewer levels is the one that y is made for.
                        pair = sorted((name, other), key=lambda group: (len(self.removed[group]), self.first[group]))
                        pairs[pair[0], pair[1]] = pairs.get((pair[0], pair[1]), 0) + product.factor * n * m
        self.macs: Vector = np.concatenate([*alone.values(), *(self._pair(*pair, f) for pair, f in pairs.items())])

    def _pair(self, name: str, other: str, factor: int) -> Vector:
        """Add y = x of one group times the part removed of another; return the MACs of each."""
        x, most = self._x(name), self.removed[other].max()
        y = np.arange(self.size, self.size + len(x))
        self.size += len(x)
        if most == 0:
            return np.zeros(len(x))
        part = self.removed[other] / most
        self._add(np.append(y, self._x(other)), np.append(np.ones(len(y)), -part), 0, 0)
        for of_level, level in zip(y.tolist(), x.tolist(), strict=True):
            self._add(np.array([of_level, level]), np.array([1.0, -1.0]), -np.inf, 0)
        macs: Vector = factor * most * self.removed[name]
        return macs
