"""How far rankings agree: which channels they keep in common, and how alike their orders are."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pruning import ChannelGroup, ChannelGroups, Ranking
from search.asked import width_at

WIDTHS = 32
"""At how many widths a ranking without one order is asked at most."""


@dataclass(frozen=True)
class Agreement:
    """Two rankings of one group.

    Attributes:
        first: label of the one ranking.
        second: label of the other.
        group: name of the group.
        channels: its full width.
        correlation: Spearman's of the two orders, −1 to 1; orders drawn at random have 0 on average.
        keep: by share of the channels the width.
        overlap: by share, which part of the kept channels both keep, 0 to 1.
    """

    first: str
    second: str
    group: str
    channels: int
    correlation: float
    keep: Mapping[Fraction, int]
    overlap: Mapping[Fraction, float]

    def chance(self, share: Fraction) -> float:
        """Return the overlap that sets drawn at random have on average: width / channels."""
        return self.keep[share] / self.channels


def agreements(rankings: Mapping[str, Ranking], groups: ChannelGroups, shares: Sequence[Fraction]) -> list[Agreement]:
    """Compare every two rankings on every group.

    Args:
        rankings: by label.
        groups: that all of them rank.
        shares: of its channels that a group keeps.
    """
    found = []
    for name, group in groups.items():
        keep = {share: width_at(share, group) for share in shares}
        kept = {
            label: {share: ranking.keep(name, width) for share, width in keep.items()}
            for label, ranking in rankings.items()
        }
        order = {label: staying(ranking, group) for label, ranking in rankings.items()}
        for first, second in itertools.combinations(rankings, 2):
            shared = {share: overlap(kept[first][share], kept[second][share]) for share in shares}
            correlation = rank_correlation(order[first], order[second])
            found.append(Agreement(first, second, name, group.width, correlation, keep, shared))
    return found


def overlap(one: Collection[int], other: Collection[int]) -> float:
    """Return |A ∩ B| / w of two sets of w channels."""
    return len({*one} & {*other}) / len(one)


def staying(ranking: Ranking, group: ChannelGroup) -> NDArray[np.float64]:
    """Return for each channel in how many cuts it stays, `[channels]`; the most important channel has the most.

    Where kept sets are nested, that is the order, exactly. Where they are not, as for CCP, each width has a say: a
    channel that only narrow sets want, and one that only wide sets want, come between those that all want and none. Of
    a group with more than 32 channels, such a ranking is asked at 32 widths spread over all; channels may then tie.
    """
    orders: Mapping[str, Any] | None = getattr(ranking, "orders", None)
    counts = np.zeros(group.width)
    if orders is not None and group.name in orders:
        counts[orders[group.name].numpy()] = np.arange(group.width, 0, -1)
        return counts
    for width in np.unique(np.linspace(1, group.width, min(WIDTHS, group.width)).round().astype(int)):
        counts[list(ranking.keep(group.name, int(width)))] += 1
    return counts


def rank_correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Return Spearman's ρ: the correlation of the ranks, ties at their mean rank; 0 where all of one are equal."""
    first, second = (ranks - ranks.mean() for ranks in (rankdata(one), rankdata(other)))
    scale = np.sqrt((first @ first) * (second @ second))
    return float(first @ second / scale) if scale > 0 else 0.0


Pairs = dict[tuple[str, str], float]
"""A number for two labels, whichever comes first."""


def mean_overlap(found: Iterable[Agreement], share: Fraction) -> Pairs:
    """Return for every two rankings the mean overlap over the groups."""
    return _means((one.first, one.second, one.overlap[share]) for one in found)


def mean_correlation(found: Iterable[Agreement]) -> Pairs:
    """Return for every two rankings the mean of Spearman's ρ over the groups."""
    return _means((one.first, one.second, one.correlation) for one in found)


def mean_chance(found: Iterable[Agreement], share: Fraction) -> float:
    """Return the mean over the groups of the overlap that chance gives."""
    return statistics.fmean({one.group: one.chance(share) for one in found}.values())


def _means(values: Iterable[tuple[str, str, float]]) -> Pairs:
    lists: dict[tuple[str, str], list[float]] = {}
    for first, second, value in values:
        lists.setdefault((first, second), []).append(value)
    means = {pair: statistics.fmean(numbers) for pair, numbers in lists.items()}
    return means | {(second, first): mean for (first, second), mean in means.items()}
