"""What each function and tensor method does with channel ids. One without a rule pins what it meets.

A rule gets the call and its value (shapes only) and returns ids shaped like the value. Ids that vary along a dimension
mean that channels lie along it; most rules only ask along which dimensions they vary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pruning.lineage.call import Call, Count, Ids, counts, like, padded, reshaped, spatial, tensors, unknown
from pruning.lineage.channels import spread, squeezed, varies, varying


def apply_function(function: Callable[..., Any], call: Call, value: Any) -> Ids:
    """Apply the rule of a function or method by its name, or pin."""
    if is_dataclass(value):
        return unknown(call, value)
    if not any(True for _ in tensors(value)):
        return _number(call, value)
    if call.name not in RESHAPES:
        call.pin(list(counts(call.ids)), f"their number is used by '{call.name}'")
    if not any(True for _ in tensors(call.ids)):
        return like(value)
    trusted = (getattr(function, "__module__", None) or "torch").partition(".")[0]
    rule = FUNCTION_RULES.get(call.name) if trusted in ("torch", "_operator", "torchvision", "builtins") else None
    return unknown(call, value) if rule is None else rule(call, value)


def _number(call: Call, value: Any) -> Ids:
    """Sizes, and what is computed from them: counts of channels are told from all other numbers."""
    if call.name == "size" or (call.name == "getattr" and call.literal[0][1] == "shape"):
        ids, dim = call.input, call.argument(call.literal, 1, "dim")
        sizes = [Count(squeezed(ids).unique()) if varies(ids, axis) else None for axis in range(ids.dim())]
        return sizes[dim] if isinstance(dim, int) else sizes
    if call.name == "getitem" and isinstance(call.ids[0][0], list) and isinstance(call.literal[0][1], (int, slice)):
        return call.ids[0][0][call.literal[0][1]]
    found = list(counts(call.ids))
    if call.name.startswith("_assert"):
        call.pin(found, "their number is asserted")
    number = Count(torch.cat([count.ids for count in found])) if found else None
    return [number] * len(value) if isinstance(value, (tuple, list)) else number


def _same(call: Call, value: Tensor) -> Ids:
    return call.input


def _elementwise(call: Call, value: Tensor) -> Ids:
    """Unite what meets. An operand that is broadcast over the channels of another is pinned instead."""
    operands = [ids.reshape((1,) * (value.dim() - ids.dim()) + tuple(ids.shape)) for ids in tensors(call.ids)]
    if len(operands) == 1:
        return operands[0].expand(value.shape)
    lying = {dim for ids in operands for dim in varying(ids)}
    full = [ids for ids in operands if not any(ids.shape[dim] == 1 < value.shape[dim] for dim in lying)]
    for ids in operands:
        if not any(ids is other for other in full):
            call.pin(ids, "it is broadcast over other channels")
    if not full:
        return like(value)
    shape = [value.shape[dim] if dim in lying else 1 for dim in range(value.dim())]
    corner = tuple(slice(None) if dim in lying else slice(0, 1) for dim in range(value.dim()))
    for first, second in pairwise(full):
        reason = f"it meets what no rule follows at '{call.place}'"
        call.lineage.unite(
            first[corner].expand(shape), second[corner].expand(shape), reason, coupling=call.name in SUMS
        )
    return full[0][corner].expand(value.shape)


def _reduction(call: Call, value: Any) -> Ids:
    """Mean, sum, maximum … over axes along which no channels lie."""
    dims = call.argument(call.literal, 1, "dim")
    keepdim = bool(call.argument(call.literal, 2, "keepdim", False))
    reduced = [dims] if isinstance(dims, int) else dims
    if not isinstance(value, Tensor) or not isinstance(reduced, Sequence) or not reduced:
        return unknown(call, value)
    axes = sorted({dim % call.input.dim() for dim in reduced}, reverse=True)
    if any(varies(call.input, dim) for dim in axes):
        return unknown(call, value)
    ids = call.input
    for dim in axes:
        ids = ids.narrow(dim, 0, 1) if keepdim else ids.select(dim, 0)
    return ids


def _softmax(call: Call, value: Tensor) -> Ids:
    dim = call.argument(call.literal, 1, "dim")
    return unknown(call, value) if not isinstance(dim, int) or varies(call.input, dim) else call.input


def _concatenation(call: Call, value: Tensor) -> Ids:
    parts = list(tensors(call.argument(call.ids, 0, "tensors")))
    dim = call.argument(call.literal, 1, "dim", call.literal[1].get("axis", 0))
    if not isinstance(dim, int):
        return unknown(call, value)
    dim %= value.dim()
    if len(parts) > 1 and all(other == dim for ids in parts for other in varying(ids)):
        for ids in parts:
            call.lineage.couple(squeezed(ids))
        return spread(torch.cat([call.vector(ids, dim) for ids in parts]), dim, value.shape)
    return torch.cat(parts, dim)


def _stack(call: Call, value: Tensor) -> Ids:
    dim = call.argument(call.literal, 1, "dim", 0)
    return (
        torch.stack(list(tensors(call.argument(call.ids, 0, "tensors"))), dim)
        if isinstance(dim, int)
        else unknown(call, value)
    )


def _moved(call: Call, value: Tensor) -> Ids:
    """Operations that move whole axes act on ids as on data."""
    args, kwargs = _arguments_with_ids(call)
    target: Any = getattr(torch.Tensor, call.name, None) or getattr(torch, call.name)
    return target(*args, **kwargs)


def _arguments_with_ids(call: Call) -> tuple[list[Any], dict[str, Any]]:
    (args, kwargs), (ids, named) = call.values, call.ids
    merged = [i if isinstance(i, Tensor) else a for a, i in zip(args, ids, strict=True)]
    return merged, {k: named[k] if isinstance(named.get(k), Tensor) else v for k, v in kwargs.items()}


def _roll(call: Call, value: Tensor) -> Ids:
    dims = call.argument(call.literal, 2, "dims")
    axes = [dims] if isinstance(dims, int) else dims
    if not isinstance(axes, Sequence) or any(varies(call.input, dim) for dim in axes):
        return unknown(call, value)  # a literal shift means other channels after a cut
    return call.input


def _pad(call: Call, value: Tensor) -> Ids:
    padding = call.argument(call.literal, 1, "pad")
    return padded(call, value, padding) if isinstance(padding, Sequence) else unknown(call, value)


def _parts(call: Call, value: Any) -> Ids:
    """`chunk`, `split`, `tensor_split` along channels: equal parts stay equal, so they are tied offset by offset."""
    dim = call.argument(call.literal, 2, "dim", 0)
    if not isinstance(dim, int):
        return unknown(call, value)
    sizes = [part.shape[dim] for part in value]
    name = "split_size_or_sections" if call.name == "split" else "chunks"
    size, counted = (call.argument(tree, 1, name) for tree in (call.values, call.ids))
    by_number = call.name != "split" and isinstance(size, int)
    if not varies(call.input, dim):
        call.pin(counted, "their number is used by 'split'")
        return list(torch.split(call.input, sizes, dim))
    each = counted if isinstance(counted, (list, tuple)) else [counted]
    if len(set(sizes)) != 1 or not (by_number or all(call.follows(part, call.input) for part in each)):
        return unknown(call, value)
    ids = list(torch.split(call.input, sizes, dim))
    call.lineage.tie(torch.stack([call.vector(part, dim) for part in ids], dim=1), f"parts of '{call.place}'")
    return ids


def _item(call: Call, value: Any) -> Ids:
    """Indexing: of a tuple, or of axes along which no channels lie."""
    container, index = call.ids[0][0], call.literal[0][1]
    if not isinstance(container, Tensor):
        return container[index] if isinstance(index, (int, slice)) else unknown(call, value)
    entries = _without_ellipsis(index if isinstance(index, tuple) else (index,), container.dim())
    axis = 0
    for entry in entries:
        if entry is None:
            continue
        if not _takes_all(entry, container.shape[axis]) and varies(container, axis):
            return unknown(call, value)
        axis += 1
    return container[call.values[0][1]] if not any(True for _ in tensors(call.ids[0][1])) else unknown(call, value)


def _takes_all(entry: Any, size: int) -> bool:
    """Tell whether an index takes the whole axis, however far a cut shortens it: `[:]`, or a literal `[:64]` of 64."""
    if not isinstance(entry, slice) or entry.start not in (None, 0) or entry.step not in (None, 1):
        return False
    return entry.stop is None or (isinstance(entry.stop, int) and entry.stop >= size)


def _without_ellipsis(index: tuple[Any, ...], dims: int) -> list[Any]:
    entries = list(index)
    where = [place for place, entry in enumerate(entries) if entry is Ellipsis]
    if where:
        missing = dims - sum(entry is not None and entry is not Ellipsis for entry in entries)
        entries[where[0] : where[0] + 1] = [slice(None)] * missing
    return entries


def _expand(call: Call, value: Tensor) -> Ids:
    ids, sizes = call.input, _sizes(call)
    added = value.dim() - ids.dim()
    for dim, size in enumerate(sizes):
        lies = dim >= added and varies(ids, dim - added)
        if (lies and size is not None and not call.follows(size, ids)) or (isinstance(size, Count) and not lies):
            return unknown(call, value)
    return ids.expand(value.shape)


def _view(call: Call, value: Tensor) -> Ids:
    sizes = _sizes(call)
    return reshaped(call, value, sizes) if len(sizes) == value.dim() else unknown(call, value)


def _sizes(call: Call) -> list[int | Count | None]:
    """Return what the code says of each new axis: a count of channels, another number, or None for −1."""
    values, ids = (args[1:] or (named.get("shape", named.get("size")),) for args, named in (call.values, call.ids))
    if len(values) == 1 and isinstance(values[0], (tuple, list)):
        values, ids = values[0], ids[0]
    pairs = zip(values, ids, strict=True)
    return [counted if isinstance(counted, Count) else None if size == -1 else size for size, counted in pairs]


def _flatten(call: Call, value: Tensor) -> Ids:
    return reshaped(call, value, [None] * value.dim())


def _channel_shuffle(call: Call, value: Tensor) -> Ids:
    groups = call.argument(call.literal, 1, "groups")
    if not isinstance(groups, int):
        return unknown(call, value)
    table = call.vector(call.input, 1).reshape(groups, -1).T
    call.lineage.tie(table, f"channel shuffle at '{call.place}'")
    return spread(table.reshape(-1), 1, value.shape)


RESHAPES = frozenset({"view", "reshape", "expand", "split", "chunk", "tensor_split"})
"""Functions whose rules say themselves what a count of channels among the arguments means."""

SUMS = frozenset({"add", "add_", "iadd", "__iadd__", "sub", "sub_", "isub", "__add__", "__radd__"})

_UNARY = (
    "relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu selu_ celu gelu silu mish hardswish hardsigmoid hardtanh "
    "hardtanh_ sigmoid sigmoid_ logsigmoid tanh tanh_ softplus softsign dropout dropout_ dropout1d "
    "dropout2d dropout3d alpha_dropout feature_dropout abs neg exp log sqrt rsqrt square pos contiguous clone "
    "detach to float half bfloat16 double type_as stochastic_depth nan_to_num requires_grad_"
)
_BINARY = (
    "add add_ iadd __add__ __radd__ sub sub_ isub mul mul_ imul __mul__ __rmul__ div div_ truediv itruediv "
    "maximum minimum pow clamp clamp_ clip"
)
_RESIZED = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d lp_pool2d interpolate upsample"
)
_REDUCED = "mean sum amax amin"
_MOVED = "transpose permute movedim swapaxes swapdims unsqueeze squeeze expand_as flip t"

FUNCTION_RULES: dict[str, Callable[[Call, Any], Ids]] = {
    **dict.fromkeys(_UNARY.split(), _same),
    **dict.fromkeys(_BINARY.split(), _elementwise),
    **dict.fromkeys(_RESIZED.split(), spatial),
    **dict.fromkeys(_REDUCED.split(), _reduction),
    **dict.fromkeys(_MOVED.split(), _moved),
    "softmax": _softmax,
    "log_softmax": _softmax,
    "cat": _concatenation,
    "concat": _concatenation,
    "stack": _stack,
    "chunk": _parts,
    "split": _parts,
    "tensor_split": _parts,
    "getitem": _item,
    "view": _view,
    "reshape": _view,
    "flatten": _flatten,
    "expand": _expand,
    "roll": _roll,
    "pad": _pad,
    "channel_shuffle": _channel_shuffle,
}
