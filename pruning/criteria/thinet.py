"""ThiNet: channels whose contributions to the next layer cancel out, or never were, can go together."""

from __future__ import annotations

from collections import defaultdict
from typing import ClassVar

import torch
from torch import Tensor, nn

from pruning.criteria import StreamingCriterion, register
from pruning.errors import OptionError
from pruning.groups import ChannelGroups
from pruning.ranking import NestedRanking
from pruning.reconstruction import Place, Sample, blocks_of, check_readers, gram_of_contributions, inner_products
from pruning.refitting import ReconstructionRanking
from pruning.streaming import Reading

_TIED = 1e-12
"""Costs as near as this, in units of the mean contribution's square, are equal: rounding must not decide."""


@register("thinet")
class ThiNet(StreamingCriterion):
    """Greedy choice of channels by the error that the layers behind them are left with, then least squares.

    A filter's output without its bias is a sum of contributions x_j of its input channels j, `y = Σ_j x_j`. Removal
    grows the set R of removed channels by the one that leaves `‖Σ_{j∈R} x_j‖²` smallest, over sampled rows. All of it
    comes from G = XᵀX: the cost of j is `G_jj + 2·Σ_{i∈R} G_ij`, so an order takes channels² steps however many rows
    there are. The kept channels' weights are then multiplied by the w that minimises `‖y − X_K·w‖²`, for any width from
    the same G.

    Paper: Luo et al., ThiNet: A Filter Level Pruning Method for Deep Neural Network Compression, ICCV 2017.
    Differs: all layers from the intact network at once, where the paper cuts one layer after the other and fine-tunes
    in between. At a sampled place all filters count, which is what one drawn filter a place estimates, at no cost: G is
    the sum of `(PᵀP) ∘ (WᵀW)` over the blocks of the inputs P; with `filters` drawn it is as in the paper. A place is
    drawn by the image's pixels and the seed, with replacement, and a layer with no more places than points is seen
    whole. A group that several layers read is judged by the sum of their mean squared errors a place, and each has
    factors of its own. A ridge holds the factors at 1 where the data do not say, as for a channel that is always zero;
    the authors' code inverts.

    Args:
        images: how many images to look at, the first ones of the batches; None takes all.
        points_per_image: how many places of every image; None takes all.
        filters: at a place `all` filters of the layer count, or one that is `drawn` as well.
        search: `remove` as in the paper; `add` as in the authors' later code (TPAMI 2019), which picks the channel that
            alone explains most of what the ones before, refitted, leave unexplained (orthogonal matching pursuit).
        compensate: multiply the kept channels' weights; else they stay as they are.
        ridge: the price of changing factors, relative to the mean of the channels' squared contributions.
        seed: of the places and the filters.
    """

    name: ClassVar[str] = "thinet"

    def __init__(
        self,
        images: int | None = None,
        points_per_image: int | None = 10,
        filters: str = "all",
        search: str = "remove",
        compensate: bool = True,
        ridge: float = 1e-6,
        seed: int = 0,
    ) -> None:
        for option, value in (("images", images), ("points_per_image", points_per_image)):
            if value is not None and value < 1:
                raise OptionError(f"criterion 'thinet', {option}: expected at least 1, got {value}")
        if filters not in ("all", "drawn"):
            raise OptionError(f"criterion 'thinet', filters: expected all or drawn, got '{filters}'")
        if filters == "drawn" and points_per_image is None:
            raise OptionError("criterion 'thinet', filters: expected all where all places are taken, got 'drawn'")
        if search not in ("remove", "add"):
            raise OptionError(f"criterion 'thinet', search: expected remove or add, got '{search}'")
        if not ridge >= 0:
            raise OptionError(f"criterion 'thinet', ridge: expected 0 or more, got {ridge}")
        if seed < 0:
            raise OptionError(f"criterion 'thinet', seed: expected 0 or more, got {seed}")
        self.images, self.points_per_image, self.filters = images, points_per_image, filters
        self.search, self.compensate, self.ridge, self.seed = search, compensate, ridge, seed

    def watcher(self, model: nn.Module, groups: ChannelGroups) -> _Contributions:
        """See `StreamingCriterion.watcher`.

        Raises:
            RankingError: a reader whose output is not a plain sum over channels.
        """
        check_readers(model, groups, self.name)
        return _Contributions(self, model, groups)


class _Contributions:
    """G of every reader, float64 `[channels, channels]`, a mean over the rows and a sum over the filters."""

    def __init__(self, criterion: ThiNet, model: nn.Module, groups: ChannelGroups) -> None:
        self.criterion, self.groups, self.weights = criterion, groups, blocks_of(model, groups)
        self.drawn = criterion.filters == "drawn"
        self.sample = Sample(criterion.points_per_image, criterion.seed, also_few=self.drawn)
        self.grams: dict[Place, Tensor] = {}
        self.rows: dict[Place, int] = defaultdict(int)

    def see(self, reading: Reading) -> None:
        place = (reading.group.name, reading.part.tensor)
        W = self.weights[place]  # [filters, channels, inputs of one channel]
        for rows, numbers in self.sample.rows(reading):
            if self.drawn:
                x = torch.einsum("rci,rci->rc", rows, W[(numbers * len(W)).long()])
                gram = len(W) * inner_products(x)
            else:
                gram = gram_of_contributions(rows, W)
            self.grams[place] = self.grams[place] + gram if place in self.grams else gram
            self.rows[place] += len(rows)

    def ranking(self) -> ReconstructionRanking:
        means: dict[str, dict[str, Tensor]] = {name: {} for name in self.groups}
        for (name, tensor), gram in self.grams.items():
            means[name][tensor] = gram.cpu() / self.rows[name, tensor]
        sums = {
            name: sum(of_readers.values(), start=torch.zeros(self.groups[name].width, dtype=torch.float64).diag())
            for name, of_readers in means.items()
        }
        scores = NestedRanking.from_scores(self.criterion.name, {name: G.diagonal() for name, G in sums.items()}).scores
        search = removal_order if self.criterion.search == "remove" else adding_order
        return ReconstructionRanking(
            self.criterion.name,
            {name: search(gram) + 1 for name, gram in sums.items()},
            scores,
            means if self.criterion.compensate else {},
            whole_channels=True,
            ridge=self.criterion.ridge,
        )


def removal_order(gram: Tensor) -> Tensor:
    """Return the channels in reverse order of removal; of equal ones the last goes first.

    Args:
        gram: G, float64 `[channels, channels]`.

    Returns:
        Int64 `[channels]`, most important first.
    """
    cost, near = gram.diagonal().clone(), _TIED * gram.diagonal().mean()
    removed: list[int] = []
    for _ in range(len(gram)):
        last = int((cost <= cost.min() + near).nonzero()[-1])
        removed.append(last)
        cost += 2 * gram[last]
        cost[last] = torch.inf
    return torch.tensor(removed[::-1])


def adding_order(gram: Tensor) -> Tensor:
    """Return the channels in the order in which orthogonal matching pursuit of their sum takes them in.

    Args:
        gram: G, float64 `[channels, channels]`.

    Returns:
        Int64 `[channels]`, most important first; those that explain nothing more follow by their diagonal of G.
    """
    energy, near = gram.diagonal(), _TIED * gram.diagonal().mean()
    left, unexplained = gram.clone(), gram.sum(dim=1)  # inner products with what the taken ones cannot explain
    open_, taken = energy > 0, list[int]()
    while bool(open_.any()):
        gain = torch.where(open_, unexplained.square() / energy, -torch.inf)
        if gain.max() <= near:
            break
        first = int((gain >= gain.max() - near).nonzero()[0])
        taken.append(first)
        open_[first] = False
        column = left[first] / left[first, first].sqrt()
        unexplained -= column * column[first].reciprocal() * unexplained[first]
        left.addr_(column, column, alpha=-1)
        open_ &= left.diagonal() > _TIED * energy  # the others are sums of taken ones
    rest = torch.sort(energy, descending=True, stable=True).indices.tolist()
    return torch.tensor(taken + [channel for channel in rest if channel not in set(taken)])
