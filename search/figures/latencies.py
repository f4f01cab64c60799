"""What cutting MACs is worth in measured milliseconds.

In the manner of Zhuang et al., Discrimination-aware Channel Pruning for Deep Neural Networks, NeurIPS 2018, Figure S3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from matplotlib.figure import Figure

from search.figures.colours import BASELINE, DOMINATED, FRONT, QUIET
from search.figures.frame import Frame, quiet
from search.figures.subject import NothingToDrawError, Subject
from search.pareto import baseline_value, value_of


@dataclass(frozen=True)
class Timed:
    """A trial: MACs and latency in percent of the baseline's."""

    number: int
    macs: float
    latency: float
    on_front: bool
    text: str


@dataclass(frozen=True)
class Latencies:
    """The trials whose latency was measured.

    Attributes:
        milliseconds: of the baseline.
        macs_axis: what the axis of MACs says.
    """

    title: str
    trials: tuple[Timed, ...]
    milliseconds: float
    macs_axis: str

    @property
    def kinds(self) -> list[tuple[str, str, list[Timed]]]:
        """Names and colours of the two kinds, and their trials; those on top last."""
        found = [
            ("other trials", DOMINATED, [trial for trial in self.trials if not trial.on_front]),
            ("front", FRONT, [trial for trial in self.trials if trial.on_front]),
        ]
        return [kind for kind in found if kind[2]]

    @property
    def latency_axis(self) -> str:
        """What the axis of latency says."""
        return f"latency, % of the baseline's {self.milliseconds:.3g} ms"

    @property
    def caption(self) -> str:
        """How to read it."""
        return (
            "A point is a trial, timed in turns with the uncut network. On the dotted line latency falls as MACs do; "
            "the higher above it, the less of what is cut is won in time."
        )


def latencies(subject: Subject) -> Latencies:
    """Return MACs and latency of every trial that measured both.

    Raises:
        NothingToDrawError: none did.
        SweepError: the baseline lacks one of them.
    """
    timed = [record for record in subject.records if value_of(record, "latency_ms") is not None]
    if not timed:
        raise NothingToDrawError("Latency was not measured in this sweep.")
    trials = tuple(
        Timed(
            record.number,
            subject.share(record, "macs"),
            subject.share(record, "latency_ms"),
            record.number in subject.front_numbers,
            "<br>".join(dict.fromkeys([*subject.words(record), *subject.costs_of(record, ("macs", "latency_ms"))])),
        )
        for record in timed
    )
    return Latencies(
        subject.titled("MACs and latency"), trials, baseline_value(subject.baseline, "latency_ms"), subject.axis("macs")
    )


def latencies_chart(data: Latencies) -> go.Figure:
    """Draw it for a page."""
    figure = go.Figure()
    line = {"color": QUIET, "width": 1, "dash": "dot"}
    figure.add_scatter(x=[0, 100], y=[0, 100], mode="lines", line=line, hoverinfo="skip", showlegend=False)
    star = {"color": BASELINE, "size": 14, "symbol": "star"}
    for name, colour, trials in data.kinds:
        trace = go.Scattergl if len(trials) > 1000 else go.Scatter
        figure.add_trace(
            trace(
                x=[round(trial.macs, 3) for trial in trials],
                y=[round(trial.latency, 3) for trial in trials],
                mode="markers",
                marker={"color": colour, "size": 8 if name == "front" else 7},
                name=name,
                hovertext=[trial.text for trial in trials],
                hoverinfo="text",
            )
        )
    said = f"<b>baseline</b><br>latency {data.milliseconds:.3g} ms"
    figure.add_scatter(
        x=[100], y=[100], mode="markers", marker=star, name="baseline", hovertext=[said], hoverinfo="text"
    )
    figure.update_xaxes(title=data.macs_axis, rangemode="tozero")
    figure.update_yaxes(title=data.latency_axis, rangemode="tozero")
    figure.update_layout(height=600, legend={"orientation": "h", "y": -0.18})
    return figure


def plot_latencies(data: Latencies) -> Figure:
    """Draw it as a picture."""
    frame = Frame(data.title, data.caption, 6.4, 5.6)
    axes = frame.axes(0.8, 0.15, 5.2, 4.5)
    quiet(axes)
    axes.plot([0, 100], [0, 100], color=QUIET, linewidth=1, linestyle=":", zorder=1)
    look: dict[str, Any] = {"s": 26, "linewidths": 0}
    for name, colour, trials in data.kinds:
        axes.scatter(*_places(trials), color=colour, label=name, **look)
    axes.scatter([100], [100], marker="*", s=150, color=BASELINE, label="baseline", zorder=4)
    axes.set_xlim(0, 1.05 * max([100.0, *(trial.macs for trial in data.trials)]))
    axes.set_ylim(0, 1.05 * max([100.0, *(trial.latency for trial in data.trials)]))
    axes.set_xlabel(data.macs_axis)
    axes.set_ylabel(data.latency_axis)
    frame.legend(0.8, 5.25, axes)
    return frame.figure


def _places(trials: Sequence[Timed]) -> tuple[list[float], list[float]]:
    return [trial.macs for trial in trials], [trial.latency for trial in trials]
