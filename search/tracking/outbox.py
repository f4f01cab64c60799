"""A file of JSON lines between a sweep and MLflow: appended by one, read by the other, each at its own pace."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any

from pruning import parse_json
from search.reading import lines_of

OUTBOX = "mlflow-outbox.jsonl"

Line = dict[str, Any]


class Outbox:
    """Appends lines. Each is one write: it survives the end of the process, not that of the machine before `close`.

    A line that was cut short by a crash is closed first, so that it spoils no other; readers skip it.
    """

    def __init__(self, path: Path) -> None:
        self._torn = _ends_torn(path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def append(self, kind: str, **content: Any) -> None:
        """Append one line with the time of now.

        Raises:
            OSError: the disk is full or gone.
        """
        line = {"kind": kind, "time": int(1000 * time.time()), **content}
        data = json.dumps(line, default=str, separators=(",", ":")).encode() + b"\n"
        if self._torn:
            data = b"\n" + data
        self._torn = True  # until the write is known to be whole
        self._torn = os.write(self._file, data) != len(data)

    def close(self) -> None:
        """Wait until the disk has everything."""
        os.fsync(self._file)
        os.close(self._file)


def _ends_torn(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def read_lines(path: Path, start: int = 0) -> Iterator[tuple[Line | None, int]]:
    """Yield each whole line from byte `start` on, with the byte after it; None for one that is torn or too long."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(start)
        for data, length in lines_of(file):
            if data is not None and not data.endswith(b"\n"):
                return  # still being written, or torn for good
            start += length
            yield None if data is None else _parsed(data), start


def _parsed(data: bytes) -> Line | None:
    try:
        line = parse_json(data)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("kind"), str) else None


def first_start(path: Path) -> Line | None:
    """Return the line that began the sweep; None where there is none that can be read."""
    return next((line for line, _ in read_lines(path) if line and _is_start(line)), None)


def _is_start(line: Line) -> bool:
    texts = isinstance(line.get("sweep_id"), str) and isinstance(line.get("uri"), (str, NoneType))
    return line["kind"] == "start" and texts and isinstance(line.get("experiment"), dict)
