"""Which channels are one, said a second time: by vectors of labels, one label a channel, and nothing of the engine's.

The engine follows tensors of ids through a traced graph. Here every operation of a random network says of itself what
it does with the labels of its inputs, whatever the sizes of the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

FIXED = -1
"""The label of what nobody can cut: the image, and the result of an operation that no rule follows."""

Channel = frozenset[tuple[str, int]]
"""Every filter of one channel: names of weights, and the filters' positions."""


class Labels:
    """Fresh labels where channels are made, united where they meet; for each tensor the labels along its axis.

    `thinned` names the convolutions whose groups each lose equally many channels.
    """

    def __init__(self, thinned: Sequence[str] = ()) -> None:
        self.thinned = thinned
        self.parents: list[int] = []
        self.pinned: set[int] = set()
        self.makers: dict[str, list[int]] = {}
        self.readers: dict[str, list[int]] = {}
        self.carriers: dict[str, list[int]] = {}
        self.made: dict[str, list[list[list[int]]]] = {}
        """Step → the labels of each of its outputs, each time that it runs."""

    def fresh(self, count: int) -> list[int]:
        start = len(self.parents)
        self.parents.extend(range(start, start + count))
        return list(range(start, start + count))

    def find(self, label: int) -> int:
        while label != FIXED and self.parents[label] != label:
            label = self.parents[label]
        return label

    def unite(self, first: Sequence[int], second: Sequence[int]) -> None:
        for a, b in zip(map(self.find, first), map(self.find, second), strict=True):
            if FIXED in (a, b):
                self.pin([a, b])
            elif a != b:
                self.parents[self.find(b)] = self.find(a)

    def tie(self, rows: Iterable[Sequence[int]]) -> None:
        """Unite all labels of each row."""
        for row in rows:
            for a, b in pairwise(row):
                self.unite([a], [b])

    def pin(self, labels: Iterable[int]) -> None:
        self.pinned.update(label for label in labels if label != FIXED)

    def refuse(self, labels: Sequence[int], results: int) -> list[int]:
        """Pin what no rule follows."""
        self.pin(labels)
        return [FIXED] * results

    def make(self, weight: str, count: int) -> list[int]:
        if weight not in self.makers:
            self.makers[weight] = self.fresh(count)
        return self.makers[weight]

    def read(self, weight: str, labels: Sequence[int]) -> None:
        self._lie(self.readers, weight, labels)

    def carry(self, tensor: str, labels: Sequence[int]) -> None:
        self._lie(self.carriers, tensor, labels)

    def _lie(self, table: dict[str, list[int]], tensor: str, labels: Sequence[int]) -> None:
        self.unite(table.setdefault(tensor, list(labels)), labels)

    def removable(self) -> set[Channel]:
        """Return every channel that is made and read, not pinned, and not the only such one of its kind."""
        kinds: dict[int, Counter[tuple[str, str]]] = {}
        filters: dict[int, set[tuple[str, int]]] = {}
        for role, table in (("makes", self.makers), ("reads", self.readers), ("carries", self.carriers)):
            for tensor, labels in table.items():
                for position, label in enumerate(map(self.find, labels)):
                    kinds.setdefault(label, Counter())[role, tensor] += 1
                    if role == "makes":
                        filters.setdefault(label, set()).add((tensor, position))
        pinned = set(map(self.find, self.pinned)) | {FIXED}
        read = {self.find(label) for labels in self.readers.values() for label in labels}
        alike = Counter(frozenset(kind.items()) for label, kind in kinds.items() if label not in pinned)
        return {
            frozenset(places)
            for label, places in filters.items()
            if label in read and label not in pinned and alike[frozenset(kinds[label].items())] > 1
        }
