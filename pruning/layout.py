"""What a policy can speak of in a network: its groups, what they cost, and where each of them stands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby

import torch
from torch import Tensor, nn

from pruning.blocks import block_names, record
from pruning.cost import CostModel
from pruning.errors import PruningError
from pruning.finding import find_groups
from pruning.groups import ChannelGroup, ChannelGroups
from pruning.limits import check_image
from pruning.lineage import skeleton
from pruning.models import build_model, input_shape
from pruning.models.family import Shape
from pruning.policy import ModelSpec


@dataclass(frozen=True)
class Place:
    """Where a group stands among those of its kind.

    Attributes:
        stage: counts from 0, in the order of the network.
        role: the name behind the block; empty of a group that is in no block.
        depth: inside the stage, from 0, its first block, to 1, its last; ½ where there is only one.
    """

    stage: int
    role: str
    depth: Fraction


@dataclass(frozen=True)
class Layout:
    """A network as policies see it.

    Attributes:
        model: what was built.
        groups: every channel group.
        places: of each group.
        blocks: the modules behind which auxiliary losses can sit, in their order; none where there are no blocks.
        cost: of one image of the size that was laid out.
    """

    model: ModelSpec
    groups: ChannelGroups
    places: Mapping[str, Place]
    blocks: tuple[str, ...]
    cost: CostModel


def layout_of(model: ModelSpec, image_shape: Shape | None = None, thinned: Sequence[str] = ()) -> Layout:
    """Build a network without weights and look at it; the global random state is as found.

    Args:
        model: which network.
        image_shape: of one image, (channels, height, width); the usual one of the network unless given.
        thinned: see `find_groups`.

    Raises:
        PruningError: no such network, one that does not take such images, or one whose usual images nobody told.
        UnknownNameError: a pattern of `thinned` that fits no grouped convolution.
    """
    shape = input_shape(model) if image_shape is None else image_shape
    check_image(f"model '{model.name}'", shape)
    with torch.random.fork_rng([]):
        built = build_model(model)
    example = torch.zeros(2, *shape)
    groups = find_groups(built, example, thinned=thinned)
    network = skeleton(built)
    return Layout(
        model=model,
        groups=groups,
        places=_places(network, groups, example),
        blocks=_blocks(network, example),
        cost=CostModel(network, groups, example),
    )


def _blocks(network: nn.Module, example: Tensor) -> tuple[str, ...]:
    try:
        return block_names(network, example)
    except PruningError:
        return ()


def _places(network: nn.Module, groups: ChannelGroups, example: Tensor) -> dict[str, Place]:
    """Return where each group stands: by its name, where that tells stage and block, else by its order.

    Groups that are in no block are a stage as far as they follow each other and their feature maps have one size.
    """
    named = places_by_name(groups)
    others = [group for name, group in groups.items() if name not in named]
    return named | _in_order(others, _map_sizes(network, others, example))


def places_by_name(names: Iterable[str]) -> dict[str, Place]:
    """Return where layers stand among each other, as far as their names tell stage and block."""
    return _in_blocks({name: split for name in names if (split := split_name(name)) is not None})


def split_name(name: str) -> tuple[str, str, str] | None:
    """Return stage, block and role: `layer1.0.conv1` is `layer1`, `0`, `conv1`; None of a name without a block.

    The block is the first part that is a number, the last of several in a row, that has a part behind it; without any,
    the last such part that ends in a number: `features.2.0.block.1`, `features.denseblock1.denselayer3.conv2`.
    """
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts[:-1]) if part.isdecimal()]
    words = [place for place, part in enumerate(parts[:-1]) if part[-1:].isdecimal()]
    if not words:
        return None
    block = numbers[0] if numbers else words[-1]
    while block + 1 in numbers:
        block += 1
    return ".".join(parts[:block]), parts[block], ".".join(parts[block + 1 :])


def _in_blocks(named: Mapping[str, tuple[str, str, str]]) -> dict[str, Place]:
    blocks: dict[str, list[str]] = {}
    for stage, block, _ in named.values():
        known = blocks.setdefault(stage, [])
        if block not in known:
            known.append(block)
    stages = list(blocks)
    return {
        name: Place(stages.index(stage), role, _depth(blocks[stage].index(block), len(blocks[stage])))
        for name, (stage, block, role) in named.items()
    }


def _in_order(others: Iterable[ChannelGroup], sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
    runs = [list(run) for _, run in groupby(others, lambda group: sizes[group.name])]
    return {
        group.name: Place(stage, "", _depth(number, len(run)))
        for stage, run in enumerate(runs)
        for number, group in enumerate(run)
    }


def _depth(number: int, count: int) -> Fraction:
    return Fraction(number, count - 1) if count > 1 else Fraction(1, 2)


def _map_sizes(network: nn.Module, groups: Iterable[ChannelGroup], example: Tensor) -> dict[str, tuple[int, ...]]:
    """Return the height and width of what each group's first layer puts out; nothing of a linear layer."""
    layers = {group.name: group.makers[0].layer for group in groups}
    outputs = {call.name: call.output for call in record(network, filter(None, set(layers.values())), example)}
    sizes = {name: output.shape[2:] for name, output in outputs.items() if isinstance(output, Tensor)}
    return {name: tuple(sizes.get(layer, ())) for name, layer in layers.items()}
