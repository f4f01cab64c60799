"""Where auxiliary heads sit: the formula that spreads them, and which places of a network take one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from torch import Tensor, nn

from pruning.blocks import Call, block_modules, block_names, record
from pruning.errors import OptionError, PruningError
from pruning.policy import AuxiliaryPlacement

_SHOWN = 6
"""Of the possible places so many are named in a message."""


def even_positions(blocks: int, heads: int) -> tuple[int, ...]:
    """Return the numbers of the blocks, counted from 1, that are followed by an auxiliary head; never the last block.

    Paper: Zhuang et al., Discrimination-aware Channel Pruning for Deep Neural Networks, NeurIPS 2018, which says
    "evenly"; the formula is that of the authors' second release.
    Differs: where their formula gives the same block twice it is refused.

    Raises:
        OptionError: with the numbers of heads that fit.
    """
    positions = _formula(blocks, heads)
    if not _fits(positions):
        possible = possible_counts(blocks)
        fits = f"one of {', '.join(map(str, possible))} heads" if possible else "at least 2 blocks"
        raise OptionError(f"auxiliary positions: expected {fits} for {blocks} blocks, got {heads} heads")
    return positions


def possible_counts(blocks: int) -> tuple[int, ...]:
    """Return how many heads `even_positions` can spread over so many blocks."""
    return tuple(count for count in range(1, blocks) if _fits(_formula(blocks, count)))


def _formula(blocks: int, heads: int) -> tuple[int, ...]:
    distance = blocks // (heads + 1) + 1
    return tuple(min(number * distance, blocks - 1) for number in range(1, heads + 1))


def _fits(positions: Sequence[int]) -> bool:
    return len(set(positions)) == len(positions) and min(positions, default=0) > 0


def find_maps(placement: AuxiliaryPlacement, model: nn.Module, example_input: Tensor) -> list[Call]:
    """Return the modules that a placement means, with what they put out, in the order in which they run.

    Args:
        placement: where the heads are to sit.
        model: runs in eval mode; its state is as found afterwards.
        example_input: `[images, channels, height, width]`.

    Raises:
        OptionError: positions that this network does not have, twice the same, or one inside a block.
        UnknownNameError: a module that it does not have.
        PruningError: a network without blocks, or a module that does not put out one lasting feature map.
    """
    wanted = _resolve(placement, model, example_input)
    calls = record(model, wanted, example_input)
    _check_between_blocks(wanted, model, example_input)
    _check_calls(wanted, calls)
    return calls


def _resolve(placement: AuxiliaryPlacement, model: nn.Module, example_input: Tensor) -> tuple[str, ...]:
    positions = placement.positions
    if not isinstance(positions, int) and not any(isinstance(position, int) for position in positions):
        names = tuple(map(str, positions))
    else:
        blocks = block_names(model, example_input)
        wanted = even_positions(len(blocks), positions) if isinstance(positions, int) else positions
        names = tuple(_name_of(position, blocks) for position in wanted)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise OptionError(f"auxiliary positions: expected each place once, got '{twice[0]}' twice")
    return names


def _name_of(position: int | str, blocks: Sequence[str]) -> str:
    if isinstance(position, str):
        return position
    if position > len(blocks):
        raise OptionError(f"auxiliary positions: expected block numbers from 1 to {len(blocks)}, got {position}")
    return blocks[position - 1]


def _check_calls(names: Sequence[str], calls: Sequence[Call]) -> None:
    times = Counter(call.name for call in calls)
    for name in names:
        if times[name] != 1:
            raise PruningError(f"auxiliary head of '{name}': expected a module that runs once, got {times[name]} runs")
    for call in calls:
        place = f"auxiliary head of '{call.name}': expected a feature map [images, channels, height, width]"
        if not call.is_feature_map:
            got = list(call.output.shape) if isinstance(call.output, Tensor) else type(call.output).__name__
            raise PruningError(f"{place}, got {got}")
        if call.output._version != call.version:
            raise PruningError(f"{place} that lasts, got one that the next layer changes in place; name that layer")


def _check_between_blocks(names: Sequence[str], model: nn.Module, example_input: Tensor) -> None:
    """Refuse places inside a block: what channels there are changes with every cut, and a residual sum is to come."""
    blocks = block_modules(model, example_input)
    for name in names:
        around = next((block for block in blocks if name.startswith(f"{block}.")), None)
        if around is not None:
            possible = ", ".join(blocks[:_SHOWN]) + (", …" if len(blocks) > _SHOWN else "")
            raise OptionError(
                f"auxiliary head of '{name}': expected a place between blocks, got one inside block '{around}'; "
                f"possible: {possible}"
            )
