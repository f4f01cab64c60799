"""Searched widths as numbers: what a trial is asked for, the direction through width space that it means, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import optuna
from numpy.typing import NDArray

from pruning import ChannelGroups, Ranking, RankingError

Widths = Mapping[str, float]
Direction = Callable[[float], Widths]
"""From t in [0, 1] to wished widths, see `pruning.project`."""

FACTORS = (0.5, 2.0)
"""How far widths around a rule's may lie from them."""

SCALES, SHIFTS = (0.25, 4.0), (-1.0, 1.0)
"""How a stage's scores are stretched and moved against those of other stages."""


class Parametrisation(Protocol):
    """One way to write widths as numbers. What leaves no choice is not asked for."""

    def direction(self, trial: optuna.trial.BaseTrial, target: int, ranking: Ranking | None) -> Direction:
        """Ask for the numbers and return the direction that they mean.

        Args:
            trial: who answers.
            target: the budget that will be met along the direction.
            ranking: of the trial's criterion, where it is known.
        """
        ...

    def numbers(self, widths: Mapping[str, int], target: int, ranking: Ranking | None) -> dict[str, float]:
        """Return the answers whose direction passes through `widths`, or near to them, at a budget."""
        ...


@dataclass(frozen=True)
class Proportions:
    """Widths in fixed proportion to each other: numbers times the widths of a centre, all scaled until they fit.

    Attributes:
        groups: those that are searched.
        least: their narrowest widths.
        names: of each group the dimension that it listens to; groups of a stage share one.
        centre: the widths that stand for 1, by budget.
        bounds: of the numbers.
        log: whether numbers are drawn by their logarithm.
    """

    groups: ChannelGroups
    least: Mapping[str, int]
    names: Mapping[str, str]
    centre: Callable[[int], Widths]
    bounds: tuple[float, float]
    log: bool

    def direction(self, trial: optuna.trial.BaseTrial, target: int, ranking: Ranking | None) -> Direction:  # noqa: ARG002
        """See `Parametrisation.direction`."""
        numbers = {name: trial.suggest_float(name, *self.bounds, log=self.log) for name in self._asked}
        centre = self.centre(target)
        points = {group: numbers.get(name, 1.0) * centre[group] for group, name in self.names.items()}
        return scaled(points, self.least, self.groups.widths)

    def numbers(self, widths: Mapping[str, int], target: int, ranking: Ranking | None) -> dict[str, float]:  # noqa: ARG002
        """See `Parametrisation.numbers`; of groups that share a dimension the geometric mean."""
        centre, low, high = self.centre(target), *self.bounds
        found = {}
        for name in self._asked:
            ratios = [widths[group] / centre[group] for group, asked in self.names.items() if asked == name]
            mean = ratios[0] if len(set(ratios)) == 1 else math.exp(np.mean(np.log(ratios)))
            found[name] = min(high, max(low, mean))
        return found

    @property
    def _asked(self) -> list[str]:
        """The dimensions that matter: with one alone all its values mean the same direction."""
        free = [name for group, name in self.names.items() if self.least[group] < self.groups[group].width]
        asked = list(dict.fromkeys(free))
        return asked if len(set(self.names.values())) > 1 else []


@dataclass(frozen=True)
class Thresholds:
    """Each stage stretches and moves its channels' scores; those above one threshold stay.

    A group's scores are first divided by their mean, as the rule `global` does.

    Attributes:
        groups: those that are searched.
        least: their narrowest widths.
    """

    groups: ChannelGroups
    least: Mapping[str, int]

    def direction(self, trial: optuna.trial.BaseTrial, target: int, ranking: Ranking | None) -> Direction:  # noqa: ARG002
        """See `Parametrisation.direction`.

        Raises:
            RankingError: a ranking without scores.
        """
        scales, shifts = dict[int, float](), dict[int, float]()
        for stage in self._stages if len(self._stages) > 1 else ():
            scales[stage] = trial.suggest_float(f"score.scale.stage{stage}", *SCALES, log=True)
            shifts[stage] = trial.suggest_float(f"score.shift.stage{stage}", *SHIFTS)
        scores = self._scores(ranking)
        moved = [
            scales.get(group.width, 1.0) * scores[name] + shifts.get(group.width, 0.0)
            for name, group in self.groups.items()
        ]
        owners = np.repeat(np.arange(len(self.groups)), [len(score) for score in moved])
        best_first = owners[np.argsort(-np.concatenate(moved), kind="stable")]

        def direction(t: float) -> Widths:
            kept = np.bincount(best_first[: round(t * len(best_first))], minlength=len(self.groups))
            return {name: max(self.least[name], int(n)) for name, n in zip(self.groups, kept, strict=True)}

        return direction

    def numbers(self, widths: Mapping[str, int], target: int, ranking: Ranking | None) -> dict[str, float]:  # noqa: ARG002
        """See `Parametrisation.numbers`; each stage keeps as many channels as in `widths`, where the shifts allow."""
        if len(self._stages) == 1:
            return {}
        scores, thresholds = self._scores(ranking), dict[int, float]()
        for stage in self._stages:
            names = [name for name, group in self.groups.items() if group.width == stage]
            falling = -np.sort(-np.concatenate([scores[name] for name in names]))
            kept = sum(widths[name] for name in names)
            thresholds[stage] = float(falling[kept - 1] + falling[min(kept, len(falling) - 1)]) / 2
        middle = (min(thresholds.values()) + max(thresholds.values())) / 2
        found = {}
        for stage, threshold in thresholds.items():
            found[f"score.scale.stage{stage}"] = 1.0
            found[f"score.shift.stage{stage}"] = min(SHIFTS[1], max(SHIFTS[0], middle - threshold))
        return found

    @property
    def _stages(self) -> list[int]:
        return stages(self.groups)

    def _scores(self, ranking: Ranking | None) -> dict[str, NDArray[np.float64]]:
        found = {}
        for name in self.groups:
            scores = getattr(ranking, "scores", {}).get(name)
            if scores is None:
                got = "no ranking" if ranking is None else f"ranking '{ranking.criterion}' without"
                raise RankingError(f"search.widths.per scores, group '{name}': expected scores, got {got}")
            of_group = scores.numpy()
            found[name] = of_group / (np.abs(of_group).mean() or 1.0)
        return found


def scaled(points: Widths, least: Mapping[str, int], full: Mapping[str, int]) -> Direction:
    """Return the widths in proportion to `points`, from the narrowest through the points (t = ½) to the full ones."""

    def direction(t: float) -> Widths:
        scale = t / (1 - t) if t < 1 else math.inf
        return {name: min(full[name], max(least[name], scale * point)) for name, point in points.items()}

    return direction


def stages(groups: ChannelGroups) -> list[int]:
    """Return the full widths that there are: groups of one full width are a stage."""
    return sorted({group.width for group in groups.values()})


def by_group(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Return a dimension for each group."""
    return {name: f"{prefix}.{name}" for name in names}


def by_stage(groups: ChannelGroups, prefix: str) -> dict[str, str]:
    """Return a dimension for each stage, by group."""
    return {name: f"{prefix}.stage{group.width}" for name, group in groups.items()}
