"""How accurate a policy will be: after the cut, and after fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from search.surrogate.ladder import Integers, Ladder, Vector
from search.surrogate.prior import Prior, log_odds
from search.surrogate.regression import GaussianProcess, Lines, Rows, Scales

CHANCE = -2.0
"""Log-odds that are expected at an eighth of the channels where nothing is trained; one right in eight."""
NARROW = 8
BENT = 0.3
"""The part of the harm of half the channels of every group beyond which more harm tells less and less."""
SPREAD = 4.0
"""Brings roots of shares of channels into a range in which lengths are about 1."""
MOST = 300
"""So many observations are looked at, the latest: a fit takes the cube of their number."""
FIRST = Scales(tilt=0.3, bend=0.5, length=1.0, label=0.3, noise=0.3)
LAST = Scales(tilt=0.2, bend=0.2, length=1.0, label=0.1, noise=0.3)


@dataclass(frozen=True)
class Policies:
    """Policies as numbers.

    Attributes:
        widths: channels kept of each searched group, int64 `[policies, groups]`.
        labels: which criterion each has, counted from 0, int64 `[policies]`.
    """

    widths: Integers
    labels: Integers

    def of(self, chosen: slice | Integers) -> Policies:
        """Return some of them."""
        return Policies(self.widths[chosen], self.labels[chosen])


class Quality:
    """Log-odds of a right answer as Gaussian processes over widths and criterion, on lines that are known before.

    After the cut, nothing trained, log-odds fall with the logarithm of the harm that the prior adds up, and with the
    mean logarithm of the shares of channels kept; if nothing is cut they are the baseline's. After fine-tuning they
    follow those that the first model predicts, and the logarithms of the shares once more.

    Args:
        ladder: names and full widths of the searched groups.
        prior: what is known before any trial; with none, the shares of channels kept are all there is.
        labels: how many criteria there are.
        accuracy: the baseline's, 0 to 1.

    Raises:
        SearchError: the prior is of other groups.
    """

    def __init__(self, ladder: Ladder, prior: Prior | None, labels: int, accuracy: float) -> None:
        self._names, self._full, self._prior, self._labels = ladder.names, ladder.full, prior, labels
        if prior is not None:
            prior.check(ladder.names, ladder.full)
        self._uncut = float(log_odds([accuracy])[0])
        nothing = Policies(self._full[None][:0], np.zeros(0, dtype=np.int64))
        self.fit(nothing, np.zeros(0), nothing, np.zeros(0))

    def fit(self, cut: Policies, first: Vector, trained: Policies, last: Vector) -> None:
        """Learn from the latest measurements; what was learned before is forgotten.

        Args:
            cut: policies that were measured after the cut, nothing trained.
            first: their accuracies then, 0 to 1.
            trained: policies that were fine-tuned to the end.
            last: their accuracies then.
        """
        latest = slice(-MOST, None)
        self._first = self._fitted(cut.of(latest), log_odds(first[latest]))
        self._last: GaussianProcess | None = None
        if len(last):
            rows = self._trained_rows(self._cut_rows(trained.of(latest)))
            self._last = GaussianProcess(rows, log_odds(last[latest]), self._trained_lines(), LAST, self._labels)

    def _fitted(self, cut: Policies, values: Vector) -> GaussianProcess:
        """Learn what is left after a cut: of the whole network, by whatever criterion, all that the baseline knows."""
        widths = np.vstack([np.tile(self._full, (self._labels, 1)), cut.widths])
        rows = self._cut_rows(Policies(widths, np.append(np.arange(self._labels), cut.labels)))
        values = np.append(np.full(self._labels, self._uncut), values)
        return GaussianProcess(rows, values, self._cut_lines(), FIRST, self._labels)

    @property
    def trained(self) -> bool:
        """Whether what is expected is what fine-tuned networks reach; else it is what is left after a cut."""
        return self._last is not None

    def mean(self, policies: Policies) -> Vector:
        """Return the log-odds that are expected, `[policies]`."""
        rows = self._cut_rows(policies)
        return self._first.mean(rows) if self._last is None else self._last.mean(self._trained_rows(rows))

    def deviation(self, policies: Policies) -> Vector:
        """Return how far the log-odds may be from the mean, `[policies]`."""
        rows = self._cut_rows(policies)
        deviation = self._first.deviation(rows)
        if self._last is None:
            return deviation
        both: Vector = np.hypot(self._last.deviation(self._trained_rows(rows)), self._last.slopes[0] * deviation)
        return both

    def _cut_rows(self, policies: Policies) -> Rows:
        shares = policies.widths / self._full
        return Rows(self._fall(policies.widths), SPREAD * np.sqrt(shares), policies.labels)

    def _fall(self, widths: Integers) -> Vector:
        """Return what log-odds are expected to fall with, 0 if nothing is cut, `[policies, 1 or 2]`."""
        fall = [-np.log(widths / self._full).mean(axis=1)]
        if self._prior is not None:
            half = self._prior.of(self._names, np.maximum(self._full // 2, 1)[None])[0]
            harm = self._prior.of(self._names, widths)
            fall.append(np.log1p(harm / (BENT * half)) if half > 0 else np.zeros(len(widths)))
        return np.stack(fall, axis=1)

    def _cut_lines(self) -> Lines:
        """Expect what leads from the baseline to `CHANCE`, each line sharing in it."""
        narrow = self._fall(np.maximum(self._full // NARROW, 1)[None])[0]
        slopes = (CHANCE - self._uncut) / np.where(narrow > 0, narrow, np.inf) / len(narrow)
        return Lines(self._uncut, 1.0, slopes, np.abs(slopes))

    def _trained_rows(self, rows: Rows) -> Rows:
        lost = self._first.mean(rows) - self._uncut
        return Rows(np.column_stack([lost, rows.lines[:, 0]]), rows.place, rows.label)

    def _trained_lines(self) -> Lines:
        """Expect a fifth of the loss to stay, and as much again for narrow groups."""
        slope = 0.25 * (CHANCE - self._uncut) / np.log(NARROW)
        return Lines(self._uncut, 0.5, np.array([0.2, slope]), np.array([0.3, abs(slope)]))
