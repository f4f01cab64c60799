"""Carries the lines of an outbox into MLflow, in order, and remembers how far it came.

What was carried twice, because the memory is older than the last call, is there once: runs are found by their tags,
and MLflow keeps one of two metric points that agree in name, value, time and step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from search.tracking.ledger import Ledger
from search.tracking.outbox import OUTBOX, Line, first_start, read_lines
from search.tracking.place import reason_of
from search.tracking.position import Position
from search.tracking.runs import Runs, is_refusal
from search.tracking.writing import Writing

REPORTS_AT_ONCE = 200

_log = logging.getLogger(__name__)


class Delivery:
    """Brings one sweep's outbox to one MLflow store.

    Args:
        folder: the sweep's.
        uri: MLflow's tracking address.
    """

    def __init__(self, folder: Path, uri: str) -> None:
        self._folder, self._outbox, self._uri = folder, folder / OUTBOX, uri
        self._ledger = Ledger()
        self._end = 0
        self._writing: Writing | None = None

    def run(self, keep_going: Callable[[], bool] = lambda: True) -> None:
        """Carry every whole line; what is left when `keep_going` says no or MLflow fails comes first the next time.

        Raises:
            Exception: the store is not reachable, or whatever MLflow raises then.
        """
        sweep = first_start(self._outbox)
        if sweep is None:
            return
        position = Position(self._folder, self._uri, sweep["sweep_id"])
        if self._writing is None:
            self._writing = self._connect(sweep, position.read())
        for lines, end in self._blocks():
            if not keep_going():
                return
            self._carry(self._writing, lines)
            for line in lines:
                self._ledger.add(line)
            self._end = end
            position.write(end)

    def _carry(self, writing: Writing, lines: list[Line]) -> None:
        try:
            writing.write(lines)
        except Exception as error:
            if not is_refusal(error):
                raise
            _log.warning("MLflow refused an entry of %s: %s", self._outbox, reason_of(error))

    def _connect(self, sweep: Line, start: int) -> Writing:
        """Connect, and read what was carried before."""
        runs = Runs(self._uri, sweep["experiment"]["tracking"]["experiment"], sweep["sweep_id"])
        self._ledger, self._end = Ledger(begin=sweep), start
        for line, end in read_lines(self._outbox):
            if end > start:
                break
            if line is not None:
                self._ledger.add(line)
        return Writing(runs, sweep, self._ledger, self._folder)

    def _blocks(self) -> Iterator[tuple[list[Line], int]]:
        """Yield the lines to come, measurements that follow each other together, with the byte after them."""
        block: list[Line] = []
        position = self._end
        for line, end in read_lines(self._outbox, position):
            report = line is not None and line["kind"] == "trial_reported"
            if block and (not report or len(block) == REPORTS_AT_ONCE):
                yield block, position
                block = []
            if line is not None:
                block.append(line)
            if not report:
                yield block, end
                block = []
            position = end
        if block:
            yield block, position
