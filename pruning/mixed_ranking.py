"""A ranking that takes each group from another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from pruning.errors import RankingError, suggest
from pruning.greedy import FittingRanking
from pruning.groups import ChannelGroup, ChannelGroups, tensor_of
from pruning.ranking import Ranking


class MixedRanking:
    """Several rankings, of which each ranks some of the groups.

    Args:
        by_group: the ranking of each group.

    Attributes:
        criterion: the names of their criteria, `l1, fpgm`.
    """

    def __init__(self, by_group: Mapping[str, Ranking]) -> None:
        self.by_group = dict(by_group)
        self.criterion = ", ".join(dict.fromkeys(ranking.criterion for ranking in self.by_group.values()))

    @cached_property
    def scores(self) -> dict[str, Tensor]:
        """The scores of each group whose ranking has some; those of different criteria do not compare."""
        found = {group: getattr(ranking, "scores", {}).get(group) for group, ranking in self.by_group.items()}
        return {group: scores for group, scores in found.items() if scores is not None}

    def keep(self, group: str, width: int) -> tuple[int, ...]:
        """Return the channels that the group's own ranking keeps."""
        if group not in self.by_group:
            raise RankingError(f"ranking '{self.criterion}': no group '{group}'{suggest(group, self.by_group)}")
        return self.by_group[group].keep(group, width)

    def weights(self, model: nn.Module, groups: ChannelGroups, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """Return the weights that the rankings fitted, put together; see `FittingRanking`.

        A layer behind a concatenation reads several groups: each brings the weights that read it. A bias that several
        of them fitted is that of the last in the order of the graph, as within one `GreedyRanking`.

        Raises:
            RankingError: a ranking that changes other layers than those that read its group, as one that trained the
                network meanwhile: its weights do not go with channels that another ranking keeps.
        """
        weights: dict[str, Tensor] = {}
        for name, group in groups.items():
            ranking = self.by_group.get(name)
            if name not in widths or not isinstance(ranking, FittingRanking):
                continue
            fitted = ranking.weights(model, groups, {name: widths[name]})
            _check_local(fitted, ranking, group)
            for tensor, value in fitted.items():
                before = tensor_of(model, tensor).detach()
                value = value.to(before)
                weights[tensor] = torch.where(value == before, weights.get(tensor, before), value)
        return weights


def _check_local(tensors: Iterable[str], ranking: Ranking, group: ChannelGroup) -> None:
    """Refuse weights of layers that do not read the group."""
    readers = {part.layer for part in group.readers}
    for tensor in tensors:
        if tensor.rpartition(".")[0] not in readers:
            raise RankingError(
                f"ranking '{ranking.criterion}', group '{group.name}': expected fitted weights of the layers that read "
                f"it, got '{tensor}', too; a ranking that trained the network does not mix with others"
            )
