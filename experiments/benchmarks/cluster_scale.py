"""How large a cluster one driver keeps busy: a thousand workers and a hundred thousand trials, simulated.

    python experiments/benchmarks/cluster_scale.py --trials 100000 --workers 1000
    python experiments/benchmarks/cluster_scale.py --trials 10000 --sampler random

There is no Ray, and nobody sleeps: an event queue says whose epoch ends next. Trials of ResNet-56, 27 searched
widths, report after the cut and after each of nine epochs; all last differently long (log-normal). Searcher, scheduler,
watcher, MLflow's outbox and the view are called as Tune would; MLflow's thread writes into a SQLite file meanwhile. A
line is printed as often as so many trials have ended; its costs are those of the trials since the line before, and its
resume is what a new process takes to read the journal.

Milliseconds are of a thread's processor time, so they hold beside other programs. The driver never waits here, which it
does in a sweep: MLflow falls behind. At the end it gets a while alone.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import multiprocessing
import os
import random
import sqlite3
import tempfile
import threading
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from mlflow_tracking import invented
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from rich.console import Console
from sweep_overhead import make_inputs, make_space, megabytes, proposers

from pruning import Policy
from search.config import Experiment
from search.guide import guide_of
from search.inputs import Inputs
from search.progress import LiveView
from search.rankings import rank_all
from search.scheduler import scheduler_of
from search.searcher import StudySearcher
from search.study import create_study
from search.tracking import Tracker
from search.tracking.outbox import OUTBOX
from search.tracking.place import set_environment, store_uri
from search.watcher import Watcher

EPOCHS, SPREAD = 9, 0.6
LINES = (100, 1_000, 10_000, 30_000, 100_000)
MINUTES = (1, 5, 30, 120)
PARTS = ("searcher", "scheduler", "watcher", "view")
TABLES = ("runs", "params", "tags", "metrics")


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    set_environment()
    print(f"load average before: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        simulate(arguments, Path(folder))


def parse_arguments() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--sampler", default="tpe", choices=["random", "tpe", "nsga2"])
    parser.add_argument("--surrogate", action="store_true", help="it makes its share of the proposals")
    parser.add_argument("--scheduler", default="pareto_asha", choices=["pareto_asha", "none"])
    parser.add_argument("--no-mlflow", dest="mlflow", action="store_false")
    parser.add_argument("--alone", type=float, default=60, help="seconds that MLflow gets at the end")
    parser.add_argument(
        "--tune", type=float, default=0, help="ms a trial that Tune takes besides, see sweep_overhead.py"
    )
    parser.add_argument("--folder", type=Path, help="where the sweep's files go for a while")
    parser.set_defaults(study=None)
    return parser.parse_args()


def asked(arguments: Namespace, folder: Path) -> Inputs:
    inputs = make_inputs(Namespace(**vars(arguments), jobs=arguments.workers), folder)
    search = inputs.experiment.search.model_dump(mode="json") | {"scheduler": arguments.scheduler}
    changes = {
        "search": type(inputs.experiment.search).model_validate(search),
        "recipe": inputs.experiment.recipe.model_copy(update={"epochs": EPOCHS}),
    }
    return replace(inputs, experiment=inputs.experiment.model_copy(update=changes))


# ── the simulation ───────────────────────────────────────────────────────────────────────────────────────────────────


def simulate(arguments: Namespace, folder: Path) -> None:
    inputs = asked(arguments, folder)
    experiment, baseline = inputs.experiment, inputs.baseline.to_dict()
    create_study(experiment.folder, experiment)
    if arguments.surrogate:
        inputs = replace(inputs, rankings=rank_all(inputs))
    space, spent = make_space(inputs), Spent()
    searcher = StudySearcher(experiment.folder, experiment, space, baseline, guide_of(inputs, space))
    scheduler = scheduler_of(experiment, baseline, [])
    tracker = Tracker(experiment.folder, experiment, patience_s=arguments.alone)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        view = LiveView(arguments.trials, baseline, experiment.objectives, console=Console(file=nowhere))
        with spent.inside(LiveView, "update", "view"), tracker, view:
            tracker.start(baseline, inputs.groups.widths)
            sweep = Sweep(searcher, scheduler, Watcher(searcher, tracker, view), inputs, spent)
            store = Store(experiment)
            print_head(arguments)
            before = Moment.now(sweep, spent, store)
            for moment in moments(sweep, arguments, spent, store):
                row = Row(before, moment, experiment.folder, *resumed(searcher))
                print(row, flush=True)
                before = moment
            print_store(store, store.alone(arguments.alone))
    print_sizes(row, arguments.tune)


class Sweep:
    """Workers that take trials, and Tune's calls in the order of simulated time."""

    def __init__(
        self, searcher: StudySearcher, scheduler: TrialScheduler, watcher: Watcher, inputs: Inputs, spent: Spent
    ) -> None:
        self._searcher, self._scheduler, self._watcher, self._inputs = searcher, scheduler, watcher, inputs
        self._spent, self._random = spent, random.Random(0)
        self._queue: list[tuple[float, int, Iterator[float]]] = []
        self._order = itertools.count()
        self._controller = Controller()
        self.launched = self.ended = self.reports = 0

    def run(self, workers: int, ended: int) -> None:
        """Go on until so many trials have ended, with so many workers busy."""
        now = self._queue[0][0] if self._queue else 0.0
        while self.ended < ended:
            while len(self._queue) < workers and self._launch(now):
                pass
            now, _, trial = heapq.heappop(self._queue)
            self._go_on(trial, now)

    def _launch(self, now: float) -> bool:
        name = f"trial{self.launched}"
        with self._spent.on("searcher", launch=True):
            config = self._searcher.suggest(name)
        if not isinstance(config, dict):
            return False
        self.launched += 1
        self._go_on(self._trial(name, config), now)
        return True

    def _go_on(self, trial: Iterator[float], now: float) -> None:
        with self._spent.on("scheduler"):
            self._scheduler.choose_trial_to_run(self._controller)  # type: ignore[arg-type]  # in each of Tune's steps
        lasts = next(trial, None)
        if lasts is not None:
            heapq.heappush(self._queue, (now + lasts, next(self._order), trial))

    def _trial(self, name: str, config: dict[str, Any]) -> Iterator[float]:
        """Yield how long each part of a trial takes."""
        trial = SimpleNamespace(trial_id=name, config=config, error_file=None, status=Trial.RUNNING)
        self._controller.add(trial)
        with self._spent.on("watcher", launch=True):
            self._watcher.on_trial_start(0, [], trial)
        policy, minutes = Policy.from_json(config["policy"]), self._random.lognormvariate(0, SPREAD)
        result: dict[str, Any] = {}
        for epoch in range(EPOCHS + 1):
            yield minutes / (EPOCHS + 1)
            result = invented(config["number"], policy, epoch, self._inputs)
            self.reports += 1
            with self._spent.on("scheduler"):
                decision = self._scheduler.on_trial_result(self._controller, trial, result)  # type: ignore[arg-type]
            if decision != TrialScheduler.STOP:
                with self._spent.on("searcher"):
                    self._searcher.on_trial_result(name, result)
            with self._spent.on("watcher"):
                self._watcher.on_trial_result(0, [], trial, result)
            if decision == TrialScheduler.STOP:
                break
        with self._spent.on("searcher"):
            self._searcher.on_trial_complete(name, result)
        with self._spent.on("watcher"):
            self._watcher.on_trial_complete(0, [], trial)
        self._controller.end(trial)
        self.ended += 1


class Controller:
    """What schedulers ask Tune's controller for."""

    def __init__(self) -> None:
        self._trials: list[Any] = []
        self._live: dict[str, Any] = {}

    def add(self, trial: Any) -> None:
        self._trials.append(trial)
        self._live[trial.trial_id] = trial

    def end(self, trial: Any) -> None:
        trial.status, trial.config = Trial.TERMINATED, None  # what Tune keeps of it is not measured here
        del self._live[trial.trial_id]

    def get_trials(self) -> list[Any]:
        return self._trials

    def get_live_trials(self) -> list[Any]:
        return list(self._live.values())


# ── what it costs ────────────────────────────────────────────────────────────────────────────────────────────────────


class Spent:
    """Seconds of the driver's thread by part, apart for launches; what lies inside another part is not that one's."""

    def __init__(self) -> None:
        self.seconds = Counter[tuple[str, bool]]()
        self._running: list[tuple[str, bool]] = []
        self._since = 0.0

    @contextmanager
    def on(self, part: str, *, launch: bool = False) -> Iterator[None]:
        self._charge()
        self._running.append((part, launch))
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        now = time.thread_time()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since  # type: ignore[assignment]  # seconds
        self._since = now

    @contextmanager
    def inside(self, owner: type, name: str, part: str) -> Iterator[None]:
        """Count a method that another part calls as a part of its own."""
        method = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.on(part, launch=self._running[-1][1]):
                return method(*args, **kwargs)

        with patch.object(owner, name, timed):
            yield


class Store:
    """MLflow's SQLite file, and the thread that writes into it."""

    def __init__(self, experiment: Experiment) -> None:
        self._enabled, self._outbox = experiment.tracking.enabled, experiment.folder / OUTBOX
        self._file = store_uri(experiment.folder, experiment.tracking.uri).removeprefix("sqlite:///")
        threads = [thread for thread in threading.enumerate() if thread.name == "mlflow-outbox"]
        self._clock = time.pthread_getcpuclockid(threads[0].ident) if threads and threads[0].ident else None

    @property
    def seconds(self) -> float:
        """Processor time of the thread."""
        return 0.0 if self._clock is None else time.clock_gettime(self._clock)

    def rows(self) -> Counter[str]:
        """Return how many rows the tables have."""
        if not self._enabled or not Path(self._file).exists():
            return Counter()
        with closing(sqlite3.connect(f"file:{self._file}?mode=ro", uri=True, timeout=300)) as database:
            there = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
            counts = {name: f"select count(*) from {name}" for name in TABLES if name in there}
            return Counter({name: database.execute(count).fetchone()[0] for name, count in counts.items()})

    def alone(self, seconds: float) -> tuple[Counter[str], float, float]:
        """Wait, and return the rows that came, the seconds, and the thread's processor time."""
        rows, busy, begin = self.rows(), self.seconds, time.perf_counter()
        if self._enabled:
            time.sleep(seconds)
        busy, elapsed = self.seconds - busy, time.perf_counter() - begin
        return self.rows() - rows, elapsed, busy


@dataclass(frozen=True)
class Moment:
    """How far the sweep is, and what it has cost."""

    ended: int
    launched: int
    reports: int
    parts: Mapping[tuple[str, bool], float]
    thread: float
    wall: float
    rows: Counter[str]
    megabytes: float

    @classmethod
    def now(cls, sweep: Sweep, spent: Spent, store: Store) -> Moment:
        rows = store.rows()
        return cls(
            sweep.ended,
            sweep.launched,
            sweep.reports,
            dict(spent.seconds),
            store.seconds,
            time.perf_counter(),
            rows,
            megabytes(),
        )


def moments(sweep: Sweep, arguments: Namespace, spent: Spent, store: Store) -> Iterator[Moment]:
    """Run the sweep and yield how it stands at each line."""
    for ended in sorted({line for line in LINES if line < arguments.trials} | {arguments.trials}):
        sweep.run(arguments.workers, ended)
        yield Moment.now(sweep, spent, store)


@dataclass(frozen=True)
class Row:
    """A line of the table: what trials cost between two moments, milliseconds a trial."""

    before: Moment
    after: Moment
    folder: Path
    resume: float
    resume_megabytes: float

    def of(self, part: str) -> float:
        return sum(
            1e3 * (self.after.parts.get((part, launch), 0.0) - self.before.parts.get((part, launch), 0.0)) / trials
            for launch, trials in ((True, self._more("launched")), (False, self._more("ended")))
            if trials
        )

    @property
    def driver(self) -> float:
        return sum(map(self.of, PARTS))

    @property
    def delivered(self) -> float:
        """Milliseconds of MLflow's thread for a trial's run."""
        runs = self.after.rows["runs"] - self.before.rows["runs"]
        return 1e3 * (self.after.thread - self.before.thread) / runs if runs else math.nan

    def _more(self, what: str) -> int:
        return int(getattr(self.after, what) - getattr(self.before, what))

    def __str__(self) -> str:
        ended, kilobytes = self.after.ended, {name: self._kilobytes(name) for name in ("study.journal", OUTBOX)}
        rows, seconds = (self.after.rows - self.before.rows).total(), self.after.wall - self.before.wall
        cells = [f"{ended:8}", *(f"{self.of(part):9.2f}" for part in PARTS), f"{self.driver:8.2f}"]
        cells += [f"{self._more('reports') / max(1, self._more('ended')):8.1f}", f"{self.delivered:8.1f}"]
        cells += [f"{rows / seconds:7.0f}", f"{self.after.launched - self.after.rows['runs']:8}"]
        cells += [f"{self.after.megabytes:6.0f}", *(f"{each:8.1f}" for each in kilobytes.values())]
        return " ".join([*cells, f"{self.resume:8.1f}", f"{self.resume_megabytes:6.0f}"])

    def _kilobytes(self, name: str) -> float:
        file = self.folder / name
        return file.stat().st_size / 1e3 / self.after.launched if file.exists() else 0.0


def resumed(searcher: StudySearcher) -> tuple[float, float]:
    """Return the processor time and the size of a new process that reads the journal."""
    with multiprocessing.get_context("spawn").Pool(1) as other:
        return other.apply(resume, (searcher,))


def resume(searcher: StudySearcher) -> tuple[float, float]:
    begin, before = time.process_time(), megabytes()
    records = searcher.records()
    scheduler_of(searcher._experiment, {"accuracy": 1.0}, records)
    return time.process_time() - begin, megabytes() - before


# ── the tables ───────────────────────────────────────────────────────────────────────────────────────────────────────


def print_head(arguments: Namespace) -> None:
    print(
        f"{proposers(arguments)}, {arguments.scheduler}, {arguments.workers} workers, {EPOCHS} epochs, MLflow "
        f"{'on' if arguments.mlflow else 'off'}; ms of processor time a trial; kB a trial on disk; MB of the process"
    )
    names = ["  trials", *(f"{part:>9}" for part in PARTS), f"{'driver':>8}", f"{'reports':>8}", f"{'MLflow':>8}"]
    names += [f"{'rows/s':>7}", f"{'behind':>8}", f"{'MB':>6}", f"{'journal':>8}", f"{'outbox':>8}"]
    print(" ".join([*names, f"{'resume s':>8}", f"{'MB':>6}"]), flush=True)


def print_store(store: Store, alone: tuple[Counter[str], float, float]) -> None:
    rows, elapsed, busy = alone
    if rows["runs"]:
        total, each = store.rows(), 1e3 / rows["runs"]
        print(
            f"MLflow alone, behind {total['runs']} runs and {total['metrics']} points: {rows.total() / elapsed:.0f} "
            f"rows a second, {each * elapsed:.1f} ms a run, {each * busy:.1f} ms of its thread"
        )


def print_sizes(row: Row, tune: float) -> None:
    """Print how many GPUs, one trial on each, are busy when one part of the driver's process always is."""
    delivered = 0.0 if math.isnan(row.delivered) else row.delivered
    limits: dict[str, Callable[[], float]] = {
        "driver": lambda: row.driver,
        "MLflow": lambda: delivered,
        "Tune": lambda: tune,
        "all": lambda: row.driver + delivered + tune,
    }
    print(f"after {row.after.ended} trials: GPUs at which each is busy all the time, by minutes of a trial")
    print(f"{'':>8} {'ms':>8} {'trials/h':>9}", *(f"{minutes:>7} m" for minutes in MINUTES))
    for name, milliseconds in limits.items():
        if (each := milliseconds() / 1e3) > 0:
            print(f"{name:>8} {1e3 * each:8.1f} {3600 / each:9.0f}", *(f"{60 * m / each:9.0f}" for m in MINUTES))


if __name__ == "__main__":
    main()
