"""What a trial measured, and the record of it that fronts, figures and tracking read. Plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Self

from pruning import Policy

SOURCE, PREDICTED, DEVICE, NOTE = "source", "predicted", "device", "note"
"""What a record's `extra` may say."""

MEASURED = "measured"
"""Under which a trial that goes on says all that it measured before."""


class State(StrEnum):
    """How a trial stands."""

    RUNNING = "running"
    FINISHED = "finished"
    STOPPED = "stopped early"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Metrics:
    """What is known of a cut network after some epochs of fine-tuning; epoch 0 is after the cut and recalibration.

    Attributes:
        epoch: finished epochs.
        accuracy: top-1 on the validation split, 0 to 1.
        loss: cross-entropy on the validation split.
        macs: multiply-accumulates for one image.
        params: parameters.
        latency_ms: median milliseconds for one batch, where it is asked for.
        seconds: since the trial began, training included.
    """

    epoch: int
    accuracy: float
    loss: float
    macs: int
    params: int
    latency_ms: float | None = None
    seconds: float = 0.0

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return the metrics of a mapping by name, as files have it.

        Raises:
            ValueError: a name that is none, or a value that is no number.
        """
        for name, value in values.items():
            whole, missing = name in ("epoch", "macs", "params"), name == "latency_ms" and value is None
            right = isinstance(value, int) and 0 <= value < 2**63 if whole else isinstance(value, (int, float))
            if isinstance(value, bool) or not (right or missing):
                raise ValueError(f"{name}: expected a {'whole ' if whole else ''}number, got {value!r}")
            if not whole and not missing:
                float(value)  # refuses whole numbers that are larger than any
        return cls(**values)

    def to_dict(self) -> dict[str, float]:
        """Return the metrics that are there, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class TrialRecord:
    """One trial: what was decided, what was measured, how it ended.

    Attributes:
        number: counts from 0 in the order of proposal.
        params: the searched values by dimension, e.g. `criterion`, `width.layer1.0.conv1`.
        history: metrics after the cut and after every epoch, ascending.
        feasible: within every constraint.
        error: one line, where it failed.
        started: when it was proposed, in seconds since 1970.
        seconds: that it has worked.
        ended: when its end was known, in seconds since 1970.
        extra: `tune_id`; `source`, where not the sampler proposed it, and what the source `predicted`; the `device`; a
            `note`, where memory held fewer images at a time than were asked for.
    """

    number: int
    state: State
    params: dict[str, Any]
    policy: Policy
    history: tuple[Metrics, ...] = ()
    feasible: bool = True
    error: str | None = None
    started: float | None = None
    seconds: float = 0.0
    ended: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def criterion(self) -> str:
        """What ranked the channels, in words: `l1`, or `l1, fpgm on 3 groups`."""
        others = Counter(criterion.name for criterion in self.policy.criteria.values()).most_common()
        words = [f"{name} on {count} group{'s' if count > 1 else ''}" for name, count in others]
        return ", ".join([self.policy.criterion.name, *words])

    @property
    def metrics(self) -> Metrics | None:
        """The last measurement."""
        return self.history[-1] if self.history else None

    @property
    def counts(self) -> bool:
        """Whether the trial may stand on the front: finished, measured and feasible."""
        return self.state is State.FINISHED and self.feasible and self.metrics is not None
