"""Remove channels: all groups at once, all or nothing, and prove that removing was the same as masking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from pruning.errors import SurgeryError
from pruning.groups import ChannelGroups
from pruning.inputs import Example
from pruning.layers import ChannelPad, PrunedAttention
from pruning.lineage.attributes import attribute_of, lower
from pruning.lineage.computed import is_computed, layer_of, refresh, rescale
from pruning.masking import Places, check_equal, masked_outputs


def remove(
    model: nn.Module,
    groups: ChannelGroups,
    kept: Mapping[str, Sequence[int]],
    example_input: Example | None = None,
) -> None:
    """Remove from `model`, in place, every channel of the named groups that is not kept.

    Args:
        model: the network that `groups` speaks of, before any cut.
        groups: its channel groups.
        kept: ascending indices that stay, by group name; a group that is not named stays whole.
        example_input: `[images, channels, height, width]`; given, the result is compared with the masked network.

    Raises:
        PolicyError: a group that this network does not have, or no channel kept.
        SurgeryError: indices that do not fit, or a result that is not the masked network. The model is as it was.
    """
    places = _removed(groups, kept)
    _check_sizes(model, groups, kept)
    with torch.random.fork_rng(devices=[]):
        expected = None if example_input is None else masked_outputs(model, groups, kept, example_input)
        with _restored_on_error(model, places):
            _rescale(model, places)
            for (name, axis), positions in sorted(places.items()):  # rows first: columns cost more
                _shrink(model, name, axis, positions)
            for layer in {layer_of(name) for name, _ in places}:
                _tell_sizes(model.get_submodule(layer), thinned=layer in groups.thinned)
            if example_input is not None and expected is not None:
                check_equal(model, example_input, expected)


def _removed(groups: ChannelGroups, kept: Mapping[str, Sequence[int]]) -> Places:
    places: Places = {}
    groups.check_widths({name: len(set(indices)) for name, indices in kept.items()})
    for name, indices in kept.items():
        group = groups[name]
        if list(indices) != sorted(set(indices)) or not 0 <= indices[0] <= indices[-1] < group.width:
            raise SurgeryError(f"kept.{name}: expected ascending indices below {group.width}, got {list(indices)}")
        gone = sorted(set(range(group.width)).difference(indices))
        known: dict[int, list[int]] = {}  # many slices have the same positions, as one object
        for part in group.slices if gone else ():
            if id(part.positions) not in known:
                known[id(part.positions)] = [position for channel in gone for position in part.positions[channel]]
            places.setdefault((part.tensor, part.axis), []).extend(known[id(part.positions)])
    return {place: sorted(positions) for place, positions in places.items()}


def _check_sizes(model: nn.Module, groups: ChannelGroups, kept: Mapping[str, Sequence[int]]) -> None:
    """Refuse a network that `groups` does not speak of, such as one that was cut before."""
    last: dict[int, int] = {}
    for part in (part for name in kept for part in groups[name].slices):
        try:
            whole = attribute_of(*_owner(model, part.tensor))
        except (AttributeError, IndexError):
            raise SurgeryError(f"'{part.tensor}': expected a parameter or a buffer, got none") from None
        size = whole if isinstance(whole, int) else whole.shape[part.axis]
        if id(part.positions) not in last:
            last[id(part.positions)] = max(map(max, part.positions))
        needed = 1 + last[id(part.positions)]
        if size < needed:
            raise SurgeryError(f"'{part.tensor}': expected {needed} channels, got {size}; was the network cut before?")


@contextmanager
def _restored_on_error(model: nn.Module, places: Places) -> Iterator[None]:
    """Undo every change to the touched layers if anything fails, whatever it is."""
    names = {owner for name, _ in places for owner in (layer_of(name), name.rpartition(".")[0])}
    layers = [model.get_submodule(name) for name in names]
    before = [
        (layer, type(layer), dict(layer.__dict__), dict(layer._parameters), dict(layer._buffers)) for layer in layers
    ]
    try:
        yield
    except BaseException:
        for layer, kind, attributes, parameters, buffers in before:
            layer.__class__ = kind
            layer.__dict__.clear()
            layer.__dict__.update(attributes)
            layer._parameters.clear()
            layer._parameters.update(parameters)
            layer._buffers.clear()
            layer._buffers.update(buffers)
        raise


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, leaf = name.rpartition(".")
    return model.get_submodule(owner), leaf


def _rescale(model: nn.Module, places: Places) -> None:
    """Give weight norm the lengths of the filters that are left."""
    removed: dict[str, dict[int, list[int]]] = {}
    for (name, axis), positions in places.items():
        if is_computed(name, model.get_submodule(layer_of(name))) and not name.endswith(("weight_g", ".original0")):
            removed.setdefault(layer_of(name), {})[axis] = positions
    for layer, axes in removed.items():
        rescale(model.get_submodule(layer), axes)


def _shrink(model: nn.Module, name: str, axis: int, positions: list[int]) -> None:
    owner, leaf = _owner(model, name)
    whole = attribute_of(owner, leaf)
    if isinstance(owner, ChannelPad):
        owner.remove_zeros(positions)
        return
    if isinstance(whole, int):  # as the code has it, or all that a norm without weights and statistics knows
        lower(owner, leaf, len(positions))
        return
    if not isinstance(whole, Tensor) or (leaf not in owner._parameters and leaf not in owner._buffers):
        raise SurgeryError(f"'{name}': expected a parameter or a buffer, got {type(whole).__name__}")
    stay = torch.ones(whole.shape[axis], dtype=torch.bool)
    stay[positions] = False
    small = whole.detach().index_select(axis, stay.nonzero().flatten().to(whole.device))
    setattr(owner, leaf, nn.Parameter(small, whole.requires_grad) if isinstance(whole, nn.Parameter) else small)


def _tell_sizes(module: nn.Module, *, thinned: bool) -> None:
    """Make the integer attributes of a layer agree with its tensors.

    Args:
        module: the layer.
        thinned: all groups of the convolution are left.
    """
    layer: Any = module
    refresh(module)
    if isinstance(module, _ConvNd):
        reads, makes = (0, 1) if isinstance(module, _ConvTransposeNd) else (1, 0)
        if module.groups > 1 and not thinned:
            module.groups = (
                module.groups * module.weight.shape[0] // (module.in_channels if reads == 0 else module.out_channels)
            )
        in_share, out_share = (1, module.groups) if reads == 0 else (module.groups, 1)
        module.in_channels = module.weight.shape[reads] * in_share
        module.out_channels = module.weight.shape[makes] * out_share
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, (_BatchNorm, _InstanceNorm)):
        sized = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if sized is None else len(sized)
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)) and module.weight is None:
        pass  # numbers are all that it has
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        if module.num_groups > 1:  # whole ones went
            module.num_groups = module.num_groups * len(module.weight) // module.num_channels
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.MultiheadAttention):
        PrunedAttention.convert(module)
    elif isinstance(module, nn.PReLU):
        layer.num_parameters = len(module.weight)
