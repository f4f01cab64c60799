"""One of equal values for all: the trials of a sweep differ in a few numbers, and each would hold everything anew."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TypeVar

from optuna.trial import FrozenTrial

from pruning import Policy
from search.results import TrialRecord

_Value = TypeVar("_Value")


class Pool:
    """Keeps the first of all values that read the same, `1` and `1.0` apart. Values must not be changed."""

    def __init__(self) -> None:
        self._kept: dict[str, object] = {}

    def one(self, value: _Value) -> _Value:
        """Return what is kept of a value: itself, or one that was there before."""
        return self._kept.setdefault(repr(value), value)  # type: ignore[return-value]  # reads the same: same type

    def trial(self, trial: FrozenTrial) -> None:
        """Have a trial share its distributions with others."""
        trial.distributions = self.one({name: self.one(value) for name, value in trial.distributions.items()})

    def record(self, record: TrialRecord) -> TrialRecord:
        """Return a record whose policy shares all but its numbers with others."""
        return replace(record, policy=self._policy(record.policy))

    def _policy(self, policy: Policy) -> Policy:
        parts = {name: self.one(getattr(policy, name)) for name in Policy.model_fields if name != "widths"}
        widths = {sys.intern(name): width for name, width in policy.widths.items()}
        return policy.model_copy(update={"widths": widths, **parts})
