"""How the part of all trade-offs that the front dominates grew, over trials and over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from search.figures.colours import FRONT, QUIET
from search.figures.frame import Frame, quiet
from search.figures.subject import NothingToDrawError, Subject
from search.pareto import hypervolume_history
from search.results import State, TrialRecord

MANY = 1000
_UNITS = ((2 * 3600.0, 3600.0, "hours"), (2 * 60.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))


@dataclass(frozen=True)
class Step:
    """The hypervolume from one place on, and which trial brought it there."""

    place: float
    volume: float
    text: str


@dataclass(frozen=True)
class Volume:
    """Hypervolume, 0 to 1.

    Attributes:
        by_trials: after each trial, in the order of proposal, counted from 1.
        by_time: as each trial ended, in a unit of time since the first one started.
        unit: of the time.
    """

    title: str
    by_trials: tuple[Step, ...]
    by_time: tuple[Step, ...]
    unit: str

    @property
    def caption(self) -> str:
        """How to read it."""
        return (
            "The part of all trade-offs between accuracy and cost that the front dominates, 0 to 1. While it climbs, "
            "more trials pay; time is the clock's, pauses included."
        )


def volume(subject: Subject) -> Volume:
    """Return how the hypervolume grew.

    Raises:
        NothingToDrawError: no trial is on the front.
        SweepError: the baseline lacks an objective.
    """
    if not subject.front:
        raise NothingToDrawError("No trial is on the front, so nothing is dominated.")
    proposed = sorted(subject.records, key=lambda record: record.number)
    by_trials = _steps(subject, proposed, [float(count) for count in range(1, len(proposed) + 1)])
    ended = [record for record in proposed if record.state is not State.RUNNING and _end(record) is not None]
    timed = sorted(ended, key=lambda record: _end(record) or 0.0)
    first = min((record.started for record in proposed if record.started is not None), default=0.0)
    seconds = [(_end(record) or 0.0) - first for record in timed]
    _, length, unit = next(each for each in _UNITS if max(seconds, default=0.0) >= each[0])
    by_time = _steps(subject, timed, [second / length for second in seconds])
    return Volume(subject.titled("hypervolume"), by_trials, by_time, unit)


def _end(record: TrialRecord) -> float | None:
    if record.ended is not None or record.started is None:
        return record.ended
    return record.started + record.seconds


def _steps(subject: Subject, records: Sequence[TrialRecord], places: Sequence[float]) -> tuple[Step, ...]:
    """Return a step for each trial; of very many only those that rise, and the last."""
    volumes = hypervolume_history(records, subject.objectives, subject.baseline)
    few, before = len(records) <= MANY, [0.0, *volumes]
    return tuple(
        Step(place, reached, f"hypervolume {reached:.4f} after<br>{'<br>'.join(subject.words(record))}")
        for place, reached, earlier, record in zip(places, volumes, before, records, strict=False)
        if few or reached > earlier or record is records[-1]
    )


def volume_charts(data: Volume) -> list[go.Figure]:
    """Draw it for a page: over trials, over time."""
    charts = [_chart(data.by_trials, "trials, in the order of proposal")]
    return [*charts, _chart(data.by_time, f"{data.unit} since the first trial started")] if data.by_time else charts


def _chart(steps: Sequence[Step], title: str) -> go.Figure:
    figure = go.Figure(
        go.Scatter(
            x=[round(step.place, 4) for step in steps],
            y=[round(step.volume, 6) for step in steps],
            mode="lines+markers",
            line={"shape": "hv", "color": FRONT},
            marker={"size": 4},
            hovertext=[step.text for step in steps],
            hoverinfo="text",
            showlegend=False,
        )
    )
    figure.update_xaxes(title=title, rangemode="tozero")
    figure.update_yaxes(title="hypervolume")
    figure.update_layout(height=340)
    return figure


def plot_volume(data: Volume) -> Figure:
    """Draw it as a picture: over trials to the left, over time to the right."""
    frame = Frame(data.title, data.caption, 8.4, 3.5)
    left = frame.axes(0.75, 0.15, 3.35, 2.75)
    _draw(left, data.by_trials, "trials, in the order of proposal")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_ylabel("hypervolume")
    if data.by_time:
        right = frame.axes(4.75, 0.15, 3.35, 2.75)
        _draw(right, data.by_time, f"{data.unit} since the first trial started")
        right.set_ylim(left.get_ylim())
    return frame.figure


def _draw(axes: Axes, steps: Sequence[Step], label: str) -> None:
    quiet(axes)
    places, volumes = [step.place for step in steps], [step.volume for step in steps]
    axes.plot(places, volumes, drawstyle="steps-post", color=FRONT, linewidth=1.6)
    axes.plot(places[-1:], volumes[-1:], "o", color=FRONT, markersize=4)
    axes.annotate(
        f"{volumes[-1]:.4f}",
        (places[-1], volumes[-1]),
        (2, 5),
        textcoords="offset points",
        ha="right",
        color=QUIET,
        fontsize=8.5,
    )
    axes.set_xlim(0, None)
    axes.margins(y=0.09)
    axes.set_xlabel(label)
