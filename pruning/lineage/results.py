"""What the operations of a graph put out that takes memory of its own, and how long it is needed.

What is a copy is told by rules that do not look at how long an axis is, so that a network and any cut of it are told
the same. Torch itself spares `reshape` and `contiguous` some copies where an axis of length one lets it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from pruning.errors import GraphError
from pruning.inputs import Example, as_arguments, shapes, without_values
from pruning.lineage.channels import FIXED, Ids, squeezed
from pruning.lineage.trace import EvalGraph, Inputs, callable_of, first_line, look_up, name_of

_RELAID = frozenset({"contiguous", "reshape", "flatten", "reshape_as", "ravel", "Flatten"})
"""Operations that copy where the layout in memory asks for it."""

_SHUFFLES = frozenset({"channel_shuffle", "ChannelShuffle"})
"""Operations that copy whenever there is something to shuffle."""


@dataclass
class Result:
    """A tensor that an operation puts out and that is no part of one that it is given.

    Attributes:
        place: the module or the node of the graph that puts it out.
        first: the number of that node in the graph.
        last: the number of the last node that is given the tensor or a part of it.
        nbytes: of one image.
        ids: channels, of which each place stands for an equal share of the bytes; empty where nothing is known.
    """

    place: str
    first: int
    last: int
    nbytes: int
    ids: Ids


def results(graph: EvalGraph, example_input: Example) -> list[Result]:
    """Run a graph on the shapes of one image and return what it holds in memory, in the order in which it is made.

    A module or a function that is one node is one operation: what it makes inside and does not return is left out. So
    are the image, parameters, buffers and tensors that are written in the code.

    Args:
        graph: of the network.
        example_input: `[images, channels, height, width]`, or several inputs; only shapes and types matter.

    Raises:
        GraphError: the network does not take one such image.
    """
    example = without_values(example_input, images=1)
    given_to_it = Inputs(example)
    images = _tensors(as_arguments(example))
    memory, values = _Memory((*graph.model.parameters(), *graph.model.buffers(), *images)), dict[fx.Node, Any]()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for number, node in enumerate(graph.graph.nodes):
                given = look_up((node.args, node.kwargs), values)
                memory.use(given, number)
                values[node] = memory.laid(_value(node, graph, given_to_it, given), _kind(node, graph), given)
                memory.hold(values[node], graph.ids.get(node), node, number)
    except Exception as error:
        kind = type(graph.model).__name__
        raise GraphError(f"{kind} does not run on {shapes(example)}: {first_line(error)}") from error
    return memory.results


def _value(node: fx.Node, graph: EvalGraph, inputs: Inputs, given: tuple[Any, Any]) -> Any:
    args, kwargs = given
    if node.op == "placeholder":
        return inputs.next(node)
    if node.op == "get_attr":
        owner, _, leaf = str(node.target).rpartition(".")
        constant = getattr(graph.model.get_submodule(owner), leaf)
        return constant.to("meta") if isinstance(constant, Tensor) else constant
    if node.op == "output":
        return None
    if node.op == "call_module":
        return graph.model.get_submodule(str(node.target))(*args, **kwargs)
    return callable_of(node)(*args, **kwargs)


def _kind(node: fx.Node, graph: EvalGraph) -> str:
    if node.op == "call_module":
        return type(graph.model.get_submodule(str(node.target))).__name__
    return node.op if node.op in ("placeholder", "get_attr", "output") else name_of(node)


class _Memory:
    """Which storage belongs to which result; the values of the graph keep every storage that is known alive.

    Args:
        others: tensors that are nobody's result.
    """

    def __init__(self, others: tuple[Tensor, ...]) -> None:
        self.results: list[Result] = []
        self._owners: dict[int, Result | None] = {_storage(tensor): None for tensor in others}

    def use(self, given: Any, number: int) -> None:
        """Note that a node is given tensors."""
        for tensor in _tensors(given):
            result = self._owners[_storage(tensor)]
            if result is not None:
                result.last = number

    def laid(self, value: Any, kind: str, given: tuple[Any, Any]) -> Any:
        """Return what a node puts out, with what takes memory of its own laid out in the order of its axes."""
        if kind in ("placeholder", "get_attr"):
            self._owners |= {_storage(tensor): None for tensor in _tensors(value)}
        source = next(_tensors(given), None)

        def own(tensor: Tensor) -> Tensor:
            if _storage(tensor) in self._owners and not (source is not None and _copies(kind, source, tensor)):
                return tensor
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

        return tree_map_only(Tensor, own, value)

    def hold(self, value: Any, ids: Any, node: fx.Node, number: int) -> None:
        """Note the results among what a node puts out."""
        place = str(node.target) if node.op == "call_module" else node.name
        for tensor, channels in _with_ids(value, ids):
            if _storage(tensor) not in self._owners:
                result = Result(place, number, number, tensor.nbytes, _shares(channels))
                self._owners[_storage(tensor)] = result
                self.results.append(result)


def _storage(tensor: Tensor) -> int:
    storage: int = tensor.untyped_storage()._cdata
    return storage


def _copies(kind: str, source: Tensor, value: Tensor) -> bool:
    """Tell whether an operation that gave back its argument would have copied it, were no axis of length one."""
    if kind == "contiguous":
        return any(not _meets_next(source, dim) for dim, size in enumerate(source.shape) if size == 1)
    if kind in _RELAID:
        last = source.dim() - 1
        return any(not _meets_next(source, max(0, min(dim, last - 1))) for dim in _merged(source.shape, value.shape))
    return kind in _SHUFFLES


def _merged(old: Sequence[int], new: Sequence[int]) -> list[int]:
    """Return the axes of length one that a change of shape makes a part of another: as a rule of that behind them."""
    kept = Counter(_ones(new).values())
    lost = []
    for dim, place in _ones(old).items():
        if kept[place] == 0:
            lost.append(dim)
        kept[place] -= kept[place] > 0
    return lost


def _ones(shape: Sequence[int]) -> dict[int, int]:
    """Return axis → the number of steps along all axes in front of it, for axes of length one."""
    return {dim: prod(shape[:dim]) for dim, size in enumerate(shape) if size == 1}


def _meets_next(tensor: Tensor, dim: int) -> bool:
    """Tell whether one step along an axis is all steps along the next; of the last axis, one entry."""
    last = dim == tensor.dim() - 1
    return tensor.stride(dim) == (1 if last else tensor.stride(dim + 1) * tensor.shape[dim + 1])


def _tensors(tree: Any) -> Iterator[Tensor]:
    yield from (leaf for leaf in _leaves(tree) if isinstance(leaf, Tensor))


def _leaves(tree: Any) -> Iterator[Any]:
    if is_dataclass(tree) and not isinstance(tree, (type, Mapping)):
        tree = [getattr(tree, part.name) for part in fields(tree)]
    if isinstance(tree, Mapping):
        tree = tuple(tree.values())
    if isinstance(tree, (tuple, list)):
        for branch in tree:
            yield from _leaves(branch)
    else:
        yield tree


def _with_ids(value: Any, ids: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield every tensor with its ids; none has any where the ids are no tree of the same form."""
    values, channels = list(_leaves(value)), list(_leaves(ids))
    alike = len(values) == len(channels)
    for number, tensor in enumerate(values):
        if isinstance(tensor, Tensor):
            found = channels[number] if alike else None
            yield tensor, found if isinstance(found, Tensor) else None


def _shares(ids: Tensor | None) -> Ids:
    flat = np.empty(0, dtype=np.int64) if ids is None else squeezed(ids).reshape(-1).numpy()
    return flat if (flat != FIXED).any() else flat[:0]
