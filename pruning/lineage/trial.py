"""Layers whose class has a forward of its own are tried, not trusted: does a cut of them do what masking does?

A convolution that pads by its own rule, or a linear layer that casts its input, is followed like its base; one that
standardises each filter over what it reads is followed, too, but reads anew when a cut leaves it less to read.
"""

from __future__ import annotations

import copy
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from pruning.modes import in_mode


class Reading(Enum):
    """What a layer with weights does when it has fewer channels to read."""

    AS_MASKED = "the others are read as before"
    ANEW = "its filters are standardised over those that are left"
    UNKNOWN = "something else"


_TRUSTED = ("torch", "torchvision", "pruning")
_axes: dict[tuple[type[nn.Module], bool], int | None] = {}
_found: dict[tuple[Any, ...], Reading] = {}


def reading(layer: nn.Module) -> Reading:
    """Return how a convolution or a linear layer reads; one of somebody's is tried, with random numbers.

    Layers of one class, with the same switches, are tried once.
    """
    if runs_as_its_base(layer):
        return Reading.AS_MASKED
    switches = frozenset((name, value) for name, value in vars(layer).items() if isinstance(value, bool | str))
    key = (type(layer), switches, getattr(layer, "groups", 1) > 1, _reads(layer) > 1, _makes(layer) > 1)
    if key not in _found:
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.default_generator.manual_seed(0)
                _found[key] = _tried(filled(layer))
        except Exception:  # whatever somebody's code raises
            _found[key] = Reading.UNKNOWN
    return _found[key]


def runs_as_its_base(layer: nn.Module) -> bool:
    """Return whether a layer has the forward of a class of torch's, torchvision's or ours."""
    kind = type(layer)
    known = next(base for base in kind.__mro__ if base.__module__.partition(".")[0] in _TRUSTED)
    return bool(kind.forward is known.forward)  # type: ignore[attr-defined]


def normalised_axis(norm: nn.LayerNorm | nn.RMSNorm) -> int | None:
    """Return the axis that a norm of one axis acts on: the last, 1 as somebody's `LayerNorm2d` has it, or None."""
    kind = type(norm)
    if kind.forward in (nn.LayerNorm.forward, nn.RMSNorm.forward):
        return -1
    (channels,) = norm.normalized_shape
    key = kind, channels > 1
    if key not in _axes:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(0)
            bare = filled(norm)
            try:
                for name, parameter in bare.named_parameters():
                    parameter.fill_(0 if name == "bias" else 1)
                normed = bare(torch.rand(1, channels, 3, channels))
                axes = [axis for axis in (1, -1) if _is_normal(normed, axis)]
            except Exception:  # whatever somebody's code raises
                axes = []
        _axes[key] = axes[0] if len(axes) == 1 else None
    return _axes[key]


def _is_normal(normed: Tensor, axis: int) -> bool:
    """Tell whether the mean along an axis is zero, or that of the squares one."""
    means = normed.mean(axis), normed.square().mean(axis) - 1
    return any(float(mean.abs().max()) < 1e-3 for mean in means)


def filled(layer: nn.Module) -> nn.Module:
    """Return a copy of a layer on the CPU with random numbers, about as large as trained ones."""
    memo: dict[int, Any] = {id(held): None for held in vars(layer).values() if isinstance(held, Tensor)}
    for parameter in layer.parameters():
        numbers = torch.randn(parameter.shape) / max(1, parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else None
        memo[id(parameter)] = nn.Parameter(torch.rand(parameter.shape) + 0.5 if numbers is None else numbers)
    for buffer in layer.buffers():
        memo[id(buffer)] = (
            torch.rand(buffer.shape) + 0.5 if buffer.is_floating_point() else torch.zeros_like(buffer, device="cpu")
        )
    return copy.deepcopy(layer, memo)


def _tried(layer: Any) -> Reading:
    images = _input_of(layer)
    made = _makes(layer)
    found = set[Reading]()
    for training in (False, True):
        with in_mode(layer, training=training):
            found.add(_tried_here(layer, images, made))
    return found.pop() if len(found) == 1 else Reading.UNKNOWN


def _tried_here(layer: Any, images: Tensor, made: int) -> Reading:
    axis = 1 if isinstance(layer, _ConvNd) else -1
    whole, groups = layer(images), getattr(layer, "groups", 1)
    gone_in, gone_out = (images.shape[axis] // groups, made // groups) if groups > 1 else (1, 1)
    if groups > 1:  # a whole convolution group goes, with what it reads
        smaller = _cut(layer, reads=gone_in, makes=gone_out)
        same = _alike(
            smaller(images.narrow(axis, gone_in, images.shape[axis] - gone_in)),
            whole.narrow(axis, gone_out, made - gone_out),
        )
        return Reading.AS_MASKED if same else Reading.UNKNOWN
    if made > 1 and not _alike(_cut(layer, makes=1)(images), whole.narrow(axis, 1, made - 1)):
        return Reading.UNKNOWN
    if images.shape[axis] == 1:  # its only channel never goes
        return Reading.AS_MASKED
    masked = copy.deepcopy(layer)
    masked.weight.select(_reading_axis(layer), 0).zero_()
    less = images.narrow(axis, 1, images.shape[axis] - 1)
    read = _cut(layer, reads=1)(less)
    if _alike(read, masked(images)):
        return Reading.AS_MASKED
    shifted = copy.deepcopy(layer)
    shifted.weight.mul_(1.7).add_(0.01)
    return Reading.ANEW if _alike(shifted(images), whole, 1e-2) else Reading.UNKNOWN


def _cut(layer: Any, reads: int = 0, makes: int = 0) -> Any:
    """Return a copy of a layer without its first channels."""
    smaller: Any = copy.deepcopy(layer)
    made = _makes(layer)
    for name, parameter in list(smaller.named_parameters()):
        value = parameter.detach()
        if name == "weight":
            in_groups = getattr(layer, "groups", 1) > 1
            if reads and not in_groups:
                value = value.narrow(_reading_axis(layer), reads, value.shape[_reading_axis(layer)] - reads)
            axis = 0 if in_groups else 1 - _reading_axis(layer)
            gone = (reads if isinstance(layer, _ConvTransposeNd) else makes) if in_groups else makes
            value = value.narrow(axis, gone, value.shape[axis] - gone)
        elif parameter.shape[:1] == (made,):
            value = value.narrow(0, makes, made - makes)
        setattr(smaller, name, nn.Parameter(value.clone()))
    if isinstance(layer, _ConvNd):
        if smaller.groups > 1:
            smaller.groups -= 1
        smaller.in_channels, smaller.out_channels = smaller.in_channels - reads, smaller.out_channels - makes
    else:
        smaller.in_features, smaller.out_features = smaller.in_features - reads, smaller.out_features - makes
    return smaller


def _reading_axis(layer: Any) -> int:
    return 0 if isinstance(layer, _ConvTransposeNd) else 1


def _reads(layer: Any) -> int:
    return int(layer.in_channels if isinstance(layer, _ConvNd) else layer.in_features)


def _makes(layer: Any) -> int:
    return int(layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features)


def _input_of(layer: Any) -> Tensor:
    if not isinstance(layer, _ConvNd):
        return torch.randn(3, int(layer.in_features))
    sizes = [d * (k - 1) + 4 for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    return torch.randn(1, layer.in_channels, *sizes)


def _alike(one: Tensor, other: Tensor, tolerance: float = 1e-4) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= tolerance * float(other.abs().max()))
