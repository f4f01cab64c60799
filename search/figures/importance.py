"""How much each searched dimension matters for accuracy, once the cost is accounted for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure
from numpy.typing import NDArray

from search.figures.colours import DOMINATED, FRONT, GRID, QUIET
from search.figures.dimensions import Dimension, dimensions
from search.figures.frame import Frame, quiet
from search.figures.subject import NothingToDrawError, Subject, some_of
from search.units import WORDS

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]

FEWEST, MOST = 20, 1000
"""With fewer trials nothing can be told; of more a part says the same."""
PARTS, SHUFFLES, TREES = 5, 8, 100
ABOVE, BELOW = "% of the differences in accuracy", "% of the blue part"


@dataclass(frozen=True)
class Bar:
    """A dimension: its share of what the searched dimensions explain, in percent, and the deviation of that."""

    label: str
    share: float
    deviation: float


@dataclass(frozen=True)
class Importance:
    """What explains the accuracy of trials that were left out.

    Attributes:
        cost: in words.
        by_cost: percent of the differences in accuracy that follow from the cost alone.
        by_rest: percent of them that follow from the other dimensions.
        bars: how the other dimensions share in that, the most important first.
        trials: how many were looked at.
    """

    title: str
    cost: str
    by_cost: float
    by_rest: float
    bars: tuple[Bar, ...]
    trials: int

    @property
    def parts(self) -> list[tuple[str, float, str]]:
        """Names, percents and colours of what the differences in accuracy divide into."""
        return [
            (f"{self.cost} alone", self.by_cost, DOMINATED),
            ("what else was searched", self.by_rest, FRONT),
            ("neither", max(0.0, 100 - self.by_cost - self.by_rest), GRID),
        ]

    @property
    def caption(self) -> str:
        """How to read it."""
        return (
            f"Above: how far the differences in accuracy between {self.trials} trials follow from {self.cost} alone, "
            "and from what else was searched. Below: how the blue part divides, by permutation importance in a random "
            "forest, tested on trials that it was not fitted to; lines are one deviation."
        )


def importance(subject: Subject) -> Importance:
    """Return what matters for the accuracy of finished trials, by permutation importance.

    The trials are divided into five parts, and each is predicted from the other four. First accuracy is predicted from
    the cost alone, by the best curve that never falls (isotonic regression): a wider network is a better one, and that
    would hide all else. Then a forest of random trees predicts what is left, from the dimensions and the cost. A
    dimension matters as much as that prediction gets worse when its values are shuffled among the trials of a part.
    Widths count relative to each other: the mean over all stages is a matter of cost.

    Paper: Breiman, Random Forests, Machine Learning 2001 (section 10).
    Differs: trials left out in parts instead of out-of-bag; extremely randomised trees.

    Raises:
        NothingToDrawError: too few trials finished, they do not differ, or nothing explains their accuracy.
        SweepError: the baseline lacks the cost.
    """
    records = some_of(subject.finished, MOST)
    if len(records) < FEWEST:
        raise NothingToDrawError(
            f"What matters can be told from {FEWEST} finished trials on; there {_are(len(records))} so far."
        )
    accuracy = np.array([subject.accuracy(record) for record in records])
    cost = np.array([subject.share(record, subject.cost) for record in records])
    found = [each for each in _at_equal_cost(dimensions(subject, records)) if len(set(each.values)) > 1]
    if not found or accuracy.std() == 0:
        raise NothingToDrawError("The trials that finished do not differ in what was searched, or in accuracy.")
    parts = np.random.default_rng(0).permutation(len(records)) % PARTS
    left = accuracy - _by_cost(cost, accuracy, parts)
    by_cost = max(0.0, 1 - float((left**2).sum() / ((accuracy - accuracy.mean()) ** 2).sum()))
    left = left - left.mean()
    features = np.column_stack([*(_numbers(each) for each in found), cost])
    by_rest, losses = _by_forest(features, left, parts, len(found))
    words = WORDS[subject.cost]
    if by_rest <= 0:
        raise NothingToDrawError(
            f"{100 * by_cost:.0f} % of the differences in accuracy between {len(records)} trials follow from {words} "
            "alone; nothing that was searched predicts the others in trials that were left out."
        )
    means = losses.mean(axis=1)
    total = np.maximum(means, 0).sum() or 1.0
    deviations = losses.std(axis=1, ddof=1) / np.sqrt(PARTS)
    bars = [
        Bar(each.label, 100 * max(0.0, float(mean / total)), 100 * float(deviation / total))
        for each, mean, deviation in zip(found, means, deviations, strict=True)
    ]
    bars.sort(key=lambda bar: -bar.share)
    title = subject.titled("what matters for accuracy")
    return Importance(title, words, 100 * by_cost, 100 * (1 - by_cost) * by_rest, tuple(bars), len(records))


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count or 'none'}"


def _at_equal_cost(found: Sequence[Dimension]) -> Iterator[Dimension]:
    """Yield the dimensions without the budget, and widths relative to their mean."""
    kept = [each for each in found if each.name.startswith("kept.")]
    mean = np.mean([_numbers(each) for each in kept], axis=0) if kept else 0.0
    for each in found:
        if each.name.startswith("kept."):
            if len(kept) > 1:
                relative = np.round(_numbers(each) - mean, 9).tolist()
                yield Dimension(each.name, f"{each.label.removesuffix(', %')}, against other widths", tuple(relative))
        elif each.name != "budget":
            yield each


def _numbers(dimension: Dimension) -> Vector:
    """Return a number for each trial: choices by their place, what does not exist below all that does."""
    categories = dimension.categories
    if categories:
        return np.array([categories.index(value) for value in dimension.values], dtype=np.float64)
    known = [float(value) for value in dimension.values if value is not None]
    return np.array([min(known) - 1 if value is None else float(value) for value in dimension.values])


def _by_cost(cost: Vector, accuracy: Vector, parts: NDArray[np.int64]) -> Vector:
    """Return the accuracy that the cost of each trial lets expect, given the trials of the other parts."""
    from sklearn.isotonic import IsotonicRegression  # most of a second, and only here

    expected = np.empty(len(cost))
    for part in range(PARTS):
        there = parts == part
        curve = IsotonicRegression(out_of_bounds="clip").fit(cost[~there], accuracy[~there])
        expected[there] = curve.predict(cost[there])
    return expected


def _by_forest(features: Matrix, left: Vector, parts: NDArray[np.int64], count: int) -> tuple[float, Matrix]:
    """Return which part of the variance the features explain, and what shuffling each of the first ones loses of it.

    Args:
        features: `[trials, features]`.
        left: what is to be explained, `[trials]`.
        parts: which part each trial is in.
        count: how many features are shuffled.

    Returns:
        A part of one, and `[count, parts]`.
    """
    from sklearn.ensemble import ExtraTreesRegressor

    rng, variance = np.random.default_rng(0), float((left**2).mean())
    errors, losses = np.empty(len(left)), np.empty((count, PARTS))
    for part in range(PARTS):
        there = parts == part
        forest = ExtraTreesRegressor(TREES, min_samples_leaf=2, random_state=0).fit(features[~there], left[~there])
        rows, truth = features[there], left[there]
        errors[there] = (forest.predict(rows) - truth) ** 2
        shuffled = np.tile(rows, (count, SHUFFLES, 1, 1))
        for place in range(count):
            shuffled[place, :, :, place] = [rng.permutation(rows[:, place]) for _ in range(SHUFFLES)]
        predicted = forest.predict(shuffled.reshape(-1, rows.shape[1])).reshape(count, SHUFFLES, len(rows))
        losses[:, part] = (((predicted - truth) ** 2).mean(axis=(1, 2)) - errors[there].mean()) / variance
    return 1 - float(errors.mean()) / variance, losses


def importance_charts(data: Importance) -> list[go.Figure]:
    """Draw it for a page: what the differences divide into, and how the searched dimensions share in their part."""
    above, below = go.Figure(), go.Figure()
    for name, share, colour in data.parts:
        text = f"<b>{name}</b>: {share:.1f} % of the differences in accuracy"
        above.add_bar(
            y=[""],
            x=[round(share, 2)],
            orientation="h",
            marker={"color": colour},
            name=name,
            hovertext=[text],
            hoverinfo="text",
        )
    above.update_layout(
        barmode="stack", height=150, legend={"orientation": "h", "y": 1.1, "yanchor": "bottom", "traceorder": "normal"}
    )
    above.update_xaxes(title=ABOVE, range=[0, 100])
    below.add_bar(
        y=[bar.label for bar in data.bars],
        x=[round(bar.share, 2) for bar in data.bars],
        error_x={"array": [round(bar.deviation, 2) for bar in data.bars], "thickness": 1, "width": 0, "color": QUIET},
        orientation="h",
        marker={"color": FRONT},
        hovertext=[
            f"<b>{bar.label}</b>: {bar.share:.1f} ± {bar.deviation:.1f} % of the blue part" for bar in data.bars
        ],
        hoverinfo="text",
    )
    below.update_yaxes(autorange="reversed", automargin=True)
    below.update_xaxes(title=BELOW, range=[0, _most(data)])
    below.update_layout(height=120 + 28 * len(data.bars), bargap=0.3)
    return [above, below]


def plot_importance(data: Importance) -> Figure:
    """Draw it as a picture."""
    count, step, left, across = len(data.bars), 0.3, 2.75, 5.2
    frame = Frame(data.title, data.caption, 8.4, 1.75 + step * (count + 1))
    above, axes = frame.axes(left, 0.4, across, step), frame.axes(left, 1.2 + step, across, step * count)
    start = 0.0
    for name, share, colour in data.parts:
        above.barh([0], [share], left=[start], color=colour, height=1.0, label=f"{name} {share:.0f} %")
        start += share
    above.set_xlim(0, 100)
    above.set_ylim(-0.5, 0.5)
    above.set_yticks([])
    above.set_xlabel(ABOVE, fontsize=9)
    frame.legend(left, 0.15, above)
    shares, deviations = [bar.share for bar in data.bars], [bar.deviation for bar in data.bars]
    ends = [[min(share, deviation) for share, deviation in zip(shares, deviations, strict=True)], deviations]
    axes.barh(range(count), shares, xerr=ends, color=FRONT, height=0.62, error_kw={"elinewidth": 1, "ecolor": QUIET})
    axes.set_yticks(range(count), [bar.label for bar in data.bars])
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlim(0, _most(data))
    axes.set_xlabel(BELOW, fontsize=9)
    for each in (above, axes):
        quiet(each)
        each.grid(axis="y", visible=False)
        each.tick_params(axis="y", length=0)
    return frame.figure


def _most(data: Importance) -> float:
    """Return the end of the axis of shares."""
    return 1.05 * max([1.0, *(bar.share + bar.deviation for bar in data.bars)])
