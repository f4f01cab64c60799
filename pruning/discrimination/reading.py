"""The weights that read a channel group in one layer: taken out, put back, moved down a slope."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pruning.groups import Slice, tensor_of


@dataclass(frozen=True)
class Objective:
    """L = reconstruction · L_M + discrimination · L_S, eq. 6 of the paper, and how a step goes down it."""

    reconstruction: float
    discrimination: float
    learning_rate: float
    momentum: float
    weight_decay: float


class Reader:
    """The weights of one layer that read a group: its slice along one axis, and the bias.

    Attributes:
        layer: the layer's name.
        axis: of the weight, the one that the slice lies on.
        index: the group's positions on that axis, channel by channel, int64 `[channels · positions of one channel]`.
        weight: the whole weight of the network.
        bias: of the layer, or None.
        original: what the slice was before, `index` along `axis`.
    """

    def __init__(self, network: nn.Module, part: Slice) -> None:
        weight, bias = tensor_of(network, part.tensor), getattr(network.get_submodule(part.layer), "bias", None)
        assert isinstance(weight, nn.Parameter)
        self.layer, self.tensor, self.axis = part.layer, part.tensor, part.axis
        self.positions = torch.tensor(part.positions, device=weight.device)
        self.index = self.positions.flatten()
        self.weight: nn.Parameter = weight
        self.bias: nn.Parameter | None = bias
        self.original = weight.detach().index_select(part.axis, self.index)
        self.original_bias = None if bias is None else bias.detach().clone()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The weight, and the bias where there is one."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def by_channel(self, tensor: Tensor) -> Tensor:
        """Return a tensor shaped like the weight as `[channels, outputs, entries]`, of the group's channels."""
        rows = tensor.index_select(self.axis, self.index).movedim(self.axis, 0)
        rows = rows.reshape(*self.positions.shape, *rows.shape[1:])  # [channels, positions, outputs, …]
        return rows.movedim(2, 1).flatten(2)

    def matrix(self, gradients: Mapping[int, Tensor]) -> Tensor:
        """Return the slice's gradient, and the bias's as a last column, `[outputs, …]`; by the parameters' ids."""
        slope = gradients[id(self.weight)].index_select(1, self.index).flatten(1)
        return slope if self.bias is None else torch.cat([slope, gradients[id(self.bias)][:, None]], dim=1)


class Moving:
    """What a pass changes of one parameter, and how fast it moves."""

    def __init__(self, parameter: nn.Parameter, axis: int, index: Tensor | None) -> None:
        self.parameter, self._axis, self._index = parameter, axis, index
        self._speed: Tensor | None = None

    def step(self, gradient: Tensor, objective: Objective) -> None:
        """Make one step of Nesterov's momentum as torch.optim.SGD does; the first has no momentum yet."""
        value, slope = self._part(self.parameter.detach()), self._part(gradient)
        slope = slope + objective.weight_decay * value
        self._speed = slope if self._speed is None else objective.momentum * self._speed + slope
        ahead = slope + objective.momentum * self._speed
        value = value - objective.learning_rate * ahead
        if self._index is None:
            self.parameter.copy_(value)
        else:
            self.parameter.index_copy_(self._axis, self._index, value)

    def _part(self, tensor: Tensor) -> Tensor:
        return tensor if self._index is None else tensor.index_select(self._axis, self._index)
