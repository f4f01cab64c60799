"""What the surrogate expected of its own proposals, and what they reached."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

import plotly.graph_objects as go
from matplotlib.figure import Figure

from search.figures.colours import BEST, FRONT, QUIET
from search.figures.frame import Frame, quiet
from search.figures.subject import NothingToDrawError, Subject
from search.results import Metrics, State, TrialRecord


@dataclass(frozen=True)
class Guess:
    """An accuracy in percent, as it was expected and as it came out.

    Attributes:
        deviation: how far the surrogate thought that it may be off, in points.
        trained: whether it is that of the fine-tuned network; else that after the cut.
    """

    number: int
    expected: float
    deviation: float
    measured: float
    trained: bool
    text: str


@dataclass(frozen=True)
class Predictions:
    """The surrogate's proposals, in their order."""

    title: str
    guesses: tuple[Guess, ...]

    @property
    def error(self) -> float:
        """Mean distance between expected and measured accuracy, in points."""
        return sum(abs(guess.measured - guess.expected) for guess in self.guesses) / len(self.guesses)

    @property
    def kinds(self) -> list[tuple[str, str, list[Guess]]]:
        """Names and colours of the two kinds, and their guesses."""
        found = [
            ("after fine-tuning", FRONT, [guess for guess in self.guesses if guess.trained]),
            ("after the cut, before a trial was trained", BEST, [guess for guess in self.guesses if not guess.trained]),
        ]
        return [kind for kind in found if kind[2]]

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of both axes."""
        values = [value for guess in self.guesses for value in (guess.expected, guess.measured)]
        room = 0.06 * max(max(values) - min(values), 1.0)
        return min(values) - room, max(values) + room

    @property
    def caption(self) -> str:
        """How to read it."""
        trials = "1 trial" if len(self.guesses) == 1 else f"{len(self.guesses)} trials"
        return (
            "A point is a proposal of the surrogate: on the line it was right, above it too modest; bars are the "
            f"deviation that it expected. Off by {self.error:.2f} points in the mean of {trials}."
        )


def predictions(subject: Subject) -> Predictions:
    """Return what was expected of trials, and what was measured at the same stage.

    Raises:
        NothingToDrawError: no trial with a prediction got that far.
    """
    if not any("predicted" in record.extra for record in subject.records):
        raise NothingToDrawError("No trial of this sweep was proposed by a surrogate that wrote down what it expects.")
    guesses = [guess for record in subject.records if (guess := _guess(subject, record)) is not None]
    if not guesses:
        raise NothingToDrawError("No trial that the surrogate proposed has got as far as it was predicted.")
    return Predictions(subject.titled("what the surrogate expected"), tuple(guesses))


def _guess(subject: Subject, record: TrialRecord) -> Guess | None:
    predicted: dict[str, Any] | None = record.extra.get("predicted")
    if predicted is None:
        return None
    metrics = _measured(record, trained=predicted["trained"])
    if metrics is None or not isfinite(metrics.accuracy):
        return None
    expected, deviation = 100 * predicted["accuracy"], 100 * predicted["deviation"]
    when = "after fine-tuning" if predicted["trained"] else "after the cut"
    said = f"{when} expected {expected:.2f} ± {deviation:.2f} %, measured {100 * metrics.accuracy:.2f} %"
    text = "<br>".join([*subject.words(record), said])
    return Guess(record.number, expected, deviation, 100 * metrics.accuracy, predicted["trained"], text)


def _measured(record: TrialRecord, *, trained: bool) -> Metrics | None:
    if trained:
        return record.metrics if record.state is State.FINISHED else None
    return record.history[0] if record.history and record.history[0].epoch == 0 else None


def predictions_chart(data: Predictions) -> go.Figure:
    """Draw it for a page."""
    low, high = data.ends
    figure = go.Figure()
    line = {"color": QUIET, "width": 1, "dash": "dot"}
    figure.add_scatter(x=[low, high], y=[low, high], mode="lines", line=line, hoverinfo="skip", showlegend=False)
    for name, colour, guesses in data.kinds:
        figure.add_scatter(
            x=[round(guess.expected, 3) for guess in guesses],
            y=[round(guess.measured, 3) for guess in guesses],
            error_x={"array": [round(guess.deviation, 3) for guess in guesses], "thickness": 0.8, "width": 0},
            mode="markers",
            marker={"color": colour, "size": 8},
            name=name,
            hovertext=[guess.text for guess in guesses],
            hoverinfo="text",
        )
    figure.update_xaxes(title="expected accuracy, %", range=[low, high])
    figure.update_yaxes(title="measured accuracy on validation images, %", range=[low, high])
    figure.update_layout(height=600, legend={"orientation": "h", "y": -0.18}, showlegend=True)
    return figure


def plot_predictions(data: Predictions) -> Figure:
    """Draw it as a picture."""
    frame = Frame(data.title, data.caption, 6.4, 5.6)
    axes = frame.axes(0.8, 0.15, 5.2, 4.5)
    quiet(axes)
    axes.plot(data.ends, data.ends, color=QUIET, linewidth=1, linestyle=":", zorder=1)
    for name, colour, guesses in data.kinds:
        places = [guess.expected for guess in guesses], [guess.measured for guess in guesses]
        deviations = [guess.deviation for guess in guesses]
        look: dict[str, Any] = {"fmt": "o", "markersize": 5, "elinewidth": 0.8}
        axes.errorbar(*places, xerr=deviations, color=colour, ecolor=f"{colour}66", label=name, **look)
    axes.set_xlim(*data.ends)
    axes.set_ylim(*data.ends)
    axes.set_xlabel("expected accuracy, %")
    axes.set_ylabel("measured accuracy on validation images, %")
    frame.legend(0.8, 5.25, axes, columns=2)
    return frame.figure
