"""The dimensions beside the widths: criterion, auxiliary losses, recipe. Each is asked for only where it matters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import optuna

from pruning import AuxiliaryPlacement, ChannelGroups, CriterionSpec, Policy, Recipe, even_positions
from search.config import SearchSpace
from search.directions import by_group, by_stage
from search.sections import AuxiliarySpace, Span


class CriterionDimensions:
    """Which criterion ranks which group: `criterion`, and `criterion.<name>` where one is listed with several options.

    Args:
        search: the criteria, and for what each is drawn.
        groups: those that are ranked.
    """

    def __init__(self, search: SearchSpace, groups: ChannelGroups) -> None:
        self._variants: dict[str, dict[str, CriterionSpec]] = {}  # by name, then by options
        for spec in search.criterion:
            self._variants.setdefault(spec.name, {})[_written(spec)] = spec
        suffixes = {"group": by_group(groups, ""), "stage": by_stage(groups, "")}
        self._suffixes = suffixes.get(search.criterion_per, dict.fromkeys(groups, ""))

    @property
    def conditional(self) -> bool:
        """Whether the options hang on the name."""
        return len(self._variants) > 1 and any(len(variants) > 1 for variants in self._variants.values())

    def ask(self, trial: optuna.trial.BaseTrial) -> dict[str, CriterionSpec]:
        """Return the criterion of each group."""
        asked = {suffix: self._ask(trial, suffix) for suffix in dict.fromkeys(self._suffixes.values())}
        return {name: asked[suffix] for name, suffix in self._suffixes.items()}

    def answers(self, policy: Policy) -> dict[str, Any]:
        """Return the answers that give a policy's criteria, as far as they are searched."""
        found: dict[str, Any] = {}
        for name, suffix in self._suffixes.items():
            spec = policy.criterion_of(name)
            variants = self._variants.get(spec.name, {})
            if _written(spec) not in variants:
                continue
            if len(self._variants) > 1:
                found.setdefault(f"criterion{suffix}", spec.name)
            if len(variants) > 1:
                found.setdefault(f"criterion.{spec.name}{suffix}", _written(spec))
        return found

    def _ask(self, trial: optuna.trial.BaseTrial, suffix: str) -> CriterionSpec:
        name = choice(trial, f"criterion{suffix}", list(self._variants))
        variants = self._variants[name]
        return variants[choice(trial, f"criterion.{name}{suffix}", list(variants))]


def _written(spec: CriterionSpec) -> str:
    return json.dumps(spec.options, sort_keys=True)


class AuxiliaryDimensions:
    """How many auxiliary losses, where, which heads, how heavy.

    Args:
        asked: what is searched.
        blocks: behind how many modules losses can sit.
    """

    def __init__(self, asked: AuxiliarySpace, blocks: int) -> None:
        self._asked, self._blocks = asked, blocks

    @property
    def conditional(self) -> bool:
        """Whether some dimensions hang on others."""
        asked = self._asked
        several = len(asked.placement) > 1 or len(asked.head) > 1 or asked.weight_is_searched
        hang = 0 in asked.count and len(asked.count) > 1 and several
        hang |= "free" in asked.placement and (len(asked.count) > 1 or len(asked.placement) > 1)
        return hang and not asked.positions

    def ask(self, trial: optuna.trial.BaseTrial) -> AuxiliaryPlacement | None:
        """Return the losses of a trial; None for none."""
        asked = self._asked
        positions = asked.positions
        if not positions:
            count = choice(trial, "auxiliary.count", list(asked.count))
            if count == 0:
                return None
            free = choice(trial, "auxiliary.placement", list(asked.placement)) == "free"
            positions = self._free(trial, count) if free else even_positions(self._blocks, count)
        head = choice(trial, "auxiliary.head", list(asked.head))
        if isinstance(asked.weight, Span):
            weight = number(trial, "auxiliary.weight", asked.weight, whole=False)
        else:
            weight = choice(trial, "auxiliary.weight", asked.weight)
        return asked.placement_of(positions, head, weight)

    def _free(self, trial: optuna.trial.BaseTrial, count: int) -> tuple[int, ...]:
        """Ask for `count` different blocks, never the last one.

        Every answer is a set: sorted numbers that may repeat, moved apart by one each.
        """
        names = [f"auxiliary.position.{number}of{count}" for number in range(1, count + 1)]
        drawn = sorted(trial.suggest_int(name, 1, self._blocks - count) for name in names)
        return tuple(number + before for before, number in enumerate(drawn))


def ask_recipe(trial: optuna.trial.BaseTrial, fixed: Recipe, searched: Mapping[str, Span | list[Any]]) -> Recipe:
    """Return a recipe whose searched fields are the trial's."""
    values = fixed.model_dump()
    for field, choices in searched.items():
        name = f"recipe.{field}"
        if isinstance(choices, list):
            values[field] = (
                choices[choice(trial, name, list(range(len(choices))))]
                if _nested(choices)
                else (choice(trial, name, choices))
            )
        else:
            values[field] = number(trial, name, choices, whole=Recipe.model_fields[field].annotation is int)
    return Recipe.model_validate(values)


def choice(trial: optuna.trial.BaseTrial, name: str, choices: list[Any]) -> Any:
    """Ask for one of several values, where there are several."""
    return choices[0] if len(choices) == 1 else trial.suggest_categorical(name, choices)


def _nested(choices: list[Any]) -> bool:
    return any(isinstance(choice, (list, dict)) for choice in choices)


def number(trial: optuna.trial.BaseTrial, name: str, span: Span, *, whole: bool) -> float:
    """Ask for a number of a span."""
    if whole:
        return trial.suggest_int(name, int(span.low), int(span.high), log=span.log)
    return trial.suggest_float(name, span.low, span.high, log=span.log)
