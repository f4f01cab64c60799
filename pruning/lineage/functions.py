"""What each function and tensor method does with channel ids. One without a rule pins what it meets.

A rule gets the call and its value (shapes only) and returns ids shaped like the value. Ids that vary along a dimension
mean that channels lie along it; most rules only ask along which dimensions they vary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import is_dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from pruning.lineage.attributes import Attribute, attributes_in
from pruning.lineage.call import (
    Call,
    Count,
    Ids,
    Weight,
    channels_from_pixels,
    counts,
    like,
    mixed,
    padded,
    pixels_from_channels,
    reshaped,
    spatial,
    tensors,
    unknown,
    weights,
    without_weights,
)
from pruning.lineage.channels import Role, fixed, spread, squeezed, varies, varying
from pruning.lineage.modules import grouped, weighted


def apply_function(function: Callable[..., Any], call: Call, value: Any) -> Ids:
    """Apply the rule of a function or method by its name, or pin."""
    if is_dataclass(value):
        return unknown(call, value)
    if not any(True for _ in tensors(value)):
        return _number(without_weights(call), value)
    if any(True for _ in weights(call.ids)):
        if call.name in WEIGHTED:
            found = WEIGHTED[call.name](call, value)
            pin_attributes(call)
            return found
        call = (
            _with_weights_along(call, value) if FUNCTION_RULES.get(call.name) is _elementwise else without_weights(call)
        )
    if call.name not in RESHAPES:
        call.pin(list(counts(call.ids)), f"their number is used by '{call.name}'")
    if not any(True for _ in tensors(call.ids)):
        return like(value)
    trusted = (getattr(function, "__module__", None) or "torch").partition(".")[0]
    rule = FUNCTION_RULES.get(call.name) if trusted in ("torch", "_operator", "torchvision", "builtins") else None
    found = unknown(call, value) if rule is None else rule(call, value)
    pin_attributes(call)
    return found


def keeps_ids(name: str) -> bool:
    """Return whether a function returns the ids that it gets, whatever its other arguments."""
    return FUNCTION_RULES.get(name) is _same


def pin_attributes(call: Call) -> None:
    """Keep the attributes at their number of which a call makes something else than a count of channels."""
    for number in attributes_in(call.literal):
        if number.place not in call.followed:
            call.lineage.pin_tensor(number.place, f"'{number.place}' is used by '{call.name}'")


def _number(call: Call, value: Any) -> Ids:
    """Sizes, and what is computed from them: counts of channels are told from all other numbers."""
    if call.name == "size" or (call.name == "getattr" and call.literal[0][1] == "shape"):
        ids, dim = call.input, call.argument(call.literal, 1, "dim")
        sizes = [Count(squeezed(ids).unique()) if varies(ids, axis) else None for axis in range(ids.dim())]
        return sizes[dim] if isinstance(dim, int) else sizes
    if call.name == "getitem" and isinstance(call.ids[0][0], list) and isinstance(call.literal[0][1], (int, slice)):
        return call.ids[0][0][call.literal[0][1]]
    found = list(counts(call.ids))
    pin_attributes(call)
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


def _with_weights_along(call: Call, value: Tensor) -> Call:
    """Return a call whose parameters have, on the axis along which the channels of the others lie, the same ones."""
    shapes = [(ids, value.dim() - ids.dim()) for ids in tensors(call.ids)]
    lying = {(dim + added) for ids, added in shapes for dim in varying(ids)}
    if len(lying) != 1:
        return without_weights(call)
    (dim,) = lying
    vector = next(call.vector(ids, dim - added) for ids, added in shapes if dim >= added and varies(ids, dim - added))

    def along(weight: Weight) -> Tensor:
        axis = dim - value.dim() + weight.tensor.dim()
        if axis < 0 or weight.tensor.shape[axis] == 1:
            return fixed(weight.tensor.shape)
        return spread(call.lineage.note(weight.name, axis, Role.CARRIED, vector), axis, weight.tensor.shape)

    args, kwargs = call.ids
    changed = tuple(along(arg) if isinstance(arg, Weight) else arg for arg in args)
    return without_weights(
        replace(call, ids=(changed, {n: along(a) if isinstance(a, Weight) else a for n, a in kwargs.items()}))
    )


def _functional_convolution(call: Call, value: Tensor) -> Ids:
    """`F.conv2d` and its like with a parameter for a weight."""
    transposed = "transpose" in call.name
    ids, weight, bias = (call.argument(call.ids, i, name) for i, name in enumerate(("input", "weight", "bias")))
    groups, counted = call.argument(call.values, 6, "groups", 1), call.argument(call.ids, 6, "groups")
    if not isinstance(weight, Weight) or not isinstance(ids, Tensor) or not (bias is None or isinstance(bias, Weight)):
        return _refused(call, value)
    along = call.vector(ids, 1)
    names = weight.name, None if bias is None else bias.name
    if groups == 1:
        return weighted(call, along, value, *names, reads=0 if transposed else 1, dim=1)
    made = grouped(call, along, value, *names, groups=groups, transposed=transposed)
    if not call.follows(counted, along) and not call.counted(groups, along[:: len(along) // groups]):
        call.pin(along, f"the number of groups of '{call.place}' is written in the code")
    return made


def _functional_linear(call: Call, value: Tensor) -> Ids:
    ids, weight, bias = (call.argument(call.ids, i, name) for i, name in enumerate(("input", "weight", "bias")))
    last = value.dim() - 1
    if not isinstance(weight, Weight) or not isinstance(ids, Tensor) or not (bias is None or isinstance(bias, Weight)):
        return _refused(call, value)
    if any(dim not in (0, last) for dim in varying(ids)) and not varies(ids, last):
        return _refused(call, value)
    names = weight.name, None if bias is None else bias.name
    return weighted(call, call.vector(ids, last), value, *names, reads=1, dim=last)


def _functional_batch_norm(call: Call, value: Tensor) -> Ids:
    """`F.batch_norm` with parameters and statistics of a layer of the network's own."""
    own = list(weights(call.ids))
    ids = call.input
    for weight in own:
        call.lineage.note(weight.name, 0, Role.CARRIED, call.vector(ids, 1))
    return ids


def _refused(call: Call, value: Any) -> Ids:
    """Pin what goes in, and list the weights that would make channels as ones that do not."""
    for weight in weights(call.ids):
        if weight.tensor.dim() > 1 and isinstance(value, Tensor):
            made = call.lineage.note(weight.name, 0, Role.MAKER, call.lineage.fresh(weight.tensor.shape[0]))
            call.pin(made, f"'{call.name}' cannot be followed")
    return unknown(without_weights(call), value)


def _reduction(call: Call, value: Any) -> Ids:
    """Mean, sum, maximum …: over axes along which no channels lie, or over all channels."""
    first = 2 if call.name == "norm" else 1
    dims = call.argument(call.literal, first, "dim")
    keepdim = bool(call.argument(call.literal, first + 1, "keepdim", False))
    reduced = [dims] if isinstance(dims, int) else dims
    if isinstance(dims, bool) or not isinstance(reduced, Sequence) or not reduced:  # `x.var(False)` is of all
        return unknown(call, value)
    axes = sorted({dim % call.input.dim() for dim in reduced}, reverse=True)
    lying = [dim for dim in axes if varies(call.input, dim)]
    if lying:
        return like(value) if len(lying) == 1 and mixed(call, lying[0]) else unknown(call, value)
    ids = call.input
    for dim in axes:
        ids = ids.narrow(dim, 0, 1) if keepdim else ids.select(dim, 0)
    return ids if isinstance(value, Tensor) else [ids] * len(value)


def _softmax(call: Call, value: Tensor) -> Ids:
    dim = call.argument(call.literal, 1, "dim")
    return _over_channels(call, value, dim)


def _normalize(call: Call, value: Tensor) -> Ids:
    return _over_channels(call, value, call.argument(call.literal, 2, "dim", 1))


def _over_channels(call: Call, value: Tensor, dim: Any) -> Ids:
    """Softmax and the like, along any axis; what comes out lies as what went in."""
    if not isinstance(dim, int):
        return unknown(call, value)
    dim %= call.input.dim()
    return call.input if not varies(call.input, dim) or mixed(call, dim) else unknown(call, value)


def _concatenation(call: Call, value: Tensor) -> Ids:
    parts = list(tensors(call.argument(call.ids, 0, "tensors")))
    dim = call.argument(call.literal, 1, "dim", call.literal[1].get("axis", 0))
    if not isinstance(dim, int):
        return unknown(call, value)
    dim %= value.dim()
    others = {other for ids in parts for other in varying(ids) if other != dim}
    if len(others) == 1 and not any(varies(ids, dim) for ids in parts):  # tokens beside tokens: the same channels
        (other,) = others
        vectors = [call.vector(ids, other) for ids in parts]
        for first, second in pairwise(vectors):
            call.lineage.unite(first, second, f"it lies beside what no rule follows at '{call.place}'", coupling=True)
        return spread(vectors[0], other, value.shape)
    if len(parts) > 1 and all(other == dim for ids in parts for other in varying(ids)):
        for ids in parts:
            call.lineage.couple(squeezed(ids))
        return spread(torch.cat([call.vector(ids, dim) for ids in parts]), dim, value.shape)
    return torch.cat(parts, dim)


def _stack(call: Call, value: Tensor) -> Ids:
    """Tensors that lie in one must stay equally long: channel by channel they are one."""
    dim, parts = call.argument(call.literal, 1, "dim", 0), list(tensors(call.argument(call.ids, 0, "tensors")))
    if not isinstance(dim, int):
        return unknown(call, value)
    for first, second in pairwise(map(squeezed, parts)):
        shape = torch.broadcast_shapes(first.shape, second.shape)
        reason = f"it is stacked on what no rule follows at '{call.place}'"
        call.lineage.unite(first.expand(shape), second.expand(shape), reason, coupling=True)
    widest = max(parts, key=lambda ids: len(varying(ids)))
    return widest.unsqueeze(dim).expand(value.shape)


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


def _unbind(call: Call, value: Any) -> Ids:
    dim = call.argument(call.literal, 1, "dim", 0)
    if not isinstance(dim, int) or varies(call.input, dim):
        return unknown(call, value)
    return [call.input.select(dim, 0)] * len(value)


def _unflatten(call: Call, value: Tensor) -> Ids:
    """One axis becomes several, the others stay."""
    dim, (sizes, counted) = (
        call.argument(call.literal, 1, "dim"),
        (call.argument(tree, 2, "sizes") for tree in (call.values, call.ids)),
    )
    if not isinstance(dim, int) or not isinstance(sizes, (tuple, list)):
        return unknown(call, value)
    dim %= call.input.dim()
    inner = _told(call, sizes, counted if isinstance(counted, (tuple, list)) else [None] * len(sizes))
    return reshaped(call, value, [*[None] * dim, *inner, *[None] * (call.input.dim() - dim - 1)])


def _repeat(call: Call, value: Tensor) -> Ids:
    if any(True for _ in counts(call.ids)):
        return unknown(call, value)
    if not any(
        value.shape[value.dim() - call.input.dim() + dim] != call.input.shape[dim] for dim in varying(call.input)
    ):
        return squeezed(call.input).expand(value.shape)
    return _moved(call, value)


def _matmul(call: Call, value: Tensor) -> Ids:
    """A product of two activations: sums run over axes along which no channels lie, those that stay keep theirs."""
    first, second = list(tensors(call.ids))[:2]
    if min(first.dim(), second.dim()) < 2:
        return unknown(call, value)
    batch = [f"batch {number}" for number in range(value.dim() - 2)]
    left = [*batch[len(batch) + 2 - first.dim() :], "row", "summed"]
    right = [*batch[len(batch) + 2 - second.dim() :], "summed", "column"]
    return _contracted(call, [(first, left), (second, right)], [*batch, "row", "column"], value)


def _attention(call: Call, value: Tensor) -> Ids:
    names = ("query", "key", "value", "attn_mask")
    given = [call.argument(call.ids, index, name) for index, name in enumerate(names)]
    batch = [f"batch {number}" for number in range(value.dim() - 2)]
    axes = (("row", "summed"), ("place", "summed"), ("place", "column"), ("row", "place"))
    operands = [
        (ids, [*batch[len(batch) + 2 - ids.dim() :], *own])
        for ids, own in zip(given, axes, strict=True)
        if isinstance(ids, Tensor)
    ]
    return _contracted(call, operands, [*batch, "row", "column"], value)


def _einsum(call: Call, value: Tensor) -> Ids:
    equation, operands = call.argument(call.literal, 0, "equation"), list(tensors(call.ids))
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return unknown(call, value)
    read, made = equation.replace(" ", "").split("->")
    return _contracted(call, list(zip(operands, map(list, read.split(",")), strict=True)), list(made), value)


def _contracted(
    call: Call, operands: Sequence[tuple[Tensor, Sequence[str]]], axes: Sequence[str], value: Tensor
) -> Ids:
    """Products of activations, summed over axes that the result does not have.

    Args:
        call: the call.
        operands: ids, and the name of each of their axes.
        axes: names of the result's.
        value: the result.
    """
    lying = {names[dim] for ids, names in operands for dim in varying(ids)}
    if len(lying) > 1 or not lying.issubset(axes):
        return unknown(call, value)
    for ids, names in operands:
        if not lying.intersection(names) or not varying(ids):
            call.pin(squeezed(ids), f"it scales other channels at '{call.place}'")
    if not lying:
        return like(value)
    (axis,) = lying
    vectors = [
        call.vector(ids, names.index(axis))
        for ids, names in operands
        if axis in names and ids.shape[names.index(axis)] > 1
    ]
    for first, second in pairwise(vectors):
        call.lineage.unite(first, second, f"it meets what no rule follows at '{call.place}'")
    return spread(vectors[0], axes.index(axis), value.shape)


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
    ids = list(torch.split(call.input, sizes, dim))
    vectors = [call.vector(part, dim) for part in ids]
    if isinstance(size, (list, tuple)) and not any(True for _ in counts(counted)):
        for number, part in zip(size, vectors, strict=True):
            if not call.counted(number, part):
                call.pin(part, f"'{call.name}' cannot be followed")
        return ids
    each = counted if isinstance(counted, (list, tuple)) else [counted]
    if len(set(sizes)) != 1:
        return unknown(call, value)
    if by_number or isinstance(size, Attribute) or all(call.follows(part, call.input) for part in each):
        call.lineage.tie(torch.stack(vectors, dim=1), f"parts of '{call.place}'")
        call.counted(None if by_number else size, vectors[0])
        return ids
    return unknown(call, value)


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
        if not _takes_all(entry, container.shape[axis]) and varies(container, axis) and not _runs(call, entry, axis):
            return unknown(call, value)
        axis += 1
    return container[call.values[0][1]] if not any(True for _ in tensors(call.ids[0][1])) else unknown(call, value)


def _select(call: Call, value: Tensor) -> Ids:
    """`select` and `narrow`, of axes along which no channels lie."""
    dim = call.argument(call.literal, 1, "dim")
    return unknown(call, value) if not isinstance(dim, int) or varies(call.input, dim) else _moved(call, value)


def _slice(call: Call, value: Tensor) -> Ids:
    """`aten::slice`: from `start` to `end` along one axis."""
    names = (("dim", 0), ("start", None), ("end", None), ("step", 1))
    dim, *ends = (call.argument(call.literal, place, *name) for place, name in enumerate(names, start=1))
    taken = slice(*ends)
    if varies(call.input, dim) and not _takes_all(taken, call.input.shape[dim]):
        return unknown(call, value)
    return call.input[(slice(None),) * (dim % call.input.dim()) + (taken,)]


def _runs(call: Call, entry: Any, axis: int) -> bool:
    """Tell whether an index takes a run of channels: `[:, : self.width]`, or up to a literal, which pins those before.

    A literal counted from the end, `[:, -8:]`, pins those behind it.
    """
    if not isinstance(entry, slice) or entry.step not in (None, 1) or call.burned:
        return False
    size = call.input.shape[axis]
    ends = [end for end in (entry.start or None, entry.stop) if end is not None and not _takes_all(slice(end), size)]
    if not all(isinstance(end, int) and -size < end < size for end in ends):
        return False
    channels = call.vector(call.input, axis)
    for end in ends:
        if not call.counted(end, channels[:end]):
            call.pin(channels[:end] if end > 0 else channels[end:], "the code says by a number which they are")
    return True


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
        if lies and isinstance(size, Attribute):
            call.counted(size, call.vector(ids, dim - added))
        elif (lies and size is not None and not call.follows(size, ids)) or (isinstance(size, Count) and not lies):
            return unknown(call, value)
    return ids.expand(value.shape)


def _view(call: Call, value: Tensor) -> Ids:
    sizes = _sizes(call)
    return reshaped(call, value, sizes) if len(sizes) == value.dim() else unknown(call, value)


def _view_as(call: Call, value: Tensor) -> Ids:
    """The shape of another tensor; where its channels lie their number follows them."""
    other = list(tensors(call.ids))[-1]
    sizes = [Count(squeezed(other).unique()) if varies(other, dim) else size for dim, size in enumerate(value.shape)]
    return reshaped(call, value, sizes)


def _made_new(call: Call, value: Tensor) -> Ids:
    """A tensor of numbers that the code writes, on the device of another."""
    return like(value)


def _sizes(call: Call) -> list[int | Count | None]:
    """Return what the code says of each new axis: a count of channels, another number, or None for −1."""
    values, ids = (args[1:] or (named.get("shape", named.get("size")),) for args, named in (call.values, call.ids))
    if len(values) == 1 and isinstance(values[0], (tuple, list)):
        values, ids = values[0], ids[0]
    return _told(call, values, ids)


def _told(call: Call, values: Sequence[Any], ids: Sequence[Any]) -> list[int | Count | None]:
    if call.burned:
        return [None] * len(values)
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


RESHAPES = frozenset({"view", "reshape", "expand", "split", "chunk", "tensor_split", "unflatten"})
"""Functions whose rules say themselves what a count of channels among the arguments means."""

SUMS = frozenset({"add", "add_", "iadd", "__iadd__", "sub", "sub_", "isub", "__add__", "__radd__"})

_UNARY = (
    "relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu selu_ celu gelu silu mish hardswish hardsigmoid hardtanh "
    "hardtanh_ sigmoid sigmoid_ logsigmoid tanh tanh_ softplus softsign dropout dropout_ dropout1d "
    "dropout2d dropout3d alpha_dropout feature_dropout abs neg exp log sqrt rsqrt square pos contiguous clone "
    "detach to float half bfloat16 double type_as stochastic_depth nan_to_num requires_grad_ zeros_like "
    "ones_like erf sin cos reciprocal sign round floor ceil bool int long logical_not isnan bernoulli bernoulli_ "
    "normal_ uniform_ fill_ zero_ alias hardswish_ hardsigmoid_ feature_dropout_ feature_alpha_dropout"
)
_NEW = "new_empty new_zeros new_ones new_full new_tensor"
_BINARY = (
    "add add_ iadd __add__ __radd__ sub sub_ isub mul mul_ imul __mul__ __rmul__ div div_ truediv itruediv "
    "maximum minimum pow pow_ clamp clamp_ clip where masked_fill masked_fill_ addcmul lerp rsub __rsub__ __truediv__ "
    "lt le gt ge eq ne logical_and logical_or"
)
_RESIZED = (
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool1d lp_pool2d lp_pool3d "
    "interpolate upsample upsample_nearest2d upsample_bilinear2d upsample_bicubic2d"
)
_REDUCED = "mean sum amax amin max min norm std var prod logsumexp"
_MOVED = "transpose permute movedim swapaxes swapdims unsqueeze squeeze expand_as flip t"

WEIGHTED: dict[str, Callable[[Call, Any], Ids]] = {
    **dict.fromkeys(
        ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"],
        _functional_convolution,
    ),
    "linear": _functional_linear,
    "batch_norm": _functional_batch_norm,
    "instance_norm": _functional_batch_norm,
}
"""What reads parameters as layers do."""

FUNCTION_RULES: dict[str, Callable[[Call, Any], Ids]] = {
    **dict.fromkeys(_UNARY.split(), _same),
    **dict.fromkeys(_BINARY.split(), _elementwise),
    **dict.fromkeys(_RESIZED.split(), spatial),
    **dict.fromkeys(_REDUCED.split(), _reduction),
    **dict.fromkeys(_MOVED.split(), _moved),
    "softmax": _softmax,
    "log_softmax": _softmax,
    "normalize": _normalize,
    "cat": _concatenation,
    "concat": _concatenation,
    "stack": _stack,
    "chunk": _parts,
    "split": _parts,
    "split_with_sizes": _parts,
    "tensor_split": _parts,
    "getitem": _item,
    "view": _view,
    "reshape": _view,
    "flatten": _flatten,
    "expand": _expand,
    "view_as": _view_as,
    "reshape_as": _view_as,
    **dict.fromkeys(_NEW.split(), _made_new),
    "roll": _roll,
    "pad": _pad,
    "channel_shuffle": _channel_shuffle,
    "unbind": _unbind,
    "unflatten": _unflatten,
    "select": _select,
    "narrow": _select,
    "slice": _slice,
    "pixel_shuffle": pixels_from_channels,
    "pixel_unshuffle": channels_from_pixels,
    "repeat": _repeat,
    "tile": _repeat,
    "repeat_interleave": _repeat,
    "matmul": _matmul,
    "bmm": _matmul,
    "__matmul__": _matmul,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
}
