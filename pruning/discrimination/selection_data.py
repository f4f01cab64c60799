"""What DCP's passes over the images need: the values where a group's segment begins, kept where they fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pruning.lineage import Segment, Values

Data = Sequence[tuple[Tensor, Tensor]]
"""Images `[images, channels, height, width]` and labels `[images]`, in the type and place of the weights."""


@dataclass(frozen=True)
class Batch:
    """What one batch needs: the segment's boundary values, each reader's output in the baseline, the labels."""

    values: Values
    targets: Mapping[str, Tensor]
    labels: Tensor


class Inputs:
    """The batches as one group's segment needs them: kept where they fit, else made anew for each pass.

    Args:
        network: the segment of the network that is being cut.
        baseline: the same segment of the uncut one.
        data: the selection set.
        limit: bytes that the batches may take.
        before: the last group's inputs; what follows from them is not computed from the images again.
    """

    def __init__(
        self, network: Segment, baseline: Segment, data: Data, limit: float, before: Inputs | None = None
    ) -> None:
        self._network, self._baseline, self._data = network, baseline, data
        self._kept: list[tuple[Batch, Values]] | None = []
        held = 0
        for number in range(len(data)):
            batch, values = self._made(number, before)
            held += sum(_bytes(tensors) for tensors in (batch.values, batch.targets, values))
            if held > limit:
                self._kept = None
                return
            self._kept.append((batch, values))

    def __len__(self) -> int:
        return len(self._data)

    @property
    def images(self) -> int:
        """How many images there are."""
        return sum(len(labels) for _, labels in self._data)

    def __iter__(self) -> Iterator[Batch]:
        for number in range(len(self._data)):
            yield self._made(number, None)[0] if self._kept is None else self._kept[number][0]

    def _made(self, number: int, before: Inputs | None) -> tuple[Batch, Values]:
        images, labels = self._data[number]
        known = before._kept[number] if before is not None and before._kept is not None else None
        values = self._network.prefix(images, known and known[0].values)
        # The baseline sees its own input: its earlier groups are whole.
        whole = self._baseline.prefix(images, known and known[1])
        with torch.no_grad():
            return Batch(values, self._baseline.outputs(whole), labels), whole


def _bytes(values: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in values.values() if isinstance(value, Tensor))
