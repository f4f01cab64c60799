"""One call in the graph as rules see it, and what many rules do: pin, keep across a resize, follow a reshape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from pruning.lineage.attributes import Attribute
from pruning.lineage.channels import Lineage, Role, fixed, spread, squeezed, varies, varying

Ids = Any
"""A tensor of ids, a Count, None for any other value, or tuples and lists of these."""


@dataclass(frozen=True)
class Count:
    """Stands for a number that was computed from how many channels there are, such as `x.shape[1] // 2`."""

    ids: Tensor


@dataclass(frozen=True)
class Call:
    """One node of the graph: its arguments as written, as values and as ids; each is `(args, kwargs)`."""

    name: str
    place: str
    literal: tuple[Any, Any]
    values: tuple[Any, Any]
    ids: tuple[Any, Any]
    lineage: Lineage
    followed: set[str] = field(default_factory=set)
    """Attributes among the arguments that a cut will lower."""
    burned: bool = False
    """Numbers that the code computes stand in the graph as plain numbers: any of them may follow a cut."""

    def argument(self, tree: tuple[Any, Any], index: int, name: str, default: Any = None) -> Any:
        """Return an argument by position or by name from one of the three views."""
        args, kwargs = tree
        return args[index] if index < len(args) else kwargs.get(name, default)

    @property
    def input(self) -> Tensor:
        """Ids of the first tensor argument."""
        return next(tensors(self.ids))

    def pin(self, ids: Ids, why: str) -> None:
        """Pin every id, saying where."""
        for tensor in (*tensors(ids), *(count.ids for count in counts(ids))):
            self.lineage.pin(tensor, f"{why} at '{self.place}'")

    def follows(self, size: Ids, ids: Tensor) -> bool:
        """Tell whether a number counts channels; they must turn out to be the channels `ids`, or none can be cut."""
        if not isinstance(size, Count):
            return False
        self.lineage.agree(size.ids, ids, f"their number shapes others at '{self.place}'")
        return True

    def counted(self, size: Any, ids: Tensor) -> bool:
        """Tell whether a number is an attribute; it counts the channels `ids`, a vector, and is lowered with them."""
        if not isinstance(size, Attribute):
            return False
        if size.times > 1:
            table = ids.reshape(size.times, -1).T
            self.lineage.tie(table, f"'{size.place}' counts them more than once at '{self.place}'")
            ids = table[:, 0]
        for other in size.others:
            self.lineage.pin_tensor(other, f"'{other}' multiplies or divides '{size.place}'")
        self.lineage.note(size.place, 0, Role.CARRIED, ids.repeat(size.parts))
        self.followed.add(size.place)
        return True

    def vector(self, ids: Tensor, dim: int) -> Tensor:
        """Return the ids along one dimension, united over all others."""
        table = squeezed(ids).movedim(dim, 0).reshape(squeezed(ids).shape[dim], -1)
        self.lineage.tie(table, f"lies along two axes at '{self.place}'")
        return table[:, 0].expand(ids.shape[dim])


def tensors(tree: Ids) -> Iterator[Tensor]:
    """Yield every tensor in nested tuples, lists and dictionaries."""
    yield from (leaf for leaf in _leaves(tree) if isinstance(leaf, Tensor))


def weights(tree: Ids) -> Iterator[Weight]:
    """Yield every parameter in nested tuples, lists and dictionaries."""
    yield from (leaf for leaf in _leaves(tree) if isinstance(leaf, Weight))


def counts(tree: Ids) -> Iterator[Count]:
    """Yield every count of channels in nested tuples, lists, dictionaries and slices."""
    yield from (leaf for leaf in _leaves(tree) if isinstance(leaf, Count))


def _leaves(tree: Ids) -> Iterator[Any]:
    if isinstance(tree, slice):
        tree = (tree.start, tree.stop, tree.step)
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    if isinstance(tree, (tuple, list)):
        for branch in tree:
            yield from _leaves(branch)
    else:
        yield tree


def like(value: Any) -> Ids:
    """Return FIXED ids shaped like a value."""
    if isinstance(value, Tensor):
        return fixed(value.shape)
    if isinstance(value, (tuple, list)):
        return [like(part) for part in value]
    return None


@dataclass(frozen=True)
class Weight:
    """Stands for a parameter or buffer that the network uses by itself, until it is seen how."""

    name: str
    tensor: Tensor


def without_weights(call: Call) -> Call:
    """Return a call whose parameters have ids of their own, e.g. a layer scale `[channels, 1, 1]`."""

    def plain(tree: Ids) -> Ids:
        if isinstance(tree, Weight):
            return _parameter_ids(tree.name, tree.tensor, call.lineage)
        if isinstance(tree, (tuple, list)):
            return (tuple if isinstance(tree, tuple) else list)(map(plain, tree))
        return {name: plain(branch) for name, branch in tree.items()} if isinstance(tree, dict) else tree

    return replace(call, ids=plain(call.ids))


def _parameter_ids(name: str, tensor: Tensor, lineage: Lineage) -> Ids:
    wide = [dim for dim, size in enumerate(tensor.shape) if size > 1]
    if len(wide) != 1:
        lineage.pin_tensor(name, f"'{name}' is used outside of a layer")
        return fixed(tensor.shape)
    known = lineage.noted(name, wide[0])
    ids = lineage.note(name, wide[0], Role.CARRIED, lineage.fresh(tensor.numel())) if known is None else known
    return spread(ids, wide[0], tensor.shape)


def unknown(call: Call, value: Any) -> Ids:
    """Pin everything that goes in; nothing that comes out can be cut."""
    call.pin(call.ids, f"'{call.name}' cannot be followed")
    return like(value)


def mixed(call: Call, dim: int, *, by_layer: bool = False) -> bool:
    """Note that an operation makes something of all channels along an axis: after a cut, of those that are left."""
    if call.burned or any(other != dim for other in varying(call.input)):
        return False
    call.lineage.mix(layer_operation(call.place) if by_layer else call.place, dim, call.vector(call.input, dim))
    return True


_BY_LAYER = "layer "


def layer_operation(layer: str) -> str:
    """Return what a layer's operation over channels is called; others go by their node's name."""
    return _BY_LAYER + layer


def mixing_layer(operation: str) -> str | None:
    """Return the layer of an operation over channels, or None for a function."""
    return operation.removeprefix(_BY_LAYER) if operation.startswith(_BY_LAYER) else None


def spatial(call: Call, value: Any) -> Ids:
    """Pooling and resizing, which act on every axis behind the first two."""
    if any(dim > 1 for dim in varying(call.input)):
        return unknown(call, value)
    return respread(call, call.input, value)


def padded(call: Call, value: Any, padding: Sequence[Any]) -> Ids:
    """Padding; `padding` holds two numbers for each axis, the last axis first."""
    last = call.input.dim() - 1
    if any(amount != 0 and varies(call.input, last - place // 2) for place, amount in enumerate(padding)):
        return unknown(call, value)
    return respread(call, call.input, value)


def respread(call: Call, ids: Tensor, value: Any) -> Ids:
    """Keep ids across a change of size of the axes along which no channels lie (pooling, resizing, padding)."""
    if not isinstance(value, Tensor) or any(ids.shape[dim] != value.shape[dim] for dim in varying(ids)):
        return unknown(call, value)
    return squeezed(ids).expand(value.shape) if varying(ids) else ids.reshape(-1)[0].expand(value.shape)


def pixels_from_channels(call: Call, value: Tensor) -> Ids:
    """Pixel shuffle: channels become pixels; those that meet in one image stay or go together."""
    axis = value.dim() - 3
    table = call.vector(call.input, axis).reshape(value.shape[axis], -1)
    call.lineage.tie(table, f"pixel shuffle at '{call.place}'")
    return spread(table[:, 0], axis, value.shape)


def channels_from_pixels(call: Call, value: Tensor) -> Ids:
    """Pixel unshuffle: each channel becomes several."""
    axis = value.dim() - 3
    ids = call.vector(call.input, axis)
    return spread(ids.repeat_interleave(value.shape[axis] // len(ids)), axis, value.shape)


def reshaped(call: Call, value: Tensor, sizes: Sequence[int | Count | None]) -> Ids:
    """A change of shape.

    Args:
        call: the call.
        value: its value.
        sizes: what the code says of each new axis: a number, which will not follow a cut; a count of channels; or None
            for whatever is left.
    """
    ids, strays = call.input, dict(enumerate(sizes))
    for old, new in _blocks(tuple(ids.shape), tuple(value.shape)):
        lying = [dim for dim in old if varies(ids, dim)]
        if not lying:
            continue
        free = _free(call, value, sizes, [dim for dim in new if value.shape[dim] > 1])
        if free is None or (len(old) > 1 and len(new) > 1):
            return unknown(call, value)
        if call.follows(sizes[free], ids):
            del strays[free]
        size = [value.shape[dim] for dim in new]
        if len(new) > 1:  # one axis becomes several: only whole steps of the free one can go
            table = call.vector(ids, lying[0]).reshape(size).movedim(new.index(free), 0)
            table = table.reshape(table.shape[0], -1)
            call.lineage.tie(table, f"split axis at '{call.place}'")
            call.counted(sizes[free], table[:, 0])
        else:
            call.counted(sizes[free], call.vector(ids.reshape(value.shape), free))
    if any(isinstance(size, Count) for size in strays.values()):  # a number that follows another cut than its axis
        return unknown(call, value)
    return ids.reshape(value.shape)


def _free(call: Call, value: Tensor, sizes: Sequence[int | Count | None], axes: Sequence[int]) -> int | None:
    """Return the one of some new axes whose size follows a cut.

    Where it may be one or the other (heads or their depth), the lineage says which of them is tried.
    """
    if call.burned:
        first = second = sorted(axes, key=lambda dim: -value.shape[dim])
    else:
        known = set(call.input.unique().tolist())
        told = [dim for dim in axes if not isinstance(sizes[dim], int)]
        sure = [dim for dim in told if _counts_all(sizes[dim], known)]
        attributes = [dim for dim in axes if isinstance(sizes[dim], Attribute)]
        certain = sure if len(sure) == 1 else []
        others = [dim for dim in told if len(sure) < 2 and dim not in certain]
        first, second = [*certain, *attributes, *others], [*attributes, *others, *certain]
    return call.lineage.choose(call.place, [first[0], second[0], first[-1]], call.input) if first else None


def _counts_all(size: int | Count | None, known: set[int]) -> bool:
    return not isinstance(size, Count) or set(size.ids.tolist()) == known


def _blocks(old: tuple[int, ...], new: tuple[int, ...]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the smallest runs of axes that hold the same number of elements before and after."""
    i = j = 0
    while i < len(old) and j < len(new):
        first, second = [i], [j]
        i, j = i + 1, j + 1
        while (a := math.prod(old[k] for k in first)) != (b := math.prod(new[k] for k in second)):
            if a < b:
                first.append(i)
                i += 1
            else:
                second.append(j)
                j += 1
        while i < len(old) and old[i] == 1 and (j == len(new) or new[j] != 1):
            first.append(i)
            i += 1
        while j < len(new) and new[j] == 1 and (i == len(old) or old[i] != 1):
            second.append(j)
            j += 1
        yield [k for k in first if old[k] > 1] or first[:1], second
