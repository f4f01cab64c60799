"""Sensitivity: what the network loses as one group alone gets narrower, measured on the cut network."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.auxiliary import check_labels
from pruning.batchnorm import recalibrating
from pruning.curves import Curve
from pruning.errors import DataError, GraphError, OptionError, RankingError
from pruning.greedy import FittingRanking
from pruning.groups import ChannelGroup, ChannelGroups
from pruning.lineage import Segment, Traced
from pruning.losses import main_logits
from pruning.modes import in_mode
from pruning.ranking import Ranking
from pruning.surgery import prune

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Which shares of a group's channels are kept by default."""

Pairs = Sequence[tuple[Tensor, Tensor]]
"""Batches that are read more than once: images and labels, in the type and place of the weights."""


@dataclass(frozen=True)
class Measured:
    """The network with one group cut to one width: mean cross-entropy and share of images that are classified right."""

    group: str
    width: int
    loss: float
    accuracy: float


def measure_sensitivity(
    model: nn.Module,
    groups: ChannelGroups,
    ranking: Ranking,
    recalibration_batches: Pairs,
    test_batches: Pairs,
    shares: Iterable[float | Fraction] = SHARES,
) -> Iterator[Measured]:
    """Cut one group after the other, on copies of the network, and measure each cut network.

    The numbers are those of `prune`, `recalibrate` and `evaluate` on these batches. What lies in front of a group runs
    once for all its widths, whose networks share all weights that were not cut.

    Args:
        model: the network, which is not changed.
        groups: the groups to measure, all of the network's or some.
        ranking: which channels each width keeps, and with what weights where it fitted some.
        recalibration_batches: for the batch-norm statistics of each cut network; none keeps those of `model`.
        test_batches: for loss and accuracy.
        shares: of the channels kept, above 0; widths are rounded up, and at least the group's minimum.

    Yields:
        For each group each of its distinct widths, ascending; the last is the full width, where nothing is cut.

    Raises:
        OptionError: a share outside (0, 1].
        RankingError: a loss that is not finite, or what the ranking raises.
        SurgeryError: a cut that cannot be made.
        DataError: no images, or a label without a class.
    """
    exact, traced = check_shares(shares, "shares"), Traced(model)
    if not test_batches:
        raise DataError("sensitivity: expected at least one image, got none")
    example = test_batches[0][0][:1]
    whole = _copy(model, groups, ranking, {})
    prune(whole, {}, ranking, groups=groups, check=False)
    (uncut,) = _measured(_Alike([whole]), recalibration_batches, test_batches)
    if not math.isfinite(uncut[0]):
        raise RankingError(f"criterion 'sensitivity': expected a network with a finite loss, got {uncut[0]}")
    for name, group in groups.items():
        *narrow, full = widths_at(group, exact)
        networks = []
        for width in narrow:
            networks.append(_copy(model, groups, ranking, {name: width}))
            first = width == narrow[0]  # one proof for each group: the other cuts only differ in their numbers
            prune(networks[-1], {name: width}, ranking, groups=groups, example_input=example, check=first)
        alike = _Alike(networks)
        if not isinstance(ranking, FittingRanking):
            alike.share_prefix(traced, example, group)
        results = [*_measured(alike, recalibration_batches, test_batches), uncut]
        for width, (loss, accuracy) in zip((*narrow, full), results, strict=True):
            if not math.isfinite(loss):
                message = f"expected a finite loss with {width} of {full} channels, got {loss}"
                raise RankingError(f"criterion 'sensitivity', group '{name}': {message}")
            yield Measured(name, width, loss, accuracy)


def check_shares(shares: Iterable[float | Fraction], place: str) -> tuple[Fraction, ...]:
    """Return shares as they are written: 0.55 is no binary fraction, and 0.55 · 100 would be one channel more.

    Raises:
        OptionError: one outside (0, 1].
    """
    for share in shares:
        if not 0 < share <= 1:
            raise OptionError(f"{place}: expected numbers above 0, at most 1, got {share}")
    return tuple(Fraction(str(share)) for share in shares)


def widths_at(group: ChannelGroup, shares: Iterable[Fraction]) -> list[int]:
    """Return the widths to measure, ascending: the shares of the full width, rounded up, and the full width."""
    return sorted({group.width, *(max(group.minimum, math.ceil(share * group.width)) for share in shares)})


def curves_of(measured: Iterable[Measured]) -> dict[str, Curve]:
    """Gather what was measured by group."""
    found: dict[str, list[Measured]] = defaultdict(list)
    for one in measured:
        found[one.group].append(one)
    return {
        name: Curve(
            torch.tensor([one.width for one in of_group]),
            torch.tensor([one.loss for one in of_group], dtype=torch.float64),
            torch.tensor([one.accuracy for one in of_group], dtype=torch.float64),
        )
        for name, of_group in found.items()
    }


class _Alike:
    """Networks that are equal in front of some layers."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self.networks = networks
        self._parts: list[Segment] = []

    def share_prefix(self, traced: Traced, example: Tensor, group: ChannelGroup) -> None:
        """Run what a cut of a group does not change once for all networks, if they can run in parts."""
        cut = list(dict.fromkeys(part.layer for part in group.slices))  # not makers alone: zeros have none
        try:
            self._parts = [traced.segment(network, example, cut, None) for network in self.networks]
        except GraphError:  # a layer that runs twice or in training only, or a parameter that is no layer's
            self._parts = []

    def logits(self, images: Tensor) -> Iterator[Tensor]:
        """Yield what each network puts out."""
        if not self._parts:
            yield from (main_logits(network(images)) for network in self.networks)
            return
        values = self._parts[0].prefix(images)
        yield from (main_logits(part.suffix(values)) for part in self._parts)


def _copy(model: nn.Module, groups: ChannelGroups, ranking: Ranking, widths: Mapping[str, int]) -> nn.Module:
    """Return a copy with buffers of its own, and with the weights of `model` where the ranking has no others."""
    fitted = ranking.weights(model, groups, widths) if isinstance(ranking, FittingRanking) else {}
    shared = {id(parameter): parameter for name, parameter in model.named_parameters() if name not in fitted}
    return copy.deepcopy(model, dict(shared))


@torch.no_grad()
def _measured(alike: _Alike, recalibration_batches: Pairs, test_batches: Pairs) -> list[tuple[float, float]]:
    """Recalibrate all networks and return loss and accuracy of each."""
    with ExitStack() as stack:
        if recalibration_batches:
            for network in alike.networks:
                stack.enter_context(recalibrating(network))
        for images, _ in recalibration_batches:
            if len(images) > 1:  # one image has no variance
                for _ in alike.logits(images):
                    pass
    losses, right, seen = [0.0] * len(alike.networks), [0] * len(alike.networks), 0
    with ExitStack() as stack:
        for network in alike.networks:
            stack.enter_context(in_mode(network, training=False))
        for images, labels in test_batches:
            for index, logits in enumerate(alike.logits(images)):
                check_labels(labels, logits.shape[1])
                losses[index] += float(F.cross_entropy(logits.double(), labels, reduction="sum"))
                right[index] += int((logits.argmax(dim=1) == labels).sum())
            seen += len(labels)
    return [(loss / seen, hits / seen) for loss, hits in zip(losses, right, strict=True)]
