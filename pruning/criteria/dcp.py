"""DCP: channels are picked one by one, each for what it would do for the losses of the network and of its heads."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pruning.auxiliary import AuxiliaryLosses
from pruning.criteria import Batches, calibration, evaluating, register
from pruning.discrimination import GroupProblem, channel_norms
from pruning.errors import OptionError, RankingError
from pruning.greedy import GreedyRanking
from pruning.groups import ChannelGroup, ChannelGroups
from pruning.lineage import Traced
from pruning.modes import in_mode
from pruning.reading import Objective
from pruning.selection_data import Data, Inputs
from pruning.surrogate import Surrogate, fits

DEFAULT_RATE = 0.5
GIB = 2**30


@register("dcp")
class DCP:
    """Greedy: the channel whose weights have the largest gradient of L = L_M + λ·L_S joins, then all that joined fit.

    L_M is the distance from what the uncut network puts out where the group is read, L_S the cross-entropy of the
    first head behind, or of the network. Groups are cut in the order of the graph, each in view of those before it.

    Paper: Zhuang et al., Discrimination-aware Channel Pruning for Deep Neural Networks, NeurIPS 2018, algorithm 2.
    Differs: a group that several layers read is picked for all of them at once; past the width that `rate` or
    `epsilon` asks for, the search goes on so that every width has its set. The authors' code sums absolute values of
    the kernels' norms (`norm="code"`) and has no ½ in L_M (`reconstruction_weight=2`).

    Args:
        rate: share of each group that is gone while the groups behind it are ranked; ½ unless `epsilon` is given.
        epsilon: DCP-Adapt: instead a group is cut where |L(t−1) − L(t)| / L(0) ≤ ε first holds.
        norm: of a channel's gradient, `frobenius` or `code`.
        loss_weight: λ, times the heads' own weight where there are heads; 0 leaves reconstruction only.
        reconstruction_weight: factor of L_M; 0 leaves the discrimination-aware loss only.
        learning_rate: of the one pass over the images after each pick; 0 fits nothing.
        momentum: of the same.
        weight_decay: of the same.
        images: how many images to look at, the first ones of the batches; None takes all. They are held in memory.
        complete: go on past the reference width; else the channels behind are in the order of their last score.
        cache_gib: memory for layers' inputs; what needs more is computed anew for each pass.
        mode: `exact` makes two passes over the images a pick, as published; `fast` makes one for several picks, in
            between they are made and fitted on a quadratic function, see `Surrogate`; its losses are then estimates.
            Groups that is not for, such as readers behind each other, are searched exactly.
        growth: of `fast`: by how much the number of picks grows from pass to pass.
        share: of `fast`: each pass looks at every so manieth batch.
    """

    name: ClassVar[str] = "dcp"
    needs_data: ClassVar[bool] = True
    uses_auxiliary: ClassVar[bool] = True

    def __init__(
        self,
        rate: float | None = None,
        epsilon: float | None = None,
        norm: Literal["frobenius", "code"] = "frobenius",
        loss_weight: float = 1.0,
        reconstruction_weight: float = 1.0,
        learning_rate: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        images: int | None = None,
        complete: bool = True,
        cache_gib: float = 4.0,
        mode: Literal["exact", "fast"] = "exact",
        growth: float = 1.5,
        share: int = 1,
    ) -> None:
        if rate is not None and epsilon is not None:
            raise OptionError(f"criterion 'dcp': expected rate or epsilon, got both, {rate} and {epsilon}")
        _check("rate", rate, rate is None or 0 <= rate < 1, "at least 0, below 1")
        _check("epsilon", epsilon, epsilon is None or epsilon > 0, "above 0")
        _check("norm", norm, norm in ("frobenius", "code"), "'frobenius' or 'code'")
        _check("loss_weight", loss_weight, loss_weight >= 0, "at least 0")
        _check("reconstruction_weight", reconstruction_weight, reconstruction_weight >= 0, "at least 0")
        _check("reconstruction_weight", 0, loss_weight + reconstruction_weight > 0, "above 0 where loss_weight is 0")
        _check("learning_rate", learning_rate, learning_rate >= 0, "at least 0")
        _check("momentum", momentum, 0 <= momentum < 1, "at least 0, below 1")
        _check("weight_decay", weight_decay, weight_decay >= 0, "at least 0")
        _check("images", images, images is None or images >= 1, "at least 1")
        _check("cache_gib", cache_gib, cache_gib >= 0, "at least 0")
        self.rate = rate if rate is not None or epsilon is not None else DEFAULT_RATE
        self.epsilon, self.norm, self.images, self.complete = epsilon, norm, images, complete
        self.loss_weight, self.reconstruction_weight = loss_weight, reconstruction_weight
        self.learning_rate, self.momentum, self.weight_decay = learning_rate, momentum, weight_decay
        _check("mode", mode, mode in ("exact", "fast"), "'exact' or 'fast'")
        _check("growth", growth, growth >= 1, "at least 1")
        _check("share", share, share >= 1, "at least 1")
        self.cache_gib, self.mode, self.growth, self.share = cache_gib, mode, growth, share

    def rank(
        self,
        model: nn.Module,
        groups: ChannelGroups,
        batches: Batches | None = None,
        auxiliary: AuxiliaryLosses | None = None,
    ) -> GreedyRanking:
        """Select on a copy; see `Criterion.rank`."""
        return self.select(copy.deepcopy(model), model, groups, batches, auxiliary)

    def select(
        self,
        network: nn.Module,
        baseline: nn.Module,
        groups: ChannelGroups,
        batches: Batches | None,
        auxiliary: AuxiliaryLosses | None = None,
        *,
        orders: Mapping[str, Sequence[int]] | None = None,
        criterion: str = "dcp",
    ) -> GreedyRanking:
        """Rank the channels of `groups` in `network`, and leave each group cut to its reference width.

        Afterwards the readers' weights of the other channels are zero and the fitted ones are in place. After an error
        the weights are as they were.

        Args:
            network: changed in place; the losses are its own.
            baseline: a network with the same layers, uncut; O^b is what its layers put out.
            groups: of both.
            batches: images and labels; each batch makes a step.
            auxiliary: heads, in the order in which they run; they stay as they are.
            orders: for each group its channels in the order in which to take them, whatever their gradients.
            criterion: whom messages and the ranking name.

        Raises:
            RankingError: no data, no layer that reads a group, or a loss or score that is not finite.
            DataError: a label without a class.
            GraphError: a reader that runs twice, or a network that cannot run in parts.
        """
        run = _Run(self, network, auxiliary, criterion)
        with _unmoved(network, baseline, auxiliary):
            data = list(calibration(batches, criterion, network, self.images))
            return run.all_groups(baseline, groups, data, orders)


class _Run:
    """One call of `select`."""

    def __init__(self, dcp: DCP, network: nn.Module, auxiliary: AuxiliaryLosses | None, criterion: str) -> None:
        self.dcp, self.network, self.auxiliary, self.criterion = dcp, network, auxiliary, criterion
        heads = 1.0 if auxiliary is None else auxiliary.placement.weight
        self.objective = Objective(
            reconstruction=dcp.reconstruction_weight,
            discrimination=dcp.loss_weight * heads,
            learning_rate=dcp.learning_rate,
            momentum=dcp.momentum,
            weight_decay=dcp.weight_decay,
        )

    def all_groups(
        self, baseline: nn.Module, groups: ChannelGroups, data: Data, orders: Mapping[str, Sequence[int]] | None
    ) -> GreedyRanking:
        traced = Traced(self.network)
        example = data[0][0][:2]
        found: dict[str, tuple[Tensor, Tensor]] = {}
        widths: dict[str, int] = {}
        fitted: dict[str, dict[str, Tensor]] = {}
        inputs: Inputs | None = None
        for name, group in groups.items():
            readers = [part.layer for part in group.readers if traced.runs(part.layer)]
            if not readers:
                raise RankingError(f"criterion '{self.criterion}', group '{name}': no layer reads it in eval mode")
            end = self._end(traced, readers)
            parts = [traced.segment(model, example, readers, end) for model in (self.network, baseline)]
            inputs = Inputs(parts[0], parts[1], data, self.dcp.cache_gib * GIB, inputs)
            head = None if self.auxiliary is None or end is None else self._head(end)
            problem = GroupProblem(self.network, group, parts[0], inputs, head, self.objective)
            layers = [self.network.get_submodule(reader.layer) for reader in problem.readers]
            given = None if orders is None else orders[name]
            if self.dcp.mode == "fast" and fits(problem, layers):
                order, losses, widths[name] = self._fast_order(problem, group, layers, given, fitted)
            else:
                order, losses, widths[name] = self._order(problem, group, given, fitted)
            found[name] = order, losses
        return GreedyRanking(
            self.criterion,
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
        width = None if self.dcp.rate is None else reference_width(group, self.dcp.rate)
        picked: list[int] = []
        losses: list[float] = []
        scores = torch.zeros(group.width, dtype=torch.float64)
        while True:
            last = len(picked) == (group.width if self.dcp.complete or width is None else width)
            if last or given is not None:
                losses.append(problem.loss())
            else:
                loss, slopes = problem.slopes()
                losses.append(loss)
                scores = channel_norms(slopes, self.dcp.norm)
            self._check(group, losses[-1], scores)
            if width is None and (last or self._settled(losses, group)):
                width = len(picked)
                last |= not self.dcp.complete
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
        width = None if self.dcp.rate is None else reference_width(group, self.dcp.rate)
        surrogate, steps = Surrogate(problem, layers, self.dcp.share), len(problem.inputs)
        picked: list[int] = []
        losses = [surrogate.anchor()]
        rest = channel_norms(surrogate.slopes(), self.dcp.norm)
        self._check(group, losses[0], rest)
        anchor = 0
        while len(picked) < group.width and (self.dcp.complete or width is None or len(picked) < width):
            if len(picked) >= max(anchor + 1, int(anchor * self.dcp.growth)):
                surrogate.write()
                losses[-1], anchor = surrogate.anchor(), len(picked)
            rest = channel_norms(surrogate.slopes(), self.dcp.norm)
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
        assert self.dcp.epsilon is not None
        enough = len(losses) > max(1, group.minimum)
        return enough and abs(losses[-2] - losses[-1]) <= self.dcp.epsilon * losses[0]

    def _check(self, group: ChannelGroup, loss: float, scores: Tensor) -> None:
        if not abs(loss) < float("inf") or not bool(scores.isfinite().all()):
            what = "a loss" if not abs(loss) < float("inf") else "scores"
            raise RankingError(
                f"criterion '{self.criterion}', group '{group.name}': expected finite numbers, got {what} that "
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


@contextmanager
def _unmoved(network: nn.Module, baseline: nn.Module, auxiliary: AuxiliaryLosses | None) -> Iterator[None]:
    """Freeze everything in eval mode for a while; after an error the network's weights are as they were, too."""
    modules = [network, baseline, *([] if auxiliary is None else [auxiliary.heads])]
    parameters = [(parameter, parameter.requires_grad) for module in modules for parameter in module.parameters()]
    before = [parameter.detach().clone() for parameter in network.parameters()]
    with ExitStack() as stack:
        stack.enter_context(evaluating(network))
        for module in modules[1:]:
            stack.enter_context(in_mode(module, training=False))
        try:
            for parameter, _ in parameters:
                parameter.requires_grad_(False)
            yield
        except BaseException:
            with torch.no_grad():
                for parameter, value in zip(network.parameters(), before, strict=True):
                    parameter.copy_(value)
            raise
        finally:
            for parameter, needed in parameters:
                parameter.requires_grad_(needed)


def _check(option: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise OptionError(f"criterion 'dcp', {option}: expected {expected}, got {value!r}")
