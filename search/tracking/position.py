"""How far the lines of an outbox have been carried into a store."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from search.errors import SweepError
from search.passwords import without_password
from search.reading import read_json
from search.tracking.outbox import OUTBOX, first_start, read_lines

OFFSET = "mlflow-offset.json"


class Position:
    """A byte of the outbox that outlives the program; another store, or another sweep in the folder, begins at 0."""

    def __init__(self, folder: Path, uri: str, sweep_id: str) -> None:
        self._file, self._outbox = folder / OFFSET, folder / OUTBOX
        self._store = hashlib.sha256(f"{without_password(uri)} {sweep_id}".encode()).hexdigest()[:16]

    def read(self) -> int:
        """Return the byte after the last line that the store got; 0 if the outbox has lost that line in a crash."""
        try:
            memory = read_json(self._file, SweepError)
            offset = int(memory["offset"]) if memory["store"] == self._store else 0
            return offset if offset and self._ends_a_line(offset) else 0
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return 0

    def _ends_a_line(self, offset: int) -> bool:
        with self._outbox.open("rb") as file:
            file.seek(offset - 1)
            return file.read(1) == b"\n"

    def write(self, offset: int) -> None:
        """Remember it, whole or not at all."""
        draft = self._file.with_suffix(".draft")
        draft.write_text(json.dumps({"store": self._store, "offset": offset}), encoding="utf-8")
        draft.replace(self._file)


def waiting(folder: Path, uri: str) -> int:
    """Return how many lines a store has not got."""
    sweep = first_start(folder / OUTBOX)
    start = Position(folder, uri, sweep["sweep_id"]).read() if sweep else 0
    return sum(line is not None for line, _ in read_lines(folder / OUTBOX, start))
