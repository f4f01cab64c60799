"""Accuracy over the first cost: what is on the front, dominated, stopped or beyond a limit, and what papers report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from search.config import Objective
from search.figures.papers import Reported
from search.figures.subject import Subject
from search.pareto import baseline_value
from search.results import TrialRecord
from search.units import WORDS, percent, written

MANY = 1000
"""So many points hide each other."""


@dataclass(frozen=True)
class Mark:
    """A network: its cost in percent of the baseline's, its accuracy in percent, and what hovering tells of it."""

    x: float
    y: float
    text: str
    number: int | None = None


@dataclass(frozen=True)
class TradeOff:
    """Where the networks of a sweep lie.

    Attributes:
        front: cheapest first.
        shades: of the front's networks, the third objective in percent of the baseline's; empty without one.
        stopped: where they were when they were stopped.
        incomplete: those that lack the third objective.
        reported: the baseline's accuracy, changed as papers report it of theirs.
        best: the most accurate network at half the cost.
        ends: of the accuracy axis; a network that learned nothing must not squeeze the others into a line.
    """

    title: str
    counts: str
    cost: Objective
    full: float
    axis: str
    third: Objective | None
    front: tuple[Mark, ...]
    shades: tuple[float, ...]
    dominated: tuple[Mark, ...]
    stopped: tuple[Mark, ...]
    infeasible: tuple[Mark, ...]
    incomplete: tuple[Mark, ...]
    reported: tuple[Mark, ...]
    images: str
    baseline: Mark
    best: Mark | None
    ends: tuple[float, float]

    @property
    def trials(self) -> tuple[Mark, ...]:
        """Every trial that is drawn."""
        return self.front + self.dominated + self.stopped + self.infeasible + self.incomplete

    @property
    def others(self) -> list[tuple[str, str, tuple[Mark, ...]]]:
        """What there is beside front and baseline: attribute, name, marks."""
        names = {
            "dominated": "dominated",
            "stopped": "stopped early",
            "infeasible": "breaks a constraint",
            "incomplete": f"lacks {WORDS[self.third or self.cost]}",
            "reported": f"papers: test images of {self.images}, long recipes",
        }
        return [(kind, name, marks) for kind, name in names.items() if (marks := getattr(self, kind))]

    @property
    def crowded(self) -> bool:
        """Whether the points hide each other."""
        return len(self.trials) > MANY

    @property
    def hidden(self) -> int:
        """How many trials are below the axis."""
        return sum(mark.y < self.ends[0] for mark in self.trials)

    @property
    def caption(self) -> str:
        """How to read it."""
        joined = "the line joins" if self.third is None else f"coloured by {WORDS[self.third]} is"
        hollow = [("stopped early, where it stopped", self.stopped), ("breaks a constraint", self.infeasible)]
        meant = [said for said, marks in hollow if marks]
        parts = [
            f"Further up and left is better; {joined} the front, which no other trial beats.",
            f"Hollow: {' (grey), or '.join(meant)}{' (pink)' if self.infeasible else ' (grey)'}." if meant else "",
            "Crosses are changes that papers report, see below the table." if self.reported else "",
            f"{self.hidden} below the axis." if self.hidden else "",
        ]
        return " ".join(filter(None, parts))

    @property
    def note(self) -> str:
        """What the papers' points are; empty without them."""
        return (
            f"Crosses: what papers report on the test images of {self.images} after long recipes, hundreds of epochs "
            "in most. Each is its change of accuracy against its own baseline, put beside this sweep's baseline on "
            "validation images: a landmark, not a comparison."
            if self.reported
            else ""
        )


def trade_off(subject: Subject) -> TradeOff:
    """Return where a sweep's networks lie.

    Raises:
        SweepError: the baseline lacks accuracy or a cost.
    """
    cost, third = subject.cost, (subject.costs[1] if len(subject.costs) > 1 else None)
    full, accuracy = baseline_value(subject.baseline, cost), baseline_value(subject.baseline, "accuracy")
    said = f"<b>baseline</b><br>accuracy {percent(accuracy, 2)}<br>{WORDS[cost]} {written(cost, full)}"
    baseline = Mark(100.0, 100 * accuracy, said)
    front = _marks(subject, subject.front, whole=True)
    kinds = subject.dominated, subject.stopped, subject.infeasible, subject.incomplete
    others = [_marks(subject, some) for some in kinds]
    reported = [_reported(point, baseline.y) for point in subject.reported] if cost == "macs" else []
    best = subject.best_at_half
    heights = [mark.y for some in (front, *others, reported) for mark in some]
    return TradeOff(
        title=subject.titled("accuracy and cost"),
        counts=subject.counts,
        cost=cost,
        full=full,
        axis=subject.axis(cost),
        third=third,
        front=front,
        shades=tuple(subject.share(record, third) for record in subject.front) if third else (),
        dominated=others[0],
        stopped=others[1],
        infeasible=others[2],
        incomplete=others[3],
        reported=tuple(reported),
        images=subject.reported[0].images if reported else "",
        baseline=baseline,
        best=_marks(subject, [best])[0] if best else None,
        ends=_ends(heights, [mark.y for mark in front] or heights, baseline.y),
    )


def _marks(subject: Subject, records: Iterable[TrialRecord], *, whole: bool = False) -> tuple[Mark, ...]:
    return tuple(
        Mark(
            subject.share(record, subject.cost),
            subject.accuracy(record),
            "<br>".join(subject.described(record) if whole else subject.words(record)),
            record.number,
        )
        for record in records
    )


def _reported(point: Reported, accuracy: float) -> Mark:
    change = f"{point.change:+.2f}".replace("-", "−")
    return Mark(
        point.macs,
        accuracy + point.change,
        f"<b>{point.method}</b>: {change} points with {point.macs:.1f} % of the MACs<br>"
        f"{point.network}, test images of {point.images}<br>{point.source}",
    )


def _ends(heights: Sequence[float], front: Sequence[float], baseline: float) -> tuple[float, float]:
    """Return the ends of the accuracy axis around the front and the baseline, with room above."""
    anchors = [baseline, *front]
    span = max(max(anchors) - min(anchors), 1.0)
    lowest = min(value for value in [*heights, *anchors] if value >= min(anchors) - span / 2)
    return lowest - 0.08 * span, max([*heights, *anchors]) + 0.3 * span
