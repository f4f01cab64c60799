"""What can be done without is not written where there is no room for it: work goes on, and one line says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from safetensors import SafetensorError

from pruning import CheckpointError
from search.errors import PlaceError

Tell = Callable[[str], None]
"""Takes one line; equal ones may come often."""

_tell: ContextVar[Tell] = ContextVar("tell", default=lambda _: None)


@contextmanager
def telling(listener: Tell) -> Iterator[None]:
    """Tell a listener of everything that this thread goes without."""
    token = _tell.set(listener)
    try:
        yield
    finally:
        _tell.reset(token)


def tell(line: str) -> None:
    """Tell whoever listens what is gone without: here, or in another process."""
    _tell.get()(line)


@contextmanager
def going_without(what: str, draft: Path | None = None) -> Iterator[None]:
    """Go on where something cannot be written, and tell of it.

    Args:
        what: is missing then, in words that are the same for all trials: equal lines are told once.
        draft: what is written; what has been written of it goes.
    """
    try:
        yield
    except (OSError, SafetensorError, CheckpointError, PlaceError) as error:
        if draft is not None:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
        tell(f"{what}: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Return what is wrong without the names of files: each trial has its own."""
    if isinstance(error, PlaceError):
        return str(error).partition(": ")[2]
    inner = error.__context__ if isinstance(error, CheckpointError) and error.__context__ else error
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return str(inner).rpartition("I/O error: ")[2].partition(" (os error")[0]
