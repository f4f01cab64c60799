"""Numbers that a network's code takes from its attributes: `x[:, : self.width]` can follow a cut, as `self.width` can.

While a network is traced its own integers are replaced by ones that remember their place, so that a literal of the
graph says where it comes from. A rule that sees channels counted by such a number notes it like an axis: a cut then
lowers the attribute. A call of the graph that makes something else of it pins it, and so does code that computes with
it: `self.width ** -0.5`, `self.width - self.part`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

_ENTRY = re.compile(r"(\w+)\[(\d+)\]")


class Attribute(int):
    """An integer attribute of a module, or a multiple or whole fraction of one.

    Attributes:
        place: qualified name, `stages.0.width`; of an entry of a list `stages.0.splits[1]`.
        parts: the attribute is so many times this number.
        times: this number is so many times the attribute.
        others: attributes by which it was multiplied or divided, which have to stay.
        computed: receives the place when code computes something else with the number.
    """

    place: str
    parts: int
    times: int
    others: frozenset[str]
    computed: set[str]

    def __new__(
        cls,
        value: int,
        place: str,
        computed: set[str],
        parts: int = 1,
        times: int = 1,
        others: frozenset[str] = frozenset(),
    ) -> Attribute:
        """Make a number that remembers where it comes from."""
        number = super().__new__(cls, value)
        number.place, number.parts, number.times, number.others = place, parts, times, others
        number.computed = computed
        return number

    def __floordiv__(self, other: Any) -> Any:
        if not isinstance(other, int) or other <= 0 or int(self) % other or self.times > 1:
            return self._number() // other
        others = self.others | _place_of(other)
        return Attribute(int(self) // other, self.place, self.computed, self.parts * int(other), 1, others)

    def __mul__(self, other: Any) -> Any:
        if not isinstance(other, int) or other <= 0 or self.parts > 1:
            return self._number() * other
        others = self.others | _place_of(other)
        return Attribute(int(self) * other, self.place, self.computed, 1, self.times * int(other), others)

    __rmul__ = __mul__

    def _number(self) -> int:
        """Return a plain number, for something that does not follow a cut."""
        self.computed.update(_place_of(self))
        return int(self)

    def __add__(self, other: Any) -> Any:
        return self._number() + other

    def __radd__(self, other: Any) -> Any:
        return other + self._number()

    def __sub__(self, other: Any) -> Any:
        return self._number() - other

    def __rsub__(self, other: Any) -> Any:
        return other - self._number()

    def __truediv__(self, other: Any) -> Any:
        return self._number() / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / self._number()

    def __rfloordiv__(self, other: Any) -> Any:
        return other // self._number()

    def __mod__(self, other: Any) -> Any:
        return self._number() % other

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        return pow(self._number(), other, modulo)

    def __neg__(self) -> int:
        return -self._number()

    def __float__(self) -> float:
        return float(self._number())

    def __deepcopy__(self, memo: Any) -> int:
        return int(self)

    def __reduce__(self) -> Any:
        return int, (int(self),)


def _place_of(number: int) -> frozenset[str]:
    return frozenset([number.place]) | number.others if isinstance(number, Attribute) else frozenset()


def mark(model: nn.Module, leaves: tuple[type[nn.Module], ...]) -> set[str]:
    """Replace the integers of modules whose code is followed, in place; 0 and 1 count no channels.

    Args:
        model: a copy that nobody else has.
        leaves: kinds of modules whose code is not followed.

    Returns:
        The places of attributes that code computes with; it fills as the code runs.
    """
    computed: set[str] = set()
    for layer, module in model.named_modules():
        if isinstance(module, leaves) or type(module).__module__.startswith("torch."):
            continue
        for name, value in list(vars(module).items()):
            place = f"{layer}.{name}" if layer else name
            if _counts(value):
                module.__dict__[name] = Attribute(value, place, computed)
            elif type(value) in (list, tuple) and value and all(type(entry) is int for entry in value):
                entries = [Attribute(n, f"{place}[{i}]", computed) if _counts(n) else n for i, n in enumerate(value)]
                module.__dict__[name] = type(value)(entries)
    return computed


def _counts(value: Any) -> bool:
    return type(value) is int and value > 1


def attributes_in(tree: Any) -> Iterator[Attribute]:
    """Yield every attribute in nested tuples, lists, dictionaries and slices."""
    if isinstance(tree, Attribute):
        yield tree
    elif isinstance(tree, slice):
        yield from attributes_in((tree.start, tree.stop, tree.step))
    elif isinstance(tree, dict):
        yield from attributes_in(tuple(tree.values()))
    elif isinstance(tree, (tuple, list)):
        for branch in tree:
            yield from attributes_in(branch)


def entry_of(leaf: str) -> tuple[str, int | None]:
    """Return name and entry of an attribute: of `splits[1]` the list and 1, of `width` itself and None."""
    entry = _ENTRY.fullmatch(leaf)
    return (entry[1], int(entry[2])) if entry else (leaf, None)


def attribute_of(owner: nn.Module, leaf: str) -> Any:
    """Return an attribute, or an entry of one: `width`, `splits[1]`."""
    name, entry = entry_of(leaf)
    return getattr(owner, name) if entry is None else getattr(owner, name)[entry]


def lower(owner: nn.Module, leaf: str, by: int) -> None:
    """Lower an integer attribute, or an entry of a list or tuple, which is replaced: others may hold it, too."""
    name, entry = entry_of(leaf)
    values = getattr(owner, name)
    lowered: Iterable[int] = () if entry is None else (v - by if i == entry else v for i, v in enumerate(values))
    setattr(owner, name, values - by if entry is None else type(values)(lowered))
