"""Layers with weights in random networks: each as plain data, with its code and its channel labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from channel_labels import Labels
from torch import Tensor, nn
from torch.nn import functional as F


class Step(nn.Module):
    """An operation in a network, with the layers, parameters and numbers that it asked for."""

    def __init__(self, operation: Operation, *shapes: torch.Size) -> None:
        super().__init__()
        self.operation = operation
        operation.own(self, *shapes)

    def forward(self, *inputs: Tensor) -> Any:
        return self.operation.run(self, *inputs)


class Operation:
    """Frozen data, so that a network prints as what it was made of; `axis` is where channels lie in the result.

    Numbers of the dataclass are literals of the code to whoever traces it; numbers of the step are attributes.
    """

    axis = 1
    results = 1
    again = False
    """Whether one step may run at two places: then its result is the same channels at both."""

    def own(self, step: Any, *shapes: torch.Size) -> None:
        """Give a step what it holds on to, for inputs of these shapes."""

    def run(self, step: Any, *inputs: Tensor) -> Any:
        return step.layer(*inputs)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        """Say what becomes of the labels of the inputs; a label list for each result."""
        return [given[0]]

    def of_kept(self, step: Any, x: Tensor, keep: Tensor) -> Tensor | None:
        """Return the result of the channels that stay, where it depends on those that go; else None."""
        return None


def dims_of(shape: torch.Size) -> int:
    return len(shape) - 2


class SamePadding(nn.Conv2d):
    """A convolution with a forward of its own, which reads as its base does."""

    def forward(self, x: Tensor) -> Tensor:
        side = self.kernel_size[0] // 2
        return self._conv_forward(F.pad(x, (side, side, side, side)), self.weight, self.bias)


@dataclass(frozen=True)
class Convolution(Operation):
    makes: int
    kernel: int = 3
    groups: int = 1
    bias: bool = True
    stride: int = 1
    transposed: bool = False
    own_forward: bool = False

    @property
    def again(self) -> bool:
        return self.groups == 1

    def own(self, step: Any, *shapes: torch.Size) -> None:
        kinds = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Conv1d, nn.Conv2d, nn.Conv3d]
        kind = kinds[dims_of(shapes[0]) - 1 + (0 if self.transposed else 3)]
        named = {"stride": self.stride, "groups": self.groups, "bias": self.bias}
        if self.own_forward:
            step.layer = SamePadding(shapes[0][1], self.makes, self.kernel, **named)
        else:
            padding = 0 if self.transposed else self.kernel // 2
            step.layer = kind(shapes[0][1], self.makes, self.kernel, padding=padding, **named)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        if f"{name}.layer" in labels.thinned:
            return [self.thinned(labels, f"{name}.layer.weight", given[0])]
        return [convolved(labels, f"{name}.layer.weight", given[0], self.makes, self.groups)]

    def thinned(self, labels: Labels, weight: str, given: list[int]) -> list[int]:
        """Channels at the same place in each group are one, of what is read and of what is made."""
        each = len(given) // self.groups
        labels.tie(given[place::each] for place in range(each))
        labels.read(weight, given if self.transposed else given[:each])
        if weight not in labels.makers:
            share = labels.fresh(self.makes // self.groups)
            labels.makers[weight] = share if self.transposed else share * self.groups
        return labels.makers[weight] * (self.groups if self.transposed else 1)


def convolved(labels: Labels, weight: str, given: list[int], makes: int, groups: int) -> list[int]:
    if groups == 1:
        labels.read(weight, given)
        return labels.make(weight, makes)
    if any(labels.find(label) < 0 for label in given):
        labels.pin(labels.make(weight, makes))
        return labels.refuse(given, makes)
    each = len(given) // groups
    shares = [given[start : start + each] for start in range(0, len(given), each)]
    labels.tie(shares)
    labels.carry(weight, given)
    return [share[0] for share in shares for _ in range(makes // groups)]


@dataclass(frozen=True)
class FunctionalConvolution(Operation):
    """`F.conv2d` with parameters; the number of groups is a literal of the code, or an attribute."""

    makes: int
    groups: int = 1
    attribute: bool = True

    def own(self, step: Any, *shapes: torch.Size) -> None:
        step.weight = nn.Parameter(torch.randn(self.makes, shapes[0][1] // self.groups, 3, 3) / 4)
        step.bias = nn.Parameter(torch.rand(self.makes))
        step.groups = self.groups

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        groups = step.groups if self.attribute else self.groups
        return F.conv2d(inputs[0], step.weight, step.bias, padding=1, groups=groups)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        if self.groups > 1 and not self.attribute:
            labels.pin(given[0])
        return [convolved(labels, f"{name}.weight", given[0], self.makes, self.groups)]


@dataclass(frozen=True)
class Linear(Operation):
    """On vectors, or on tokens, whose channels lie last."""

    makes: int
    bias: bool = True
    axis = -1

    def own(self, step: Any, *shapes: torch.Size) -> None:
        step.layer = nn.Linear(shapes[0][-1], self.makes, self.bias)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        labels.read(f"{name}.layer.weight", given[0])
        return [labels.make(f"{name}.layer.weight", self.makes)]


@dataclass(frozen=True)
class LinearOnMap(Operation):
    """A linear layer on channels that are moved last and back."""

    makes: int

    def own(self, step: Any, *shapes: torch.Size) -> None:
        step.layer = nn.Linear(shapes[0][1], self.makes)

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        return step.layer(inputs[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        labels.read(f"{name}.layer.weight", given[0])
        return [labels.make(f"{name}.layer.weight", self.makes)]


class PerChannel(Operation):
    """One entry a channel."""

    again = True

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        labels.carry(f"{name}.layer", given[0])
        return [given[0]]


@dataclass(frozen=True)
class BatchNorm(PerChannel):
    affine: bool = True
    statistics: bool = True

    def own(self, step: Any, *shapes: torch.Size) -> None:
        kind = [nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d][dims_of(shapes[0])]
        step.layer = kind(shapes[0][1], affine=self.affine, track_running_stats=self.statistics)


@dataclass(frozen=True)
class InstanceNorm(PerChannel):
    affine: bool = True
    statistics: bool = False

    def own(self, step: Any, *shapes: torch.Size) -> None:
        kind = [nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d][dims_of(shapes[0]) - 1]
        step.layer = kind(shapes[0][1], affine=self.affine, track_running_stats=self.statistics)


@dataclass(frozen=True)
class PReLU(PerChannel):
    shared: bool = False

    def own(self, step: Any, *shapes: torch.Size) -> None:
        step.layer = nn.PReLU(1 if self.shared else shapes[0][1])

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        return [given[0]] if self.shared else super().labels(labels, name, *given)


@dataclass(frozen=True)
class Scale(PerChannel):
    """A parameter `[channels, 1, …]` that scales, or shifts."""

    shifts: bool = False
    batch_axis: bool = False

    def own(self, step: Any, *shapes: torch.Size) -> None:
        ones = (1,) * dims_of(shapes[0])
        step.weight = nn.Parameter(torch.rand((1, shapes[0][1], *ones) if self.batch_axis else (shapes[0][1], *ones)))

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        return inputs[0] + step.weight if self.shifts else step.weight * inputs[0]


@dataclass(frozen=True)
class GroupNorm(Operation):
    groups: int
    affine: bool = True

    def own(self, step: Any, *shapes: torch.Size) -> None:
        step.layer = nn.GroupNorm(self.groups, shapes[0][1], affine=self.affine)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        each = len(given[0]) // self.groups
        if self.groups > 1:
            labels.tie(given[0][start : start + each] for start in range(0, len(given[0]), each))
        labels.carry(f"{name}.layer", given[0])
        return [given[0]]

    def of_kept(self, step: Any, x: Tensor, keep: Tensor) -> Tensor | None:
        if self.groups > 1:
            return None
        layer = step.layer
        of_kept = [tensor[keep] for tensor in (layer.weight, layer.bias) if tensor is not None]
        return F.group_norm(x[:, keep], 1, *of_kept, eps=layer.eps)


class LayerNorm2d(nn.LayerNorm):
    """Over axis 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.movedim(1, -1), self.normalized_shape, self.weight, self.bias, self.eps).movedim(-1, 1)


@dataclass(frozen=True)
class LayerNorm(Operation):
    """Over the channels of a map: by a layer for axis 1, or channels last and back."""

    last: bool = True
    affine: bool = True

    def own(self, step: Any, *shapes: torch.Size) -> None:
        step.layer = (nn.LayerNorm if self.last else LayerNorm2d)(shapes[0][1], elementwise_affine=self.affine)

    def run(self, step: Any, *inputs: Tensor) -> Tensor:
        if not self.last:
            return step.layer(inputs[0])
        return step.layer(inputs[0].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        labels.carry(f"{name}.layer", given[0])
        return [given[0]]

    def of_kept(self, step: Any, x: Tensor, keep: Tensor) -> Tensor:
        return normalised(step.layer, x[:, keep].movedim(1, -1), keep).movedim(-1, 1)


@dataclass(frozen=True)
class TokenNorm(Operation):
    affine: bool = True
    centres: bool = True
    axis = -1

    def own(self, step: Any, *shapes: torch.Size) -> None:
        kind = nn.LayerNorm if self.centres else nn.RMSNorm
        step.layer = kind(shapes[0][-1], elementwise_affine=self.affine)

    def labels(self, labels: Labels, name: str, *given: list[int]) -> list[list[int]]:
        labels.carry(f"{name}.layer", given[0])
        return [given[0]]

    def of_kept(self, step: Any, x: Tensor, keep: Tensor) -> Tensor:
        return normalised(step.layer, x[..., keep], keep)


def normalised(layer: nn.LayerNorm | nn.RMSNorm, x: Tensor, keep: Tensor) -> Tensor:
    of_kept = [parameter[keep] for parameter in layer.parameters()]
    function = F.layer_norm if isinstance(layer, nn.LayerNorm) else F.rms_norm
    return function(x, x.shape[-1:], *of_kept, eps=layer.eps)
