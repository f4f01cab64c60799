"""Trace a network in train and in eval mode and run ids through both graphs."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from pruning.errors import GraphError
from pruning.inputs import Example, as_arguments, without_values
from pruning.lineage.attributes import mark
from pruning.lineage.call import Call, Count, Weight, like, without_weights
from pruning.lineage.channels import Lineage
from pruning.lineage.exported import exported_graph, overload_name
from pruning.lineage.functions import apply_function, keeps_ids
from pruning.lineage.modules import MODULE_RULES, apply_module
from pruning.lineage.shapes import shaped

EXPORT = "torch.export"
"""The front end that burns numbers in."""


@dataclass(frozen=True)
class Tracing:
    """What a front end can do with a skeleton.

    Attributes:
        front_end: its name.
        graph: returns the graph of the skeleton in the mode that it is in.
        computed: attributes with which the code computed when it was traced.
    """

    front_end: str
    graph: Callable[[Example], fx.Graph]
    computed: set[str] = field(default_factory=set)


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
    ids: Mapping[fx.Node, Any] = field(default_factory=dict)


class UntraceableError(GraphError):
    """A front end cannot trace a network; another one may."""


def by_fx(bare: nn.Module, example: Example) -> Tracing:
    """Trace a skeleton with torch.fx."""
    return Tracing("torch.fx", lambda images: trace(bare, example=images), mark(bare, tuple(MODULE_RULES)))


def by_export(bare: nn.Module, example: Example) -> Tracing:
    """Trace a skeleton with torch.export."""

    def graph(images: Example) -> fx.Graph:
        try:
            return exported_graph(bare, images, is_whole)
        except Exception as error:
            raise UntraceableError(f"{type(bare).__name__}: cannot be exported: {first_line(error)}") from error

    return Tracing(EXPORT, graph)


def by_fx_with_opaque_modules(bare: nn.Module, example: Example) -> Tracing:
    """Trace a skeleton with torch.fx around the innermost modules that it cannot trace."""
    computed = mark(bare, tuple(MODULE_RULES))
    opaque: set[str] = set()
    while True:
        tracer = Tracer(opaque)
        try:
            trace(bare, tracer, example)
        except UntraceableError:
            if not tracer.failed or tracer.failed in opaque:
                raise
            opaque.add(tracer.failed)
        else:
            break
    name = f"torch.fx without a look into {', '.join(sorted(opaque))}"
    return Tracing(name, lambda images: trace(bare, Tracer(opaque), images), computed)


FrontEnd = Callable[[nn.Module, Example], Tracing]

FRONT_ENDS: tuple[FrontEnd, ...] = (by_fx, by_export, by_fx_with_opaque_modules)
"""In the order in which they are tried."""


def follow(
    model: nn.Module,
    example_input: Example,
    *,
    thinned: Sequence[str] = (),
    front_ends: Sequence[FrontEnd] = FRONT_ENDS,
) -> tuple[Lineage, EvalGraph]:
    """Follow every channel of a network through its train and its eval graph; the network is left as found.

    Only shapes are computed, on a skeleton without weights: no memory, no arithmetic, no random number. A network that
    torch.fx cannot trace is traced by torch.export; failing that by torch.fx again, with modules that do not trace left
    whole.

    Args:
        model: the network.
        example_input: `[images, channels, height, width]`, or several inputs; only shapes and types matter.
        thinned: shell patterns of the grouped convolutions whose groups are thinned, not removed.
        front_ends: what may trace it; the first that does is used.

    Raises:
        GraphError: it cannot be traced, or does not take such an input.
    """
    # Two images: a batch of one makes the batch axis look like a broadcast axis.
    example = without_values(example_input, images=2)
    return _by_first(model, example, front_ends, partial(_followed, thinned=tuple(thinned)))


def eval_graph(
    model: nn.Module, example_input: Example, front_ends: Sequence[FrontEnd] = FRONT_ENDS, images: int = 1
) -> EvalGraph:
    """Trace a network in eval mode without following channels; it is left as found.

    Args:
        model: the network.
        example_input: `[images, channels, height, width]`, or several inputs; only shapes and types matter.
        front_ends: what may trace it; the first that does is used.
        images: how many it is traced for.

    Raises:
        GraphError: it cannot be traced.
    """

    def graph(bare: nn.Module, example: Example, tracing: Tracing) -> EvalGraph:
        bare.eval()
        return EvalGraph(bare, tracing.graph(example))

    return _by_first(model, without_values(example_input, images), front_ends, graph)


Done = TypeVar("Done")


def _by_first(
    model: nn.Module,
    example: Example,
    front_ends: Sequence[FrontEnd],
    done: Callable[[nn.Module, Example, Tracing], Done],
) -> Done:
    """Do something with what the first front end that can makes of a network."""
    first: GraphError | None = None
    for front_end in front_ends:
        bare = skeleton(model)
        try:
            with torch.random.fork_rng(devices=[]):
                return done(bare, example, front_end(bare, example))
        except UntraceableError as error:
            first = first or error
    assert first is not None
    raise first


def _followed(bare: nn.Module, example: Example, tracing: Tracing, thinned: Sequence[str]) -> tuple[Lineage, EvalGraph]:
    """Follow channels; where code can be read in several ways and one pins them, the next is tried."""
    graphs = []
    for training in (True, False):
        bare.train(training)
        graphs.append(tracing.graph(example))

    def read(choices: Mapping[str, int]) -> tuple[Lineage, EvalGraph]:
        lineage = Lineage(tracing.front_end, thinned, choices)
        for place in tracing.computed:
            lineage.pin_tensor(place, f"the code computes with '{place}'")
        return lineage, _follow_both(bare, example, lineage, *graphs)

    found, choices = read({}), dict[str, int]()
    for reading in (1, 2):
        for together in (False, True):  # those that pin alone, then all, as heads of one attention are read alike
            misread = found[0].misread()
            if not misread:
                return found
            places = set(found[0].ambiguous) if together else misread
            other, tried = read(choices | dict.fromkeys(places, reading)), places
            if not together and other[0].misread():
                tried = misread - other[0].misread()
                other = read(choices | dict.fromkeys(tried, reading))
            if other[0].count_pinned() < found[0].count_pinned():
                found, choices = other, choices | dict.fromkeys(tried, reading)
    return found


def _follow_both(
    bare: nn.Module, example: Example, lineage: Lineage, in_training: fx.Graph, in_evaluation: fx.Graph
) -> EvalGraph:
    """Follow channels through both graphs, or through one where both are the same."""
    _pin_shared(bare, lineage)
    ids = _run(in_training, bare.train(), example, lineage)
    bare.eval()
    if _same(in_training, in_evaluation):
        ids = {twin: ids[node] for node, twin in zip(in_training.nodes, in_evaluation.nodes, strict=True)}
    else:
        lineage.forget_mixed()
        ids = _run(in_evaluation, bare, example, lineage)
    return EvalGraph(bare, in_evaluation, ids)


def _same(one: fx.Graph, other: fx.Graph) -> bool:
    """Tell whether two graphs make the same calls in the same order."""
    if len(one.nodes) != len(other.nodes):
        return False
    partner = dict(zip(one.nodes, other.nodes, strict=True))

    def alike(node: fx.Node, twin: fx.Node) -> bool:
        if (node.op, node.target) != (twin.op, twin.target):
            return False
        if node.op.startswith("call_f") and keeps_ids(
            name_of(node)
        ):  # dropout and the like: only a flag tells the modes
            return [partner[source] for source in node.all_input_nodes] == twin.all_input_nodes
        return bool(look_up((node.args, node.kwargs), partner) == (twin.args, twin.kwargs))

    return all(alike(node, twin) for node, twin in partner.items())


def skeleton(model: nn.Module) -> nn.Module:
    """Return a copy of a network whose parameters and buffers have shapes but no values (meta device); without hooks.

    Raises:
        GraphError: it cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for name, held in vars(module).items():
            if isinstance(held, Tensor):  # activations and computed weights that layers hold on to cannot be copied
                memo[id(held)] = torch.empty_like(held, device="meta")
            elif name.endswith("_hooks") or name.startswith(("_forward_", "_backward_")):
                memo[id(held)] = type(held)()
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    try:
        bare = copy.deepcopy(model, memo)
    except Exception as error:
        raise GraphError(f"{type(model).__name__}: cannot be copied: {first_line(error)}") from error
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


def is_whole(module: nn.Module) -> bool:
    """Return whether a module is one node of the graph: one that has a rule, or one of torch's own."""
    return isinstance(module, tuple(MODULE_RULES)) or (
        type(module).__module__.startswith(("torch.nn", "torch.ao.nn")) and not isinstance(module, nn.Sequential)
    )


class Tracer(fx.Tracer):
    """Keeps every module that has a rule whole, and torch's own modules; follows buffers like parameters.

    Args:
        opaque: names of further modules that are kept whole.

    Attributes:
        failed: the innermost module that was being traced when tracing failed.
    """

    proxy_buffer_attributes = True

    def __init__(self, opaque: Collection[str] = ()) -> None:
        super().__init__()
        self.failed = ""
        self._opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one node of the graph."""
        return module_qualified_name in self._opaque or is_whole(m)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace one call of a module."""
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed = self.failed or self.path_of_module(m)
            raise


def trace(model: nn.Module, tracer: fx.Tracer | None = None, example: Example | None = None) -> fx.Graph:
    """Trace a network in the mode that it is in; inputs that the example lacks stay at their default values.

    Args:
        model: the network.
        tracer: one of one's own.
        example: inputs; without, one.

    Raises:
        UntraceableError: it cannot be traced.
    """
    given = _given(model, () if example is None else example)
    inputs = list(inspect.signature(model.forward).parameters.values())
    defaults = {extra.name: extra.default for extra in inputs if extra.default is not extra.empty}
    try:
        return (tracer or Tracer()).trace(
            model, concrete_args={name: value for name, value in defaults.items() if name not in given}
        )
    except Exception as error:  # whatever the network's own forward raises under tracing
        raise UntraceableError(f"{type(model).__name__}: cannot be traced: {first_line(error)}") from error


def _given(model: nn.Module, example: Example) -> dict[str, Any]:
    """Return inputs by their names in the network's forward."""
    args, kwargs = as_arguments(example)
    names = list(inspect.signature(model.forward).parameters)
    return dict(zip(names, args or ((None,) if not kwargs else ()), strict=False)) | kwargs


def first_line(error: Exception) -> str:
    """Return what an error says, shortened."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _run(graph: fx.Graph, model: nn.Module, example: Example, lineage: Lineage) -> dict[fx.Node, Any]:
    """Return the ids of what each node puts out."""
    given = Inputs(example)
    values: dict[fx.Node, Any] = {}
    ids: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        try:
            with torch.no_grad():
                values[node], ids[node] = _step(node, model, given, lineage, values, ids)
        except GraphError:
            raise
        except Exception as error:
            place = node.target if node.op == "call_module" else node.name
            raise GraphError(f"{type(model).__name__}, at '{place}': {first_line(error)}") from error
    return ids


def _step(
    node: fx.Node,
    model: nn.Module,
    given: Inputs,
    lineage: Lineage,
    values: dict[fx.Node, Any],
    ids: dict[fx.Node, Any],
) -> tuple[Any, Any]:
    """Return the value and the ids of one node of the graph."""
    if node.op == "placeholder":
        value = given.next(node)
        return value, like(value)
    if node.op == "get_attr":
        return _attribute(str(node.target), model, lineage)
    args, kwargs = look_up((node.args, node.kwargs), values)
    call = Call(
        name=name_of(node),
        place=str(node.target) if node.op == "call_module" else node.name,
        literal=(node.args, node.kwargs),
        values=(args, kwargs),
        ids=_canonical(look_up((node.args, node.kwargs), ids), lineage),
        lineage=lineage,
        burned=lineage.front_end == EXPORT,
    )
    if node.op == "output":
        call.pin(call.ids, "the network's output")
        return None, None
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        value = shaped(module, *args) if len(args) == 1 and not kwargs else None
        value = _run_on_meta(module, args, kwargs) if value is None else value
        return value, apply_module(module, without_weights(replace(call, name=type(module).__name__)), value)
    value = _run_on_meta(callable_of(node), args, kwargs)
    return value, apply_function(callable_of(node), call, value)


def _run_on_meta(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call something; tensors that its code makes have no values either."""
    with torch.device("meta"):
        return function(*args, **kwargs)


def _canonical(tree: Any, lineage: Lineage) -> Any:
    if isinstance(tree, Tensor):
        return lineage.canonical(tree)
    if isinstance(tree, Count):
        ids = lineage.canonical(tree.ids).unique()
        return Count(ids) if len(ids) > 1 else None  # the number of channels that go all at once, or never
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


class Inputs:
    """Hands the inputs of an example to the placeholders of a graph."""

    def __init__(self, example: Example) -> None:
        in_order, self._by_name = as_arguments(example)
        self._in_order = list(in_order)

    def next(self, node: fx.Node) -> Any:
        """Return the value of the next placeholder.

        Raises:
            GraphError: the example has none, and there is no default.
        """
        name = str(node.target)
        if name in self._by_name:
            return self._by_name[name]
        if self._in_order:
            return self._in_order.pop(0)
        if node.args:  # an input with a default value stays at its default
            return node.args[0]
        raise GraphError(f"forward: expected one input without a default, got another: '{node.name}'")


def name_of(node: fx.Node) -> str:
    """Return the name of the function or method that a node calls, without ATen's overload."""
    if isinstance(node.target, torch._ops.OpOverload):
        return overload_name(node.target)
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
