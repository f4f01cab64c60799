"""The front of a sweep: who is on it, how much it dominates, and which trial to take under limits.

Accuracy is maximised; MACs, parameters and latency are minimised. A trial takes part with its last measurement, if it
finished within the experiment's constraints and measured every objective.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import moocore
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pruning import Policy, explain
from search.config import Objective
from search.errors import SweepError
from search.results import Metrics, State, TrialRecord
from search.sections import Limit
from search.units import WORDS, percent, written

ROUNDING = 1e-9  # 70 % of 90 is 62.999…; a network of exactly 63 is within


def value_of(record: TrialRecord, objective: Objective) -> float | None:
    """Return what a trial measured last; None where it was not measured or is not finite."""
    value = getattr(record.metrics, objective, None)
    return float(value) if value is not None and math.isfinite(value) else None


def comparable(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Return the trials that may stand on the front and measured every objective, by number."""
    counting = [record for record in records if record.counts]
    measured = [record for record in counting if all(value_of(record, name) is not None for name in objectives)]
    return sorted(measured, key=lambda record: record.number)


def _points(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> NDArray[np.float64]:
    """Return `[trials, objectives]`, every column to be minimised."""
    rows = [point_of(record.metrics, objectives) for record in records if record.metrics is not None]
    return np.asarray(rows, dtype=np.float64).reshape(len(records), len(objectives))


def point_of(metrics: Metrics, objectives: Sequence[Objective]) -> tuple[float, ...]:
    """Return what was measured of each objective, every value to be minimised.

    Args:
        metrics: with every objective in them.
        objectives: their names.
    """
    return tuple(getattr(metrics, name) * (-1.0 if name == "accuracy" else 1.0) for name in objectives)


def front(records: Sequence[TrialRecord], objectives: Sequence[Objective]) -> list[TrialRecord]:
    """Return the trials that no other dominates, cheapest first; of equal ones the lowest number."""
    candidates = comparable(records, objectives)
    if not candidates:
        return []
    kept = moocore.is_nondominated(_points(candidates, objectives), keep_weakly=False)
    chosen = [record for record, keep in zip(candidates, kept, strict=True) if keep]
    costs = [name for name in objectives if name != "accuracy"]
    return sorted(chosen, key=lambda record: (*(getattr(record.metrics, name) for name in costs), record.number))


def hypervolume(
    records: Sequence[TrialRecord],
    objectives: Sequence[Objective],
    baseline: Mapping[str, Any],
    *,
    accuracy_floor: float = 0.0,
) -> float:
    """Return the part of all reachable trade-offs that the front dominates, 0 to 1; bigger is better.

    Costs are parts of the baseline's, so a cost axis runs from the baseline (reference) to nothing; accuracy runs from
    `accuracy_floor` (reference) to 1. A trial beyond the reference adds nothing.

    Raises:
        SweepError: the baseline lacks an objective, or the floor is not below 1.
    """
    if not 0 <= accuracy_floor < 1:
        raise SweepError(f"accuracy_floor: expected 0 to below 1, got {accuracy_floor}")
    scales = [1 - accuracy_floor if name == "accuracy" else baseline_value(baseline, name) for name in objectives]
    members = front(records, objectives)
    if not members:
        return 0.0
    ideal = [-1.0 if name == "accuracy" else 0.0 for name in objectives]
    shortfall = (_points(members, objectives) - ideal) / scales  # 0 is ideal, 1 the reference
    return float(moocore.hypervolume(shortfall, ref=1.0))


def hypervolume_history(
    records: Sequence[TrialRecord], objectives: Sequence[Objective], baseline: Mapping[str, Any]
) -> list[float]:
    """Return the hypervolume after each trial, in the order in which they come.

    Raises:
        SweepError: the baseline lacks an objective.
    """
    volume, members, history = hypervolume((), objectives, baseline), list[TrialRecord](), list[float]()
    reached = _points(members, objectives)
    for record in records:
        if comparable([record], objectives):
            point = _points([record], objectives)
            if not (reached <= point).all(axis=1).any():  # whoever is dominated changes nothing
                members = front([*members, record], objectives)
                reached, volume = _points(members, objectives), hypervolume(members, objectives, baseline)
        history.append(volume)
    return history


def baseline_value(baseline: Mapping[str, Any], objective: Objective) -> float:
    """Return what the baseline measured.

    Raises:
        SweepError: it was not measured.
    """
    value = baseline.get(objective)
    if not isinstance(value, (int, float)) or not value > 0:
        raise SweepError(f"baseline: expected a positive {objective}, got {value}")
    return float(value)


def knee(members: Sequence[TrialRecord], objectives: Sequence[Objective]) -> TrialRecord:
    """Return the trial of a front after which a gain in one objective costs most in the others.

    Every objective is scaled to 0 (best on the front) … 1 (worst on it); the knee has the lowest sum. With two
    objectives it is the trial farthest from the line through the front's ends. Ties go to the cheaper trial.

    Raises:
        SweepError: the front is empty.
    """
    if not members:
        raise SweepError("knee: expected a front with at least one trial, got none")
    points = _points(members, objectives)
    best, worst = points.min(axis=0), points.max(axis=0)
    scaled = (points - best) / np.where(worst > best, worst - best, 1.0)
    return members[int(np.argmin(scaled.sum(axis=1).round(12)))]  # rounded: equal sums differ in their last bits


@dataclass(frozen=True)
class Limits:
    """What a network must reach: parts of the baseline's value, or absolute. None is no limit."""

    min_accuracy: Limit | None = None
    max_macs: Limit | None = None
    max_params: Limit | None = None
    max_latency_ms: Limit | None = None

    @classmethod
    def parse(cls, **texts: str | float | None) -> Limits:
        """Read `max_macs="50%"`, `max_params=2e5`, `min_accuracy=0.9`; None is no limit.

        Raises:
            SweepError: an unknown limit, or a value that is none.
        """
        return cls(**{name: _limit(name, text) for name, text in texts.items() if text is not None})

    @property
    def bounds(self) -> dict[Objective, Limit]:
        """The limits that are set, by what they bound."""
        named: dict[Objective, Limit | None] = {
            "accuracy": self.min_accuracy,
            "macs": self.max_macs,
            "params": self.max_params,
            "latency_ms": self.max_latency_ms,
        }
        return {name: limit for name, limit in named.items() if limit is not None}

    def __str__(self) -> str:
        sides = {name: "≥" if name == "accuracy" else "≤" for name in self.bounds}
        return ", ".join(f"{WORDS[name]} {sides[name]} {limit}" for name, limit in self.bounds.items())


def _limit(name: str, text: str | float) -> Limit:
    if name not in Limits.__dataclass_fields__:
        raise SweepError(f"{name}: expected one of {', '.join(Limits.__dataclass_fields__)}")
    try:
        limit = Limit.model_validate(Limit.parse(text))
    except ValidationError as error:
        raise SweepError(f"{name}: expected a number or a percentage, got '{text}' ({explain(error, name)})") from None
    if name == "min_accuracy" and limit.value > 1 and not limit.relative:
        raise SweepError(f"min_accuracy: expected 0 to 1, or a percentage of the baseline's, got {limit}")
    return limit


@dataclass(frozen=True)
class Choice:
    """The trial to take.

    Attributes:
        explanation: one sentence that says why.
        within: how many trials are within the limits.
        runner_up: the next one in the same order.
    """

    record: TrialRecord
    explanation: str
    within: int
    runner_up: TrialRecord | None = None

    @property
    def policy(self) -> Policy:
        """The trial's."""
        return self.record.policy


def pick(
    records: Sequence[TrialRecord], objectives: Sequence[Objective], limits: Limits, baseline: Mapping[str, Any]
) -> Choice:
    """Return the most accurate trial within the limits.

    Ties go to fewer MACs, then fewer parameters, then the lower number.

    Raises:
        SweepError: no trial finished, none is within the limits (the nearest is named), or a limit's quantity was not
            measured.
    """
    candidates, within = _within(records, objectives, limits, baseline)
    within = sorted(within, key=_merit)
    why = _explanation(within, candidates, limits, _described(within[0], objectives, baseline))
    return Choice(within[0], why, len(within), within[1] if len(within) > 1 else None)


def pick_knee(
    records: Sequence[TrialRecord], objectives: Sequence[Objective], limits: Limits, baseline: Mapping[str, Any]
) -> Choice:
    """Return the knee of the front of the trials within the limits; see `knee`.

    Raises:
        SweepError: as for `pick`.
    """
    _, within = _within(records, objectives, limits, baseline)
    members = front(within, objectives)
    chosen = knee(members, objectives)
    what = (
        f"the knee of the {len(members)} non-dominated trials" if len(members) > 1 else "the only non-dominated trial"
    )
    scope = f" within the limits ({limits})" if limits.bounds else ""
    return Choice(chosen, f"{_described(chosen, objectives, baseline)} is {what}{scope}.", len(within))


def _within(
    records: Sequence[TrialRecord], objectives: Sequence[Objective], limits: Limits, baseline: Mapping[str, Any]
) -> tuple[int, list[TrialRecord]]:
    """Return how many trials may be picked, and those of them that are within the limits: at least one.

    Raises:
        SweepError: see `pick`.
    """
    names: list[Objective] = list(dict.fromkeys(["accuracy", *objectives, *limits.bounds]))
    candidates = comparable(records, names)
    if not candidates:
        raise SweepError(_none_to_pick(records, names))
    misses = {record.number: _missed(record, limits, baseline) for record in candidates}
    within = [record for record in candidates if not misses[record.number]]
    if not within:
        nearest = min(candidates, key=lambda record: (max(misses[record.number].values()), record.number))
        shortfall = _shortfall(nearest, list(misses[nearest.number]), limits, baseline)
        raise SweepError(f"best: no trial is within the limits ({limits}): {shortfall}")
    return len(candidates), within


def _merit(record: TrialRecord) -> tuple[float, int, int, int]:
    metrics = record.metrics
    assert metrics is not None
    return (-metrics.accuracy, metrics.macs, metrics.params, record.number)


def _missed(record: TrialRecord, limits: Limits, baseline: Mapping[str, Any]) -> dict[Objective, float]:
    """Return the limits that a trial misses, each with by how much of the bound."""
    missed = dict[Objective, float]()
    for name, limit in limits.bounds.items():
        bound = limit.of(baseline_value(baseline, name)) if limit.relative else limit.value
        over = getattr(record.metrics, name) / bound - 1
        miss = -over if name == "accuracy" else over
        if miss > ROUNDING:
            missed[name] = miss
    return missed


def _none_to_pick(records: Sequence[TrialRecord], names: Sequence[Objective]) -> str:
    if any(record.counts for record in records):
        missing = next((name for name in names if not comparable(records, [name])), names[-1])
        return f"best: no trial measured {missing}"
    states = Counter("infeasible" if record.state is State.FINISHED else record.state.value for record in records)
    counts = ", ".join(f"{count} {state}" for state, count in states.items()) or "there are none"
    return f"best: no trial finished within the experiment's constraints: {counts}"


def _shortfall(record: TrialRecord, missed: list[Objective], limits: Limits, baseline: Mapping[str, Any]) -> str:
    """Say how near the nearest trial comes: `the cheapest trial needs 56.1 % of the baseline's MACs (trial 4)`."""
    superlatives = {"accuracy": "most accurate", "macs": "cheapest", "params": "smallest", "latency_ms": "fastest"}
    rank = superlatives[missed[0]] if len(limits.bounds) == 1 else "nearest"
    faults = " and ".join(_faulty(record, name, limits.bounds[name], baseline) for name in missed)
    return f"the {rank} trial {faults} (trial {record.number})"


def _faulty(record: TrialRecord, name: Objective, limit: Limit, baseline: Mapping[str, Any]) -> str:
    value = float(getattr(record.metrics, name))
    verb = "reaches" if name == "accuracy" else "needs"
    if limit.relative:
        return f"{verb} {percent(value / baseline_value(baseline, name))} of the baseline's {WORDS[name]}"
    return f"{verb} {written(name, value)}" + (f" {WORDS[name]}" if name in ("macs", "params") else "")


def _described(record: TrialRecord, objectives: Sequence[Objective], baseline: Mapping[str, Any]) -> str:
    """Name a trial with what it reaches at which costs: `Trial 7 (92.10 % with 48.0 % of the MACs)`."""
    shares = {
        WORDS[name]: float(getattr(record.metrics, name)) / baseline_value(baseline, name)
        for name in objectives
        if name != "accuracy"
    }
    costs = " and ".join(f"{percent(share)} of the {word}" for word, share in shares.items())
    return f"Trial {record.number} ({written('accuracy', -_merit(record)[0])} with {costs})"


def _explanation(within: list[TrialRecord], candidates: int, limits: Limits, described: str) -> str:
    scope = f"within the limits ({limits})" if limits.bounds else "that finished"
    if len(within) == 1:
        only = f"one of {candidates} trials" if candidates > 1 else "trial"
        return f"{described} is the only {only} {scope}."
    best, second = _merit(within[0]), _merit(within[1])
    sentence = f"{described} is the most accurate of the {len(within)} trials {scope}"
    if best[0] != second[0]:
        return f"{sentence}; the next, trial {second[3]}, reaches {written('accuracy', -second[0])}."
    rule = "has fewer MACs" if best[1] < second[1] else "has fewer parameters" if best[2] < second[2] else "came first"
    return f"{sentence}; trial {second[3]} is as accurate, but trial {best[3]} {rule}."
