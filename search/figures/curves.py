"""Accuracy by epoch of each trial, the front's on top."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from search.figures.colours import DOMINATED, FRONT
from search.figures.frame import Frame, quiet
from search.figures.subject import NothingToDrawError, Subject, some_of
from search.results import Metrics, State, TrialRecord

MOST_CURVES, MOST_EPOCHS = 300, 60


@dataclass(frozen=True)
class Curve:
    """A trial's accuracies in percent, by epoch."""

    number: int
    on_front: bool
    stopped: bool
    epochs: tuple[int, ...]
    accuracies: tuple[float, ...]
    text: str


@dataclass(frozen=True)
class Curves:
    """The trials' curves, those of the front last; of the others there are `of`, of which some are shown."""

    title: str
    baseline: float | None
    shown: tuple[Curve, ...]
    others: int

    def some(self, *, on_front: bool, stopped: bool = False) -> list[Curve]:
        """Return the curves of one kind."""
        return [curve for curve in self.shown if curve.on_front is on_front and curve.stopped is stopped]

    @property
    def kinds(self) -> list[tuple[str, list[Curve]]]:
        """Names of the kinds, and their curves; those on top last."""
        found = [
            ("other trials", self.some(on_front=False)),
            ("stopped early", self.some(on_front=False, stopped=True)),
            ("front", self.some(on_front=True)),
        ]
        return [(name, curves) for name, curves in found if curves]

    @property
    def crowded(self) -> bool:
        """Whether there are too many points to mark each."""
        return sum(len(curve.epochs) for curve in self.shown) > 1000

    @property
    def caption(self) -> str:
        """How to read it."""
        drawn = sum(not curve.on_front for curve in self.shown)
        less = f" {drawn} of {self.others} other trials are drawn." if drawn < self.others else ""
        return (
            "A line is a trial, blue if it is on the front; epoch 0 is after the cut, batch norm recalibrated, nothing "
            f"trained. Lines that still rise at their end would gain from a longer recipe.{less}"
        )


def curves(subject: Subject) -> Curves:
    """Return the accuracies of every trial that measured some.

    Raises:
        NothingToDrawError: no trial measured anything.
    """
    measured = [record for record in subject.records if record.history]
    if not measured:
        raise NothingToDrawError("No trial has measured anything.")
    others = [record for record in measured if record.number not in subject.front_numbers]
    shown = [*some_of(others, MOST_CURVES), *some_of(subject.front, MOST_CURVES)]
    accuracy = subject.baseline.get("accuracy")
    return Curves(
        subject.titled("learning curves"),
        None if accuracy is None else 100 * accuracy,
        tuple(_curve(subject, record) for record in shown),
        len(others),
    )


def _curve(subject: Subject, record: TrialRecord) -> Curve:
    points: list[Metrics] = some_of([each for each in record.history if math.isfinite(each.accuracy)], MOST_EPOCHS)
    return Curve(
        record.number,
        record.number in subject.front_numbers,
        record.state is State.STOPPED,
        tuple(metrics.epoch for metrics in points),
        tuple(100 * metrics.accuracy for metrics in points),
        "<br>".join(subject.words(record)),
    )


_STYLES: dict[str, dict[str, Any]] = {
    "other trials": {"color": DOMINATED, "width": 1.0},
    "stopped early": {"color": DOMINATED, "width": 1.0, "dash": "dot"},
    "front": {"color": FRONT, "width": 1.8},
}


def curves_chart(data: Curves) -> go.Figure:
    """Draw it for a page; the curves of a kind are one line with gaps."""
    figure = go.Figure()
    for name, some in data.kinds:
        x: list[int | None] = []
        y: list[float | None] = []
        texts: list[str] = []
        for curve in some:
            x += [*curve.epochs, None]
            y += [*(round(accuracy, 3) for accuracy in curve.accuracies), None]
            texts += [f"{curve.text}<br>here: epoch {e}, {a:.2f} %" for e, a in _places(curve)]
            texts.append("")
        figure.add_scatter(
            x=x,
            y=y,
            mode="lines" if data.crowded else "lines+markers",
            line=_STYLES[name],
            marker={"size": 5 if name == "front" else 3.5},
            opacity=1 if name == "front" else 0.5,
            name=name,
            hovertext=texts,
            hoverinfo="text",
        )
    if data.baseline is not None:
        figure.add_hline(data.baseline, line={"color": "black", "width": 1, "dash": "dot"}, annotation_text="baseline")
    epochs = max((epoch for curve in data.shown for epoch in curve.epochs), default=1)
    figure.update_xaxes(
        title="epochs of fine-tuning",
        range=[-0.03 * max(epochs, 1), 1.03 * max(epochs, 1)],
        dtick=math.ceil(max(epochs, 1) / 10),
    )
    figure.update_yaxes(title="accuracy on validation images, %")
    figure.update_layout(height=440, legend={"orientation": "h", "y": -0.2}, hovermode="closest")
    return figure


def _places(curve: Curve) -> Sequence[tuple[int, float]]:
    return list(zip(curve.epochs, curve.accuracies, strict=True))


def plot_curves(data: Curves) -> Figure:
    """Draw it as a picture."""
    frame = Frame(data.title, data.caption, 8.4, 4.6)
    axes = frame.axes(0.75, 0.15, 7.35, 3.6)
    quiet(axes)
    looks = {"dot": ":", None: "-"}
    for name, some in data.kinds:
        style = _STYLES[name]
        front = name == "front"
        for index, curve in enumerate(some):
            axes.plot(
                curve.epochs,
                curve.accuracies,
                color=style["color"],
                linewidth=min(style["width"], 1.0) if data.crowded else style["width"],
                linestyle=looks[style.get("dash")],
                marker="" if data.crowded else "o",
                markersize=4 if front else 2.5,
                alpha=1 if front else 0.5,
                label=name if index == 0 else None,
                zorder=3 if front else 2,
            )
    if data.baseline is not None:
        axes.axhline(data.baseline, color="black", linewidth=0.9, linestyle=":", label="baseline", zorder=1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epochs of fine-tuning")
    axes.set_ylabel("accuracy on validation images, %")
    frame.legend(0.75, 4.25, axes)
    return frame.figure
