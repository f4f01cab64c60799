"""What the pictures of a sweep are made of: its trials, and what they are measured against."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from search.config import Experiment, Objective
from search.errors import SearchError, SweepError
from search.figures.papers import Reported, reported_on
from search.pareto import Limits, baseline_value, comparable, front, pick, value_of
from search.results import State, TrialRecord
from search.sections import Limit, Span
from search.units import WORDS, percent, written

HALF = Limit(value=0.5, relative=True)
SHOWN_GROUPS = 16
_One = TypeVar("_One")


class NothingToDrawError(SearchError):
    """A picture for which there is nothing yet; the message is a sentence for its reader."""


@dataclass(frozen=True)
class Subject:
    """A sweep as pictures show it.

    Attributes:
        records: every trial.
        baseline: what the uncut network measured.
        objectives: what the front is of.
        widths: channels of every group before any cut, in the network's order.
        title: the sweep's.
        reported: what papers reached with this network.
        logarithmic: searched dimensions whose logarithm counts.
    """

    records: Sequence[TrialRecord]
    baseline: Mapping[str, Any]
    objectives: Sequence[Objective]
    widths: Mapping[str, int]
    title: str = ""
    reported: Sequence[Reported] = ()
    logarithmic: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        records: Sequence[TrialRecord],
        baseline: Mapping[str, Any],
        widths: Mapping[str, int],
    ) -> Subject:
        """Return what pictures show of an experiment's trials."""
        spans = {f"recipe.{field}": asked for field, asked in experiment.search.recipe.items()}
        spans["auxiliary.weight"] = experiment.search.auxiliary.weight
        by_logarithm = frozenset(name for name, asked in spans.items() if isinstance(asked, Span) and asked.log)
        reported = reported_on(experiment.model, experiment.data)
        objectives, title = experiment.objectives, experiment.name
        return cls(records, baseline, objectives, widths, title, reported, by_logarithm)

    @cached_property
    def front(self) -> list[TrialRecord]:
        """The non-dominated trials, cheapest first."""
        return front(self.records, self.objectives)

    @cached_property
    def front_numbers(self) -> frozenset[int]:
        """The numbers of the trials on the front."""
        return frozenset(record.number for record in self.front)

    @property
    def costs(self) -> list[Objective]:
        """The objectives beside accuracy."""
        return [name for name in self.objectives if name != "accuracy"]

    @property
    def cost(self) -> Objective:
        """The first of them, over which accuracy is drawn."""
        return self.costs[0]

    @property
    def dominated(self) -> list[TrialRecord]:
        """The trials that could be on the front and are not."""
        return [
            record for record in comparable(self.records, self.objectives) if record.number not in self.front_numbers
        ]

    @property
    def finished(self) -> list[TrialRecord]:
        """The trials that ran to their end, within the constraints or not, and can be drawn."""
        return self._drawable([record for record in self.records if record.state is State.FINISHED])

    @property
    def infeasible(self) -> list[TrialRecord]:
        """Those of them that broke a constraint."""
        return [record for record in self.finished if not record.feasible]

    @property
    def incomplete(self) -> list[TrialRecord]:
        """Those within the constraints that did not measure every objective, so that they cannot be compared."""
        known = {record.number for record in comparable(self.records, self.objectives)}
        return [record for record in self.finished if record.feasible and record.number not in known]

    @property
    def stopped(self) -> list[TrialRecord]:
        """The trials that were stopped early, and can be drawn where they stopped."""
        return self._drawable([record for record in self.records if record.state is State.STOPPED])

    @property
    def best_at_half(self) -> TrialRecord | None:
        """The most accurate trial that needs at most half of the baseline's first cost, if there is one."""
        try:
            return pick(self.records, self.objectives, Limits(**{f"max_{self.cost}": HALF}), self.baseline).record
        except SweepError:
            return None

    def titled(self, what: str) -> str:
        """Return the title of one picture."""
        return f"{self.title}: {what}" if self.title else what[:1].upper() + what[1:]

    def _drawable(self, records: Sequence[TrialRecord]) -> list[TrialRecord]:
        needed: tuple[Objective, ...] = ("accuracy", self.cost)
        return [record for record in records if all(value_of(record, name) is not None for name in needed)]

    def accuracy(self, record: TrialRecord) -> float:
        """Return a trial's last accuracy in percent; NaN if there is none."""
        value = value_of(record, "accuracy")
        return math.nan if value is None else 100 * value

    def share(self, record: TrialRecord, name: Objective) -> float:
        """Return a trial's cost in percent of the baseline's; NaN if it was not measured.

        Raises:
            SweepError: the baseline lacks it.
        """
        value, full = value_of(record, name), baseline_value(self.baseline, name)
        return math.nan if value is None else 100 * value / full

    def axis(self, name: Objective) -> str:
        """Return what an axis of shares says: `MACs, % of the baseline's 125 M`."""
        return f"{WORDS[name]}, % of the baseline's {written(name, baseline_value(self.baseline, name))}"

    @property
    def counts(self) -> str:
        """How many trials there are, and how they ended."""
        states = Counter(record.state for record in self.records)
        broken = sum(record.state is State.FINISHED and not record.feasible for record in self.records)
        parts = [f"{states[State.FINISHED]} finished"]
        parts += [f"{broken} of them broke a constraint"] if broken else []
        others = (State.STOPPED, State.FAILED, State.RUNNING)
        parts += [f"{states[state]} {state.value}" for state in others if states[state]]
        trials = "1 trial" if len(self.records) == 1 else f"{len(self.records)} trials"
        return f"{trials}: {', '.join(parts)}; front of {len(self.front)}"

    def words(self, record: TrialRecord) -> list[str]:
        """Return lines that name a trial: number, criterion, accuracy, costs."""
        metrics = record.metrics
        epochs = "" if metrics is None else f" after {metrics.epoch} epoch{'' if metrics.epoch == 1 else 's'}"
        if record.state is not State.FINISHED:
            epochs = f" {record.state.value}{epochs}"
        lines = [f"<b>trial {record.number}</b>{epochs}", f"criterion {record.criterion}"]
        if metrics is None:
            return lines
        return [*lines, f"accuracy {percent(metrics.accuracy, 2)}", *self.costs_of(record, self.costs)]

    def described(self, record: TrialRecord) -> list[str]:
        """Return lines that name a trial, all its costs, and what its policy keeps."""
        metrics, policy = record.metrics, record.policy
        lines = self.words(record)
        if metrics is not None:
            names: tuple[Objective, ...] = ("macs", "params", "latency_ms")
            lines += self.costs_of(record, [name for name in names if name not in self.costs])
        if "allocation" in record.params:
            lines.append(f"allocation {record.params['allocation']}")
        if policy.auxiliary is not None:
            lines.append(f"auxiliary losses at {policy.auxiliary}")
        by = {name: f" by {criterion.name}" for name, criterion in policy.criteria.items()}
        widths = self.widths.items()
        kept = [f"{name} {percent(policy.widths.get(name, w) / w, 0)}{by.get(name, '')}" for name, w in widths]
        lines += ["kept:", *("  ".join(kept[start : start + 2]) for start in range(0, min(len(kept), SHOWN_GROUPS), 2))]
        return [*lines, f"and {len(kept) - SHOWN_GROUPS} more groups"] if len(kept) > SHOWN_GROUPS else lines

    def costs_of(self, record: TrialRecord, names: Sequence[Objective]) -> list[str]:
        """Return a line for each of some costs that a trial measured: `MACs 20.0 M (50.0 %)`."""
        lines = []
        for name in names:
            value, full = value_of(record, name), self.baseline.get(name)
            if value is not None:
                share = f" ({percent(value / full)})" if full else ""
                lines.append(f"{WORDS[name]} {written(name, value)}{share}")
        return lines


def some_of(values: Sequence[_One], most: int) -> list[_One]:
    """Return at most so many values, evenly spaced, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(place * (len(values) - 1) / (most - 1))] for place in range(most)]
