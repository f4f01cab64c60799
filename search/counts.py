"""What was made of what trials share, and what was there: each process notes its own, the driver adds up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from filelock import FileLock

from search.reading import json_lines
from search.unwritten import going_without

Event = tuple[str, str, bool]
"""Kind, key, and whether it was made now; else it was found."""

_WORDS = {"rankings": ("ranking", "made"), "auxiliary": ("set of heads", "trained")}

_note: ContextVar[Callable[[Event], None]] = ContextVar("note", default=lambda _: None)


@contextmanager
def counting(note: Callable[[Event], None]) -> Iterator[None]:
    """Tell `note` of everything that this thread makes or finds."""
    token = _note.set(note)
    try:
        yield
    finally:
        _note.reset(token)


def note(kind: str, key: str, *, made: bool) -> None:
    """Tell whoever counts that something was made, or found."""
    _note.get()((kind, key, made))


class Counts:
    """How much of each kind was made, and how much was there before."""

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self.events = list(events)

    def made(self, kind: str) -> list[str]:
        """Return the keys of what was made, sorted, each as often as it was made."""
        return sorted(key for of, key, made in self.events if made and of == kind)

    def found(self, kind: str) -> list[str]:
        """Return the keys of what was there and never made, sorted."""
        return sorted({key for of, key, _ in self.events if of == kind}.difference(self.made(kind)))

    def to_json(self) -> str:
        """Return the keys by kind."""
        kinds = sorted({kind for kind, _, _ in self.events})
        return json.dumps({kind: {"made": self.made(kind), "found": self.found(kind)} for kind in kinds}, indent=2)

    def __str__(self) -> str:
        return "; ".join(filter(None, (self._written(kind) for kind in _WORDS))) or "none"

    def _written(self, kind: str) -> str:
        what, done = _WORDS[kind]
        made, found = len(self.made(kind)), len(self.found(kind))
        parts = [f"{_plural(made, what)} {done}"] if made else []
        if found:
            parts.append(f"{found if made else _plural(found, what)} found in the cache")
        return ", ".join(parts)


def append_events(path: Path, events: Iterable[Event]) -> None:
    """Add events to a file that several processes write, from several machines, too; go on where it has no room."""
    lines = "".join(f"{json.dumps(event)}\n" for event in events)
    if not lines:
        return
    lacking, lock = going_without(f"{path.name} lacks some of what was made or found"), path.with_suffix(".lock")
    with lacking, FileLock(lock), path.open("a", encoding="utf-8") as file:
        file.write(f"\n{lines}")  # the line break in front ends a line that was torn


@contextmanager
def counting_into(path: Path) -> Iterator[None]:
    """Add everything that this thread makes or finds to a file, at once: a process may die."""
    with counting(lambda event: append_events(path, [event])):
        yield


def read_events(path: Path) -> list[Event]:
    """Return the events in a file, none where there is no file; a line that a crash tore is left out."""
    return [(str(event[0]), str(event[1]), bool(event[2])) for event in json_lines(path) if _is_event(event)]


def _is_event(event: Any) -> bool:
    return isinstance(event, list) and len(event) == 3


def _plural(count: int, what: str) -> str:
    first, *rest = what.split(" ")
    return " ".join([f"{count} {first}{'' if count == 1 else 's'}", *rest])
