"""The front as one matplotlib figure. No pyplot: nothing global is touched and no display is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from search.config import Objective
from search.figures.colours import BASELINE, BEST, DOMINATED, FRONT, INFEASIBLE, SHARES
from search.figures.roles import accuracy_axis, best_at_half, caption, dominated, infeasible
from search.pareto import baseline_value, comparable, front, value_of
from search.results import TrialRecord
from search.units import WORDS, percent, written


def plot_front(
    records: Sequence[TrialRecord],
    baseline: Mapping[str, Any],
    objectives: Sequence[Objective],
    *,
    title: str = "",
) -> Figure:
    """Draw accuracy over the first cost: the front, what it dominates, what broke a constraint, and the baseline.

    A third objective colours the front. Save with `figure.savefig(path)`.

    Raises:
        SweepError: the baseline lacks an objective.
    """
    cost, *others = [name for name in objectives if name != "accuracy"]
    figure = Figure(figsize=(8, 5.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    canvas = _Canvas(axes, baseline, cost)
    members = front(records, objectives)
    canvas.scatter(dominated(records, objectives), "dominated", color=DOMINATED, s=22, linewidths=0)
    canvas.scatter(
        infeasible(records, [cost]),
        "breaks a constraint",
        facecolors="none",
        edgecolors=INFEASIBLE,
        s=26,
        linewidths=1.2,
    )
    if others:
        _coloured_front(figure, canvas, members, others[0], baseline)
    else:
        canvas.line(members)
    canvas.baseline()
    canvas.best(best_at_half(records, objectives, cost, baseline))
    if not members:
        axes.text(0.5, 0.5, "no trial finished within the constraints", transform=axes.transAxes, ha="center")
    hidden = canvas.frame([*comparable(records, objectives), *infeasible(records, [cost])], members)
    text = "\n".join(wrap(caption(records, objectives, hidden), 110))
    axes.set_title(text, loc="left", fontsize=8.5, color="#555555")
    if title:
        figure.suptitle(title, x=0.02, ha="left", fontsize=13, fontweight="bold")
    figure.legend(loc="outside lower center", ncols=5, fontsize=8.5, frameon=False)
    return figure


class _Canvas:
    """Axes on which a trial's place is its cost in percent of the baseline's and its accuracy in percent."""

    def __init__(self, axes: Axes, baseline: Mapping[str, Any], cost: Objective) -> None:
        self.axes, self.cost = axes, cost
        self.full, self.accuracy = baseline_value(baseline, cost), baseline_value(baseline, "accuracy")
        axes.set_xlabel(f"{WORDS[cost]}, % of the baseline's")
        axes.set_ylabel("accuracy on validation images, %")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value <= 100 else ""))
        axes.grid(color="#E6E6E6", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["right"]].set_visible(False)
        absolute = axes.secondary_xaxis("top", functions=(self._absolute, self._percent))
        absolute.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(cost, value)))
        absolute.tick_params(labelsize=8, colors="#555555")

    def _absolute(self, shares: Any) -> Any:
        return shares * self.full / 100

    def _percent(self, values: Any) -> Any:
        return values * 100 / self.full

    def places(self, records: Sequence[TrialRecord]) -> tuple[list[float], list[float]]:
        x = [100 * (value_of(record, self.cost) or 0.0) / self.full for record in records]
        return x, [100 * (value_of(record, "accuracy") or 0.0) for record in records]

    def scatter(self, records: Sequence[TrialRecord], label: str, **style: Any) -> Any:
        if records:
            return self.axes.scatter(*self.places(records), label=label, **style)
        return None

    def line(self, members: Sequence[TrialRecord]) -> None:
        """Join the front by steps: between two trials a budget buys the cheaper one's accuracy."""
        if members:
            style: dict[str, Any] = {"color": FRONT, "marker": "o", "markersize": 5.5, "linewidth": 1.4}
            self.axes.plot(*self.places(members), drawstyle="steps-post", label="front", zorder=3, **style)

    def baseline(self) -> None:
        self.axes.scatter([100], [100 * self.accuracy], marker="*", s=150, color=BASELINE, label="baseline", zorder=4)

    def best(self, record: TrialRecord | None) -> None:
        """Ring the trial to take at half the cost; its label sits in the corner above the front."""
        if record is None:
            return
        (x,), (y,) = self.places([record])
        self.axes.axvline(50, color=BEST, linewidth=0.9, linestyle=":", zorder=1)
        self.axes.scatter([x], [y], s=120, facecolors="none", edgecolors=BEST, linewidths=1.6, zorder=5)
        self.axes.annotate(
            f"best at ≤ 50 %: trial {record.number}\n"
            f"{percent(y / 100, 2)} with {percent(x / 100)} of the {WORDS[self.cost]}",
            xy=(x, y),
            xytext=(0.02, 0.97),
            textcoords="axes fraction",
            va="top",
            fontsize=8.5,
            color=BEST,
            arrowprops={"arrowstyle": "-", "color": BEST, "linewidth": 0.9, "shrinkB": 6},
        )

    def frame(self, records: Sequence[TrialRecord], members: Sequence[TrialRecord]) -> int:
        """Set the axes' ends; return how many trials fall below."""
        x, y = self.places(records)
        low, high = accuracy_axis(records, members, self.accuracy)
        self.axes.set_ylim(low, high)
        self.axes.set_xlim(0, max([*x, 100.0]) * 1.04)
        return sum(value < low for value in y)


def _tick(cost: Objective, value: float) -> str:
    """Write `5.00 M` as `5 M`."""
    number, _, unit = written(cost, value).partition(" ")
    return f"{float(number):g} {unit}".rstrip()


def _coloured_front(
    figure: Figure, canvas: _Canvas, members: Sequence[TrialRecord], third: Objective, baseline: Mapping[str, Any]
) -> None:
    shares = [100 * (value_of(record, third) or 0.0) / baseline_value(baseline, third) for record in members]
    style = {"c": shares, "cmap": SHARES.lower(), "s": 42, "edgecolors": "black", "linewidths": 0.6, "zorder": 3}
    points = canvas.scatter(members, "front", **style)
    if points is not None:
        figure.colorbar(points, ax=canvas.axes, label=f"{WORDS[third]}, % of the baseline's", pad=0.02)
