"""DCP: channels are picked one by one, each for what it would do for the losses of the network and of its heads."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import ClassVar, Literal

import torch
from torch import nn

from pruning.auxiliary import AuxiliaryLosses
from pruning.criteria import Batches, calibration, evaluating, register
from pruning.discrimination.search import Search, Settings
from pruning.errors import OptionError
from pruning.greedy import GreedyRanking
from pruning.groups import ChannelGroups
from pruning.modes import in_mode

DEFAULT_RATE = 0.5


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
        _check("mode", mode, mode in ("exact", "fast"), "'exact' or 'fast'")
        _check("growth", growth, growth >= 1, "at least 1")
        _check("share", share, share >= 1, "at least 1")
        self.images = images
        self.settings = Settings(
            rate=rate if rate is not None or epsilon is not None else DEFAULT_RATE,
            epsilon=epsilon,
            norm=norm,
            loss_weight=loss_weight,
            reconstruction_weight=reconstruction_weight,
            learning_rate=learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            complete=complete,
            cache_gib=cache_gib,
            mode=mode,
            growth=growth,
            share=share,
        )

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
        search = Search(self.settings, network, auxiliary, criterion)
        with _unmoved(network, baseline, auxiliary):
            data = list(calibration(batches, criterion, network, self.images))
            return search.all_groups(baseline, groups, data, orders)


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
