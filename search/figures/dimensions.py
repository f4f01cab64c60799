"""What was searched, as few enough dimensions to look at: one value of each for each trial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.figures.subject import Subject
from search.results import TrialRecord

MOST_STAGES = 6
FEW = 5
"""Numbers with no more different values than this, each three times in the mean, are choices."""

Value = float | str | None
"""None where the dimension does not exist for a trial."""

_WIDTHS = ("width.", "factor.", "score.")  # numbers of a direction: what they mean is the channels kept
_LABELS = {"auxiliary.count": "auxiliary losses", "budget": "budget, %"}


@dataclass(frozen=True)
class Dimension:
    """One dimension of the search.

    Attributes:
        name: `criterion`, `recipe.learning_rate`, `kept.32`.
        label: for people.
        values: by trial.
        logarithmic: whether its logarithm counts.
    """

    name: str
    label: str
    values: tuple[Value, ...]
    logarithmic: bool = False

    @property
    def categories(self) -> list[Value]:
        """Its values in order, those that do not exist last, where it is a choice; empty where it is a number."""
        different = sorted(set(self.values) - {None}, key=lambda value: (isinstance(value, str), value))
        repeated = len(different) <= min(FEW, len(self.values) // 3)
        if repeated or any(isinstance(value, str) for value in different):
            return [*different, *([None] if None in self.values else [])]
        return []


def dimensions(subject: Subject, records: Sequence[TrialRecord]) -> list[Dimension]:
    """Return the dimensions in which some trials differ.

    Widths are what policies keep, for the groups of each stage together: a rule's count as well as searched ones, and
    27 numbers are too many to look at. Criteria by stage or group are the part of the groups that each ranks. Places of
    auxiliary losses are left out: as numbers they mean nothing.
    """
    names = dict.fromkeys(name for record in records for name in record.params)
    several = any(record.policy.criteria for record in records)
    left_out = (*_WIDTHS, "auxiliary.position.", *(("criterion.",) if several else ()))
    found = [_dimension(subject, name, records) for name in names if not name.startswith(left_out)]
    found += _criteria(records) if several else []
    found += kept_by_stage(subject, records)
    return [dimension for dimension in found if len(set(dimension.values)) > 1]


def _dimension(subject: Subject, name: str, records: Sequence[TrialRecord]) -> Dimension:
    words = name.removeprefix("recipe.").removeprefix("auxiliary.").replace("criterion.", "options of ")
    label = _LABELS.get(name, words.replace("_", " "))
    values = [_value(record, name) for record in records]
    return Dimension(name, label, tuple(values), name in subject.logarithmic)


def _value(record: TrialRecord, name: str) -> Value:
    if name not in record.params:
        return None
    value = record.params[name]
    if name.startswith("recipe."):  # a choice between lists is on record as its place among them
        value = getattr(record.policy.recipe, name.removeprefix("recipe."), value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return 100.0 * value if name == "budget" else float(value)
    return str(value)


def _criteria(records: Sequence[TrialRecord]) -> list[Dimension]:
    """Return for each criterion the part of the groups that it ranks, in percent."""
    parts = [_parts(record) for record in records]
    names = dict.fromkeys(name for part in parts for name in part)
    return [
        Dimension(f"criterion {name}", f"ranked by {name}, %", tuple(part.get(name, 0.0) for part in parts))
        for name in names
    ]


def _parts(record: TrialRecord) -> dict[str, float]:
    policy = record.policy
    named = [policy.criterion_of(name).name for name in policy.widths]
    return {name: 100 * named.count(name) / len(named) for name in named}


def kept_by_stage(subject: Subject, records: Sequence[TrialRecord]) -> list[Dimension]:
    """Return the mean part of their channels that the groups of each stage keep, in percent.

    A stage is the groups of one full width; where there are more than six of them, neighbours are taken together.
    Groups that no trial cuts are left out.
    """
    kept = {
        name: [record.policy.widths.get(name, full) / full for record in records]
        for name, full in subject.widths.items()
    }
    cut = {name: subject.widths[name] for name, shares in kept.items() if min(shares, default=1.0) < 1}
    widths = sorted(set(cut.values()))
    parts = np.array_split(widths, min(MOST_STAGES, len(widths))) if widths else []
    found = []
    for part in parts:
        low, high = int(part[0]), int(part[-1])
        name = str(low) if low == high else f"{low}–{high}"
        means = 100 * np.mean([kept[group] for group, full in cut.items() if low <= full <= high], axis=0)
        found.append(Dimension(f"kept.{name}", f"kept of {name}, %", tuple(means.tolist())))
    return found
