"""Channel groups: channels that can only be removed together, and everything a cut of them touches."""

from __future__ import annotations

import hashlib
import json
import math
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
from pruning.lineage.computed import effective, layer_of


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
        """The layer that has the tensor; for a parametrised weight not the module that keeps it there."""
        return layer_of(self.tensor)


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
        mixed: operations that make something of all channels, such as their mean; `%` and the name of the node, or
            `layer` and that of the layer.
    """

    name: str
    width: int
    coupled: bool
    makers: tuple[Slice, ...]
    carried: tuple[Slice, ...]
    readers: tuple[Slice, ...]
    minimum: int = 1
    mixed: tuple[Slice, ...] = ()

    @property
    def slices(self) -> tuple[Slice, ...]:
        """Every slice that a cut of this group touches."""
        return (*self.makers, *self.carried, *self.readers)

    def step(self, round_to: int) -> int:
        """Return the fewest channels that are a multiple of `round_to` filters wherever they are made and carried.

        A channel that is a whole convolution group is several filters, maybe other numbers before and behind it.
        """
        carried = (part for part in self.carried if part.tensor.endswith(".weight"))
        filters = {len(part.positions[0]) for part in (*self.makers, *carried)} or {1}
        return math.lcm(*(round_to // math.gcd(round_to, of_one) for of_one in filters))

    def filters(self, model: nn.Module) -> Tensor:
        """Return the weights that make each channel, side by side, `[channels, weights]`; perhaps a view of them."""
        return _rows(self.makers, model)

    def read_weights(self, model: nn.Module) -> Tensor:
        """Return the weights that read each channel, side by side, `[channels, weights]`; perhaps a view of them."""
        return _rows(self.readers, model)


def _rows(slices: tuple[Slice, ...], model: nn.Module) -> Tensor:
    rows = []
    for part in slices:
        weight = effective(model, part.tensor).movedim(part.axis, 0)
        in_order = all(position == (index,) for index, position in enumerate(part.positions))
        if not in_order or len(part.positions) != len(weight):
            weight = weight[torch.tensor(part.positions, device=weight.device)]
        rows.append(weight.flatten(1))
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """Return the parameter or buffer with a qualified name."""
    owner, _, leaf = name.rpartition(".")
    tensor = getattr(model.get_submodule(owner), leaf)
    assert isinstance(tensor, Tensor), name
    return tensor


ALL_AT_ONCE = "they can only be removed all at once"


@dataclass(frozen=True, slots=True)
class Pinned:
    """Channels that no cut may touch, and why.

    Attributes:
        layer: the first that makes them.
        width: how many there are.
        reason: why.
        parts: filters that make them, and what is carried along, as of a `ChannelGroup`.
    """

    layer: str
    width: int
    reason: str
    parts: tuple[Slice, ...] = ()


@dataclass(frozen=True)
class ChannelGroups(Mapping[str, ChannelGroup]):
    """Every group of a network by name, in the order of the graph; plain data, no reference to the network.

    Attributes:
        groups: what can be cut.
        pinned: what cannot, and why.
        front_end: what traced the network.
        thinned: the grouped convolutions whose groups are thinned; those of all others are removed whole.
        thinnable: all that can be thinned, in the order of the graph.
    """

    groups: tuple[ChannelGroup, ...]
    pinned: tuple[Pinned, ...] = ()
    front_end: str = field(default="torch.fx", compare=False)
    thinned: tuple[str, ...] = ()
    thinnable: tuple[str, ...] = ()
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
        """16 hex digits that two networks share if their groups have equal names and widths, and are cut alike."""
        told = [self.widths, self.thinned] if self.thinned else self.widths
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

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
    axes = _Axes(sorted(lineage.notes(), key=lambda note: note.role is not Role.MAKER))  # the order of the makers
    reasons, coupled = lineage.pinned(), lineage.coupled()
    groups: dict[str, ChannelGroup] = {}
    pinned: list[Pinned] = []
    for channels in axes.alike(list(reasons)):
        parts = axes.parts(channels)
        makers, carried, readers, mixed = (tuple(parts[role]) for role in Role)
        if not makers:
            continue
        reason = reasons.get(int(channels[0]))
        if reason is None and len(channels) > 1 and readers:
            name = _free_name(layer_of(makers[0].tensor), groups)
            ties = bool(np.isin(channels, coupled).any())
            groups[name] = ChannelGroup(name, len(channels), ties, makers, carried, readers, mixed=mixed)
            continue
        why = reason or ("nothing reads them" if not readers else ALL_AT_ONCE)
        pinned.append(Pinned(layer_of(makers[0].tensor), len(channels), why, (*makers, *carried)))
    thinnable = tuple(dict.fromkeys(lineage.thinnable))
    thinned = tuple(sorted(filter(lineage.thins, thinnable)))
    return ChannelGroups(tuple(groups.values()), tuple(pinned), lineage.front_end, thinned, thinnable)


def _free_name(layer: str, taken: Mapping[str, ChannelGroup]) -> str:
    """Return a name for a group: a layer whose channels go separate ways makes several."""
    names = (layer if number == 1 else f"{layer}#{number}" for number in count(1))
    return next(name for name in names if name not in taken)


Ids = npt.NDArray[np.int64]
Positions = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class _Places:
    """The channels that sit on an axis, ascending; how often each; and their positions, channel by channel."""

    channels: Ids
    counts: Ids
    starts: Ids
    order: Ids

    @classmethod
    def of(cls, ids: Ids) -> _Places:
        order = np.argsort(ids, kind="stable")
        order = order[ids[order] != FIXED]
        channels, starts, counts = np.unique(ids[order], return_index=True, return_counts=True)
        return cls(channels, counts, starts, order)

    def positions(self, channels: Ids) -> Ids:
        """Return the positions of channels that sit there equally often, `[channels, positions of one]`."""
        which = np.searchsorted(self.channels, channels)
        return self.order[self.starts[which][:, None] + np.arange(self.counts[which[0]])]


class _Axes:
    """Every axis that channels sit on. Many are alike, as those of a batch norm's tensors: they are looked at once."""

    def __init__(self, notes: Sequence[Note]) -> None:
        numbers: dict[bytes, int] = {}
        self._notes = notes
        self._of_number: dict[int, list[int]] = {}
        for index, note in enumerate(notes):
            self._of_number.setdefault(numbers.setdefault(note.ids.tobytes(), len(numbers)), []).append(index)
        self._places = [_Places.of(np.frombuffer(ids, np.int64)) for ids in numbers]
        self._positions: dict[bytes, Positions] = {}

    def alike(self, reasons: Sequence[int]) -> Iterator[Ids]:
        """Yield channels that sit on the same axes, equally often, all free or all pinned; as they come up."""
        size = 1 + max((int(axis.channels.max(initial=FIXED)) for axis in self._places), default=FIXED)
        kinds, first, seen = np.zeros(size, np.int64), np.full(size, -1), 0
        for axis in self._places:
            _refine(kinds, axis.channels, axis.counts)
            new = first[axis.channels] < 0
            first[axis.channels[new]] = seen + axis.order[axis.starts[new]]
            seen += len(axis.order)
        stuck = np.array([channel for channel in reasons if channel < size], np.int64)
        _refine(kinds, stuck, np.zeros_like(stuck))
        channels = np.flatnonzero(first >= 0)
        channels = channels[np.argsort(first[channels])]
        _, begins, members = np.unique(kinds[channels], return_index=True, return_inverse=True)
        together = np.split(channels[np.argsort(members, kind="stable")], np.cumsum(np.bincount(members))[:-1])
        self._where: dict[int, list[int]] = {}
        for number, axis in enumerate(self._places):
            for kind in np.unique(kinds[axis.channels]).tolist():
                self._where.setdefault(kind, []).append(number)
        self._kinds = kinds
        for number in np.argsort(begins).tolist():
            yield together[number]

    def parts(self, channels: Ids) -> dict[Role, list[Slice]]:
        """Return where channels that are alike sit, by role."""
        found: dict[int, Positions] = {}
        for number in self._where[int(self._kinds[channels[0]])]:
            found |= dict.fromkeys(self._of_number[number], self._positions_of(number, channels))
        parts: dict[Role, list[Slice]] = {role: [] for role in Role}
        for index in sorted(found):
            note = self._notes[index]
            parts[note.role].append(Slice(note.tensor, note.axis, found[index]))
        return parts

    def _positions_of(self, number: int, channels: Ids) -> Positions:
        """Return positions; equal ones are one object."""
        table = self._places[number].positions(channels)
        key = table.shape[1].to_bytes(8, "little") + table.tobytes()
        if key not in self._positions:
            self._positions[key] = tuple(map(tuple, table.tolist()))
        return self._positions[key]


def _refine(kinds: Ids, channels: Ids, counts: Ids) -> None:
    """Give some channels new kinds, equal where kinds and counts were."""
    pairs = kinds[channels] * (1 + int(counts.max(initial=0))) + counts
    kinds[channels] = kinds.max(initial=0) + 1 + np.unique(pairs, return_inverse=True)[1]
