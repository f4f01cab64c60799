"""Cost as the papers count it: multiply-accumulates of convolutions and linear layers, and parameters; and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from pruning.activations import Activation, activations
from pruning.errors import GraphError, UnknownNameError
from pruning.groups import ChannelGroups, Slice
from pruning.inputs import Example, run_on, shapes, without_values
from pruning.lineage import Result, eval_graph, results, skeleton
from pruning.lineage.call import mixing_layer
from pruning.lineage.computed import Source, layer_of, source_of
from pruning.polynomials import Polynomials, Product

Integers = npt.NDArray[np.int64]

aten = torch.ops.aten
_PRODUCTS = (aten.mm.default, aten.addmm.default)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one input costs.

    Attributes:
        macs: multiply-accumulates of convolutions and linear layers for one image, in eval mode; what the papers call
            FLOPs. Biases, normalisation, pooling and attention products are not counted.
        params: every parameter, batch norm's and auxiliary heads' included; no buffers.
    """

    macs: int
    params: int


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory that one image takes, in eval mode.

    An activation is a tensor that an operation of the network's graph makes: no view of another one, nothing that is
    changed in place. It is alive from that operation to the last one that is given it or a view of it, both included;
    the network's output to the end. The image itself is not an activation. A layer, and a function that torch.fx keeps
    whole, is one operation: what it needs inside besides what it is given and returns is not counted. What does not
    depend on the image, such as a table of positions that is computed anew, counts like all else, so the memory of
    several images is at most so many times that of one.

    Attributes:
        weight_bytes: parameters and buffers, as they are stored.
        activation_bytes: all activations together.
        peak_activation_bytes: the most that is alive at one time, if operations run in the order of the graph.
    """

    weight_bytes: int
    activation_bytes: int
    peak_activation_bytes: int


def count_cost(model: nn.Module, example_input: Example) -> Cost:
    """Count what a network costs, on its shapes alone: no arithmetic, the network is left as found.

    Args:
        model: any network.
        example_input: `[images, channels, height, width]`, or several inputs; counted is the cost of one image.

    Raises:
        GraphError: the network does not take such an input.
    """
    bare = skeleton(model)
    uses = _uses(bare, example_input)
    macs = sum(uses.macs(name, weight) for name, weight in _weights(bare))
    return Cost(macs + uses.other_macs, sum(parameter.numel() for parameter in bare.parameters()))


def count_memory(model: nn.Module, example_input: Example) -> Memory:
    """Count the memory that a network takes, on its shapes alone: nothing is allocated, the network is left as found.

    Args:
        model: a network that torch.fx or torch.export can trace.
        example_input: `[images, channels, height, width]`, or several inputs; counted is the memory of one image.

    Raises:
        GraphError: the network cannot be traced, or does not take such an input.
    """
    graph = eval_graph(model, example_input)
    held = results(graph, example_input)
    sizes = np.array([result.nbytes for result in held], dtype=np.int64)
    at_once = sizes @ _alive(held)
    weights = sum(tensor.nbytes for tensor in (*graph.model.parameters(), *graph.model.buffers()))
    return Memory(weights, int(sizes.sum()), int(at_once.max(initial=0)))


def _alive(held: Sequence[Activation | Result]) -> npt.NDArray[np.bool_]:
    """Tell which activations are alive when each of them is made, `[activations, times]`."""
    first, last = (np.array([getattr(part, end) for part in held], dtype=np.int64) for end in ("first", "last"))
    alive: npt.NDArray[np.bool_] = (first[:, None] <= first) & (first <= last[:, None])
    return alive


class CostModel:
    """The exact cost of a network as a function of its widths; the network itself is not touched or kept.

    A weight costs as many MACs as it has entries, times the places of the image at which it is applied. A cut changes
    only its entries: along each axis they are a sum of widths. So a cost is a polynomial with integer coefficients.

    Args:
        model: the network before any cut.
        groups: its channel groups.
        example_input: `[images, channels, height, width]`, or several inputs; only shapes and types matter.
    """

    def __init__(self, model: nn.Module, groups: ChannelGroups, example_input: Example) -> None:
        bare = skeleton(model)
        uses = _uses(bare, example_input)
        self.groups = tuple(groups)
        self._column = {name: index for index, name in enumerate(self.groups)}
        self.widths = np.array([groups[name].width for name in self.groups], dtype=np.int64)
        self._fixed = Cost(uses.other_macs, 0)
        axes, slides = _axes(groups), _slides(groups)
        touched = {name for name, _ in axes}
        self._weights: list[tuple[int, Product]] = []
        self._axis_macs: dict[tuple[str, int], Fraction] = {}
        parameters = dict(bare.named_parameters())  # of a script they are plain tensors
        learnt: list[int] = []
        for name, weight in _weights(bare):
            counts = int(name in parameters)
            for axis, size in enumerate(weight.shape):
                self._axis_macs[name, axis] = Fraction(uses.macs(name, weight), max(1, size))
            if name not in touched:
                macs = uses.macs(name, weight)
                if macs and (slide := slides.get(layer_of(name))):  # applied once to each channel of its input
                    axis, channels = slide
                    size = uses.places[name][axis]
                    self._weights.append((macs // size, Product(1, ((size, channels),))))
                    learnt.append(0)
                    macs = 0
                self._fixed = Cost(self._fixed.macs + macs, self._fixed.params + counts * weight.numel())
                continue
            applied = uses.weights[name]
            assert applied.denominator == 1, f"{name}: a cut weight is always used whole"
            self._weights.append((int(applied), _product(name, tuple(weight.shape), axes)))
            learnt.append(counts)
        each = zip((applied for applied, _ in self._weights), learnt, strict=True)
        shares = [(self._fixed.macs, self._fixed.params), *each]
        products = [Product(1, ()), *(entries for _, entries in self._weights)]
        self._sums = Polynomials(groups.widths, products, np.array(shares, dtype=np.float64))
        self.full = self.cost(groups.widths)
        self._weight_bytes = _weight_bytes(bare, groups, axes)
        self._groups, self._bare, self._example = groups, skeleton(model), without_values(example_input, images=1)

    def products(self) -> tuple[int, tuple[Product, ...]]:
        """Return the MACs as a polynomial: those that no cut changes, and one product for each weight that cuts do."""
        return self._fixed.macs, tuple(
            Product(applied * entries.factor, entries.axes) for applied, entries in self._weights if applied
        )

    def macs_of(self, parts: Iterable[Slice]) -> int:
        """Return the MACs of some filters, or other parts of weights, before any cut."""
        each = ((self._axis_macs.get((part.tensor, part.axis)), part.positions) for part in parts)  # not of buffers
        return int(sum(macs * sum(map(len, positions)) for macs, positions in each if macs))

    def cost(self, widths: Mapping[str, int]) -> Cost:
        """Return the cost at widths by group name; a group that is not named keeps all its channels.

        Raises:
            UnknownNameError: no such group.
        """
        macs, params = self.costs(self._row(widths))
        return Cost(int(macs[0]), int(params[0]))

    def costs(self, widths: Integers) -> tuple[Integers, Integers]:
        """Return MACs and parameters, int64 `[policies]` each, at widths `[policies, groups]` (columns as `groups`)."""
        macs, params = self._sums(np.asarray(widths)).astype(np.int64).T
        return macs, params

    def memory(self, widths: Mapping[str, int]) -> Memory:
        """Return the memory at widths by group name; a group that is not named keeps all its channels.

        Raises:
            UnknownNameError: no such group.
            GraphError: the network cannot be traced for a single image, or channels of a group take unequal shares.
        """
        weights, activations, peak = self.memories(self._row(widths))
        return Memory(int(weights[0]), int(activations[0]), int(peak[0]))

    def memories(self, widths: Integers) -> tuple[Integers, Integers, Integers]:
        """Return the bytes of weights, of all activations and of those alive at one time, int64 `[policies]` each.

        Args:
            widths: `[policies, groups]`, columns as `groups`.

        Raises:
            GraphError: the network cannot be traced for a single image, or channels of a group take unequal shares.
        """
        rows = np.asarray(widths)
        weights, sums = (measure(rows).astype(np.int64) for measure in (self._weight_bytes, self._activation_bytes))
        return weights[:, 0], sums[:, 0], sums[:, 1:].max(axis=1, initial=0)

    @cached_property
    def _activation_bytes(self) -> Polynomials:
        """Bytes of all activations, and of those alive when each of them is made."""
        made = activations(self._bare, self._groups, self._example)
        products = [Product(1, ((held.nbytes, dict(held.channel_bytes)),)) for held in made]
        return Polynomials(self._groups.widths, products, np.hstack([np.ones((len(products), 1)), _alive(made)]))

    def _row(self, widths: Mapping[str, int]) -> Integers:
        row = self.widths.copy()
        for name, keep in widths.items():
            if name not in self._column:
                raise UnknownNameError("channel group", name, self.groups)
            row[self._column[name]] = keep
        return row[None]


def _axes(groups: ChannelGroups) -> dict[tuple[str, int], dict[str, int]]:
    """Return (tensor, axis) → group → positions that one channel takes."""
    axes: dict[tuple[str, int], dict[str, int]] = {}
    for group in groups.values():
        for part in group.slices:
            axes.setdefault((part.tensor, part.axis), {})[group.name] = len(part.positions[0])
    return axes


def _slides(groups: ChannelGroups) -> dict[str, tuple[int, dict[str, int]]]:
    """Return layer → axis of its input that it slides along → group → positions that one channel takes there."""
    found: dict[str, tuple[int, dict[str, int]]] = {}
    for group in groups.values():
        for part in group.mixed:
            layer = mixing_layer(part.tensor.removeprefix("%"))
            if layer is not None:
                found.setdefault(layer, (part.axis, {}))[1][group.name] = len(part.positions[0])
    return found


def _product(name: str, shape: tuple[int, ...], axes: dict[tuple[str, int], dict[str, int]]) -> Product:
    """Return the entries of one parameter."""
    cut = [axis for axis in range(len(shape)) if (name, axis) in axes]
    untouched = prod(size for axis, size in enumerate(shape) if axis not in cut)
    return Product(untouched, tuple((shape[axis], axes[name, axis]) for axis in cut))


def _weight_bytes(bare: nn.Module, groups: ChannelGroups, axes: dict[tuple[str, int], dict[str, int]]) -> Polynomials:
    """Return the bytes of parameters and buffers, as one value."""
    products = []
    for name, tensor in (*bare.named_parameters(), *bare.named_buffers()):
        entries = _product(name, tuple(tensor.shape), axes)
        products.append(Product(tensor.element_size() * entries.factor, entries.axes))
    return Polynomials(groups.widths, products, np.ones((len(products), 1)))


@dataclass
class _Uses:
    """How often each weight is applied to one image, and the MACs of weights that are no parameters.

    Of convolutions `places` has the shape of what they are applied to.
    """

    weights: dict[str, Fraction]
    places: dict[str, torch.Size] = field(default_factory=dict)
    other_macs: int = 0

    def macs(self, name: str, parameter: Tensor) -> int:
        """Return the MACs of one parameter."""
        return int(self.weights[name] * parameter.numel())


def _weights(bare: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what convolutions can multiply by: parameters, and buffers, such as fixed filters that blur."""
    yield from bare.named_parameters()
    yield from bare.named_buffers()


def _uses(bare: nn.Module, example_input: Example) -> _Uses:
    bare.eval()
    for parameter in bare.parameters():  # torch multiplies by frozen weights in another way, which hides them
        parameter.requires_grad_(parameter.is_floating_point())
    uses = _Uses({name: Fraction(0) for name, _ in _weights(bare)})
    example = without_values(example_input, images=1)
    try:
        with torch.random.fork_rng(devices=[]), _Counting(bare, uses), torch.no_grad():
            run_on(bare, example)
    except Exception as error:
        raise GraphError(f"{type(bare).__name__} does not run on {shapes(example)}: {error}") from error
    return uses


class _Counting(TorchDispatchMode):
    """Sees every convolution and matrix product as it reaches the kernels, also those inside attention."""

    def __init__(self, bare: nn.Module, uses: _Uses) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names = {id(weight): name for name, weight in _weights(bare)}
        self._bare, self._parameters = bare, dict(bare.named_parameters())
        self._uses = uses
        self._running: list[str] = []
        for layer, module in bare.named_modules():
            if isinstance(module, (_ConvNd, nn.Linear)):
                module.register_forward_pre_hook(lambda *_, layer=layer: self._running.append(layer))
                module.register_forward_hook(lambda *_: _void(self._running.pop()))

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        args, kwargs = _without_values((args, kwargs or {}))
        result = func(*args, **kwargs)
        if func is aten.convolution.default:
            image, weight, transposed = args[0], args[1], args[6]
            places = (image if transposed else result).shape
            name = self._count(weight, places[0] * prod(places[2:]), parameter_only=False)
            if name is not None:
                self._uses.places[name] = places
        elif func in _PRODUCTS:
            self._count(args[-1], result.numel() // result.shape[-1], parameter_only=True)
        return result

    def _count(self, weight: Tensor, applied: int, *, parameter_only: bool) -> str | None:
        """Add the MACs of a weight; return its name, if it is a parameter or a buffer, or computed of one."""
        whole = weight if weight._base is None else weight._base
        name = self._names.get(id(whole)) or self._computed_of({weight.shape, whole.shape})
        if name is not None:  # a slice of a parameter (attention's packed projections) counts for its share
            self._uses.weights[name] += Fraction(applied * weight.numel(), whole.numel())
        elif not parameter_only:
            self._uses.other_macs += applied * weight.numel()
        return name

    def _computed_of(self, sizes: set[torch.Size]) -> str | None:
        """Return the parameter of the running layer that a weight was computed of, as weight norm and the like do."""
        for layer in self._running[-1:]:
            source = source_of(self._bare.get_submodule(layer)) or Source()
            name = f"{layer}.{source.tensor}"
            if name in self._parameters and self._parameters[name].shape in sizes:
                return name
        return None


def _without_values(arguments: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return arguments all of which lack values if one does; what the network's code makes of numbers has some."""
    bare = {leaf.is_meta for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)}
    if bare != {True, False}:
        return arguments
    without: tuple[Any, Any] = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), arguments)
    return without


def _void(_: object) -> None:
    """Drop a value: a forward hook that returns one would replace the output."""
