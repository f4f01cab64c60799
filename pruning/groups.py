"""Channel groups: channels that can only be removed together, and everything a cut of them touches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import count

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pruning.errors import PolicyError, UnknownNameError, suggest
from pruning.lineage import FIXED, Lineage, Note, Role


@dataclass(frozen=True, slots=True)
class Slice:
    """Where a group's channels sit along one axis of one parameter or buffer.

    Attributes:
        tensor: qualified name, e.g. `layer1.0.conv1.weight`.
        axis: the axis of the tensor.
        positions: for each channel of the group its positions on that axis, `[channels][positions of one channel]`.
    """

    tensor: str
    axis: int
    positions: tuple[tuple[int, ...], ...]

    @property
    def layer(self) -> str:
        """The module that owns the tensor."""
        return _layer(self.tensor)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of equal make that can be removed one by one, each from every place that knows it.

    A channel is what can be removed by itself: one filter of a plain convolution; in front of a grouped convolution
    one whole convolution group, which is several positions of the tensors.

    Attributes:
        name: the first layer that makes the channels, e.g. `layer1.0.conv1`.
        width: how many channels there are before any cut.
        coupled: tied through a residual sum or a concatenation (else inner).
        makers: filters, the output axis of the weights that make the channels.
        carried: biases, normalisation parameters, depthwise and grouped filters: one entry a channel.
        readers: the input axis of the weights that read the channels.
        minimum: the smallest width that a cut may leave.
    """

    name: str
    width: int
    coupled: bool
    makers: tuple[Slice, ...]
    carried: tuple[Slice, ...]
    readers: tuple[Slice, ...]
    minimum: int = 1

    @property
    def slices(self) -> tuple[Slice, ...]:
        """Every slice that a cut of this group touches."""
        return (*self.makers, *self.carried, *self.readers)

    def filters(self, model: nn.Module) -> Tensor:
        """Return the weights that make each channel, side by side, `[channels, weights]`, in the weights' type."""
        return _rows(self.makers, model)

    def read_weights(self, model: nn.Module) -> Tensor:
        """Return the weights that read each channel, side by side, `[channels, weights]`, in the weights' type."""
        return _rows(self.readers, model)


def _rows(slices: tuple[Slice, ...], model: nn.Module) -> Tensor:
    rows = []
    for part in slices:
        weight = tensor_of(model, part.tensor).detach().movedim(part.axis, 0)
        rows.append(weight[torch.tensor(part.positions, device=weight.device)].flatten(1))
    return torch.cat(rows, dim=1)


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer with a qualified name."""
    owner, _, leaf = name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), leaf)
    assert isinstance(tensor, Tensor), name
    return tensor


@dataclass(frozen=True, slots=True)
class Pinned:
    """Channels that no cut may touch, and why."""

    layer: str
    width: int
    reason: str


@dataclass(frozen=True)
class ChannelGroups(Mapping[str, ChannelGroup]):
    """Every group of a network by name, in the order of the graph; plain data, no reference to the network.

    Attributes:
        groups: what can be cut.
        pinned: what cannot, and why.
        front_end: what traced the network.
    """

    groups: tuple[ChannelGroup, ...]
    pinned: tuple[Pinned, ...] = ()
    front_end: str = field(default="torch.fx", compare=False)
    _by_name: dict[str, ChannelGroup] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_by_name", {group.name: group for group in self.groups})

    def __getitem__(self, name: str) -> ChannelGroup:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def widths(self) -> dict[str, int]:
        """The full width of every group."""
        return {group.name: group.width for group in self.groups}

    @property
    def signature(self) -> str:
        """16 hex digits that two networks share if their groups have equal names and widths."""
        return hashlib.sha256(json.dumps(self.widths, sort_keys=True).encode()).hexdigest()[:16]

    def only(self, names: Iterable[str]) -> ChannelGroups:
        """Return some of the groups, in the order of the graph."""
        chosen = set(names)
        return replace(self, groups=tuple(group for group in self.groups if group.name in chosen))

    def matching(self, patterns: tuple[str, ...]) -> tuple[str, ...]:
        """Return the groups whose name matches any shell pattern; `inner`, `coupled` and `all` are patterns too.

        Raises:
            UnknownNameError: a pattern that matches nothing.
        """
        chosen = set[str]()
        for pattern in patterns:
            found = {group.name for group in self.groups if _matches(group, pattern)}
            if not found:
                raise UnknownNameError("channel group", pattern, self)
            chosen |= found
        return tuple(name for name in self if name in chosen)

    def check_widths(self, widths: Mapping[str, int]) -> None:
        """Refuse widths that this network cannot take.

        Raises:
            PolicyError: an unknown group, or a width outside `minimum … width`.
        """
        for name, keep in widths.items():
            if name not in self:
                raise PolicyError(f"widths: no channel group '{name}' in this network{suggest(name, self)}")
            group = self[name]
            if not group.minimum <= keep <= group.width:
                raise PolicyError(f"widths.{name}: expected {group.minimum} to {group.width} channels, got {keep}")


def _matches(group: ChannelGroup, pattern: str) -> bool:
    kinds = {"all": True, "inner": not group.coupled, "coupled": group.coupled}
    return kinds[pattern] if pattern in kinds else fnmatchcase(group.name, pattern)


def fold(lineage: Lineage) -> ChannelGroups:
    """Fold lineage into groups: channels that the same layers make, carry and read, the same number of times."""
    notes = sorted(lineage.notes(), key=lambda note: note.role is not Role.MAKER)  # the order of the makers
    places = [_Places.of(note) for note in notes]
    reasons, coupled = lineage.pinned(), set(lineage.coupled().tolist())
    shared: dict[bytes, tuple[tuple[int, ...], ...]] = {}
    groups: list[ChannelGroup] = []
    pinned: list[Pinned] = []
    for channels, where in _alike(places, reasons):
        makers = [notes[index] for index in where if notes[index].role is Role.MAKER]
        if not makers:
            continue
        reason = reasons.get(int(channels[0]))
        readers = any(notes[index].role is Role.READER for index in where)
        if reason is None and len(channels) > 1 and readers:
            parts: dict[Role, list[Slice]] = {role: [] for role in Role}
            for index in where:
                note = notes[index]
                parts[note.role].append(Slice(note.tensor, note.axis, places[index].positions(channels, shared)))
            ties = not coupled.isdisjoint(channels.tolist())
            groups.append(_group(parts, len(channels), ties, {group.name for group in groups}))
            continue
        why = reason or ("nothing reads them" if not readers else "they can only be removed all at once")
        pinned.append(Pinned(_layer(makers[0].tensor), len(channels), why))
    return ChannelGroups(tuple(groups), tuple(pinned), lineage.front_end)


Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Places:
    """Which channels sit on an axis, ascending; how often each; and the positions, channel by channel."""

    channels: Ids
    counts: Ids
    starts: Ids
    order: Ids

    @classmethod
    def of(cls, note: Note) -> _Places:
        order = np.argsort(note.ids, kind="stable")
        order = order[note.ids[order] != FIXED]
        channels, starts, counts = np.unique(note.ids[order], return_index=True, return_counts=True)
        return cls(channels, counts, starts, order)

    def positions(self, channels: Ids, shared: dict[bytes, tuple[tuple[int, ...], ...]]) -> tuple[tuple[int, ...], ...]:
        """Return the positions of channels that sit there equally often; equal ones are one object."""
        which = np.searchsorted(self.channels, channels)
        table = self.order[self.starts[which][:, None] + np.arange(self.counts[which[0]])]
        key = table.shape[1].to_bytes(8) + table.tobytes()
        if key not in shared:
            shared[key] = tuple(map(tuple, table.tolist()))
        return shared[key]


def _alike(places: Sequence[_Places], reasons: Mapping[int, str]) -> Iterator[tuple[Ids, list[int]]]:
    """Yield channels that sit on the same axes, equally often, and those axes; in the order in which they come up."""
    size = 1 + max((int(axis.channels.max(initial=FIXED)) for axis in places), default=FIXED)
    kinds, first, seen = np.zeros(size, np.int64), np.full(size, -1), 0
    for axis in places:  # channels stay of one kind if they were, and sit on this axis equally often
        _refine(kinds, axis.channels, axis.counts)
        new = first[axis.channels] < 0
        first[axis.channels[new]] = seen + axis.order[axis.starts[new]]
        seen += len(axis.order)
    stuck = np.array([channel for channel in reasons if channel < size], np.int64)
    _refine(kinds, stuck, np.zeros_like(stuck))
    where: dict[int, list[int]] = {}
    for index, axis in enumerate(places):
        for kind in np.unique(kinds[axis.channels]).tolist():
            where.setdefault(kind, []).append(index)
    channels = np.flatnonzero(first >= 0)
    channels = channels[np.argsort(first[channels])]
    _, begins, inverse = np.unique(kinds[channels], return_index=True, return_inverse=True)
    members = np.split(channels[np.argsort(inverse, kind="stable")], np.cumsum(np.bincount(inverse))[:-1])
    for number in np.argsort(begins).tolist():
        yield members[number], where[int(kinds[members[number][0]])]


def _refine(kinds: Ids, channels: Ids, counts: Ids) -> None:
    """Give some channels new kinds, equal where kinds and counts were."""
    pairs = kinds[channels] * (1 + int(counts.max(initial=0))) + counts
    kinds[channels] = kinds.max(initial=0) + 1 + np.unique(pairs, return_inverse=True)[1]


def _group(parts: Mapping[Role, list[Slice]], width: int, coupled: bool, taken: set[str]) -> ChannelGroup:
    name = first = _layer(parts[Role.MAKER][0].tensor)
    for number in count(2):  # a layer whose channels go separate ways makes several groups
        if name not in taken:
            break
        name = f"{first}#{number}"
    return ChannelGroup(
        name=name,
        width=width,
        coupled=coupled,
        makers=tuple(parts[Role.MAKER]),
        carried=tuple(parts[Role.CARRIED]),
        readers=tuple(parts[Role.READER]),
    )


def _layer(tensor: str) -> str:
    return tensor.rpartition(".")[0]
