"""Trace a network in train and in eval mode and run ids through both graphs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from pruning.errors import GraphError
from pruning.lineage.attributes import mark
from pruning.lineage.call import Call, Count, Weight, like, without_weights
from pruning.lineage.channels import Lineage, fixed
from pruning.lineage.functions import apply_function
from pruning.lineage.modules import MODULE_RULES, apply_module


@dataclass(frozen=True)
class EvalGraph:
    """What a network does in eval mode.

    Attributes:
        model: its skeleton.
        graph: its operations.
        ids: of the channels in what a node puts out, where they were followed.
    """

    model: nn.Module
    graph: fx.Graph
    ids: Mapping[fx.Node, Any]


def follow(model: nn.Module, example_input: Tensor) -> tuple[Lineage, EvalGraph]:
    """Follow every channel of a network through its train and its eval graph; the network is left as found.

    Only shapes are computed, on a skeleton without weights: no memory, no arithmetic, no random number.

    Args:
        model: a network that torch.fx can trace.
        example_input: `[images, channels, height, width]`; only shape and type matter.

    Raises:
        GraphError: it cannot be traced, or does not take such an input.
    """
    bare = skeleton(model)
    mark(bare, tuple(MODULE_RULES))
    # Two images: a batch of one makes the batch axis look like a broadcast axis.
    image = torch.empty((2, *example_input.shape[1:]), dtype=example_input.dtype, device="meta")
    lineage = Lineage()
    _pin_shared(bare, lineage)
    with torch.random.fork_rng(devices=[]):
        _run(trace(bare.train()), bare, image, lineage)
        graph = trace(bare.eval())
        ids = _run(graph, bare, image, lineage)
    return lineage, EvalGraph(bare, graph, ids)


def eval_graph(model: nn.Module) -> EvalGraph:
    """Trace a network in eval mode without following channels; it is left as found.

    Raises:
        GraphError: it cannot be traced.
    """
    bare = skeleton(model).eval()
    with torch.random.fork_rng(devices=[]):
        return EvalGraph(bare, trace(bare), {})


def skeleton(model: nn.Module) -> nn.Module:
    """Return a copy of a network whose parameters and buffers have shapes but no values (meta device); without hooks.

    Raises:
        GraphError: it cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():  # activations and computed weights that layers hold on to cannot be copied
        held = [value for value in vars(module).values() if isinstance(value, Tensor)]
        memo |= {id(tensor): torch.empty_like(tensor, device="meta") for tensor in held}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    try:
        bare = copy.deepcopy(model, memo)
    except Exception as error:
        raise GraphError(f"{type(model).__name__}: cannot be copied: {first_line(error)}") from error
    for module in bare.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return bare


def _pin_shared(model: nn.Module, lineage: Lineage) -> None:
    """Pin parameters that two layers share: cut, they would be two."""
    owners: dict[int, list[str]] = {}
    for layer, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(f"{layer}.{leaf}" if layer else leaf)
    for first, *others in owners.values():
        for name in (first, *others) if others else ():
            lineage.pin_tensor(name, f"'{first}' is also '{others[0]}'")


class Tracer(fx.Tracer):
    """Keeps every module that has a rule whole, and torch's own modules; follows buffers like parameters."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one node of the graph."""
        return isinstance(m, tuple(MODULE_RULES)) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, tracer: fx.Tracer | None = None) -> fx.Graph:
    """Trace a network in the mode that it is in; inputs with a default value stay at it.

    Raises:
        GraphError: it cannot be traced.
    """
    inputs = list(inspect.signature(model.forward).parameters.values())
    defaults = {extra.name: extra.default for extra in inputs[1:] if extra.default is not extra.empty}
    try:
        return (tracer or Tracer()).trace(model, concrete_args=defaults)
    except Exception as error:  # whatever the network's own forward raises under tracing
        raise GraphError(f"{type(model).__name__}: cannot be traced: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Return what an error says, shortened."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _run(graph: fx.Graph, model: nn.Module, image: Tensor, lineage: Lineage) -> dict[fx.Node, Any]:
    """Return the ids of what each node puts out."""
    values: dict[fx.Node, Any] = {}
    ids: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        try:
            with torch.no_grad():
                values[node], ids[node] = _step(node, model, image, lineage, values, ids)
        except GraphError:
            raise
        except Exception as error:
            place = node.target if node.op == "call_module" else node.name
            raise GraphError(f"{type(model).__name__}, at '{place}': {first_line(error)}") from error
    return ids


def _step(
    node: fx.Node,
    model: nn.Module,
    image: Tensor,
    lineage: Lineage,
    values: dict[fx.Node, Any],
    ids: dict[fx.Node, Any],
) -> tuple[Any, Any]:
    """Return the value and the ids of one node of the graph."""
    if node.op == "placeholder":
        return _placeholder(node, image, first=not values)
    if node.op == "get_attr":
        return _attribute(str(node.target), model, lineage)
    args, kwargs = look_up((node.args, node.kwargs), values)
    call = Call(
        name=_name(node),
        place=str(node.target) if node.op == "call_module" else node.name,
        literal=(node.args, node.kwargs),
        values=(args, kwargs),
        ids=_canonical(look_up((node.args, node.kwargs), ids), lineage),
        lineage=lineage,
    )
    if node.op == "output":
        call.pin(call.ids, "the network's output")
        return None, None
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        value = module(*args, **kwargs)
        return value, apply_module(module, without_weights(replace(call, name=type(module).__name__)), value)
    value = callable_of(node)(*args, **kwargs)
    return value, apply_function(callable_of(node), call, value)


def _canonical(tree: Any, lineage: Lineage) -> Any:
    if isinstance(tree, Tensor):
        return lineage.canonical(tree)
    if isinstance(tree, Count):
        return Count(lineage.canonical(tree.ids))
    if isinstance(tree, dict):
        return {name: _canonical(branch, lineage) for name, branch in tree.items()}
    if isinstance(tree, slice):
        return slice(*(_canonical(end, lineage) for end in (tree.start, tree.stop, tree.step)))
    if isinstance(tree, (tuple, list)):
        return (tuple if isinstance(tree, tuple) else list)(_canonical(branch, lineage) for branch in tree)
    return tree


def _attribute(name: str, model: nn.Module, lineage: Lineage) -> tuple[Any, Any]:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    tensor = getattr(module, leaf)
    if leaf in module._parameters or leaf in module._buffers:
        return tensor, Weight(name, tensor) if isinstance(tensor, Tensor) else None
    constant = tensor.to("meta") if isinstance(tensor, Tensor) else tensor
    return constant, like(constant)  # written in the code: it does not follow a cut


def _placeholder(node: fx.Node, image: Tensor, *, first: bool) -> tuple[Any, Any]:
    if first:
        return image, fixed(image.shape)
    if node.args:  # an input with a default value stays at its default
        return node.args[0], None
    raise GraphError(f"forward: expected one input without a default, got another: '{node.name}'")


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def callable_of(node: fx.Node) -> Callable[..., Any]:
    """Return what a node that calls a function or a method calls."""
    if node.op == "call_method":
        return _method(str(node.target))
    assert callable(node.target)
    return node.target


def _method(name: str) -> Callable[..., Any]:
    def call(receiver: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(receiver, name)(*args, **kwargs)

    call.__module__, call.__name__ = "torch", name
    return call


def look_up(tree: Any, table: dict[fx.Node, Any]) -> Any:
    """Replace every node in nested arguments by its entry."""
    return fx.node.map_arg(tree, lambda node: table[node])
