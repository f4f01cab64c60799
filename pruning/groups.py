"""Channel groups: channels that can only be removed together, and everything a cut of them touches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import count

import torch
from torch import Tensor, nn

from pruning.activations import Activations, Shares
from pruning.errors import GraphError, PolicyError, UnknownNameError, suggest
from pruning.lineage import FIXED, Lineage, Note, Role, follow, results


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
        pinned: what cannot.
        activations: what the network holds in memory for an image of the size on which the groups were found; None
            where nobody told, or the network does not take one image alone. Equal groups may have others.
    """

    groups: tuple[ChannelGroup, ...]
    pinned: tuple[Pinned, ...] = ()
    activations: Activations | None = field(default=None, repr=False, compare=False)
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
        return ChannelGroups(
            tuple(group for group in self.groups if group.name in chosen), self.pinned, self.activations
        )

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


def find_groups(model: nn.Module, example_input: Tensor) -> ChannelGroups:
    """Follow the channels of `model` and fold them into named groups. The model is left as found.

    Args:
        model: any network that torch.fx can trace; frozen parameters and train or eval mode change nothing.
        example_input: `[images, channels, height, width]`, only its shape and type matter.

    Raises:
        GraphError: the network cannot be traced.
    """
    lineage, graph = follow(model, example_input)
    try:
        held = results(graph, example_input)
    except GraphError:  # it takes no single image
        return fold(lineage)[0]
    groups, members = fold(lineage)
    shares = Shares(lineage.roots(), members)
    made = tuple(map(shares.of, held))
    return replace(groups, activations=Activations(tuple(example_input.shape[1:]), example_input.dtype, made))


def fold(lineage: Lineage) -> tuple[ChannelGroups, dict[str, list[int]]]:
    """Fold lineage into groups: channels that the same layers make, carry and read, the same number of times.

    Returns:
        The groups, and the channels of each.
    """
    notes = list(lineage.notes())
    places = _places(notes)
    alike: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for channel, where in places.items():
        alike.setdefault(tuple((index, len(found)) for index, found in where.items()), []).append(channel)
    reasons, coupled = lineage.pinned(), lineage.coupled()
    groups: list[ChannelGroup] = []
    members: dict[str, list[int]] = {}
    pinned: list[Pinned] = []
    for channels in alike.values():
        makers = [notes[index] for index in places[channels[0]] if notes[index].role is Role.MAKER]
        if not makers:
            continue
        reason = next((reasons[channel] for channel in channels if channel in reasons), None)
        readers = any(notes[index].role is Role.READER for index in places[channels[0]])
        if reason is None and len(channels) > 1 and readers:
            groups.append(_group(channels, notes, places, coupled, {group.name for group in groups}))
            members[groups[-1].name] = channels
            continue
        why = reason or ("nothing reads them" if not readers else "they can only be removed all at once")
        pinned.append(Pinned(_layer(makers[0].tensor), len(channels), why))
    return ChannelGroups(tuple(groups), tuple(pinned)), members


Places = dict[int, dict[int, tuple[int, ...]]]
"""Channel → note → its positions on that axis. Tuples: a list for each would keep the garbage collector busy."""


def _places(notes: list[Note]) -> Places:
    """Return where each channel sits; channels in the order of the makers."""
    places: Places = {}
    for index in sorted(range(len(notes)), key=lambda index: notes[index].role is not Role.MAKER):
        for position, channel in enumerate(notes[index].ids.tolist()):
            if channel != FIXED:
                where = places.setdefault(channel, {})
                where[index] = (*where.get(index, ()), position)
    return places


def _group(
    channels: list[int],
    notes: list[Note],
    places: Places,
    coupled: set[int],
    taken: set[str],
) -> ChannelGroup:
    parts: dict[Role, list[Slice]] = {role: [] for role in Role}
    for index in places[channels[0]]:
        note = notes[index]
        positions = tuple(places[channel][index] for channel in channels)
        parts[note.role].append(Slice(note.tensor, note.axis, positions))
    name = first = _layer(parts[Role.MAKER][0].tensor)
    for number in count(2):  # a layer whose channels go separate ways makes several groups
        if name not in taken:
            break
        name = f"{first}#{number}"
    return ChannelGroup(
        name=name,
        width=len(channels),
        coupled=any(channel in coupled for channel in channels),
        makers=tuple(parts[Role.MAKER]),
        carried=tuple(parts[Role.CARRIED]),
        readers=tuple(parts[Role.READER]),
    )


def _layer(tensor: str) -> str:
    return tensor.rpartition(".")[0]
