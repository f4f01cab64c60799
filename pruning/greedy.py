"""A ranking found one channel after the other, with the losses on the way and the weights that were fitted to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pruning.errors import RankingError
from pruning.groups import ChannelGroup, ChannelGroups, tensor_of
from pruning.ranking import NestedRanking, Ranking, register_kind, write_ranking


@runtime_checkable
class FittingRanking(Ranking, Protocol):
    """A ranking that also says which weights a cut network has."""

    def weights(self, model: nn.Module, groups: ChannelGroups, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """Return the tensors of `model` that take other values before it is cut to `widths`, by qualified name."""
        ...


class GreedyRanking:
    """An order in which channels were selected, each picked in view of those before it.

    Args:
        criterion: name of the criterion that made it.
        orders: for each group its channels, first pick first, int64 `[channels]`.
        losses: for each group the loss with its first t channels, t = 0, 1, …, float64 `[picks + 1]`. Shorter than the
            orders where the search stopped; the channels behind are in the order of their last score.
        fitted_widths: how many picks of each group were in when its weights were taken.
        fitted: for each group, by qualified name, the values that its readers' weights had then, along the slice's axis
            the group's positions only, channel by channel; and their biases.
        base: tensors of the network that the ranking speaks of, by qualified name, where it was trained meanwhile.

    Raises:
        RankingError: orders that are none, or losses that are not finite.
    """

    def __init__(
        self,
        criterion: str,
        orders: Mapping[str, Tensor],
        losses: Mapping[str, Tensor],
        fitted_widths: Mapping[str, int],
        fitted: Mapping[str, Mapping[str, Tensor]],
        base: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._nested = NestedRanking(criterion, orders)
        self.criterion, self.orders = criterion, self._nested.orders
        self.losses = {group: losses[group].detach().double().cpu() for group in orders}
        for group, curve in self.losses.items():
            if not curve.isfinite().all() or not 1 <= len(curve) <= 1 + len(orders[group]):
                raise RankingError(f"{criterion}, group '{group}': expected finite losses, got {curve.tolist()}")
        self.fitted_widths = dict(fitted_widths)
        self.fitted = {group: dict(tensors) for group, tensors in fitted.items()}
        self.base = dict(base or {})

    @property
    def drops(self) -> dict[str, Tensor]:
        """For each group |L(t−1) − L(t)| / L(0) of every pick t = 1, 2, …, float64 `[picks]`."""
        return {
            group: curve.diff().abs() / curve[0] if curve[0] > 0 else curve.diff().abs()
            for group, curve in self.losses.items()
        }

    @property
    def scores(self) -> dict[str, Tensor]:
        """For each channel the smallest relative drop of the loss up to its pick, float64 `[channels]`."""
        scores = {}
        for group, order in self.orders.items():
            ordered = torch.zeros(len(order), dtype=torch.float64)
            drops = self.drops[group]
            if len(drops):
                ordered[: len(drops)] = drops.cummin(dim=0).values
            scores[group] = torch.zeros_like(ordered).index_copy(0, order, ordered)
        return scores

    def keep(self, group: str, width: int) -> tuple[int, ...]:
        """Return the `width` channels of `group` that were picked first, ascending."""
        return self._nested.keep(group, width)

    def weights(self, model: nn.Module, groups: ChannelGroups, widths: Mapping[str, int]) -> dict[str, Tensor]:
        """Return the base's tensors, and over them the fitted weights of each group that keeps as many as were fitted.

        Raises:
            RankingError: a network whose tensors have other shapes.
        """
        weights = dict(self.base)
        for name, width in self.fitted_widths.items():  # in the order of the search, which a file's tensors forget
            if name in self.fitted and widths.get(name) == width:
                weights |= _fitted(groups[name], self.fitted[name], model, weights)
        for name, tensor in weights.items():
            now = tensor_of(model, name)
            if now.shape != tensor.shape:
                raise RankingError(
                    f"ranking '{self.criterion}', '{name}': expected {list(tensor.shape)}, got {list(now.shape)}"
                )
        return weights

    def save(self, path: Path) -> None:
        """Write everything as safetensors."""
        fitted = {f"{group}>{name}": value for group, tensors in self.fitted.items() for name, value in tensors.items()}
        parts = {"order": self.orders, "loss": self.losses, "fitted": fitted, "base": self.base}
        write_ranking(path, "greedy", self.criterion, parts, {"fitted_widths": self.fitted_widths})


@register_kind("greedy")
def _load(criterion: str, parts: Mapping[str, dict[str, Tensor]], extra: Mapping[str, dict[str, int]]) -> GreedyRanking:
    fitted: dict[str, dict[str, Tensor]] = {}
    for place, value in parts["fitted"].items():
        group, _, name = place.partition(">")
        fitted.setdefault(group, {})[name] = value
    return GreedyRanking(criterion, parts["order"], parts["loss"], extra["fitted_widths"], fitted, parts["base"])


def _fitted(
    group: ChannelGroup, tensors: Mapping[str, Tensor], model: nn.Module, above: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return whole tensors with the fitted values in the group's places."""
    whole: dict[str, Tensor] = {}
    places = {part.tensor: (part.axis, part.positions) for part in group.readers}
    for name, values in tensors.items():
        now = above[name] if name in above else tensor_of(model, name).detach()
        values = values.to(now)
        if name in places:
            axis, positions = places[name]
            index = torch.tensor([position for channel in positions for position in channel], device=now.device)
            whole[name] = now.index_copy(axis, index, values)
        else:
            whole[name] = values
    return whole
