"""Starts sweeps as one does from a terminal, ends their processes, and looks at what is left."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import tiny
from processes import has_ended, session, wait_for

from search.config import Experiment
from search.results import State
from search.sweep import Sweep
from search.tracking import default_uri, sync

HERE = Path(__file__).parent
TINY = Path(tiny.__file__).parent
PATH = [HERE.parents[1], TINY]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}
SET_STATE, ENDED = 6, (1, 2, 3)
"""Optuna's codes: the operation that ends a trial, and complete, pruned and failed."""


SECTIONS = {"recipe": {"epochs": 3, "batch_size": 50}, "resources": {"retries": 50}}
SEARCH = {"trials": 6, "seed": 2, "criterion": ["l1", "taylor", "hrank"]}
LONG = {"recipe": {"epochs": 10, "batch_size": 50}, "search": {"trials": 10}}
"""What makes a sweep so long that it can be disturbed often."""


def asked(folder, **more):
    """Return the experiment of these tests, in a folder."""
    search = {**SEARCH, **more.pop("search", {})}
    tracking = {"enabled": True} | more.pop("tracking", {})
    return tiny.experiment(folder / "storage", **{**SECTIONS, **more, "search": search, "tracking": tracking})


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Row:
    """What was done to sweeps of one kind, and what came of it."""

    fault: str
    how: str
    times: int = 0
    lost: int = 0
    doubled: int = 0


@dataclass
class Table:
    """Everything that was provoked in a session."""

    rows: dict[tuple[str, str], Row] = field(default_factory=dict)

    def add(self, fault, how, times, found):
        """Count what was found after a fault, and refuse what was lost or is there twice."""
        row = self.rows.setdefault((fault, how), Row(fault, how))
        row.times += times
        row.lost += len(found.lost)
        row.doubled += len(found.doubled)
        assert not found.lost
        assert not found.doubled


@dataclass
class Found:
    """What differs from the undisturbed sweep, in words."""

    lost: list[str]
    doubled: list[str]


# ── a sweep ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Place:
    """A folder with an experiment, the faults that its processes are to meet, and their output."""

    folder: Path
    experiment: Experiment
    environment: dict = field(default_factory=dict)
    wrapped: tuple = ()
    """What the command is started by, such as `nsenter`."""
    undisturbed: "Place | None" = None
    """Where nothing happens to the same experiment."""

    def __post_init__(self):
        for name in ("faults", "storage"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "tiny.yaml"
        self.file.write_text(self.experiment.to_yaml())

    @property
    def sweep(self):
        return self.experiment.folder

    def fault(self, place, who="worker", how="before", call=1, match=""):
        """Have the next process that comes to a place die there."""
        number = len(list((self.folder / "faults").iterdir()))
        told = {"place": place, "who": who, "how": how, "call": call, "match": match}
        (self.folder / "faults" / f"{number:03}.fault").write_text(json.dumps(told))

    @property
    def met(self):
        """How many faults were met."""
        return len(list((self.folder / "faults").glob("*.met")))

    @property
    def waiting(self):
        """The faults that nobody has met."""
        return [json.loads(path.read_text()) for path in sorted((self.folder / "faults").glob("*.fault"))]

    def start(self, *arguments):
        """Start the command line in a session of its own."""
        paths = os.pathsep.join(map(str, [HERE / "plugin", *PATH]))
        environment = {"PYTHONPATH": paths, "FAULTS": str(self.folder / "faults"), **ENVIRONMENT, **self.environment}
        command = [*self.wrapped, sys.executable, "-m", "search", *arguments]
        with (self.folder / "out.txt").open("w") as out, (self.folder / "err.txt").open("w") as err:
            return subprocess.Popen(
                list(map(str, command)),
                cwd=TINY,
                env={**os.environ, **environment},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def run(self, *arguments, seconds=300):
        """Run or take up the sweep until its process ends, and return its exit code."""
        driver = self.start(*(arguments or ("run", self.file, "--resume", "--plain")))
        try:
            return driver.wait(seconds)
        finally:
            end(driver)

    @property
    def out(self):
        return (self.folder / "out.txt").read_text()

    @property
    def err(self):
        return (self.folder / "err.txt").read_text()

    @property
    def complaint(self):
        """The last line of the driver's complaints."""
        return (self.err.splitlines() or [""])[-1]


def end(driver):
    """End a driver as a machine does, and wait until Ray's processes, which it has started, have followed it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    wait_for(lambda: has_ended(driver.pid))


def workers(leader):
    """Return the processes of a session that run a trial."""
    return [pid for pid, name in session(leader).items() if name.startswith("ray::Implici")]


# ── what is left ─────────────────────────────────────────────────────────────────────────────────────────────────────


def facts(record):
    """Return what is a function of policy and seed alone."""
    history = [replace(metrics, seconds=0.0) for metrics in record.history]
    return record.state, record.params, record.policy, history


def compare(place, *, sweep=None, tracked=True, uri=None):
    """Return which trials are missing or other than in the undisturbed sweep, and which were told twice."""
    folder = sweep or place.sweep
    found, known = Sweep.load(folder), Sweep.load(place.undisturbed.sweep)
    records, expected = ({record.number: record for record in of.records} for of in (found, known))
    lost = [f"trial {number} is missing" for number in sorted(set(expected) - set(records))]
    lost += [
        f"trial {n} is another: {records[n]}" for n in expected if n in records and not same(records[n], expected[n])
    ]
    fronts = [[record.number for record in of.front] for of in (found, known)]
    lost += [] if fronts[0] == fronts[1] else [f"the front is {fronts[0]}, not {fronts[1]}"]
    doubled = [f"trial {number} is one too many" for number in sorted(set(records) - set(expected))]
    doubled += [f"trial {trial} ended {times} times" for trial, times in ends(folder).items() if times != 1]
    if tracked:
        away, twice = of_runs(folder, records, uri)
        lost, doubled = lost + away, doubled + twice
    return Found(lost, doubled)


def same(one, other):
    return facts(one) == facts(other)


def ends(sweep):
    """Return how often the journal's lines, as they are, end each trial."""
    lines = [json.loads(line) for line in (sweep / "study.journal").read_bytes().splitlines()]
    return Counter(line["trial_id"] for line in lines if line["op_code"] == SET_STATE and line["state"] in ENDED)


def of_runs(sweep, records, uri=None):
    """Return which trials MLflow lacks or has otherwise, and what it has twice."""
    from mlflow import MlflowClient

    sync(sweep, uri)
    client = MlflowClient(uri or default_uri(sweep.parent))
    (experiment,) = (found for found in client.search_experiments() if found.name != "Default")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    by_trial = {}
    for run in runs:
        by_trial.setdefault(run.data.tags.get("prunesearch.trial"), []).append(run)
    lost, doubled = list[str](), [f"trial {name} has {len(of)} runs" for name, of in by_trial.items() if len(of) > 1]
    parents = [run.info.status for run in by_trial.get(None, [])]
    lost += [] if parents == ["FINISHED"] else [f"the sweep's own run is {parents}"]
    for number, record in records.items():
        run = by_trial.get(str(number), [None])[0]
        if run is None or run.info.status != "FINISHED" or run.data.tags["state"] != State.FINISHED:
            lost.append(f"trial {number} has the run {run and (run.info.status, run.data.tags)}")
            continue
        if not run.info.start_time <= run.info.end_time:
            lost.append(f"trial {number} ran from {run.info.start_time} to {run.info.end_time}")
        for name in run.data.metrics:
            points = client.get_metric_history(run.info.run_id, name)
            steps = [point.step for point in points]
            doubled += [f"trial {number}, {name}: steps {steps}"] if len(set(steps)) != len(steps) else []
            if name == "accuracy" and [p.value for p in sorted(points, key=lambda point: point.step)] != [
                metrics.accuracy for metrics in record.history
            ]:
                lost.append(f"trial {number}, {name}: {points}")
    return lost, doubled


def spoil(path, how, seed=0):
    """Damage a file as crashes and disks do."""
    rng, content = random.Random(seed), bytearray(path.read_bytes())
    if how == "torn":
        del content[len(content) // 2 :]
    elif how == "random bytes":
        content[:] = rng.randbytes(len(content))
    elif how == "a bit":
        content[-1 - rng.randrange(len(content) // 2)] ^= 1 << rng.randrange(8)
    elif how == "a torn line":
        content += b'{"op_code": 8, "trial'
    elif how == "zeros":
        content += bytes(rng.randrange(1, 4096))
    elif how == "half a block":
        del content[-rng.randrange(1, 200) :]
    path.write_bytes(content)
