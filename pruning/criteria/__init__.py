"""Which channels of a group matter. One file a criterion; each turns a network, and maybe data, into a `Ranking`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import ClassVar, Protocol, final

import torch
from torch import Tensor, nn

from pruning.auxiliary import AuxiliaryLosses
from pruning.errors import RankingError
from pruning.groups import ChannelGroup, ChannelGroups
from pruning.modes import batch_statistics, in_mode
from pruning.ranking import NestedRanking, Ranking
from pruning.registry import Registry
from pruning.streaming import Observer, Request, observe

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


ENTRIES_WITH_MAPS = 2**20
"""Of a batch whose feature maps are all kept: 341 images of 3 × 32 × 32, 6 of 3 × 224 × 224 (0.6 GB in ResNet-50)."""

CRITERIA: Registry[Criterion] = Registry("criterion", "pruning.criteria")
register = CRITERIA.register

__all__ = [
    "CRITERIA",
    "Batches",
    "Criterion",
    "ScoreCriterion",
    "StreamingCriterion",
    "Watcher",
    "calibration",
    "evaluating",
    "in_parts",
    "rank_together",
    "register",
]


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


class Watcher(Observer, Protocol):
    """Looks at feature maps for one criterion; one that is a context manager is entered for the pass."""

    def ranking(self) -> Ranking:
        """Return the ranking after the last image.

        Raises:
            RankingError: a score that is not finite.
        """
        ...


class StreamingCriterion(ABC):
    """A criterion of feature maps that needs to see each only once; several share one pass, see `rank_together`.

    Attributes:
        images: how many images to look at, the first ones of the batches; None for all.
        together: all of them in one forward pass.
        batch_statistics: batch norm takes the statistics of the batch, not the running ones.
    """

    name: ClassVar[str]
    needs_data: ClassVar[bool] = True
    uses_auxiliary: ClassVar[bool] = False
    together: ClassVar[bool] = False

    images: int | None = None
    batch_statistics: bool = False

    @abstractmethod
    def watcher(self, model: nn.Module, groups: ChannelGroups) -> Watcher:
        """Return who looks at the maps of `groups` for this criterion."""

    @final
    def rank(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        batches: Batches | None = None,
        auxiliary: AuxiliaryLosses | None = None,
    ) -> Ranking:
        """Rank in a pass of its own; see `Criterion.rank`."""
        return rank_together({self.name: self}, model, groups, batches, auxiliary)[self.name]


def rank_together(
    criteria: Mapping[str, Criterion],
    model: nn.Module,
    groups: ChannelGroups,
    batches: Batches | None = None,
    auxiliary: AuxiliaryLosses | None = None,
) -> dict[str, Ranking]:
    """Rank by several criteria; those that stream feature maps share one pass over the images.

    Args:
        criteria: by any name.
        model: see `Criterion.rank`.
        groups: see `Criterion.rank`.
        batches: read once for all that stream, and once for each other criterion that needs data.
        auxiliary: see `Criterion.rank`.

    Returns:
        The rankings by the same names.

    Raises:
        RankingError: as for `Criterion.rank`.
    """
    rankings: dict[str, Ranking] = {}
    streaming = {name: one for name, one in criteria.items() if isinstance(one, StreamingCriterion)}
    for of_batch in (False, True):
        chosen = {name: one for name, one in streaming.items() if one.batch_statistics is of_batch}
        if not chosen:
            continue
        watchers = {name: one.watcher(model, groups) for name, one in chosen.items()}
        requests = [Request(watchers[name], one.images, one.together) for name, one in chosen.items()]
        with evaluating(model), batch_statistics(model, on=of_batch), ExitStack() as entered:
            for watcher in watchers.values():
                if isinstance(watcher, AbstractContextManager):
                    entered.enter_context(watcher)
            observe(model, groups, calibration(batches, "', '".join(chosen), model), requests)
        rankings |= {name: watcher.ranking() for name, watcher in watchers.items()}
    for name, one in criteria.items():
        if name not in streaming:
            rankings[name] = one.rank(model, groups, batches, auxiliary)
    return {name: rankings[name] for name in criteria}


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


def in_parts(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the same images in batches so small that all feature maps of one can be kept for a backward pass."""
    for images, labels in batches:
        count = max(1, ENTRIES_WITH_MAPS // images[0].numel())
        yield from zip(images.split(count), labels.split(count), strict=True)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the network in eval mode; every module's mode and the random state are as found afterwards."""
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices), in_mode(model, training=False):
        yield
