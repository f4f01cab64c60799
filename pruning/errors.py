"""The mistakes a caller can act on. Each message reads `place: expected …, got …`."""

from __future__ import annotations

import copyreg
import difflib
from collections.abc import Iterable
from typing import Any

LONGEST_LINE = 1000


class PruningError(ValueError):
    """A mistake in what was asked of the library, told in one line, however much of a file it quotes."""

    def __init__(self, message: str = "") -> None:
        super().__init__(in_one_line(message))


def in_one_line(text: str) -> str:
    """Return a text without line breaks, cut off where nobody reads on."""
    line = " ".join(text.splitlines())
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 1]}…"


class UnknownNameError(PruningError):
    """A name that no registry, network or policy has."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        super().__init__(f"unknown {kind} '{name}'{suggest(name, known)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return copyreg.__newobj__, (type(self), *self.args)  # type: ignore[attr-defined]  # from the message alone


class OptionError(PruningError):
    """An option that does not exist, or a value it cannot take."""


class PolicyError(PruningError):
    """A policy that cannot be read, or that was made for another network."""


class RankingError(PruningError):
    """A ranking that has no order for a group, or scores that are not finite."""


class GraphError(PruningError):
    """A network whose channels cannot be followed."""


class SurgeryError(PruningError):
    """A cut that cannot be made, or whose result is not the masked network."""


class CheckpointError(PruningError):
    """Weights that cannot be read safely or do not fit the network."""


class ExportError(PruningError):
    """A network that cannot be exported, or whose export is not the network."""


class DataError(PruningError):
    """Images that are missing, empty or do not fit."""


class ModelError(PruningError):
    """A network that cannot be built."""


def suggest(name: str, known: Iterable[str], shown: int = 12) -> str:
    """Return `; did you mean 'fpgm'?`, or what exists where nothing is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name[:LONGEST_LINE], names, n=1)
    if near:
        return f"; did you mean '{near[0]}'?"
    if not names:
        return "; there are none"
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"; there are: {', '.join(names[:shown])}{more}"
