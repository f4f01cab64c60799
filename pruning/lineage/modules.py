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
from pruning.lineage.call import Call, Ids, padded, reshaped, spatial, unknown
from pruning.lineage.channels import FIXED, Role, spread, varies, varying


def apply_module(module: nn.Module, call: Call, value: Any) -> Ids:
    """Apply the rule of a module's class, or pin."""
    rule = next((MODULE_RULES[kind] for kind in type(module).__mro__ if kind in MODULE_RULES), None)
    refused = _computes_weights(module) or (rule in (_convolution, _linear) and _rewritten(type(module)))
    if rule is None or refused:
        return _refused(module, call, value)
    return rule(module, call, value)


def _refused(module: nn.Module, call: Call, value: Any, why: str = "") -> Ids:
    """Pin what goes in; a layer that would make channels is listed as one that does not."""
    if isinstance(module, (_ConvNd, nn.Linear)) and isinstance(value, Tensor):
        made = call.lineage.fresh(value.shape[1 if isinstance(module, _ConvNd) else -1])
        made = call.lineage.note(f"{call.place}.weight", 0, Role.MAKER, made)
        call.pin(made, why or f"'{call.name}' cannot be followed")
    return unknown(call, value)


def _rewritten(kind: type[nn.Module]) -> bool:
    """Tell whether a subclass from elsewhere has a forward of its own: it may standardise its weights, or mix more."""
    known = [base for base in kind.__mro__ if base.__module__.partition(".")[0] in _TRUSTED]
    return kind.forward is not known[0].forward  # type: ignore[attr-defined]


def _computes_weights(module: nn.Module) -> bool:
    """Tell whether weights are made anew at each call, as weight norm does: a cut could not shorten them."""
    leaves = ("weight", "bias")
    return any(isinstance(getattr(module, leaf, None), Tensor) and leaf not in module._parameters for leaf in leaves)


def _convolution(module: _ConvNd, call: Call, value: Tensor) -> Ids:
    ids = call.vector(call.input, 1)
    transposed = isinstance(module, _ConvTransposeNd)
    if module.groups == 1:
        return _weighted(call, ids, value, reads=0 if transposed else 1, dim=1, biased=module.bias is not None)
    return _grouped_convolution(module, call, ids, value, transposed=transposed)


def _grouped_convolution(module: _ConvNd, call: Call, ids: Tensor, value: Tensor, *, transposed: bool) -> Ids:
    """Whole convolution groups stay or go: what one of them reads and makes is one channel."""
    lineage, groups = call.lineage, module.groups
    table = ids.reshape(groups, -1)
    if bool((table == FIXED).any()):
        return _refused(module, call, value, "it carries on what no rule follows")
    lineage.tie(table, f"convolution groups of '{call.place}'")
    made = table[:, :1].expand(groups, module.out_channels // groups).reshape(-1)
    lineage.note(f"{call.place}.weight", 0, Role.CARRIED, ids if transposed else made)
    if module.bias is not None:
        lineage.note(f"{call.place}.bias", 0, Role.CARRIED, made)
    return spread(made, 1, value.shape)


def _linear(module: nn.Linear, call: Call, value: Tensor) -> Ids:
    ids, last = call.input, call.input.dim() - 1
    if any(dim != last and dim != 0 for dim in varying(ids)) and not varies(ids, last):
        return unknown(call, value)  # mixes along another axis than the channels'
    return _weighted(call, call.vector(ids, last), value, reads=1, dim=last, biased=module.bias is not None)


def _weighted(call: Call, ids: Tensor, value: Tensor, *, reads: int, dim: int, biased: bool) -> Ids:
    """A layer that mixes all channels: it reads one axis of its weight and makes the other."""
    lineage, weight, makes = call.lineage, f"{call.place}.weight", 1 - reads
    made = lineage.noted(weight, makes)
    if made is None:
        made = lineage.note(weight, makes, Role.MAKER, lineage.fresh(value.shape[dim]))
        if biased:
            lineage.note(f"{call.place}.bias", 0, Role.CARRIED, made)
    lineage.note(weight, reads, Role.READER, ids)
    return spread(made, dim, value.shape)


def _carry(module: nn.Module, call: Call, ids: Tensor) -> None:
    """Note every parameter and buffer of a per-channel layer that has an entry for each channel, or its count."""
    tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    names = [name for name, tensor in tensors if tensor.dim() == 1 and tensor.numel() == ids.numel()]
    for name in names or ["num_features"]:
        call.lineage.note(f"{call.place}.{name}", 0, Role.CARRIED, ids)


def _per_channel(module: nn.Module, call: Call, value: Tensor) -> Ids:
    _carry(module, call, call.vector(call.input, 1))
    return call.input


def _prelu(module: nn.PReLU, call: Call, value: Tensor) -> Ids:
    return call.input if module.num_parameters == 1 else _per_channel(module, call, value)


def _layer_norm(module: nn.LayerNorm, call: Call, value: Tensor) -> Ids:
    """Channels last, or (torchvision's LayerNorm2d) in axis 1; both ways the normalisation is over channels alone."""
    last = call.input.dim() - 1
    dims = [dim for dim in varying(call.input) if dim > 0]
    dim = 1 if type(module) is not nn.LayerNorm else last
    if module.weight is None or len(module.normalized_shape) != 1 or any(other != dim for other in dims):
        return unknown(call, value)
    _carry(module, call, call.vector(call.input, dim))
    return call.input


def _group_norm(module: nn.GroupNorm, call: Call, value: Tensor) -> Ids:
    """Whole normalisation groups stay or go: so the statistics of those that stay are unchanged."""
    if module.weight is None:
        return unknown(call, value)  # nothing would tell its number of channels after a cut
    ids = call.vector(call.input, 1)
    call.lineage.tie(ids.reshape(module.num_groups, -1), f"normalisation groups of '{call.place}'")
    _carry(module, call, ids)
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


def _module_flatten(module: nn.Flatten, call: Call, value: Tensor) -> Ids:
    return reshaped(call, value, [None] * value.dim())


def _module_spatial(module: nn.Module, call: Call, value: Tensor) -> Ids:
    return spatial(call, value)


def _module_pad(module: nn.ConstantPad1d, call: Call, value: Tensor) -> Ids:
    return padded(call, value, module.padding)


def _module_softmax(module: nn.Softmax, call: Call, value: Tensor) -> Ids:
    return unknown(call, value) if module.dim is None or varies(call.input, module.dim) else call.input


def _module_same(module: nn.Module, call: Call, value: Tensor) -> Ids:
    return call.input


_TRUSTED = ("torch", "torchvision", "pruning")

MODULE_RULES: dict[type[nn.Module], Callable[..., Ids]] = {
    _ConvNd: _convolution,
    nn.Linear: _linear,
    _BatchNorm: _per_channel,
    _InstanceNorm: _per_channel,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.PReLU: _prelu,
    nn.Flatten: _module_flatten,
    nn.Softmax: _module_softmax,
    nn.LogSoftmax: _module_softmax,
    nn.ChannelShuffle: _module_channel_shuffle,
    ChannelPad: _channel_pad,
}


_POINTWISE = (
    "Identity ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Sigmoid LogSigmoid Tanh "
    "Softplus Softsign Hardshrink Softshrink Tanhshrink Threshold RReLU Dropout Dropout1d Dropout2d Dropout3d "
    "AlphaDropout FeatureAlphaDropout"
)
_POOLING = (
    "MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool1d LPPool2d AdaptiveAvgPool1d AdaptiveAvgPool2d "
    "AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d Upsample UpsamplingNearest2d "
    "UpsamplingBilinear2d"
)
_PADDING = (
    "ZeroPad1d ZeroPad2d ZeroPad3d ConstantPad1d ConstantPad2d ReflectionPad1d ReflectionPad2d ReplicationPad1d "
    "ReplicationPad2d CircularPad2d"
)
MODULE_RULES |= {getattr(nn, name): _module_same for name in _POINTWISE.split()}
MODULE_RULES |= {getattr(nn, name): _module_spatial for name in _POOLING.split()}
MODULE_RULES |= {getattr(nn, name): _module_pad for name in _PADDING.split()}
