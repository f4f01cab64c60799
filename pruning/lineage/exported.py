"""The second front end: the graph of `torch.export`, for networks whose Python control flow torch.fx cannot follow.

Its operations are ATen's, on weights. Those that one call of a layer made are put back together to that call, so that
groups have the names that they have from torch.fx. Numbers that the code computed of shapes and attributes are burned
in, so a rule cannot tell which of them follow a cut: see `Call.burned`.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import fx, nn

from pruning.inputs import Example, as_arguments

Whole = Callable[[nn.Module], bool]
"""Tells whether a module is one node of the graph."""


def exported_graph(bare: nn.Module, example: Example, whole: Whole) -> fx.Graph:
    """Return the graph of a network without values, in the mode that it is in.

    Args:
        bare: a skeleton.
        example: inputs without values.
        whole: which layers are put back together.
    """
    args, kwargs = as_arguments(example)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.device("meta"):  # tensors that the code makes
            graph = torch.export.export(bare, args, kwargs, strict=False).module().graph
    return _Folder(bare, whole).fold(graph)


class _Folder:
    def __init__(self, bare: nn.Module, whole: Whole) -> None:
        self._bare, self._whole = bare, whole
        self._graph = fx.Graph()
        self._copies: dict[fx.Node, fx.Node] = {}
        self._known: dict[str, bool] = {}

    def fold(self, graph: fx.Graph) -> fx.Graph:
        """Copy a graph; consecutive operations of one call of a layer become a call of that layer."""
        for (_, layer), run in groupby(list(graph.nodes), self._call):
            nodes = list(run)
            if layer is None or not self._fold_call(layer, nodes):
                for node in nodes:
                    self._copy(node)
        return self._graph

    def _call(self, node: fx.Node) -> tuple[str | None, str | None]:
        """Return the call (unique, also where a layer runs twice) and the name of the layer that made a node."""
        if node.op == "call_function":
            for call, (layer, _) in (node.meta.get("nn_module_stack") or {}).items():
                name = str(layer).partition("@")[0]
                if name and self._is_whole(name):
                    return call, name
        return None, None

    def _is_whole(self, layer: str) -> bool:
        if layer not in self._known:
            self._known[layer] = self._whole(self._bare.get_submodule(layer))
        return self._known[layer]

    def _fold_call(self, layer: str, nodes: Sequence[fx.Node]) -> bool:
        """Add one call of a layer, if one tensor goes in and one comes out."""
        inside = set(nodes)
        read = dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in inside)
        images = [source for source in read if source.op != "get_attr"]
        made = [node for node in nodes if any(user not in inside for user in node.users)]
        if len(images) != 1 or len(made) != 1:
            return False
        image = self._copies[images[0]]
        if isinstance(self._bare.get_submodule(layer), nn.MultiheadAttention):  # whose weights nobody asks for
            both = self._graph.call_module(layer, (image, image, image), {"need_weights": False})
            self._copies[made[0]] = self._graph.call_function(operator.getitem, (both, 0))
        else:
            self._copies[made[0]] = self._graph.call_module(layer, (image,))
        return True

    def _copy(self, node: fx.Node) -> None:
        if node.op == "call_module":  # what checks the inputs
            return
        self._copies[node] = self._graph.node_copy(node, self._copies.__getitem__)


def overload_name(target: Any) -> str:
    """Return what the operation is called: `view` for `aten.view.default`."""
    return str(target.__name__).partition(".")[0]
