"""The slow, obvious definition of a cut: a copy of the network in which whatever makes a removed channel is zero.

It masks at the makers; the proof that `prune` runs masks at the readers. So the two share nothing but the groups.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pruning.groups import ChannelGroups
from pruning.ranking import NestedRanking


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Fill, in place, what a fresh network holds as zeros and ones: else zeroing it again would prove nothing."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if parameter.dim() == 1 or (parameter == parameter.flatten()[0]).all():
                    uniform(parameter, 0.5, 1.5)
            if getattr(module, "bias", None) is not None:
                uniform(module.bias, -0.5, 0.5)
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                uniform(module.running_mean, -0.5, 0.5)
                uniform(module.running_var, 0.5, 1.5)
    return model


def random_ranking(groups: ChannelGroups, seed: int = 0) -> NestedRanking:
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(group.width, generator=generator) for name, group in groups.items()}
    return NestedRanking.from_scores("random", scores)


def half(groups: ChannelGroups) -> dict[str, int]:
    return {name: max(1, group.width // 2) for name, group in groups.items()}


def zeroed(model: nn.Module, groups: ChannelGroups, kept: Mapping[str, Sequence[int]]) -> nn.Module:
    """Return a copy of the uncut `model` that makes zeros where channels are not kept."""
    masked = copy.deepcopy(model)
    for name, indices in kept.items():
        group = groups[name]
        gone = sorted(set(range(group.width)).difference(indices))
        for part in (*group.makers, *group.carried):
            positions = torch.tensor([place for channel in gone for place in part.positions[channel]]).long()
            layer, leaf = masked.get_submodule(part.layer), part.tensor.rpartition(".")[2]
            if isinstance(layer, (nn.LayerNorm, nn.RMSNorm, LayerNormOfKept)):
                _forget(masked, part.layer, positions)
            elif isinstance(tensor := getattr(layer, leaf, None), Tensor) and leaf != "running_var":
                tensor.data.index_fill_(part.axis, positions, 0.0)
    return masked


class LayerNormOfKept(nn.Module):
    """Normalises over the channels that stay; the others come out as zero."""

    def __init__(self, norm: nn.LayerNorm | nn.RMSNorm) -> None:
        super().__init__()
        self.norm = norm
        self.axis = -1 if type(norm) in (nn.LayerNorm, nn.RMSNorm) else 1
        self.keep = torch.ones(norm.normalized_shape, dtype=torch.bool)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(self.axis, -1)
        count = self.keep.sum()
        mean = 0 if isinstance(self.norm, nn.RMSNorm) else (x * self.keep).sum(-1, keepdim=True) / count
        centred = torch.where(self.keep, x - mean, 0.0)
        variance = centred.square().sum(-1, keepdim=True) / count
        eps = torch.finfo(x.dtype).eps if self.norm.eps is None else self.norm.eps
        normed = centred / (variance + eps).sqrt()
        scaled = normed if self.norm.weight is None else normed * self.norm.weight
        bias = getattr(self.norm, "bias", None)
        shifted = scaled if bias is None else scaled + bias
        return torch.where(self.keep, shifted, 0.0).movedim(-1, self.axis)


def _forget(model: nn.Module, name: str, positions: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    norm: Any = model.get_submodule(name)
    if not isinstance(norm, LayerNormOfKept):
        norm = LayerNormOfKept(norm)
        setattr(model.get_submodule(owner), leaf, norm)
    norm.keep[positions] = False


def outputs(value: Any) -> list[Tensor]:
    """Return every tensor in a network's output."""
    if isinstance(value, Tensor):
        return [value]
    parts = vars(value).values() if is_dataclass(value) else value.values() if isinstance(value, Mapping) else value
    return [tensor for part in parts for tensor in outputs(part)]


def distance(first: Any, second: Any) -> float:
    """Largest difference between two outputs, in parts of the largest entry."""
    pairs = [(a.detach(), b.detach()) for a, b in zip(outputs(first), outputs(second), strict=True)]
    assert all(a.shape == b.shape for a, b in pairs)
    largest = max(float(b.abs().max()) for _, b in pairs)
    return max(float((a - b).abs().max()) for a, b in pairs) / largest
