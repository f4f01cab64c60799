"""Shapes of what torch's own layers put out, without running them: on tensors without values that takes its time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pruning.lineage.modules import POINTWISE


def shaped(layer: nn.Module, image: Any) -> Tensor | None:
    """Return a tensor shaped like the output of a layer, or None for one that has to run."""
    rule = _RULES.get(type(layer))
    return rule(layer, image) if rule is not None and isinstance(image, Tensor) else None


def _same(layer: nn.Module, image: Tensor) -> Tensor:
    return image if getattr(layer, "inplace", False) else torch.empty_like(image)


def _per_channel(layer: Any, image: Tensor) -> Tensor | None:
    fits = image.dim() > 1 and image.shape[1] == getattr(layer, "num_features", getattr(layer, "num_channels", None))
    return _same(layer, image) if fits else None


def _normalised(layer: nn.LayerNorm | nn.RMSNorm, image: Tensor) -> Tensor | None:
    return _same(layer, image) if tuple(image.shape[-len(layer.normalized_shape) :]) == layer.normalized_shape else None


def _linear(layer: nn.Linear, image: Tensor) -> Tensor | None:
    return image.new_empty((*image.shape[:-1], layer.out_features)) if image.shape[-1] == layer.in_features else None


def _convolution(layer: Any, image: Tensor) -> Tensor | None:
    axes = len(layer.kernel_size)
    if image.dim() != axes + 2 or image.shape[1] != layer.in_channels or isinstance(layer.padding, str):
        return None
    geometry = zip(image.shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True)
    sizes = [
        (size + 2 * pad - dilation * (kernel - 1) - 1) // step + 1 for size, kernel, step, pad, dilation in geometry
    ]
    return image.new_empty((image.shape[0], layer.out_channels, *sizes)) if min(sizes) > 0 else None


_RULES: dict[type[nn.Module], Callable[[Any, Tensor], Tensor | None]] = {
    **{getattr(nn, name): _same for name in POINTWISE.split() if not name.startswith("Dropout")},
    nn.Dropout: _same,  # those with a number in their names look at axes
    **dict.fromkeys([nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm], _per_channel),
    **dict.fromkeys([nn.Conv1d, nn.Conv2d, nn.Conv3d], _convolution),
    **dict.fromkeys([nn.LayerNorm, nn.RMSNorm], _normalised),
    nn.Linear: _linear,
}
"""By class, not by its bases: a subclass may do something else. What does not fit runs, and says what is wrong."""
