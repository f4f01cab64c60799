"""DCP: channels are picked one by one, each for what it would do for the losses of the network and of its heads."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from pruning.auxiliary import AuxiliaryLosses
from pruning.criteria import Batches, calibration, evaluating, register
from pruning.discrimination.options import SearchOptions
from pruning.discrimination.search import Choice, Search
from pruning.greedy import GreedyRanking
from pruning.groups import ChannelGroups
from pruning.modes import in_mode


@dataclass(frozen=True, kw_only=True)
class DiscriminationAware(SearchOptions, ABC):
    """Channels join a group one by one; after each, all that joined are fitted to L = L_M + λ·L_S.

    L_M is the distance from what the uncut network puts out where the group is read, L_S the cross-entropy of the
    first head behind, or of the network. Groups are cut in the order of the graph, each in view of those before it.

    The options are those of `SearchOptions`.
    """

    needs_data: ClassVar[bool] = True
    uses_auxiliary: ClassVar[bool] = True

    @abstractmethod
    def choice(self, groups: ChannelGroups) -> Choice:
        """Return how the next channel is chosen."""
        ...

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

        Raises:
            RankingError: no data, no layer that reads a group, or a loss or score that is not finite.
            DataError: a label without a class.
            GraphError: a reader that runs twice, or a network that cannot run in parts.
        """
        search = Search(self, network, auxiliary, self.choice(groups))
        with _unmoved(network, baseline, auxiliary):
            data = list(calibration(batches, self.name, network, self.images))
            return search.all_groups(baseline, groups, data)


@register("dcp")
@dataclass(frozen=True, kw_only=True)
class DCP(DiscriminationAware):
    """Greedy: the channel whose weights have the largest gradient of L joins, then all that joined fit.

    Paper: Zhuang et al., Discrimination-aware Channel Pruning for Deep Neural Networks, NeurIPS 2018, algorithm 2.
    Differs: a group that several layers read is picked for all of them at once; past the width that `rate` or
    `epsilon` asks for, the search goes on so that every width has its set. The authors' code sums absolute values of
    the kernels' norms (`norm="code"`) and has no ½ in L_M (`reconstruction_weight=2`).

    Args:
        norm: of a channel's gradient, `frobenius` or `code`. All others: see `DiscriminationAware`.
    """

    name: ClassVar[str] = "dcp"

    norm: Literal["frobenius", "code"] = "frobenius"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("norm", self.norm in ("frobenius", "code"), "'frobenius' or 'code'")

    def choice(self, groups: ChannelGroups) -> Choice:  # noqa: ARG002, the gradients say it all
        """See `DiscriminationAware.choice`."""
        return Choice(norm=self.norm)


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
