"""Random networks are drawn step by step; each kind of step is a function that writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import random_layers as layers
import random_operations as ops
import torch
from hypothesis import strategies as st
from random_layers import Operation, Step
from random_programs import IMAGE_SIZES, Again, Block, Line, Plan, Program, shapes_of

LARGEST = 32
"""No map has more channels."""

BATCH_STATISTICS_OF_ONE_PLACE = False
"""Whether maps of one place are normalised by statistics of the batch. Off: costs are counted with a batch of one."""


class Sketch:
    """A program that is being written, of some kinds of steps."""

    def __init__(self, shape: torch.Size, kinds: Sequence[str] = ()) -> None:
        self.kinds = kinds or tuple(KINDS)
        self.lines: list[Line] = []
        self.shapes = [shape]
        self.steps: list[Step] = []

    def add(self, operation: Operation, *takes: int) -> int:
        """Write a line and return the number of its first result."""
        given = [self.shapes[take] for take in takes]
        self.lines.append(Line(operation, takes))
        with torch.random.fork_rng(devices=[]):
            self.steps.append(self.steps[operation.step] if isinstance(operation, Again) else Step(operation, *given))
            self.shapes += shapes_of(self.steps[-1], given)
        return len(self.shapes) - self.steps[-1].operation.results

    def chain(self, x: int, *operations: Operation) -> int:
        """Write one operation after the other."""
        for operation in operations:
            x = self.add(operation, x)
        return x

    def channels(self, value: int) -> int:
        return self.shapes[value][1]

    @property
    def maps(self) -> list[int]:
        """Values that are maps of channels; the image, whose channels nobody makes, is one where not all can be cut."""
        first = int(self.kinds == PLAIN)
        return [
            index for index, shape in enumerate(self.shapes) if len(shape) == len(self.shapes[0]) and index >= first
        ]

    @property
    def unread(self) -> list[int]:
        read = {take for line in self.lines for take in line.takes}
        return [value for value in self.maps if value > 0 and value not in read]

    def program(self, *gives: int) -> Program:
        return Program(tuple(self.lines), gives)


Draw = st.DrawFn
Writer = Callable[[Draw, Sketch, int], int]
"""Writes lines that take a map; gives back the map to go on with."""


@dataclass(frozen=True)
class Kind:
    write: Writer
    fits: Callable[[torch.Size], bool]


KINDS: dict[str, Kind] = {}
PLAIN = (
    "convolution",
    "normed_convolution",
    "batch_norm",
    "activation",
    "residual",
    "meeting",
    "concatenation",
    "smaller",
)
"""Kinds of steps that pin nothing, in whatever order."""


def kind(fits: Callable[[torch.Size], bool] = lambda shape: True, planar: bool = False) -> Callable[[Writer], Writer]:
    """Register a kind of step by name, and on which maps it can be drawn."""

    def register(write: Writer) -> Writer:
        KINDS[write.__name__] = Kind(write, lambda shape: (len(shape) == 4 or not planar) and fits(shape))
        return write

    return register


WIDTHS = st.sampled_from([4, 6, 8, 2, 3, 5, 12])


def few(shape: torch.Size) -> bool:
    return 2 * shape[1] <= LARGEST


def smooth(shape: torch.Size) -> bool:
    """Tell whether every axis of the image can be halved."""
    return all(size % 2 == 0 for size in shape[2:])


def divisors(channels: int, *among: int) -> list[int]:
    return [number for number in among if channels % number == 0 and channels > number]


def even(shape: torch.Size) -> bool:
    return shape[1] % 2 == 0 and shape[1] > 2


@kind()
def convolution(draw: Draw, sketch: Sketch, x: int) -> int:
    kernel = draw(st.sampled_from([3, 1]))
    stride = 2 if min(sketch.shapes[x][2:]) >= 4 and draw(st.integers(0, 5)) == 5 else 1
    return sketch.add(layers.Convolution(draw(WIDTHS), kernel, bias=draw(st.booleans()), stride=stride), x)


@kind()
def activation(draw: Draw, sketch: Sketch, x: int) -> int:
    names = "relu gelu silu tanh sigmoid hardswish softplus elu leaky_relu abs"
    return sketch.add(ops.Activation(draw(st.sampled_from(names.split()))), x)


@kind()
def normed_convolution(draw: Draw, sketch: Sketch, x: int) -> int:
    return sketch.chain(x, layers.Convolution(draw(WIDTHS), bias=False), layers.BatchNorm(), ops.Activation())


@kind()
def batch_norm(draw: Draw, sketch: Sketch, x: int) -> int:
    norm = layers.BatchNorm(draw(st.booleans()), draw(st.booleans()))
    return sketch.add(norm, x) if runs_on(norm, sketch.shapes[x]) else x


def runs_on(operation: Operation, shape: torch.Size) -> bool:
    by_batch = isinstance(operation, layers.BatchNorm) and not operation.statistics
    by_place = isinstance(operation, layers.InstanceNorm) or (by_batch and not BATCH_STATISTICS_OF_ONE_PLACE)
    return not by_place or shape[2:].numel() > 1


@kind()
def residual(draw: Draw, sketch: Sketch, x: int) -> int:
    """A branch of two convolutions beside nothing, or beside a projection."""
    makes = draw(WIDTHS) if draw(st.booleans()) else sketch.channels(x)
    shortcut = x if makes == sketch.channels(x) else sketch.add(layers.Convolution(makes, 1), x)
    inner = [layers.Convolution(draw(WIDTHS)), layers.BatchNorm(), ops.Activation(), layers.Convolution(makes)]
    return sketch.add(ops.Meet(draw(st.sampled_from(["add", "iadd"]))), sketch.chain(x, *inner), shortcut)


MEETINGS = ["add", "iadd", "torch.add", "sub", "mul", "maximum", "where", "stack"]
OVER_CHANNELS = ["softmax", "normalize", "mean", "maximum", "filter", "response norm"]


@kind()
def meeting(draw: Draw, sketch: Sketch, x: int) -> int:
    """Any earlier map of the same size, or a projection of one."""
    alike = [y for y in sketch.maps if sketch.shapes[y][2:] == sketch.shapes[x][2:]]
    y = draw(st.sampled_from(alike))
    if sketch.channels(y) != sketch.channels(x):
        y = sketch.add(layers.Convolution(sketch.channels(x), 1), y)
    names = MEETINGS + ["einsum places", "einsum"] * (len(sketch.shapes[x]) == 4 and sketch.kinds != PLAIN)
    return sketch.add(ops.Meet(draw(st.sampled_from(names))), *draw(st.sampled_from([(x, y), (y, x)])))


@kind(few)
def concatenation(draw: Draw, sketch: Sketch, x: int) -> int:
    """With any earlier maps of the same size, itself among them."""
    alike = [y for y in sketch.maps if sketch.shapes[y][2:] == sketch.shapes[x][2:]]
    parts = [x, *draw(st.lists(st.sampled_from(alike), min_size=1, max_size=3))]
    while sum(map(sketch.channels, parts)) > LARGEST:
        parts = parts[:-1]
    return sketch.add(ops.Cat(), *draw(st.permutations(parts)))


@kind(lambda shape: shape[1] + 12 <= LARGEST)
def dense_growth(draw: Draw, sketch: Sketch, x: int) -> int:
    for _ in range(2):
        grown = sketch.chain(x, layers.BatchNorm(), ops.Activation(), layers.Convolution(draw(WIDTHS)))
        if sketch.channels(x) + sketch.channels(grown) <= LARGEST:
            x = sketch.add(ops.Cat(), x, grown)
    return x


@kind(lambda shape: bool(divisors(shape[1], 2, 3, 4)))
def grouped(draw: Draw, sketch: Sketch, x: int) -> int:
    groups = draw(st.sampled_from(divisors(sketch.channels(x), 2, 3, 4)))
    return sketch.add(layers.Convolution(groups * draw(st.integers(1, 4)), groups=groups), x)


@kind(few)
def depthwise(draw: Draw, sketch: Sketch, x: int) -> int:
    channels = sketch.channels(x)
    multiplier = draw(st.integers(1, 2))
    return sketch.add(layers.Convolution(channels * multiplier, groups=channels, bias=draw(st.booleans())), x)


@kind(lambda shape: max(shape[2:]) <= 4)
def transposed(draw: Draw, sketch: Sketch, x: int) -> int:
    groups = draw(st.sampled_from([1, *divisors(sketch.channels(x), 2, 3, 4), sketch.channels(x)]))
    makes = groups * draw(st.integers(1, max(1, 8 // groups)))
    return sketch.add(layers.Convolution(makes, 2, groups, stride=2, transposed=True), x)


@kind(planar=True)
def own_forward(draw: Draw, sketch: Sketch, x: int) -> int:
    groups = draw(st.sampled_from([1, *divisors(sketch.channels(x), 2, 3)]))
    return sketch.add(layers.Convolution(groups * draw(st.integers(2, 4)), groups=groups, own_forward=True), x)


@kind(planar=True)
def functional_convolution(draw: Draw, sketch: Sketch, x: int) -> int:
    groups = draw(st.sampled_from([1, *divisors(sketch.channels(x), 2, 3)]))
    return sketch.add(layers.FunctionalConvolution(groups * draw(st.integers(2, 4)), groups, draw(st.booleans())), x)


@kind(planar=True)
def linear_on_map(draw: Draw, sketch: Sketch, x: int) -> int:
    return sketch.add(layers.LinearOnMap(draw(WIDTHS)), x)


@kind(lambda shape: shape[2:].numel() > 1)
def instance_norm(draw: Draw, sketch: Sketch, x: int) -> int:
    return sketch.add(layers.InstanceNorm(draw(st.booleans()), draw(st.booleans())), x)


@kind(lambda shape: shape[2:].numel() > 1)
def group_norm(draw: Draw, sketch: Sketch, x: int) -> int:
    groups = draw(st.sampled_from([1, *divisors(sketch.channels(x), 2, 3, 4)]))
    return sketch.add(layers.GroupNorm(groups, affine=draw(st.integers(0, 5)) < 5), x)


@kind(lambda shape: shape[1] > 2, planar=True)
def layer_norm(draw: Draw, sketch: Sketch, x: int) -> int:
    return sketch.add(layers.LayerNorm(draw(st.booleans()), affine=draw(st.integers(0, 3)) < 3), x)


@kind()
def prelu(draw: Draw, sketch: Sketch, x: int) -> int:
    return sketch.add(layers.PReLU(draw(st.booleans())), x)


@kind()
def layer_scale(draw: Draw, sketch: Sketch, x: int) -> int:
    return sketch.add(layers.Scale(draw(st.booleans()), draw(st.booleans())), x)


@kind()
def dropout(draw: Draw, sketch: Sketch, x: int) -> int:
    return sketch.add(ops.Dropout(), x)


@kind()
def gate(draw: Draw, sketch: Sketch, x: int) -> int:
    """Squeeze and excitation; the gate may be left out, or weigh places."""
    inner = [ops.Mean(keepdim=True), layers.Convolution(draw(WIDTHS), 1), ops.Activation()]
    excited = sketch.chain(x, *inner, layers.Convolution(sketch.channels(x), 1), ops.Activation("sigmoid"))
    return sketch.add(ops.Meet("mul"), *draw(st.sampled_from([(x, excited), (excited, x)])))


@kind(planar=True)
def gate_of_vectors(draw: Draw, sketch: Sketch, x: int) -> int:
    inner = [ops.Mean(), layers.Linear(draw(WIDTHS)), ops.Activation(), layers.Linear(sketch.channels(x))]
    return sketch.add(ops.Meet("einsum vector"), x, sketch.chain(x, *inner))


@kind()
def place_gate(draw: Draw, sketch: Sketch, x: int) -> int:
    return sketch.add(ops.PlaceGate(), x, sketch.chain(x, layers.Convolution(1)))


@kind(lambda shape: smooth(shape) and max(shape[2:]) >= 4)
def smaller(draw: Draw, sketch: Sketch, x: int) -> int:
    return sketch.add(ops.Pool(draw(st.sampled_from(["max_pool", "avg_pool"]))), x)


@kind()
def of_all_places(draw: Draw, sketch: Sketch, x: int) -> int:
    """The image's mean or maximum is added to it."""
    pools = [ops.Mean(keepdim=True), ops.Pool("adaptive_avg_pool"), ops.Pool("adaptive_max_pool")]
    return sketch.add(ops.Meet("add"), x, sketch.add(draw(st.sampled_from(pools)), x))


@kind(lambda shape: max(shape[2:]) <= 4)
def larger(draw: Draw, sketch: Sketch, x: int) -> int:
    return sketch.add(ops.Pool("interpolate"), x)


@kind(lambda shape: min(shape[2:]) > 2 and max(shape[2:]) <= 8, planar=True)
def places(draw: Draw, sketch: Sketch, x: int) -> int:
    names = ["flip", "roll", "roll two", "transpose", "zeros", "ones", "reflect", "crop", "thin", "beside"]
    return sketch.add(ops.Places(draw(st.sampled_from(names))), x)


@kind(even)
def chunks(draw: Draw, sketch: Sketch, x: int) -> int:
    """Halves, thirds or quarters go separate ways, or are put together in another order."""
    parts = draw(st.sampled_from(divisors(sketch.channels(x), 2, 3, 4)))
    return together(draw, sketch, sketch.add(ops.Chunk(parts), x), parts)


def together(draw: Draw, sketch: Sketch, first: int, parts: int) -> int:
    """Convolve one of some parts, then concatenate them, leave one out, or go on with one."""
    values = list(range(first, first + parts))
    if draw(st.booleans()):
        values[0] = sketch.add(layers.Convolution(draw(WIDTHS)), values[0])
    chosen = draw(st.permutations(values))[: draw(st.integers(1, parts))]
    return sketch.add(ops.Cat(), *chosen) if len(chosen) > 1 else chosen[0]


@kind(lambda shape: shape[1] > 2)
def unequal_parts(draw: Draw, sketch: Sketch, x: int) -> int:
    first = draw(st.integers(1, sketch.channels(x) - 1))
    operation = ops.Split((first, sketch.channels(x) - first), draw(st.booleans()))
    return together(draw, sketch, sketch.add(operation, x), 2)


@kind(lambda shape: shape[1] > 2)
def slices(draw: Draw, sketch: Sketch, x: int) -> int:
    channels = sketch.channels(x)
    how = draw(st.sampled_from(["attribute", "literal", "all"]))
    if how == "attribute":
        return together(draw, sketch, sketch.add(ops.SliceByAttribute(draw(st.integers(2, channels - 1))), x), 2)
    start = draw(st.integers(0, channels - 1)) if how == "literal" else 0
    stop = draw(st.integers(start + 1, channels)) if how == "literal" else draw(st.sampled_from([channels, 64]))
    return sketch.add(ops.Slice(start, stop), x)


@kind(even, planar=True)
def view(draw: Draw, sketch: Sketch, x: int) -> int:
    return sketch.add(ops.View(sketch.channels(x), draw(st.booleans())), x)


@kind(even, planar=True)
def channel_shuffle(draw: Draw, sketch: Sketch, x: int) -> int:
    how = draw(st.sampled_from(["layer", "function", "views"]))
    return sketch.add(ops.Shuffle(draw(st.sampled_from(divisors(sketch.channels(x), 2, 3, 4))), how), x)


@kind(lambda shape: shape[1] % 4 == 0 and max(shape[2:]) <= 8, planar=True)
def pixel_shuffle(draw: Draw, sketch: Sketch, x: int) -> int:
    return sketch.add(ops.PixelShuffle(draw(st.booleans())), x)


@kind(lambda shape: shape[1] <= 6 and smooth(shape), planar=True)
def pixel_unshuffle(draw: Draw, sketch: Sketch, x: int) -> int:
    return sketch.add(ops.PixelUnshuffle(), x)


@kind(few, planar=True)
def repetition(draw: Draw, sketch: Sketch, x: int) -> int:
    return sketch.add(ops.Repeat(draw(st.booleans())), x)


@kind()
def flipped_channels(draw: Draw, sketch: Sketch, x: int) -> int:
    return sketch.add(ops.FlipChannels(), x)


@kind(lambda shape: shape[1] + 6 <= LARGEST, planar=True)
def padded_channels(draw: Draw, sketch: Sketch, x: int) -> int:
    before, after = draw(st.tuples(st.integers(0, 3), st.integers(1, 3)))
    y = sketch.add(ops.PadChannels(before, after, draw(st.integers(0, 3)) == 3), x)
    return sketch.add(ops.Meet("add"), sketch.add(layers.Convolution(sketch.channels(y)), x), y)


@kind(lambda shape: shape[1] > 2)
def unfollowed(draw: Draw, sketch: Sketch, x: int) -> int:
    if draw(st.booleans()):
        return sketch.add(ops.OverChannels(draw(st.sampled_from(OVER_CHANNELS))), x)
    return sketch.add(ops.Unfollowed(draw(st.sampled_from(["roll", "cumsum", "index"]))), x)


@kind(planar=True)
def attention(draw: Draw, sketch: Sketch, x: int) -> int:
    """Tokens, perhaps normed, and heads that look at each other; the sum with what came in, or another width."""
    heads = draw(st.integers(1, 3))
    width, inner = heads * draw(st.integers(2, 4)), heads * draw(st.integers(2, 4))
    tokens = sketch.add(ops.Tokens(), x)
    seen = tokens
    if sketch.channels(x) > 2 and draw(st.booleans()):
        seen = sketch.add(layers.TokenNorm(affine=draw(st.booleans()), centres=draw(st.booleans())), tokens)
    query, key, value = (sketch.add(layers.Linear(size, draw(st.booleans())), seen) for size in (inner, inner, width))
    found = sketch.add(ops.Attend(heads, draw(st.booleans())), query, key, value)
    if draw(st.booleans()):
        found = sketch.add(ops.Meet("add", axis=-1), sketch.add(layers.Linear(sketch.channels(x)), found), tokens)
    return sketch.add(ops.Untokens(sketch.shapes[x][2]), found)


@kind()
def again(draw: Draw, sketch: Sketch, x: int) -> int:
    """An earlier step with weights runs once more, on whatever map it takes."""
    pairs = [
        (index, value)
        for index, line in enumerate(sketch.lines)
        if line.operation.again
        for value in sketch.maps
        if sketch.channels(value) == sketch.channels(line.takes[0])
        and len(sketch.shapes[line.takes[0]]) == len(sketch.shapes[0])
        and runs_on(line.operation, sketch.shapes[value])
    ]
    if not pairs:
        return x
    step, value = draw(st.sampled_from(pairs))
    return sketch.add(Again(step), value)


@kind()
def block(draw: Draw, sketch: Sketch, x: int) -> int:
    inner = Sketch(sketch.shapes[x])
    last = write_body(draw, inner, 0, 3)
    return sketch.add(Block(inner.program(last)), x) if last else x


def write_body(draw: Draw, sketch: Sketch, x: int, longest: int, shortest: int = 1) -> int:
    """Write some lines, most of them after one another; return the last map."""
    for _ in range(draw(st.integers(shortest, longest))):
        usual = draw(st.integers(0, 4)) < 4
        x = x if usual else draw(st.sampled_from(sketch.maps))
        names = [name for name in sketch.kinds if KINDS[name].fits(sketch.shapes[x])]
        x = KINDS[draw(st.sampled_from(names))].write(draw, sketch, x)
    return x


def write_head(draw: Draw, sketch: Sketch, x: int) -> int:
    """Vectors by a mean or by flattening, with a hidden layer perhaps; or the map itself."""
    how = draw(st.sampled_from(["mean", "flatten", "map"]))
    if how == "map":
        return sketch.add(layers.Convolution(draw(WIDTHS)), x) if draw(st.booleans()) else x
    flatten = ops.Flatten(sketch.shapes[x][2:].numel(), draw(st.booleans()))
    x = sketch.add(ops.Mean() if how == "mean" else flatten, x)
    if draw(st.booleans()):
        x = sketch.chain(x, layers.Linear(draw(WIDTHS)), layers.BatchNorm(), ops.Activation())
    return sketch.add(layers.Linear(4, draw(st.booleans())), x)


@st.composite
def plans(draw: Draw, kinds: Sequence[str] = (), longest: int = 6) -> Plan:
    """Draw a network; often all that nobody reads goes into its output, else some layers make channels in vain."""
    dims = draw(st.sampled_from([2, 2, 2, 2, 2, 1, 3]))
    sketch = Sketch(torch.Size((2, *IMAGE_SIZES[dims])), kinds)
    x = write_body(draw, sketch, 0, 2) if not kinds and draw(st.integers(0, 3)) == 3 else 0
    x = write_body(draw, sketch, sketch.add(layers.Convolution(draw(WIDTHS)), x), longest, 3)
    gives = [write_head(draw, sketch, x)]
    if draw(st.integers(0, 3)) == 3:
        gives.append(write_head(draw, sketch, draw(st.sampled_from(sketch.maps))))
    if draw(st.integers(0, 3)) < 3:
        gives += [
            sketch.add(layers.Linear(3), sketch.add(ops.Mean(), value)) for value in sketch.unread if value not in gives
        ]
    return Plan(dims, sketch.program(*gives))
