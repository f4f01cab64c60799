"""A ranking that fits the weights behind the kept channels to the outputs that there were with all of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import RankingError
from pruning.groups import ChannelGroup, ChannelGroups, Slice, tensor_of
from pruning.ranking import check_width, register_kind, write_ranking
from pruning.reconstruction import least_squares, reader_blocks, with_blocks


class ReconstructionRanking:
    """A choice of channels for every width, and the sums from which the readers' weights are fitted to any choice.

    Args:
        criterion: name of the criterion that made it.
        steps: for each group how the kept set grows, int64: j + 1 where channel j comes in, −(j + 1) where it leaves.
            The set of a width is the first of that size.
        scores: how much the readers' mean squared error grows if a channel alone is removed and no weight fitted,
            float64 `[channels]`, higher = keep. The steps go by more than that.
        grams: for each group, by the readers' weights, the matrix AᵀA of what its rows are made of: the inputs of a
            filter, `[channels·inputs of one channel, same]`, or what each channel adds, `[channels, channels]`. Empty
            where weights are not fitted.
        whole_channels: the latter: all weights of a reader for one channel take one factor.
        ridge: how much change of the weights costs, see `least_squares`.

    Raises:
        RankingError: steps that do not reach every width.
    """

    def __init__(
        self,
        criterion: str,
        steps: Mapping[str, Tensor],
        scores: Mapping[str, Tensor],
        grams: Mapping[str, Mapping[str, Tensor]],
        *,
        whole_channels: bool,
        ridge: float,
    ) -> None:
        self.criterion, self.whole_channels, self.ridge = criterion, whole_channels, ridge
        self.steps, self.scores = dict(steps), dict(scores)
        self.grams = {group: dict(of_readers) for group, of_readers in grams.items()}
        self._sets = {group: _sets(taken, f"{criterion}, group '{group}'") for group, taken in self.steps.items()}

    def keep(self, group: str, width: int) -> tuple[int, ...]:
        """Return the `width` channels of `group` to keep, ascending; the sets of two widths need not be nested."""
        check_width(self.criterion, self._sets, group, width)
        return self._sets[group][width - 1]

    def weights(self, model: nn.Module, groups: ChannelGroups, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """Return the readers' weights by least squares on the kept channels, for every group that is cut.

        Raises:
            RankingError: a network whose weights do not fit.
        """
        fitted: dict[str, Tensor] = {}
        for name, width in widths.items():
            if width == groups[name].width or name not in self.grams:
                continue
            kept = self.keep(name, width)
            for part in groups[name].readers:
                if part.tensor in self.grams[name]:
                    now = fitted.get(part.tensor, tensor_of(model, part.tensor).detach())
                    fitted[part.tensor] = self._fit(groups[name], part, now, kept)
        return fitted

    def _fit(self, group: ChannelGroup, part: Slice, weight: Tensor, kept: tuple[int, ...]) -> Tensor:
        gram = self.grams[group.name][part.tensor]
        blocks = reader_blocks(weight, part).double().cpu()  # [filters, channels, inputs of one channel]
        filters, channels, inputs = blocks.shape
        if len(gram) != (channels if self.whole_channels else channels * inputs):
            raise RankingError(
                f"ranking '{self.criterion}', '{part.tensor}': expected {len(gram)} columns, got {channels} channels "
                f"of {inputs} inputs"
            )
        if self.whole_channels:
            change = least_squares(gram, kept, torch.ones(channels, 1), self.ridge)
            blocks[:, kept] *= 1 + change
            return with_blocks(weight, part, blocks)
        columns = [channel * inputs + one for channel in kept for one in range(inputs)]
        change = least_squares(gram, columns, blocks.flatten(1).T, self.ridge)
        blocks[:, kept] += change.T.reshape(filters, len(kept), inputs)
        return with_blocks(weight, part, blocks)

    def save(self, path: Path) -> None:
        """Write everything as safetensors."""
        grams = {f"{group}>{tensor}": gram for group, parts in self.grams.items() for tensor, gram in parts.items()}
        parts = {"step": self.steps, "score": self.scores, "gram": grams}
        extra = {"whole_channels": self.whole_channels, "ridge": self.ridge}
        write_ranking(path, "reconstruction", self.criterion, parts, extra)


@register_kind("reconstruction")
def _load(criterion: str, parts: Mapping[str, dict[str, Tensor]], extra: Mapping[str, Any]) -> ReconstructionRanking:
    grams: dict[str, dict[str, Tensor]] = {}
    for place, gram in parts.get("gram", {}).items():
        group, _, tensor = place.partition(">")
        grams.setdefault(group, {})[tensor] = gram
    whole, ridge = extra["whole_channels"], extra["ridge"]
    return ReconstructionRanking(criterion, parts["step"], parts["score"], grams, whole_channels=whole, ridge=ridge)


def _sets(steps: Tensor, place: str) -> list[tuple[int, ...]]:
    """Return the first set of every size from 1 on."""
    inside: set[int] = set()
    sets: list[tuple[int, ...]] = []
    for step in steps.tolist():
        channel = abs(step) - 1
        if step == 0 or (step > 0) == (channel in inside):
            raise RankingError(f"{place}: expected channels to come before they leave, got step {step} out of turn")
        inside ^= {channel}
        if len(inside) == len(sets) + 1:
            sets.append(tuple(sorted(inside)))
    if not sets or sets[-1] != tuple(range(len(sets))):
        raise RankingError(f"{place}: expected every channel to come in at last, got {sorted(inside)}")
    return sets
