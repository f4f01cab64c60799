"""Means over images of what is said of feature maps one by one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pruning.groups import ChannelGroups
from pruning.ranking import NestedRanking
from pruning.streaming import Reading


class MapScores:
    """Scores the channels of every group by their maps: the mean over the images, summed over the maps of a channel.

    A channel has several maps where several layers read it, and what they read is not the same tensor. A layer that is
    used several times counts with the mean over its uses; a group that no layer reads on the way scores zero.

    Args:
        criterion: who asks, for messages and for the ranking.
        groups: the groups to score.
        score: from maps `[images, channels, height, width]` to scores `[images, channels]`, higher = keep.
    """

    def __init__(self, criterion: str, groups: ChannelGroups, score: Callable[[Tensor], Tensor]) -> None:
        self._criterion, self._groups, self._score = criterion, groups, score
        self._sums: dict[str, dict[str, Tensor]] = {name: {} for name in groups}
        self._images: dict[str, dict[str, int]] = {name: {} for name in groups}

    def see(self, reading: Reading) -> None:
        """See `Observer.see`."""
        if reading.repeated:
            return
        sums, images = self._sums[reading.group.name], self._images[reading.group.name]
        scores, reader = self._score(reading.maps).double().sum(dim=0).cpu(), reading.part.tensor
        sums[reader] = sums[reader] + scores if reader in sums else scores
        images[reader] = images.get(reader, 0) + len(reading.labels)

    def ranking(self) -> NestedRanking:
        """See `Watcher.ranking`."""
        scores = {name: torch.zeros(group.width, dtype=torch.float64) for name, group in self._groups.items()}
        for name, sums in self._sums.items():
            for reader, total in sums.items():
                scores[name] += total / self._images[name][reader]
        return NestedRanking.from_scores(self._criterion, scores)
