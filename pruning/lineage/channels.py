"""Channel ids: made fresh, united where they meet, pinned where nothing is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FIXED = -1
"""The id of a position that no cut may touch: network inputs, literals, whatever an unknown operation returns."""

Ids = npt.NDArray[np.int64]


class Role(Enum):
    """What a tensor's axis does with the channels that sit on it; of what is mixed, the input of an operation."""

    MAKER = "maker"
    CARRIED = "carried"
    READER = "reader"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Note:
    """An axis of a parameter, a buffer or an integer attribute, and the id at each of its positions."""

    tensor: str
    axis: int
    role: Role
    ids: Ids


class Lineage:
    """Union-find over channel ids, and every axis that they sit on, in the order of the graph.

    All ids of an axis are looked up at once: the table of parents has, last, an entry for FIXED, which is −1.

    Attributes:
        front_end: what traced the network.
        thinned: shell patterns of the grouped convolutions whose groups are thinned, not removed.
        thinnable: the grouped convolutions that can be.
        choices: place in the graph → which of several readings of its code to take, where not the first.
        ambiguous: place in the graph that can be read in several ways → the channels that it is about.
    """

    def __init__(
        self, front_end: str = "torch.fx", thinned: Sequence[str] = (), choices: Mapping[str, int] | None = None
    ) -> None:
        self.front_end, self.thinned, self.choices = front_end, tuple(thinned), choices or {}
        self.thinnable: list[str] = []
        self.ambiguous: dict[str, Ids] = {}
        self._count = 0
        self._parents: Ids = np.full(1024, FIXED, dtype=np.int64)
        self._pins: list[tuple[Ids, str]] = []
        self._coupled: list[Ids] = []
        self._notes: dict[tuple[str, int], Note] = {}
        self._whole: dict[str, str] = {}
        self._agreements: list[tuple[Ids, Ids, str]] = []

    def __len__(self) -> int:
        return self._count

    def thins(self, layer: str) -> bool:
        """Return whether the groups of a convolution are thinned."""
        return any(fnmatchcase(layer, pattern) for pattern in self.thinned)

    def choose(self, place: str, readings: Sequence[int], ids: Tensor) -> int:
        """Return one of several readings of the code for some channels: the first, unless another is chosen."""
        if len(set(readings)) > 1:
            self.ambiguous[place] = np.unique(ids.numpy())
        return readings[self.choices.get(place, 0)]

    def misread(self) -> set[str]:
        """Return the places whose code could be read in another way, and whose channels are pinned."""
        pinned = set(self.pinned()) if self.ambiguous else set()
        return {place for place, ids in self.ambiguous.items() if not pinned.isdisjoint(self.find(ids).tolist())}

    def count_pinned(self) -> int:
        """Return how many ids are excluded from every cut."""
        return int(np.isin(self.find(np.arange(self._count)), list(self.pinned())).sum())

    def fresh(self, count: int) -> Tensor:
        """Return `count` new ids, int64 `[count]`."""
        start, self._count = self._count, self._count + count
        if self._count >= len(self._parents):
            larger = np.full(2 * self._count, FIXED, dtype=np.int64)
            larger[:start] = self._parents[:start]
            self._parents = larger
        self._parents[start : self._count] = np.arange(start, self._count)
        return torch.arange(start, self._count)

    def find(self, channels: Ids) -> Ids:
        """Return the representatives of ids of any shape; FIXED stands for itself."""
        roots = self._parents[channels]
        while True:
            above = self._parents[roots]
            if np.array_equal(above, roots):
                return roots
            roots = above

    def canonical(self, ids: Tensor) -> Tensor:
        """Return ids with those that were united made equal."""
        base = ids
        for dim in range(ids.dim()):
            base = base.narrow(dim, 0, 1) if ids.stride(dim) == 0 and ids.shape[dim] > 1 else base
        known = base.numpy()
        roots = self.find(known)
        return ids if np.array_equal(roots, known) else torch.from_numpy(roots).expand(ids.shape)

    def unite(self, first: Tensor, second: Tensor, reason: str, *, coupling: bool = False) -> None:
        """Make two vectors of ids the same channels, position by position; meeting FIXED pins.

        Args:
            first: ids of any shape.
            second: ids of the same shape.
            reason: why, should it pin.
            coupling: the channels are tied through a sum, so the group is coupled.
        """
        a, b = (np.atleast_1d(squeezed_together(ids, (first, second)).numpy()).reshape(-1) for ids in (first, second))
        stuck = (a == FIXED) | (b == FIXED)
        if stuck.any():
            self._pin(np.maximum(a, b)[stuck], reason)
            a, b = a[~stuck], b[~stuck]
        if coupling:
            self._coupled += [a, b]
        while len(a):
            a, b = self.find(a), self.find(b)
            apart = a != b
            a, b = a[apart], b[apart]
            np.minimum.at(self._parents, np.maximum(a, b), np.minimum(a, b))

    def tie(self, table: Tensor, reason: str) -> None:
        """Unite all ids of each row of `[channels, members]`."""
        if table.shape[1] > 1:
            self.unite(table[:, :1].expand(-1, table.shape[1] - 1), table[:, 1:], reason)

    def pin(self, ids: Tensor, reason: str) -> None:
        """Exclude ids from every cut."""
        self._pin(squeezed_together(ids, (ids,)).numpy().reshape(-1), reason)

    def pin_tensor(self, tensor: str, reason: str) -> None:
        """Exclude every channel that sits on a tensor, noted already or later."""
        self._whole.setdefault(tensor, reason)

    def agree(self, first: Tensor, second: Tensor, reason: str) -> None:
        """Exclude two sets of ids from every cut, unless they turn out to be the same channels in the end."""
        self._agreements.append((first.unique().numpy(), second.unique().numpy(), reason))

    def couple(self, ids: Tensor) -> None:
        """Mark ids as tied through a concatenation."""
        self._coupled.append(ids.numpy().reshape(-1))

    def note(self, tensor: str, axis: int, role: Role, ids: Tensor) -> Tensor:
        """Record the ids on an axis and return them; a second visit (a layer used twice) unites with the first."""
        known = self._notes.get((tensor, axis))
        if known is None:
            self._notes[tensor, axis] = Note(tensor, axis, role, ids.numpy().copy())
            return ids
        if not np.array_equal(known.ids, ids.numpy()):
            self.unite(torch.from_numpy(known.ids), ids, f"'{tensor}' is used more than once, with other channels")
        return torch.from_numpy(known.ids)

    def noted(self, tensor: str, axis: int) -> Tensor | None:
        """Return the ids on an axis that was visited before."""
        known = self._notes.get((tensor, axis))
        return None if known is None else torch.from_numpy(known.ids)

    def mix(self, place: str, axis: int, ids: Tensor) -> None:
        """Record that an operation makes something of all channels along an axis of its first input, such as a mean."""
        self.note(f"%{place}", axis, Role.MIXED, ids)

    def forget_mixed(self) -> None:
        """Forget the operations of one graph before another is followed, in which others have their names."""
        self._notes = {key: note for key, note in self._notes.items() if note.role is not Role.MIXED}

    def notes(self) -> Iterator[Note]:
        """Yield every noted axis with the representatives of its ids."""
        roots = self.find(np.append(np.arange(self._count), FIXED))
        for note in self._notes.values():
            yield Note(note.tensor, note.axis, note.role, roots[note.ids])  # FIXED, which is −1, finds the last

    def pinned(self) -> dict[int, str]:
        """Return representative → the first reason that pinned it."""
        reasons: dict[int, str] = {}

        def add(ids: Ids, reason: str) -> None:
            for channel in np.unique(self.find(ids)).tolist():
                if channel != FIXED:
                    reasons.setdefault(channel, reason)

        for ids, reason in self._pins:
            add(ids, reason)
        for note in self._notes.values():
            if note.tensor in self._whole:
                add(note.ids, self._whole[note.tensor])
        for first, second, reason in self._agreements:
            one, other = (np.unique(self.find(ids)) for ids in (first, second))
            if not np.array_equal(one, other):
                add(np.concatenate([one, other]), reason)
        return reasons

    def coupled(self) -> Ids:
        """Return the representatives that a sum or a concatenation ties."""
        return np.unique(self.find(np.concatenate(self._coupled))) if self._coupled else np.empty(0, np.int64)

    def _pin(self, ids: Ids, reason: str) -> None:
        if (ids != FIXED).any():
            self._pins.append((np.unique(ids), reason))


def squeezed_together(ids: Tensor, shape_of: tuple[Tensor, ...]) -> Tensor:
    """Return ids without the dimensions along which several tensors are only spread out, so that none is copied."""
    for dim in range(ids.dim()):
        if ids.shape[dim] > 1 and all(other.stride(dim) == 0 for other in shape_of):
            ids = ids.narrow(dim, 0, 1)
    return ids


def varies(ids: Tensor, dim: int) -> bool:
    """Tell whether ids differ along a dimension."""
    if ids.shape[dim] <= 1 or ids.stride(dim) == 0:
        return False
    # What is only spread out need not be looked at everywhere.
    corner = ids.numpy()[tuple(slice(0, 1) if step == 0 else slice(None) for step in ids.stride())]
    first = corner[(slice(None),) * (dim % ids.dim()) + (slice(0, 1),)]
    return bool((corner != first).any())


def varying(ids: Tensor) -> list[int]:
    """Return the dimensions along which ids differ."""
    return [dim for dim in range(ids.dim()) if varies(ids, dim)]


def spread(ids: Tensor, dim: int, shape: torch.Size) -> Tensor:
    """Return a vector of ids laid along one dimension of `shape`, without copying."""
    view = [1] * len(shape)
    view[dim] = -1
    return ids.reshape(view).expand(shape)


def squeezed(ids: Tensor) -> Tensor:
    """Return the ids with every dimension along which they do not differ narrowed to 1."""
    for dim in range(ids.dim()):
        if ids.shape[dim] > 1 and not varies(ids, dim):
            ids = ids.narrow(dim, 0, 1)
    return ids


def fixed(shape: torch.Size) -> Tensor:
    """Return FIXED at every position of `shape`."""
    return torch.full((), FIXED).expand(shape)
