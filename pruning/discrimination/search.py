"""DCP's greedy search: which channel of a group joins next, pass after pass, and where it stops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

from pruning.auxiliary import AuxiliaryLosses
from pruning.discrimination.options import SearchOptions
from pruning.discrimination.problem import GroupProblem, channel_norms
from pruning.discrimination.reading import Objective
from pruning.discrimination.selection_data import Data, Inputs
from pruning.discrimination.surrogate import Surrogate, fits
from pruning.errors import RankingError
from pruning.greedy import GreedyRanking
from pruning.groups import ChannelGroup, ChannelGroups
from pruning.lineage import Traced

GIB = 2**30


@dataclass(frozen=True)
class Choice:
    """Which channel joins next: the one with the largest gradient by `norm`, or the next one of its group's order."""

    norm: Literal["frobenius", "code"] = "frobenius"
    orders: Mapping[str, Sequence[int]] | None = None


class Search:
    """The greedy search of one network, group after group in the order of the graph.

    Args:
        options: how to search; messages and the ranking bear their name.
        network: frozen and in eval mode; its readers' weights change in place.
        auxiliary: heads, in the order in which they run.
        choice: which channel joins next.
    """

    def __init__(
        self, options: SearchOptions, network: nn.Module, auxiliary: AuxiliaryLosses | None, choice: Choice
    ) -> None:
        self.options, self.network, self.auxiliary, self.choice = options, network, auxiliary, choice
        heads = 1.0 if auxiliary is None else auxiliary.placement.weight
        self.objective = Objective(
            reconstruction=options.reconstruction_weight,
            discrimination=options.loss_weight * heads,
            learning_rate=options.learning_rate,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
        )

    def all_groups(self, baseline: nn.Module, groups: ChannelGroups, data: Data) -> GreedyRanking:
        """Search every group; leave each cut to its reference width, with its fitted weights.

        Args:
            baseline: the uncut network.
            groups: of both.
            data: the selection set, at least one batch.

        Raises:
            RankingError: a group that nothing reads, or a loss or score that is not finite.
        """
        traced = Traced(self.network)
        example = data[0][0][:2]
        found: dict[str, tuple[Tensor, Tensor]] = {}
        widths: dict[str, int] = {}
        fitted: dict[str, dict[str, Tensor]] = {}
        inputs: Inputs | None = None
        for name, group in groups.items():
            readers = [part.layer for part in group.readers if traced.runs(part.layer)]
            if not readers:
                raise RankingError(f"criterion '{self.options.name}', group '{name}': no layer reads it in eval mode")
            end = self._end(traced, readers)
            parts = [traced.segment(model, example, readers, end) for model in (self.network, baseline)]
            inputs = Inputs(parts[0], parts[1], data, self.options.cache_gib * GIB, inputs)
            head = None if self.auxiliary is None or end is None else self._head(end)
            problem = GroupProblem(self.network, group, parts[0], inputs, head, self.objective)
            layers = [self.network.get_submodule(reader.layer) for reader in problem.readers]
            given = None if self.choice.orders is None else self.choice.orders[name]
            if self.options.mode == "fast" and fits(problem, layers):
                order, losses, widths[name] = self._fast_order(problem, group, layers, given, fitted)
            else:
                order, losses, widths[name] = self._order(problem, group, given, fitted)
            found[name] = order, losses
        return GreedyRanking(
            self.options.name,
            {name: order for name, (order, _) in found.items()},
            {name: losses for name, (_, losses) in found.items()},
            widths,
            fitted,
        )

    def _end(self, traced: Traced, readers: Sequence[str]) -> str | None:
        """Return the first module with a head that depends on all readers, None for the network's own output."""
        names = () if self.auxiliary is None else self.auxiliary.names
        return next((name for name in names if traced.reaches(readers, name)), None)

    def _head(self, end: str) -> nn.Module:
        assert self.auxiliary is not None
        return self.auxiliary.heads[self.auxiliary.names.index(end)]

    def _order(
        self,
        problem: GroupProblem,
        group: ChannelGroup,
        given: Sequence[int] | None,
        fitted: dict[str, dict[str, Tensor]],
    ) -> tuple[Tensor, Tensor, int]:
        """Return the order of a group's channels, the loss curve and the reference width; put the fitted weights in."""
        width = None if self.options.reference_rate is None else reference_width(group, self.options.reference_rate)
        picked: list[int] = []
        losses: list[float] = []
        scores = torch.zeros(group.width, dtype=torch.float64)
        while True:
            last = len(picked) == (group.width if self.options.complete or width is None else width)
            if last or given is not None:
                losses.append(problem.loss())
            else:
                loss, slopes = problem.slopes()
                losses.append(loss)
                scores = channel_norms(slopes, self.choice.norm)
            self._check(group, losses[-1], scores)
            if width is None and (last or self._settled(losses, group)):
                width = len(picked)
                last |= not self.options.complete
            if len(picked) == width:
                fitted[group.name] = problem.weights()
            if last:
                break
            free = scores.index_fill(0, torch.tensor(picked, dtype=torch.long), -torch.inf)
            picked.append(int(free.argmax()) if given is None else given[len(picked)])
            problem.add(picked[-1])
            problem.descend(picked)
        assert width is not None
        problem.put(fitted[group.name])
        rest = [channel for channel in _descending(scores, given) if channel not in set(picked)]
        return torch.tensor([*picked, *rest]), torch.tensor(losses, dtype=torch.float64), width

    def _fast_order(
        self,
        problem: GroupProblem,
        group: ChannelGroup,
        layers: Sequence[nn.Module],
        given: Sequence[int] | None,
        fitted: dict[str, dict[str, Tensor]],
    ) -> tuple[Tensor, Tensor, int]:
        """Do what `_order` does; passes over images only where the number of picks has grown."""
        width = None if self.options.reference_rate is None else reference_width(group, self.options.reference_rate)
        surrogate, steps = Surrogate(problem, layers, self.options.share), len(problem.inputs)
        picked: list[int] = []
        losses = [surrogate.anchor()]
        rest = channel_norms(surrogate.slopes(), self.choice.norm)
        self._check(group, losses[0], rest)
        anchor = 0
        while len(picked) < group.width and (self.options.complete or width is None or len(picked) < width):
            if len(picked) >= max(anchor + 1, int(anchor * self.options.growth)):
                surrogate.write()
                losses[-1], anchor = surrogate.anchor(), len(picked)
            rest = channel_norms(surrogate.slopes(), self.choice.norm)
            self._check(group, losses[-1], rest)
            free = rest.index_fill(0, torch.tensor(picked, dtype=torch.long), -torch.inf)
            picked.append(int(free.argmax()) if given is None else given[len(picked)])
            surrogate.add(picked[-1])
            surrogate.descend(picked, steps)
            losses.append(surrogate.loss())
            if width is None and (self._settled(losses, group) or len(picked) == group.width):
                width = len(picked)
            if len(picked) == width:
                surrogate.write()
                fitted[group.name] = problem.weights()
        assert width is not None
        self._check(group, losses[-1], rest)
        problem.put(fitted[group.name])
        behind = [channel for channel in _descending(rest, given) if channel not in set(picked)]
        return torch.tensor([*picked, *behind]), torch.tensor(losses, dtype=torch.float64), width

    def _settled(self, losses: Sequence[float], group: ChannelGroup) -> bool:
        """Return whether the last pick changed the loss by no more than ε of the first loss, eq. 10."""
        assert self.options.epsilon is not None
        enough = len(losses) > max(1, group.minimum)
        return enough and abs(losses[-2] - losses[-1]) <= self.options.epsilon * losses[0]

    def _check(self, group: ChannelGroup, loss: float, scores: Tensor) -> None:
        if not abs(loss) < float("inf") or not bool(scores.isfinite().all()):
            what = "a loss" if not abs(loss) < float("inf") else "scores"
            raise RankingError(
                f"criterion '{self.options.name}', group '{group.name}': expected finite numbers, got {what} that "
                f"are not; a lower learning_rate may help"
            )


def reference_width(group: ChannelGroup, rate: float) -> int:
    """Return how many channels stay: all but ⌊rate · width⌋, in exact arithmetic; never fewer than a cut may leave."""
    return max(group.minimum, group.width - int(Fraction(str(rate)) * group.width))


def _descending(scores: Tensor, given: Sequence[int] | None) -> list[int]:
    if given is not None:
        return list(given)
    order: list[int] = scores.sort(descending=True, stable=True).indices.tolist()
    return order
