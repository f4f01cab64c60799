"""What a search wants of a policy, as numbers to be minimised."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from search.config import Objective
from search.errors import SearchError
from search.surrogate.evolution import Points
from search.surrogate.ladder import Integers, Ladder, Vector

Estimate = Callable[[Integers], Vector]
"""From widths `[policies, searched groups]` to what each costs, `[policies]`."""


class Goals:
    """The objectives of a search, and the costs that are known without a trial.

    Args:
        ladder: the searched groups.
        objectives: accuracy, and one or two costs.
        baseline: what the uncut network measures, by name.
        estimates: costs that are neither MACs nor parameters.

    Raises:
        SearchError: objectives without accuracy, or with a cost that nothing tells.
    """

    def __init__(
        self,
        ladder: Ladder,
        objectives: Sequence[Objective],
        baseline: Mapping[str, float],
        estimates: Mapping[Objective, Estimate],
    ) -> None:
        self._ladder, self._objectives, self._estimates = ladder, tuple(objectives), dict(estimates)
        if "accuracy" not in objectives:
            raise SearchError(f"objectives: expected accuracy among them, got {', '.join(objectives)}")
        for name in objectives:
            if name != "accuracy":
                self._check(name)
        self._baseline = {name: float(baseline[name]) for name in objectives}

    def costs(self, widths: Integers) -> dict[Objective, Vector]:
        """Return every cost that is known of widths `[policies, groups]`, each `[policies]`."""
        macs, params = self._ladder.costs(widths)
        costs: dict[Objective, Vector] = {"macs": macs.astype(np.float64), "params": params.astype(np.float64)}
        return costs | {name: estimate(widths) for name, estimate in self._estimates.items()}

    def cost(self, name: Objective, widths: Integers) -> Vector:
        """Return one cost of widths `[policies, groups]`, `[policies]`.

        Raises:
            SearchError: one that nothing tells.
        """
        self._check(name)
        if name in self._estimates:
            return self._estimates[name](widths)
        macs, params = self._ladder.costs(widths)
        return (macs if name == "macs" else params).astype(np.float64)

    def _check(self, name: Objective) -> None:
        if name not in ("macs", "params", *self._estimates):
            raise SearchError(f"costs: expected macs, params or one with an estimate, got {name}")

    def points(self, costs: Mapping[Objective, Vector], accuracy: Vector) -> Points:
        """Return by how much policies miss the ideal, `[policies, objectives]`: 0 is ideal, 1 the reference.

        The reference is no accuracy at the baseline's costs, as in `search.pareto.hypervolume`.
        """
        columns = [
            1 - accuracy if name == "accuracy" else costs[name] / self._baseline[name] for name in self._objectives
        ]
        return np.stack(columns, axis=1)
