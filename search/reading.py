"""Read what may come from anybody: no more than so much of it, and every fault in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pruning import MALFORMED, PruningError, parse_json, read_bytes
from search.errors import SearchError

LARGEST_EXPERIMENT = 2**20
"""Bytes of an experiment file."""

MOST_NODES = 10**5
"""Values of an experiment file, those that aliases repeat counted each time."""

LARGEST_JSON = 2**26
"""Bytes of any other file that is read as a whole."""

LONGEST_LINE = 2**26
"""Bytes of a line in a journal, an outbox or the like."""

LARGEST_WIDTH = 2**24
"""Channels of a group."""


def read_text(path: Path, most: int, error: type[SearchError]) -> str:
    """Return a text file.

    Raises:
        SearchError: of the type `error`: it has more bytes than `most`.
        OSError, UnicodeDecodeError: it cannot be read.
    """
    return read_bytes(path, most, error).decode("utf-8")


def read_json(path: Path, error: type[SearchError]) -> Any:
    """Return what a JSON file says.

    Raises:
        SearchError: of the type `error`: too large, or no JSON.
        OSError: it cannot be read.
    """
    try:
        return parse_json(read_text(path, LARGEST_JSON, error))
    except error:
        raise
    except ValueError as fault:
        raise error(f"{path}: expected JSON, got: {fault}") from None


def lines_of(file: BinaryIO, most: int = LONGEST_LINE) -> Iterator[tuple[bytes | None, int]]:
    """Yield each line with its length in bytes; None instead of one that is longer than `most`."""
    while line := file.readline(most + 1):
        if len(line) <= most:
            yield line, len(line)
            continue
        length = len(line)
        while line and not line.endswith(b"\n"):
            line = file.readline(most)
            length += len(line)
        yield None, length


def json_lines(path: Path) -> Iterator[Any]:
    """Yield what each line of a file says; nothing of one that a crash tore, and nothing where there is no file."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line, _ in lines_of(file):
            try:
                yield parse_json(line or b"")
            except ValueError:
                continue


@contextmanager
def well_formed(place: str, error: type[SearchError]) -> Iterator[None]:
    """Tell of data that are not what this program writes.

    Raises:
        SearchError: of the type `error`; the line begins with `place`.
    """
    try:
        yield
    except (SearchError, PruningError):
        raise
    except MALFORMED as fault:
        raise error(f"{place}: damaged: {type(fault).__name__}: {fault}") from fault
