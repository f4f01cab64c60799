"""Run a part of a network: from the inputs of some layers to what a module puts out, with the network's own weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from pruning.errors import GraphError
from pruning.lineage.trace import Tracer, callable_of, first_line, look_up, skeleton, trace
from pruning.modes import in_mode

Values = dict[str, Any]
"""What nodes of the graph put out for one batch, by the node's name."""

Seen = Callable[[str, Tensor], None]
"""Called with the name of a start layer and its output, before anything reads it."""


class Traced:
    """The eval graph of a network, and of copies of it that have the same layers.

    Args:
        model: a network that torch.fx can trace; left as found, nothing of it is kept.

    Raises:
        GraphError: it cannot be traced.
    """

    def __init__(self, model: nn.Module) -> None:
        tracer = _Recorder()
        self._bare = skeleton(model).eval()  # keeps the tensors that are written in the code
        with torch.random.fork_rng(devices=[]):
            self._graph = trace(self._bare, tracer)
        self._kind, self._outputs = type(model).__name__, tracer.outputs
        self._final = next(node for node in self._graph.nodes if node.op == "output")

    def runs(self, layer: str) -> bool:
        """Return whether a layer runs in eval mode."""
        return bool(self._calls(layer))

    def reaches(self, starts: Iterable[str], end: str | None) -> bool:
        """Return whether what a module (None: the network) puts out depends on each of the layers."""
        node = self._end(end)
        return all(node in _behind([self._start(start)]) for start in starts)

    def segment(self, model: nn.Module, example_input: Tensor, starts: Sequence[str], end: str | None) -> Segment:
        """Return the part of `model` between some layers and an end; checked on `example_input`.

        Args:
            model: the network that was traced, or one with the same layers; its weights are read at each run.
            example_input: `[images, channels, height, width]`, in the type and place of the weights.
            starts: layers, each of which runs once. One may depend on another.
            end: a module that returns one tensor, a start among others; None: the network's output.

        Raises:
            GraphError: a start that does not run once, an end that is no single tensor or does not depend on any
                start, or a network that does something else when it runs in parts.
        """
        nodes = {start: self._start(start) for start in starts}
        part = Segment(model, self._graph, self._bare, nodes, self._end(end))
        part.check(example_input, end)
        return part

    def _calls(self, layer: str) -> list[fx.Node]:
        return [node for node in self._graph.nodes if node.op == "call_module" and node.target == layer]

    def _start(self, layer: str) -> fx.Node:
        calls = self._calls(layer)
        if len(calls) != 1:
            raise GraphError(f"{self._kind}, '{layer}': expected a layer that runs once, got {len(calls)} runs")
        node: fx.Node = calls[0]
        return node

    def _end(self, module: str | None) -> fx.Node:
        if module is None:
            final: fx.Node = self._final
            return final
        returned = self._outputs.get(module, [])
        if len(returned) != 1 or not isinstance(returned[0], fx.Proxy):
            got = f"{len(returned)} runs" if len(returned) != 1 else f"a {type(returned[0]).__name__}"
            raise GraphError(f"{self._kind}, '{module}': expected a module that returns one tensor once, got {got}")
        last: fx.Node = returned[0].node
        return last


class _Recorder(Tracer):
    """Notes what every module returns, also of those that are traced through."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, list[Any]] = {}

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        name = self.path_of_module(m)
        output = super().call_module(m, forward, args, kwargs)
        self.outputs.setdefault(name, []).append(output)
        return output


class Segment:
    """A prefix, from images to all that the rest needs, and a suffix, from there through the starts to the end."""

    def __init__(
        self, model: nn.Module, graph: fx.Graph, constants: nn.Module, starts: Mapping[str, fx.Node], end: fx.Node
    ) -> None:
        self._model, self._graph, self._constants, self._end = model, graph, constants, end
        self._starts = {node: name for name, node in starts.items()}
        self._modules = {
            node: model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"
        }
        behind = _behind(self._starts)
        if end not in behind:
            raise GraphError(
                f"{type(model).__name__}, '{end.name}': expected a place behind {', '.join(starts)}, got one "
                f"that does not depend on them"
            )
        wanted = _before([end, *self._starts], stop=())
        self._suffix = [node for node in graph.nodes if node in behind and node in wanted]
        used = {source for node in self._suffix for source in node.all_input_nodes if source not in behind}
        # Parameters are read anew at each run, so that changes show.
        self._attributes = [node for node in graph.nodes if node in used and node.op == "get_attr"]
        self._boundary = [node for node in graph.nodes if node in used and node.op != "get_attr"]
        self._changed: set[str] = set()
        readers = _before(self._starts, stop=())
        self._to_starts = [node for node in self._suffix if node in readers]

    @property
    def layers(self) -> tuple[str, ...]:
        """The start layers."""
        return tuple(self._starts.values())

    @property
    def inputs(self) -> dict[str, str]:
        """For each start whose input depends on no start the name of its input among the prefix's values."""
        names = {node.name for node in self._boundary}
        sources = {name: node.all_input_nodes[0].name for node, name in self._starts.items()}
        return {name: source for name, source in sources.items() if source in names}

    def prefix(self, images: Tensor, known: Mapping[str, Any] | None = None) -> Values:
        """Return what the suffix needs besides weights, among it the inputs of the starts; in eval mode, no gradients.

        Args:
            images: `[images, channels, height, width]`.
            known: of another segment's prefix on these images; what follows from it is not computed again. Its
                tensors may change where the network works in place.
        """
        values = {node: known[node.name] for node in self._graph.nodes if known and node.name in known}
        needed = _before(self._boundary, stop=values)
        nodes = [node for node in self._graph.nodes if node in needed and node not in values]
        with torch.no_grad(), in_mode(self._layers(nodes), training=False):
            self._run(nodes, values, _last_uses(nodes, keep=self._boundary), images, None)
        return {node.name: values[node] for node in self._boundary}

    def suffix(self, values: Mapping[str, Any], seen: Seen | None = None) -> Any:
        """Return what the end puts out, from the prefix's values; in eval mode, with gradients where they are on.

        Args:
            values: as `prefix` gave them; they stay as they are.
            seen: gets the output of every start.
        """
        return self._from(values, self._suffix, seen)[self._end]

    def outputs(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return what the starts put out, from the prefix's values, and run nothing behind them."""
        found: dict[str, Tensor] = {}
        self._from(values, self._to_starts, lambda name, output: found.__setitem__(name, output.clone()))
        return found

    def _from(self, values: Mapping[str, Any], nodes: Sequence[fx.Node], seen: Seen | None) -> dict[fx.Node, Any]:
        own = {node: values[node.name] for node in self._boundary}
        own |= {node: own[node].clone() for node in self._boundary if node.name in self._changed}
        own |= {node: self._attribute(node) for node in self._attributes}
        with in_mode(self._layers(nodes), training=False):
            self._run(nodes, own, _last_uses(nodes, keep=[self._end]), None, seen)
        return own

    def check(self, example_input: Tensor, end: str | None) -> None:
        """Run the network in parts and in whole and compare; see which values the suffix changes in place.

        Raises:
            GraphError: it fails, or the results differ.
        """
        found: list[Any] = []
        owner = self._model if end is None else self._model.get_submodule(end)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                values = self.prefix(example_input)
                versions = {name: value._version for name, value in values.items() if isinstance(value, Tensor)}
                output = self.suffix(values)
                self._changed = {name for name, version in versions.items() if values[name]._version != version}
                hook = owner.register_forward_hook(lambda *call: found.append(_copied(call[-1])))
                try:
                    with in_mode(self._model, training=False):
                        self._model(example_input)
                finally:
                    hook.remove()
        except Exception as error:
            raise GraphError(f"{type(self._model).__name__}: cannot run in parts: {first_line(error)}") from error
        if len(found) != 1 or not _alike(output, found[0]):
            raise GraphError(f"{type(self._model).__name__}: expected the same in parts as in whole, got other numbers")

    def _layers(self, nodes: Iterable[fx.Node]) -> nn.ModuleList:
        return nn.ModuleList(self._modules[node] for node in nodes if node.op == "call_module")

    def _run(
        self,
        nodes: Sequence[fx.Node],
        values: dict[fx.Node, Any],
        last_use: Mapping[fx.Node, Sequence[fx.Node]],
        images: Tensor | None,
        seen: Seen | None,
    ) -> None:
        for node in nodes:
            values[node] = self._step(node, values, images)
            if seen is not None and node in self._starts:
                seen(self._starts[node], values[node])
            for spent in last_use.get(node, ()):
                del values[spent]

    def _step(self, node: fx.Node, values: dict[fx.Node, Any], images: Tensor | None) -> Any:
        if node.op == "placeholder":
            first = next(other for other in self._graph.nodes if other.op == "placeholder")
            return images if node is first else node.args[0]
        if node.op == "get_attr":
            return self._attribute(node)
        args, kwargs = look_up((node.args, node.kwargs), values)
        if node.op == "output":
            return args[0]
        if node.op == "call_module":
            return self._modules[node](*args, **kwargs)
        return callable_of(node)(*args, **kwargs)

    def _attribute(self, node: fx.Node) -> Any:
        owner, _, leaf = str(node.target).rpartition(".")
        try:
            return getattr(self._model.get_submodule(owner), leaf)
        except AttributeError:  # a tensor that the network's code makes
            return getattr(self._constants.get_submodule(owner), leaf)


def _behind(starts: Iterable[fx.Node]) -> set[fx.Node]:
    """Return the nodes that depend on any start, the starts with them."""
    found, new = set[fx.Node](), list(starts)
    while new:
        node = new.pop()
        if node not in found:
            found.add(node)
            new.extend(node.users)
    return found


def _before(ends: Iterable[fx.Node], stop: Iterable[fx.Node]) -> set[fx.Node]:
    """Return the nodes that any end depends on, the ends with them; not what only nodes of `stop` depend on."""
    found, given, new = set[fx.Node](), set(stop), list(ends)
    while new:
        node = new.pop()
        if node not in found:
            found.add(node)
            new.extend(() if node in given else node.all_input_nodes)
    return found


def _last_uses(nodes: Sequence[fx.Node], keep: Iterable[fx.Node] = ()) -> dict[fx.Node, list[fx.Node]]:
    """Return for each node the values that nobody reads after it."""
    kept, done = set(keep), set[fx.Node]()
    last: dict[fx.Node, list[fx.Node]] = {}
    for node in reversed(nodes):
        spent = [source for source in node.all_input_nodes if source not in done and source not in kept]
        last[node] = spent
        done.update(spent)
    return last


def _copied(output: Any) -> Any:
    return output.clone() if isinstance(output, Tensor) else output


def _alike(output: Any, expected: Any) -> bool:
    if isinstance(output, Tensor) and isinstance(expected, Tensor):
        bound = 1000 * torch.finfo(expected.dtype).eps * float(expected.abs().max().clamp_min(1e-6))
        return output.shape == expected.shape and not bool((output - expected).abs().max() > bound)
    return type(output) is type(expected)
