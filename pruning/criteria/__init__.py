"""Which channels of a group matter. One file a criterion; each turns a network, and maybe data, into a `Ranking`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Protocol, final

import torch
from torch import Tensor, nn

from pruning.auxiliary import AuxiliaryLosses
from pruning.errors import RankingError
from pruning.groups import ChannelGroup, ChannelGroups
from pruning.modes import in_mode
from pruning.ranking import NestedRanking, Ranking
from pruning.registry import Registry

Batches = Iterable[tuple[Tensor, Tensor]]
"""Normalised images `[images, channels, height, width]` and int64 labels `[images]`, on any device."""


class Criterion(Protocol):
    """Ranks the channels of every group. The network, its mode, its hooks and the random state are left as found."""

    name: ClassVar[str]
    needs_data: ClassVar[bool]
    uses_auxiliary: ClassVar[bool]

    def rank(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        batches: Batches | None = None,
        auxiliary: AuxiliaryLosses | None = None,
    ) -> Ranking:
        """Rank the channels of `groups`.

        Args:
            model: the network that `groups` were found in.
            groups: the groups to rank, all of the network's or some.
            batches: needed where `needs_data`, else not looked at.
            auxiliary: trained heads on the feature maps of `model`, whose losses join where `uses_auxiliary`; else
                not looked at.

        Raises:
            RankingError: no data where it is needed, a group that cannot be scored, or a score that is not finite.
        """
        ...


CRITERIA: Registry[Criterion] = Registry("criterion", "pruning.criteria")
register = CRITERIA.register

__all__ = ["CRITERIA", "Batches", "Criterion", "ScoreCriterion", "calibration", "evaluating", "register"]


class ScoreCriterion(ABC):
    """A criterion that scores one group after the other, from the weights alone."""

    name: ClassVar[str]
    needs_data: ClassVar[bool] = False
    uses_auxiliary: ClassVar[bool] = False

    @abstractmethod
    def score(self, group: ChannelGroup, model: nn.Module) -> Tensor:
        """Return one score a channel, float64 `[channels]`, higher = keep."""

    @final
    def rank(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        batches: Batches | None = None,  # noqa: ARG002, the weights say it all
        auxiliary: AuxiliaryLosses | None = None,  # noqa: ARG002
    ) -> NestedRanking:
        """Order every group by its scores; see `Criterion.rank`."""
        with torch.no_grad():
            scores = {name: self.score(group, model) for name, group in groups.items()}
        return NestedRanking.from_scores(self.name, scores)


def calibration(
    batches: Batches | None, criterion: str, model: nn.Module, images: int | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the first `images` images with their labels, batched as they come, in the type and place of the weights.

    Args:
        batches: what the caller handed to `rank`.
        criterion: who asks, for messages.
        model: the network that will see the images.
        images: how many at most; None takes all.

    Raises:
        RankingError: no batches, or not one image in them.
    """
    if batches is None:
        raise RankingError(f"criterion '{criterion}': needs data, expected batches of (images, labels), got none")
    weight, left, seen = next(model.parameters()), images, 0
    for pictures, labels in batches:
        count = len(pictures) if left is None else min(left, len(pictures))
        if count:
            yield pictures[:count].to(weight.device, weight.dtype), labels[:count].to(weight.device)
        seen += count
        left = None if left is None else left - count
        if left == 0:
            break
    if not seen:
        raise RankingError(f"criterion '{criterion}': needs data, expected at least one image, got none")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the network in eval mode; every module's mode and the random state are as found afterwards."""
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices), in_mode(model, training=False):
        yield
