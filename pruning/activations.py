"""What a network holds in memory while it runs, as functions of the widths of its channel groups."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import nn

from pruning.errors import GraphError
from pruning.groups import ChannelGroups
from pruning.inputs import Example
from pruning.lineage import EXPORT, FIXED, Lineage, Result, eval_graph, follow, results
from pruning.lineage.trace import by_export

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Activation:
    """A tensor that a network makes in eval mode and keeps from one operation of its graph to another.

    Attributes:
        place: the layer or the function that puts it out.
        first: the number of the operation that makes it.
        last: the number of the last one that needs it.
        nbytes: of one image, before any cut.
        channel_bytes: the groups whose channels lie in it, and what one channel takes.
    """

    place: str
    first: int
    last: int
    nbytes: int
    channel_bytes: tuple[tuple[str, int], ...]


def activations(model: nn.Module, groups: ChannelGroups, example_input: Example) -> list[Activation]:
    """Return all that a network makes of one image, in the order of the graph.

    Args:
        model: the network, or its skeleton.
        groups: its channel groups, or some of them.
        example_input: `[images, channels, height, width]`, or several inputs; only shapes and types matter.

    Raises:
        GraphError: the network cannot be traced for a single image, the groups are another's, or channels of a group
            take unequal shares.
    """
    lineage, graph = follow(model, example_input, thinned=groups.thinned)
    if lineage.front_end == EXPORT:  # the number of images is burned in, too: of one image there is another graph
        alone = eval_graph(model, example_input, [by_export])
        if [node.target for node in alone.graph.nodes] != [node.target for node in graph.graph.nodes]:
            raise GraphError(f"{type(model).__name__}: expected the same operations on one image as on two")
        partner = zip(graph.graph.nodes, alone.graph.nodes, strict=True)
        graph = replace(alone, ids={twin: graph.ids[node] for node, twin in partner if node in graph.ids})
    shares = _Shares(lineage, groups)
    return [shares.of(result) for result in results(graph, example_input)]


class _Shares:
    """Tells what the channels of each group take of a result."""

    def __init__(self, lineage: Lineage, groups: ChannelGroups) -> None:
        self._lineage, self._names = lineage, list(groups)
        self._members = [_channels(lineage, groups, name) for name in groups]
        self._group = np.full(len(lineage), -1)  # of what is FIXED or pinned: none
        for number, ids in enumerate(self._members):
            self._group[ids] = number

    def of(self, result: Result) -> Activation:
        """Return a result, told by group."""
        return Activation(result.place, result.first, result.last, result.nbytes, tuple(self._channel_bytes(result)))

    def _channel_bytes(self, result: Result) -> Iterator[tuple[str, int]]:
        ids = self._lineage.find(result.ids)
        places = np.bincount(ids[ids != FIXED], minlength=len(self._lineage))
        for number in np.unique(self._group[places.nonzero()]).tolist():
            if number < 0:
                continue
            share = places[self._members[number]] * result.nbytes
            if (share != share[0]).any() or share[0] % len(ids):
                raise GraphError(
                    f"memory: expected channels of equal size at '{result.place}', got channels of "
                    f"'{self._names[number]}' that differ"
                )
            yield self._names[number], int(share[0]) // len(ids)


def _channels(lineage: Lineage, groups: ChannelGroups, name: str) -> Ids:
    """Return the ids of a group's channels."""
    maker = groups[name].makers[0]
    noted, places = lineage.noted(maker.tensor, maker.axis), [positions[0] for positions in maker.positions]
    if noted is None or max(places) >= len(noted):
        raise GraphError(f"memory: expected groups of this network, got '{name}'")
    return lineage.find(noted.numpy()[places])
