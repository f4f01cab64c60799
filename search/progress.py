"""The live view: a panel that redraws itself in a terminal, one line for each trial elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from search.config import Objective
from search.results import Metrics, State, TrialRecord
from search.standing import Standing
from search.units import WORDS, percent, written

ROWS, DRAWS_PER_SECOND = 10, 2
_COSTS: tuple[Objective, ...] = ("macs", "params", "latency_ms")


class LiveView:
    """Shows a sweep while it runs; as a context manager it leaves the terminal as it was, whatever happens.

    Args:
        total: trials of the sweep.
        baseline: the uncut network's metrics by name.
        objectives: of the sweep; they make the front.
        time_left: seconds in which trials are still proposed; None where nothing limits them.
        live: draw a panel if the output is a terminal; otherwise one line for each trial that ends.
        console: where to; standard output as it is now, so that it may be redirected while the view is open.
    """

    def __init__(
        self,
        total: int,
        baseline: Mapping[str, float],
        objectives: Sequence[Objective],
        *,
        time_left: Callable[[], float | None] = lambda: None,
        live: bool = True,
        console: Console | None = None,
    ) -> None:
        self._total, self._baseline, self._objectives = total, baseline, tuple(objectives)
        self._time_left = time_left
        self._console = console or Console(file=sys.stdout)
        self._standing, self._running = Standing(self._objectives, baseline), 0
        self._started, self._began = time.time(), time.monotonic()
        self._earlier: int | None = None
        self._told: set[int] = set()
        self._live: Live | None = None
        if live and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(
                console=self._console,
                get_renderable=self.panel,
                refresh_per_second=DRAWS_PER_SECOND,
                redirect_stdout=False,
            )

    def start(self) -> None:
        """Begin to draw, and to count the time."""
        self._started, self._began = time.time(), time.monotonic()
        if self._live is not None:
            self._live.start()

    def update(self, records: Iterable[TrialRecord], running: int) -> None:
        """Show what is new; trials that were shown as ended, or ended before the start, are not told again.

        Args:
            records: the trials that have changed, the first time all of them; others do no harm.
            running: how many run.
        """
        self._running = running
        ended = [record for record in records if record.state is not State.RUNNING and record.number not in self._told]
        self._standing = self._standing.plus(ended)
        if self._earlier is None:
            self._told = {record.number for record in ended if self._is_earlier(record)}
            self._earlier = len(self._told)
        for record in ended:
            if record.number not in self._told:
                self._told.add(record.number)
                if self._live is None:
                    self.note(self.line(record))

    def note(self, line: str) -> None:
        """Say something that belongs to no trial's end."""
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)

    def close(self) -> None:
        """Draw a last time and give the terminal back."""
        if self._live is not None:
            self._live.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def line(self, record: TrialRecord) -> str:
        """Return one trial that ended as a line of text."""
        count = f"[{len(self._told):>{len(str(self._total))}}/{self._total}] trial {record.number}"
        if record.state is State.FAILED or record.metrics is None:
            return f"{count}  failed: {record.error}"
        stopped = f"stopped after epoch {record.metrics.epoch}" if record.state is State.STOPPED else ""
        infeasible = "" if record.feasible else "beyond the limits"
        facts = [count, *self._facts(record.metrics), record.criterion, stopped, infeasible]
        return "  ".join([*filter(None, facts), _duration(record.seconds)]) + "   " + "  ".join(self._summary())

    def panel(self) -> RenderableType:
        """Return the panel as it stands now."""
        ended = self._standing.ended.total()
        bar = Table.grid(expand=True, padding=(0, 1))
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(ProgressBar(total=max(self._total, 1), completed=ended), f"{ended}/{self._total}")
        counts = Text("  ").join(self._counts())
        summary = "  ".join([*self._summary(), f"elapsed {_duration(time.monotonic() - self._began)}"])
        group = Group(bar, counts, Text(summary), self._table(), *self._failures())
        return Panel(group, title="prunesearch", border_style="dim")

    def _counts(self) -> Iterator[Text]:
        yield Text(f"{self._running} running")
        for state, style in ((State.FINISHED, ""), (State.STOPPED, ""), (State.FAILED, "red")):
            if count := self._standing.ended[state]:
                yield Text(f"{count} {state.value}", style)
        if self._standing.beyond:
            yield Text(f"{self._standing.beyond} beyond the limits")

    def _is_earlier(self, record: TrialRecord) -> bool:
        return record.started is not None and record.started + record.seconds < self._started

    def _summary(self) -> Iterator[str]:
        if self._standing.front:
            yield f"front {len(self._standing.front)}"
            yield f"hypervolume {self._standing.hypervolume:.3f}"
        ended = self._standing.ended.total()
        here, left, limit = ended - (self._earlier or 0), self._total - ended, self._time_left()
        if here > 0 and left > 0:
            seconds = (time.monotonic() - self._began) / here * left
            yield f"ETA {_duration(seconds if limit is None else min(seconds, limit))}"
        if limit is not None:
            yield f"time left {_duration(limit)}" if limit > 0 else "time is up"

    def _facts(self, metrics: Metrics) -> Iterator[str]:
        yield written("accuracy", metrics.accuracy)
        for name in _COSTS:
            if name == "macs" or name in self._objectives:
                unit = "" if name == "latency_ms" else f" {WORDS[name]}"
                yield f"{self._cost(metrics, name)}{unit}{self._share(metrics, name)}"

    def _cost(self, metrics: Metrics, name: Objective) -> str:
        value = getattr(metrics, name)
        return "" if value is None else written(name, value)

    def _share(self, metrics: Metrics, name: Objective) -> str:
        value, whole = getattr(metrics, name), self._baseline.get(name)
        return f" ({percent(value / whole)})" if value is not None and whole else ""

    def _table(self) -> Table:
        """Return the front with as much about each trial as fits the width."""
        asked = [name for name in _COSTS if name in self._objectives]
        more = [name for name in _COSTS if name in asked or name in ("macs", "params")]
        for costs, shares, criterion in ((more, True, True), (asked, True, True), (asked, False, True)):
            table = self._table_of(costs, shares=shares, criterion=criterion)
            if self._console.measure(table).maximum <= self._console.width - 4:  # the panel's border
                return table
        return self._table_of(asked, shares=False, criterion=False)

    def _table_of(self, costs: Sequence[Objective], *, shares: bool, criterion: bool) -> Table:
        """Return the most accurate part of the front, cheapest first, over the baseline."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        for name in ("trial", "accuracy", *(WORDS[name] for name in costs), *(["criterion"] if criterion else [])):
            table.add_column(name, justify="left" if name in ("trial", "criterion") else "right", no_wrap=True)
        members = self._standing.front
        shown = members[-max(3, min(ROWS, self._console.height - 14)) :]
        if len(shown) < len(members):
            table.add_row(f"{len(members) - len(shown)} cheaper", style="dim")
        for record in shown:
            assert record.metrics is not None
            metrics = record.metrics
            cells = [self._cost(metrics, name) + (self._share(metrics, name) if shares else "") for name in costs]
            names = [record.criterion] if criterion else []
            table.add_row(str(record.number), written("accuracy", metrics.accuracy), *cells, *names)
        known = {name: self._baseline.get(name) for name in ("accuracy", *costs)}
        table.add_row("baseline", *("" if value is None else written(name, value) for name, value in known.items()))
        table.rows[-1].style = "dim"
        return table

    def _failures(self) -> list[Text]:
        failed = self._standing.failures
        lines = [Text(f"trial {record.number}: {record.error}", style="red", no_wrap=True) for record in failed]
        for line in lines:
            line.overflow = "ellipsis"
        return lines


def _duration(seconds: float) -> str:
    """Return `0.4 s`, `12 s`, `1m40s` or `2h05m`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes}m{rest:02d}s" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"
