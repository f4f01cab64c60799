"""Channel ids: made fresh, united where they meet, pinned where nothing is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FIXED = -1
"""The id of a position that no cut may touch: network inputs, literals, whatever an unknown operation returns."""

Ids = npt.NDArray[np.int64]


class Role(Enum):
    """What a tensor's axis does with the channels that sit on it."""

    MAKER = "maker"
    CARRIED = "carried"
    READER = "reader"


@dataclass(frozen=True, slots=True)
class Note:
    """An axis of a parameter, a buffer or an integer attribute, and the id at each of its positions."""

    tensor: str
    axis: int
    role: Role
    ids: Ids


@dataclass
class Lineage:
    """Union-find over channel ids, and every axis that they sit on, in the order of the graph."""

    _parents: list[int] = field(default_factory=list)
    _pinned: dict[int, str] = field(default_factory=dict)
    _coupled: set[int] = field(default_factory=set)
    _notes: dict[tuple[str, int], Note] = field(default_factory=dict)
    _whole: dict[str, str] = field(default_factory=dict)
    _agreements: list[tuple[list[int], list[int], str]] = field(default_factory=list)

    def fresh(self, count: int) -> Tensor:
        """Return `count` new ids, int64 `[count]`."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def find(self, channel: int) -> int:
        """Return the representative of an id; FIXED stands for itself."""
        if channel == FIXED:
            return FIXED
        parents = self._parents
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = parents[channel]
        return channel

    def canonical(self, ids: Tensor) -> Tensor:
        """Return ids with those that were united made equal."""
        base = ids
        for dim in range(ids.dim()):
            base = base.narrow(dim, 0, 1) if ids.stride(dim) == 0 and ids.shape[dim] > 1 else base
        known, inverse = base.unique(return_inverse=True)
        roots = torch.tensor([self.find(channel) for channel in known.tolist()], dtype=torch.long)
        return ids if torch.equal(roots, known) else roots[inverse].expand(ids.shape)

    def unite(self, first: Tensor, second: Tensor, reason: str, *, coupling: bool = False) -> None:
        """Make two vectors of ids the same channels, position by position; meeting FIXED pins.

        Args:
            first: ids of any shape.
            second: ids of the same shape.
            reason: why, should it pin.
            coupling: the channels are tied through a sum, so the group is coupled.
        """
        base = len(self._parents) + 1  # a pair as one number: faster to tell apart than rows
        pairs = ((first.reshape(-1) - FIXED) * base + second.reshape(-1) - FIXED).unique()
        for left, right in (divmod(pair, base) for pair in pairs.tolist()):
            a, b = self.find(left + FIXED), self.find(right + FIXED)
            if FIXED in (a, b):
                self._pin(max(a, b), reason)
                continue
            if coupling:
                self._coupled.update((a, b))
            if a != b:
                self._parents[max(a, b)] = min(a, b)

    def tie(self, table: Tensor, reason: str) -> None:
        """Unite all ids of each row of `[channels, members]`."""
        for member in range(1, table.shape[1]):
            self.unite(table[:, 0], table[:, member], reason)

    def pin(self, ids: Tensor, reason: str) -> None:
        """Exclude ids from every cut."""
        for channel in ids.reshape(-1).unique().tolist():
            self._pin(self.find(channel), reason)

    def pin_tensor(self, tensor: str, reason: str) -> None:
        """Exclude every channel that sits on a tensor, noted already or later."""
        self._whole.setdefault(tensor, reason)

    def agree(self, first: Tensor, second: Tensor, reason: str) -> None:
        """Exclude two sets of ids from every cut, unless they turn out to be the same channels in the end."""
        self._agreements.append((first.unique().tolist(), second.unique().tolist(), reason))

    def couple(self, ids: Tensor) -> None:
        """Mark ids as tied through a concatenation."""
        self._coupled.update(channel for channel in ids.reshape(-1).unique().tolist() if channel != FIXED)

    def note(self, tensor: str, axis: int, role: Role, ids: Tensor) -> Tensor:
        """Record the ids on an axis and return them; a second visit (a layer used twice) unites with the first."""
        known = self._notes.get((tensor, axis))
        if known is None:
            self._notes[tensor, axis] = Note(tensor, axis, role, ids.numpy().copy())
            return ids
        self.unite(torch.from_numpy(known.ids), ids, f"'{tensor}' is used more than once, with other channels")
        return torch.from_numpy(known.ids)

    def noted(self, tensor: str, axis: int) -> Tensor | None:
        """Return the ids on an axis that was visited before."""
        known = self._notes.get((tensor, axis))
        return None if known is None else torch.from_numpy(known.ids)

    def notes(self) -> Iterator[Note]:
        """Yield every noted axis with the representatives of its ids."""
        roots = self.roots()
        for note in self._notes.values():
            yield Note(note.tensor, note.axis, note.role, roots[note.ids])

    def roots(self) -> Ids:
        """Return the representative of every id, and last that of FIXED, which is −1 and so finds it there."""
        return np.array([*map(self.find, range(len(self._parents))), FIXED], dtype=np.int64)

    def pinned(self) -> dict[int, str]:
        """Return representative → the first reason that pinned it."""
        reasons: dict[int, str] = {}
        for channel, reason in self._pinned.items():
            reasons.setdefault(self.find(channel), reason)
        for note in self.notes():
            if note.tensor in self._whole:
                reasons |= {int(channel): self._whole[note.tensor] for channel in note.ids if channel not in reasons}
        for first, second, reason in self._agreements:
            one, other = set(map(self.find, first)), set(map(self.find, second))
            if one != other:
                reasons |= {channel: reason for channel in (one | other) if channel not in reasons}
        return reasons

    def coupled(self) -> set[int]:
        """Return the representatives that a sum or a concatenation ties."""
        return {self.find(channel) for channel in self._coupled}

    def _pin(self, root: int, reason: str) -> None:
        if root != FIXED:
            self._pinned.setdefault(root, reason)


def varies(ids: Tensor, dim: int) -> bool:
    """Tell whether ids differ along a dimension."""
    if ids.shape[dim] <= 1 or ids.stride(dim) == 0:
        return False
    for other in range(ids.dim()):  # what is only spread out need not be looked at everywhere
        ids = ids.narrow(other, 0, 1) if ids.stride(other) == 0 and ids.shape[other] > 1 else ids
    return not bool((ids == ids.narrow(dim, 0, 1)).all())


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
