"""Optuna's journal file as one driver keeps it: what one event says goes to the disk at once."""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Container, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState

from pruning import parse_json
from search.errors import SweepError
from search.reading import LONGEST_LINE, lines_of, well_formed

_CREATE_TRIAL, _SET_STUDY_ATTRIBUTE = 4, 2  # Optuna's codes of operations
_PIECE = 1 << 16


class Journal(BaseJournalBackend):
    """Reads and appends the lines of a study's journal, for one storage.

    Optuna's own backend locks, opens and waits for the disk with every line, some forty times a trial. Here the lines
    written `at_once` reach the disk in one write and one wait. A crash may tear the last line; the next write drops it.
    There is no lock: a sweep has one driver.

    Args:
        path: of the file; made with the first line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines, self._bytes = 0, 0  # handed out; the bytes are those on the disk
        self._held: list[bytes] = []  # lines that are not on the disk yet
        self._told = 0  # how many of them were handed out
        self._depth = 0
        self._mended = False
        self._created = 0
        self._changed: set[int] = set()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Hold all lines until the outermost block ends, however it ends."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self._write()

    def take_changed(self) -> set[int]:
        """Return the numbers of the trials that lines handed out since the last call speak of."""
        changed, self._changed = self._changed, set()
        return changed

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append lines.

        Raises:
            OSError: the disk is full or gone; the lines are kept for the next attempt.
            SweepError: another process writes to the journal.
        """
        self._held += [json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs]
        self._write()

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the lines from one on that have not been handed out yet; a torn last line is none.

        Raises:
            SweepError: a line that is no JSON.
        """
        if log_number_from != self._lines:
            raise ValueError(f"journal {self._path}: expected to go on from line {self._lines}, got {log_number_from}")
        yield from self._on_disk()
        while self._told < len(self._held):
            log = json.loads(self._held[self._told], object_pairs_hook=_with_shared_names)
            self._told += 1
            yield self._noted(log)

    def _on_disk(self) -> Iterator[dict[str, Any]]:
        if not self._path.exists() or self._path.stat().st_size == self._bytes:
            return
        with self._path.open("rb") as file:
            file.seek(self._bytes)
            for line, length in lines_of(file):
                if line is None:
                    most = f"expected at most {LONGEST_LINE:,} bytes, got {length:,}"
                    raise SweepError(f"journal {self._path}: line {self._lines + 1}: {most}")
                if not line.endswith(b"\n"):
                    return
                log = self._parsed(line)
                self._bytes += length
                with well_formed(f"journal {self._path}: line {self._lines + 1}", SweepError):
                    noted = self._noted(log)
                yield noted

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            log: dict[str, Any] = parse_json(line, object_pairs_hook=_with_shared_names)
        except ValueError as error:
            raise SweepError(f"journal {self._path}: line {self._lines + 1}: expected JSON, got: {error}") from None
        return log

    def _noted(self, log: dict[str, Any]) -> dict[str, Any]:
        self._lines += 1
        if log["op_code"] == _CREATE_TRIAL:
            self._changed.add(self._created)
            self._created += 1
        elif "trial_id" in log:
            self._changed.add(log["trial_id"])  # the only study's: an id is a number
        elif log["op_code"] == _SET_STUDY_ATTRIBUTE:  # `error:7` is about trial 7
            self._changed |= {int(number) for key in log["user_attr"] if (number := key.rpartition(":")[2]).isdigit()}
        return log

    def _write(self) -> None:
        if self._depth or not self._held:
            return
        try:
            self._append()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        self._bytes += sum(map(len, self._held[: self._told]))
        self._held, self._told = [], 0

    def _append(self) -> None:
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = self._mended_size(file)
            if self._told and size != self._bytes:
                raise SweepError(f"journal {self._path}: expected one writer, found lines of another")
            _write_whole(file, b"".join(self._held), size)
        finally:
            os.close(file)

    def _mended_size(self, file: int) -> int:
        """Drop a last line that was torn, by a full disk or a power cut, and return the size of the file."""
        size = os.fstat(file).st_size
        if not self._mended:
            with self._path.open("rb") as reader:
                size = _end_of_lines(reader, size)
            os.ftruncate(file, size)
            self._mended = True
        return size


class Storage(JournalStorage):
    """Optuna's journal storage, which does not look at every trial for those that have not ended.

    For a journal with one study: its trials have the ids 0, 1, ….
    """

    def __init__(self, journal: Journal) -> None:
        super().__init__(journal)
        self._journal = journal
        self._open: list[int] = []
        self._seen = 0

    def at_once(self) -> AbstractContextManager[None]:
        """Keep what is said until the outermost block ends, in one piece."""
        return self._journal.at_once()

    def take_changed(self) -> set[int]:
        """Return the numbers of the trials that have changed since the last call, at first all."""
        return self._journal.take_changed()

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials in some states, or all, by number."""
        if states is None or any(state in states for state in TrialState if state.is_finished()):
            return super().get_all_trials(study_id, deepcopy, states)
        with self._thread_lock:
            self._sync_with_backend()
            known = self._replay_result._trials
            trials = [known[number] for number in (*self._open, *range(self._seen, len(known)))]
            self._seen = len(known)
        self._open = [trial._trial_id for trial in trials if not trial.state.is_finished()]
        found = [trial for trial in trials if trial.state in states]
        return copy.deepcopy(found) if deepcopy else found


def _with_shared_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dictionary whose keys are the same strings in all of them: thousands of trials name the same things."""
    return {sys.intern(name): sys.intern(value) if name == "param_name" else value for name, value in pairs}


def _end_of_lines(file: BinaryIO, size: int) -> int:
    """Return the byte after the last line that is whole."""
    end = size
    while end:
        begin = max(0, end - _PIECE)
        file.seek(begin)
        if (found := file.read(end - begin).rfind(b"\n")) >= 0:
            return begin + found + 1
        end = begin
    return 0


def _write_whole(file: int, data: bytes, size: int) -> None:
    """Append to a file of a given size and wait for the disk; leave the file as it was if that fails."""
    try:
        written = os.write(file, data)
        while written < len(data):
            written += os.write(file, data[written:])
        os.fsync(file)
    except BaseException:
        os.ftruncate(file, size)
        raise
