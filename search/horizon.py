"""Samplers that see part of a study: a proposal costs the same after thousands of trials as after hundreds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

Sight = Callable[[], list[FrozenTrial]]
"""Returns the trials that are seen, by number."""


class Horizon(BaseSampler):
    """Lets another sampler propose from the trials in sight.

    Args:
        sampler: proposes.
        sight: what it learns from; asked each time.
        shapes: a trial for each set of dimensions, from which it learns what there is to draw.
    """

    def __init__(self, sampler: BaseSampler, sight: Sight, shapes: Sight) -> None:
        self._sampler, self._sight, self._shapes = sampler, sight, shapes

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the dimensions that are drawn together."""
        return self._sampler.infer_relative_search_space(_SeenStudy(study, self._shapes), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw them."""
        return self._sampler.sample_relative(self._seen(study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one of the others."""
        return self._sampler.sample_independent(self._seen(study), trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tell that a trial begins."""
        self._sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Tell that a trial ends."""
        self._sampler.after_trial(study, trial, state, values)

    def _seen(self, study: Study) -> Study:
        return _SeenStudy(study, self._sight)


class _SeenStudy(Study):
    """A study but for the trials that are out of sight."""

    def __init__(self, study: Study, sight: Sight) -> None:
        self.__dict__.update(study.__dict__)
        self._sight = sight

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
        use_cache: bool = False,  # noqa: ARG002  # Optuna's argument
    ) -> list[FrozenTrial]:
        trials = [trial for trial in self._sight() if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials
