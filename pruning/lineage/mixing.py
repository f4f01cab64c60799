"""Operations over all channels, such as their mean: in the masked network they see the kept ones alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from pruning.inputs import Example
from pruning.lineage.call import layer_operation
from pruning.lineage.trace import eval_graph, name_of

KEEPS_CHANNELS = frozenset({"softmax", "log_softmax", "normalize"})
"""Functions over channels whose result has the channels of their input; that of layers always has."""


Removed = Mapping[str, Mapping[int, Sequence[int]]]
"""Node of the eval graph, or layer → axis of its first input → positions that go."""


def over_kept(model: nn.Module, removed: Removed, example_input: Example) -> nn.Module:
    """Return a network with the layers of `model` in which operations over channels see those that are kept.

    Args:
        model: the network; returned itself where there is no such operation.
        removed: what those operations are not to see.
        example_input: what the network takes.
    """
    if not removed:
        return model
    traced = eval_graph(model, example_input, images=2)
    names = {str(node.target) for node in traced.graph.nodes if node.op in ("get_attr", "call_module")}
    attributes = {name: _attribute(model, traced.model, name) for name in names}
    for node in list(traced.graph.nodes):
        operation = layer_operation(str(node.target)) if node.op == "call_module" else node.name
        for axis, positions in removed.get(operation, {}).items():
            _see_kept(traced.graph, node, axis, positions)
    return fx.GraphModule(attributes, traced.graph)  # its layers are the network's: their modes are the caller's


def kept_only(x: Tensor, axis: int, removed: Sequence[int]) -> Tensor:
    """Return a tensor without some entries of an axis."""
    return x.index_select(axis, _kept(x, axis, removed))


def put_back(result: Tensor, x: Tensor, axis: int, removed: Sequence[int]) -> Tensor:
    """Return zeros like `x` with a result for the entries of an axis that were kept."""
    return torch.zeros_like(x).index_copy(axis, _kept(x, axis, removed), result)


def _kept(x: Tensor, axis: int, removed: Sequence[int]) -> Tensor:
    stay = torch.ones(x.shape[axis], dtype=torch.bool)
    stay[list(removed)] = False
    return stay.nonzero().flatten().to(x.device)


def _see_kept(graph: fx.Graph, node: fx.Node, axis: int, removed: Sequence[int]) -> None:
    whole = node.all_input_nodes[0]
    with graph.inserting_before(node):
        seen = graph.call_function(kept_only, (whole, axis, list(removed)))
    node.replace_input_with(whole, seen)
    if node.op == "call_module" or name_of(node) in KEEPS_CHANNELS:
        with graph.inserting_after(node):
            back = graph.call_function(put_back, (node, whole, axis, list(removed)))
        node.replace_all_uses_with(back, delete_user_cb=lambda user: user is not back)


def _attribute(model: nn.Module, bare: nn.Module, name: str) -> Any:
    """Return a layer or a tensor of the network, or a tensor that its code makes."""
    owner, _, leaf = name.rpartition(".")
    for network in (model, bare):
        try:
            return getattr(network.get_submodule(owner), leaf)
        except AttributeError:
            continue
    raise AttributeError(name)
