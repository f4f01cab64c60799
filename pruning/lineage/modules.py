"""What each layer does with channel ids. A layer without a rule pins what it meets: never silently wrong.

A rule gets the layer, the call and its value (shapes only) and returns ids shaped like the value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from pruning.layers import ChannelPad
from pruning.lineage.call import (
    Call,
    Ids,
    channels_from_pixels,
    like,
    mixed,
    padded,
    pixels_from_channels,
    reshaped,
    spatial,
    unknown,
)
from pruning.lineage.channels import FIXED, Role, spread, varies, varying
from pruning.lineage.computed import Source, source_of
from pruning.lineage.trial import Reading, normalised_axis, reading, runs_as_its_base


def apply_module(module: nn.Module, call: Call, value: Any) -> Ids:
    """Apply the rule of a module's class, or pin."""
    rule = next((MODULE_RULES[kind] for kind in type(module).__mro__ if kind in MODULE_RULES), None)
    weighs, source = rule in (_convolution, _linear), source_of(module)
    if rule is None or source is None or (source != Source() if not weighs else reading(module) is Reading.UNKNOWN):
        return _refused(module, call, value)
    found = rule(module, call, value)
    if weighs:
        _carry_others(module, call)
    return found


def _refused(module: nn.Module, call: Call, value: Any) -> Ids:
    """Pin what goes in; layers that would make channels are listed as ones that do not."""
    if isinstance(module, (_ConvNd, nn.Linear)) and isinstance(value, Tensor):
        return refused(call, value, f"{call.place}.weight", 1 if isinstance(module, _ConvNd) else -1)
    for name, layer in module.named_modules():
        weight = getattr(layer, "weight", None)
        if isinstance(layer, (_ConvNd, nn.Linear)) and isinstance(weight, Tensor):
            makes = 1 if isinstance(layer, _ConvTransposeNd) else 0
            made = call.lineage.note(
                f"{call.place}.{name}.weight", makes, Role.MAKER, call.lineage.fresh(weight.shape[makes])
            )
            call.pin(made, f"'{call.name}' cannot be followed")
    return unknown(call, value)


def refused(call: Call, value: Tensor, weight: str, dim: int, why: str = "") -> Ids:
    """Pin what goes in and what a weight would make along an axis, so that it is listed."""
    made = call.lineage.note(weight, 0, Role.MAKER, call.lineage.fresh(value.shape[dim]))
    call.pin(made, why or f"'{call.name}' cannot be followed")
    return unknown(call, value)


def _carry_others(module: nn.Module, call: Call) -> None:
    """Note the lengths of weight norm, and parameters that a subclass adds: one number a filter, such as a gain."""
    source = source_of(module) or Source()
    of_weight = f"{call.place}.{source.tensor}"
    if source.gain is not None and source.along is not None:
        lengths = call.lineage.noted(of_weight, source.along)
        if lengths is not None:
            call.lineage.note(f"{call.place}.{source.gain}", source.along, Role.CARRIED, lengths)
    for axis in {0, 1} - source.axes:
        stuck = call.lineage.noted(of_weight, axis)
        if stuck is not None:
            call.pin(stuck, "its parametrisation cannot be cut along them")
    made = call.lineage.noted(of_weight, 1 if isinstance(module, _ConvTransposeNd) else 0)
    for name, parameter in module.named_parameters(recurse=False):
        if name in ("weight", "bias", source.tensor, source.gain) or made is None:
            continue
        if parameter.shape[:1] == made.shape:
            call.lineage.note(f"{call.place}.{name}", 0, Role.CARRIED, made)
        else:
            call.pin(made, f"'{name}' cannot be followed")


def _convolution(module: _ConvNd, call: Call, value: Tensor) -> Ids:
    transposed = isinstance(module, _ConvTransposeNd)
    if not transposed and (along := _slides_along_channels(module, call)) and mixed(call, along, by_layer=True):
        return call.input
    ids = call.vector(call.input, 1)
    if module.groups == 1:
        return weighted(call, ids, value, *_names(module, call), reads=0 if transposed else 1, dim=1)
    if len(ids) > module.groups and runs_as_its_base(module):
        call.lineage.thinnable.append(call.place)
        if call.lineage.thins(call.place):
            return _thinned(module, call, ids, value)
    return grouped(call, ids, value, *_names(module, call), groups=module.groups, transposed=transposed)


def _slides_along_channels(module: _ConvNd, call: Call) -> int | None:
    """Return the axis of the channels, where one filter goes from channel to channel as in ECA, and none is lost."""
    lying = varying(call.input)
    if len(lying) != 1 or lying[0] < 2 or (module.in_channels, module.out_channels) != (1, 1):
        return None
    if not runs_as_its_base(module):
        return None
    axis = lying[0] - 2
    reach = module.dilation[axis] * (module.kernel_size[axis] - 1)
    padding = module.padding if isinstance(module.padding, str) else 2 * module.padding[axis]
    return lying[0] if module.stride[axis] == 1 and padding in (reach, "same") else None


def _thinned(module: _ConvNd, call: Call, ids: Tensor, value: Tensor) -> Ids:
    """Every convolution group loses as many channels as any other: those at the same place in each go together."""
    lineage, (weight, bias) = call.lineage, _names(module, call)
    reads = 0 if isinstance(module, _ConvTransposeNd) else 1
    table = ids.reshape(module.groups, -1).T
    lineage.tie(table, f"convolution groups of '{call.place}' are thinned together")
    made = lineage.noted(weight, 1 - reads)
    if made is None:
        made = lineage.fresh(value.shape[1] // module.groups)
        made = made if reads == 0 else made.repeat(module.groups)
    lineage.note(weight, 1 - reads, Role.MAKER, made)
    of_all = made.repeat(module.groups) if reads == 0 else made
    if bias is not None:
        lineage.note(bias, 0, Role.CARRIED, of_all)
    lineage.note(weight, reads, Role.READER, ids if reads == 0 else table[:, 0])
    return spread(of_all, 1, value.shape)


def grouped(
    call: Call, ids: Tensor, value: Tensor, weight: str, bias: str | None, *, groups: int, transposed: bool = False
) -> Ids:
    """Whole convolution groups stay or go: what one of them reads and makes is one channel."""
    lineage, table = call.lineage, ids.reshape(groups, -1)
    if bool((table == FIXED).any()):
        return refused(call, value, weight, 1, "it carries on what no rule follows")
    lineage.tie(table, f"convolution groups of '{call.place}'")
    made = table[:, :1].expand(groups, value.shape[1] // groups).reshape(-1)
    lineage.note(weight, 0, Role.CARRIED, ids if transposed else made)
    if bias is not None:
        lineage.note(bias, 0, Role.CARRIED, made)
    return spread(made, 1, value.shape)


def _linear(module: nn.Linear, call: Call, value: Tensor) -> Ids:
    ids, last = call.input, call.input.dim() - 1
    if any(dim != last and dim != 0 for dim in varying(ids)) and not varies(ids, last):
        return unknown(call, value)  # mixes along another axis than the channels'
    return weighted(call, call.vector(ids, last), value, *_names(module, call), reads=1, dim=last)


def _names(module: nn.Module, call: Call) -> tuple[str, str | None]:
    source = source_of(module) or Source()
    return f"{call.place}.{source.tensor}", None if module.bias is None else f"{call.place}.bias"


def weighted(call: Call, ids: Tensor, value: Tensor, weight: str, bias: str | None, *, reads: int, dim: int) -> Ids:
    """A layer that mixes all channels: it reads one axis of its weight and makes the other."""
    lineage, makes = call.lineage, 1 - reads
    made = lineage.noted(weight, makes)
    if made is None:
        made = lineage.note(weight, makes, Role.MAKER, lineage.fresh(value.shape[dim]))
    if bias is not None:
        lineage.note(bias, 0, Role.CARRIED, made)
    lineage.note(weight, reads, Role.READER, ids)
    return spread(made, dim, value.shape)


def _carry(module: nn.Module, call: Call, ids: Tensor, number: str = "num_features") -> None:
    """Note every parameter and buffer of a per-channel layer that has an entry for each channel, or its number."""
    tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    names = [name for name, tensor in tensors if tensor.dim() == 1 and tensor.numel() == ids.numel()]
    for name in names or [number]:
        call.lineage.note(f"{call.place}.{name}", 0, Role.CARRIED, ids)


def _attention(module: nn.MultiheadAttention, call: Call, value: Any) -> Ids:
    """Whole heads go, and channels in and out; a cut makes it a `PrunedAttention`."""
    given = [call.argument(call.ids, index, name) for index, name in enumerate(("query", "key", "value"))]
    plain = module.in_proj_weight is not None and module.bias_k is None and not module.add_zero_attn
    if not plain or not all(isinstance(ids, Tensor) and _lies_last(ids) for ids in given):
        return _refused(module, call, value)
    lineage, into, out = call.lineage, f"{call.place}.in_proj_weight", f"{call.place}.out_proj.weight"
    heads, made = lineage.noted(f"{call.place}.num_heads", 0), lineage.noted(out, 0)
    if heads is None or made is None:
        heads, made = lineage.fresh(module.num_heads), lineage.fresh(module.embed_dim)
    depth = heads.repeat_interleave(module.head_dim)
    for ids in given:
        lineage.note(into, 1, Role.READER, call.vector(ids, ids.dim() - 1))
    lineage.note(into, 0, Role.MAKER, depth.repeat(3))
    lineage.note(f"{call.place}.num_heads", 0, Role.CARRIED, heads)
    lineage.note(out, 1, Role.READER, depth)
    lineage.note(out, 0, Role.MAKER, made)
    if module.in_proj_bias is not None:
        lineage.note(f"{call.place}.in_proj_bias", 0, Role.CARRIED, depth.repeat(3))
        lineage.note(f"{call.place}.out_proj.bias", 0, Role.CARRIED, made)
    output, weights = value
    if weights is not None:
        call.pin(heads, "the weights of all heads are asked for (need_weights)")
    return [spread(made, output.dim() - 1, output.shape), like(weights)]


def _lies_last(ids: Tensor) -> bool:
    return all(dim in (0, ids.dim() - 1) for dim in varying(ids))


def _per_channel(module: nn.Module, call: Call, value: Tensor) -> Ids:
    _carry(module, call, call.vector(call.input, 1))
    return call.input


def _prelu(module: nn.PReLU, call: Call, value: Tensor) -> Ids:
    return call.input if module.num_parameters == 1 else _per_channel(module, call, value)


def _layer_norm(module: nn.LayerNorm | nn.RMSNorm, call: Call, value: Tensor) -> Ids:
    """Channels last, or (as `LayerNorm2d` has it) in axis 1; of several axes, channels in any one of them."""
    lies = [dim for dim in varying(call.input) if dim > 0]
    where = normalised_axis(module) if len(module.normalized_shape) == 1 else -1
    first = 1 if where == 1 else call.input.dim() - len(module.normalized_shape)
    axis = lies[0] - first if len(lies) == 1 else -1
    if where is None or (lies and not 0 <= axis < len(module.normalized_shape)):
        return unknown(call, value)
    if lies:
        ids = call.vector(call.input, lies[0])
        for name, _ in module.named_parameters(recurse=False):
            call.lineage.note(f"{call.place}.{name}", axis, Role.CARRIED, ids)
        if module.weight is None:
            call.lineage.note(f"{call.place}.normalized_shape[{axis}]", 0, Role.CARRIED, ids)
    return call.input


def _group_norm(module: nn.GroupNorm, call: Call, value: Tensor) -> Ids:
    """Whole normalisation groups stay or go: so statistics of those that stay are unchanged. Of a single one any go."""
    ids = call.vector(call.input, 1)
    if module.num_groups > 1:
        table = ids.reshape(module.num_groups, -1)
        call.lineage.tie(table, f"normalisation groups of '{call.place}'")
        if module.weight is None:
            call.lineage.note(f"{call.place}.num_groups", 0, Role.CARRIED, table[:, 0])
    _carry(module, call, ids, "num_channels")
    return call.input


def _channel_pad(module: ChannelPad, call: Call, value: Tensor) -> Ids:
    """The zeros that a padded shortcut adds are channels of their own: a cut of the sum takes its zeros along."""
    name = f"{call.place}.zeros"
    zeros = call.lineage.noted(name, 0)
    if zeros is None:
        zeros = call.lineage.note(name, 0, Role.CARRIED, call.lineage.fresh(module.zeros))
    parts = [zeros[: module.before], call.vector(call.input, 1), zeros[module.before :]]
    return spread(torch.cat(parts), 1, value.shape)


def _module_channel_shuffle(module: nn.ChannelShuffle, call: Call, value: Tensor) -> Ids:
    ids = call.vector(call.input, 1).reshape(module.groups, -1)
    call.lineage.tie(ids.T, f"channel shuffle '{call.place}'")
    return spread(ids.T.reshape(-1), 1, value.shape)


def _module_pixel_shuffle(module: nn.Module, call: Call, value: Tensor) -> Ids:
    return pixels_from_channels(call, value)


def _module_pixel_unshuffle(module: nn.Module, call: Call, value: Tensor) -> Ids:
    return channels_from_pixels(call, value)


def _module_unfold(module: nn.Unfold, call: Call, value: Tensor) -> Ids:
    """Each channel becomes as many as a window has places."""
    ids = call.vector(call.input, 1)
    return spread(ids.repeat_interleave(value.shape[1] // len(ids)), 1, value.shape)


def _module_flatten(module: nn.Flatten, call: Call, value: Tensor) -> Ids:
    return reshaped(call, value, [None] * value.dim())


def _module_spatial(module: nn.Module, call: Call, value: Tensor) -> Ids:
    return spatial(call, value)


def _module_pad(module: nn.ConstantPad1d, call: Call, value: Tensor) -> Ids:
    return padded(call, value, module.padding)


def _module_softmax(module: nn.Softmax, call: Call, value: Tensor) -> Ids:
    return unknown(call, value) if module.dim is None else _over_channels(call, value, module.dim % value.dim())


def _response_norm(module: nn.LocalResponseNorm, call: Call, value: Tensor) -> Ids:
    """Each channel in parts of its neighbours: of those that are left."""
    return _over_channels(call, value, 1)


def _over_channels(call: Call, value: Tensor, dim: int) -> Ids:
    """Return ids of a layer that makes something of all entries along an axis, and gives back as many."""
    return call.input if not varies(call.input, dim) or mixed(call, dim, by_layer=True) else unknown(call, value)


def _module_same(module: nn.Module, call: Call, value: Tensor) -> Ids:
    return call.input


MODULE_RULES: dict[type[nn.Module], Callable[..., Ids]] = {
    _ConvNd: _convolution,
    nn.Linear: _linear,
    _BatchNorm: _per_channel,
    _InstanceNorm: _per_channel,
    nn.LayerNorm: _layer_norm,
    nn.RMSNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.PReLU: _prelu,
    nn.LocalResponseNorm: _response_norm,
    nn.MultiheadAttention: _attention,
    nn.Flatten: _module_flatten,
    nn.Softmax: _module_softmax,
    nn.LogSoftmax: _module_softmax,
    nn.ChannelShuffle: _module_channel_shuffle,
    nn.PixelShuffle: _module_pixel_shuffle,
    nn.PixelUnshuffle: _module_pixel_unshuffle,
    nn.Unfold: _module_unfold,
    ChannelPad: _channel_pad,
}


POINTWISE = (
    "Identity ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Sigmoid LogSigmoid Tanh "
    "Softplus Softsign Hardshrink Softshrink Tanhshrink Threshold RReLU Dropout Dropout1d Dropout2d Dropout3d "
    "AlphaDropout FeatureAlphaDropout"
)
_POOLING = (
    "MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool1d LPPool2d LPPool3d AdaptiveAvgPool1d "
    "AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d Upsample "
    "UpsamplingNearest2d UpsamplingBilinear2d"
)
_PADDING = (
    "ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d ConstantPad3d ReflectionPad1d ReflectionPad2d "
    "ReflectionPad3d ReplicationPad1d ReplicationPad2d ReplicationPad3d CircularPad1d CircularPad2d CircularPad3d"
)
MODULE_RULES |= {getattr(nn, name): _module_same for name in POINTWISE.split()}
MODULE_RULES |= {getattr(nn, name): _module_spatial for name in _POOLING.split()}
MODULE_RULES |= {getattr(nn, name): _module_pad for name in _PADDING.split()}
