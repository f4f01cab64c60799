"""What a network holds in memory while it runs, as functions of the widths of its channel groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pruning.lineage import Ids, Result


@dataclass(frozen=True, slots=True)
class Activation:
    """A tensor that a network makes in eval mode and keeps from one operation of its graph to another.

    Attributes:
        place: the layer or the function that puts it out.
        first: the number of the operation that makes it.
        last: the number of the last one that needs it.
        nbytes: of one image, before any cut.
        channel_bytes: the groups whose channels lie in it, and what one channel takes; None where the channels of a
            group take unequal shares.
    """

    place: str
    first: int
    last: int
    nbytes: int
    channel_bytes: tuple[tuple[str, int], ...] | None


@dataclass(frozen=True, slots=True)
class Activations:
    """All that a network makes of one image.

    Attributes:
        image_shape: of that image, `(channels, height, width)`.
        dtype: of its values.
        made: in the order of the graph.
    """

    image_shape: tuple[int, ...]
    dtype: torch.dtype
    made: tuple[Activation, ...]


class Shares:
    """Tells what the channels of each group take of a result.

    Args:
        roots: the representative of each id, and last of FIXED.
        members: the representatives of each group's channels.
    """

    def __init__(self, roots: Ids, members: Mapping[str, Sequence[int]]) -> None:
        self._roots, self._names = roots, [*members]
        self._members = [np.array(ids) for ids in members.values()]
        self._group = np.full(len(roots), -1)  # of what is FIXED or pinned: none
        for number, ids in enumerate(self._members):
            self._group[ids] = number

    def of(self, result: Result) -> Activation:
        """Return a result, told by group."""
        each = self._channel_bytes(result)
        return Activation(result.place, result.first, result.last, result.nbytes, each)

    def _channel_bytes(self, result: Result) -> tuple[tuple[str, int], ...] | None:
        ids = len(self._roots)
        places = np.bincount(self._roots[result.ids] % ids, minlength=ids)  # FIXED, which is −1, comes last
        found = []
        for number in set(self._group[places.nonzero()].tolist()) - {-1}:
            share = places[self._members[number]] * result.nbytes
            if (share != share[0]).any() or share[0] % len(result.ids):
                return None
            found.append((self._names[number], int(share[0]) // len(result.ids)))
        return tuple(found)
