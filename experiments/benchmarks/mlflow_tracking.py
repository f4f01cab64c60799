"""What MLflow costs a sweep, and what a server that goes away and comes back does to it.

    python experiments/benchmarks/mlflow_tracking.py curves --trials 200 --epochs 20
    python experiments/benchmarks/mlflow_tracking.py outage --trials 60 --epochs 10

Real sweeps, two trials at a time, on a SQLite file or a server of this machine. Trials report invented metrics, an
epoch takes `--seconds`: ResNet-20 takes some 5 s for an epoch of 5,000 images on one core.

`curves` counts the time inside the tracker's calls, which the sweep waits for, and what its thread computes besides.
`outage` runs the same sweep twice: the server is there, or is killed after a third of the reports and started again
after two thirds. What the outage costs the trials is the time from the first one's begin to the last one's end; what is
left for MLflow then is sent while the sweep closes. Every run and every metric point is compared with the study.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from ray import tune
from sweep_overhead import make_inputs, make_space

from pruning import Policy
from search import driver
from search.config import Tracking
from search.inputs import Inputs, silent
from search.launching import ray_session
from search.results import Metrics, TrialRecord
from search.sharing import Shared, received, share
from search.study import create_study
from search.tracking import Tracker, sync, ui_command
from search.tracking.delivery import Delivery
from search.tracking.place import ENVIRONMENT, set_environment, store_uri

SHARE_TARGET, SLOWER_TARGET = 0.02, 0.05
SECONDS = "PRUNESEARCH_EPOCH_SECONDS"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    for name, run, trials, epochs, seconds in (
        ("curves", run_curves, 200, 20, 1.0),
        ("outage", run_outage, 60, 10, 0.25),
    ):
        part = parts.add_parser(name)
        part.add_argument("--trials", type=int, default=trials)
        part.add_argument("--epochs", type=int, default=epochs)
        part.add_argument("--seconds", type=float, default=seconds, help="of an epoch")
        part.add_argument("--jobs", type=int, default=2, help="trials at a time")
        part.set_defaults(run=run, sampler="random", mlflow=True, surrogate=False)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    set_environment()
    os.environ[SECONDS] = str(arguments.seconds)
    print(f"load average before: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        arguments.run(arguments, Path(folder))


# ── one sweep ────────────────────────────────────────────────────────────────────────────────────────────────────────


def asked(arguments: argparse.Namespace, folder: Path, uri: str | None = None) -> Inputs:
    inputs = make_inputs(arguments, folder)
    recipe = inputs.experiment.recipe.model_copy(update={"epochs": arguments.epochs})
    changes = {"recipe": recipe, "tracking": Tracking(uri=uri)}
    return replace(inputs, experiment=inputs.experiment.model_copy(update=changes))


def run_sweep(inputs: Inputs) -> tuple[list[TrialRecord], float, float]:
    """Return the trials of a sweep, how many seconds they took from the first begin to the last end, and it then."""
    experiment = inputs.experiment
    create_study(experiment.folder, experiment)
    with patch.object(driver, "train", report_slowly), redirect_stdout(io.StringIO()):
        inputs, shared = share(inputs)
        ended = driver._launch(inputs, shared, make_space(inputs), experiment.folder, silent, live=True, uri=None)
    begin = min(record.started for record in ended.records if record.started is not None)
    end = max(record.ended for record in ended.records if record.ended is not None)
    return ended.records, end - begin, time.time() - end


def report_slowly(config: dict[str, Any], shared: Shared) -> None:
    inputs = received(shared)
    policy = Policy.from_json(config["policy"])
    for epoch in range(policy.recipe.epochs + 1):
        time.sleep(float(os.environ[SECONDS]))
        tune.report(invented(config["number"], policy, epoch, inputs))


def invented(number: int, policy: Policy, epoch: int, inputs: Inputs) -> dict[str, Any]:
    """Return metrics that rise by epochs and fall with the widths."""
    share = sum(policy.widths.values()) / sum(inputs.groups.widths[name] for name in policy.widths)
    luck = random.Random(number).gauss(0, 0.02)
    learned = 0.9 + 0.1 * epoch / policy.recipe.epochs
    accuracy = min(1.0, max(0.0, 0.93 * (1 - math.exp(-5 * share)) * learned + luck))
    cost = inputs.cost.cost(policy.widths)
    return Metrics(epoch, accuracy, 1 - accuracy, cost.macs, cost.params, seconds=float(epoch)).to_dict()


# ── what it costs ────────────────────────────────────────────────────────────────────────────────────────────────────


def run_curves(arguments: argparse.Namespace, folder: Path) -> None:
    spent = Counter[str]()
    inputs = asked(arguments, folder)
    with (
        counted(Tracker, "_append", spent, "calls", time.perf_counter),
        counted(Delivery, "run", spent, "thread", time.thread_time),
        ray_session(inputs.experiment, "local"),
    ):
        records, seconds, closing = run_sweep(inputs)
    points = sum(len(record.history) for record in records)
    share = (spent["calls"] + spent["thread"]) / seconds
    met = verdict(share <= SHARE_TARGET)
    print(
        f"{len(records)} trials, {points} reports, epochs of {arguments.seconds} s, SQLite: the trials took "
        f"{seconds:.0f} s, closing {closing:.0f} s; {spent['calls']:.2f} s in the tracker's calls, "
        f"{spent['thread']:.1f} s of processor time in its thread: {share:.1%} of the trials' time "
        f"(target {SHARE_TARGET:.0%}: {met})"
    )
    print_kept(inputs, records)


@contextmanager
def counted(owner: type, name: str, spent: Counter[str], key: str, clock: Callable[[], float]) -> Iterator[None]:
    """Add up the time inside a method."""
    method = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = clock()
        try:
            return method(*args, **kwargs)
        finally:
            spent[key] += clock() - start  # type: ignore[assignment]  # seconds

    with patch.object(owner, name, timed):
        yield


# ── a server that goes away ──────────────────────────────────────────────────────────────────────────────────────────


class Server:
    """MLflow on a port of this machine, over a SQLite file."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        artifacts = ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
        polite = ["nice", "-n", "19"]  # it stands for another machine: its start must not slow the trials of this one
        self._command = [*polite, *ui_command(f"sqlite:///{folder / 'server.db'}", port), *artifacts]
        self.uri = f"http://127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        environment = {**ENVIRONMENT, **os.environ}
        self._process = subprocess.Popen(self._command, env=environment, start_new_session=True, **quiet)  # type: ignore[call-overload]
        for _ in range(600):
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health"):
                return
            time.sleep(0.1)
        raise RuntimeError("MLflow's server does not start")

    def kill(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def run_outage(arguments: argparse.Namespace, folder: Path) -> None:
    seconds = {}
    for name in ("there", "away"):
        (folder / name).mkdir()
        server = Server(folder / name)
        server.start()
        inputs = asked(arguments, folder / name, server.uri)
        reports = arguments.trials * (arguments.epochs + 1)
        try:
            with ray_session(inputs.experiment, "local"):
                if name == "away":
                    threading.Thread(target=interrupt, args=(server, inputs, reports), daemon=True).start()
                records, seconds[name], closing = run_sweep(inputs)
            left = sync(inputs.experiment.folder)
            print(f"server {name}: trials {seconds[name]:.1f} s, closing {closing:.1f} s, {left} entries left")
            print_kept(inputs, records)
        finally:
            server.kill()
    slower = seconds["away"] / seconds["there"] - 1
    met = verdict(slower <= SLOWER_TARGET)
    print(f"with the outage the trials take {slower:+.1%} (target {SLOWER_TARGET:+.0%}: {met})")


def interrupt(server: Server, inputs: Inputs, reports: int) -> None:
    """Kill the server after a third of the reports, and start it again after two thirds."""
    journal = inputs.experiment.folder / "mlflow-outbox.jsonl"
    for part, act in ((1 / 3, server.kill), (2 / 3, server.start)):
        while not journal.exists() or journal.read_bytes().count(b'"trial_reported"') < part * reports:
            time.sleep(0.2)
        act()


# ── what arrived ─────────────────────────────────────────────────────────────────────────────────────────────────────


def print_kept(inputs: Inputs, records: list[TrialRecord]) -> None:
    """Compare MLflow with the study: runs, and points of accuracy by trial and epoch."""
    from mlflow import MlflowClient

    experiment = inputs.experiment
    client = MlflowClient(store_uri(experiment.folder, experiment.tracking.uri))
    known = client.get_experiment_by_name(experiment.tracking.experiment)
    assert known is not None
    runs, token = [], None
    while token != "":
        page = client.search_runs([known.experiment_id], page_token=token)
        runs += page
        token = page.token or ""
    tag = "prunesearch.trial"
    children = Counter(int(run.data.tags[tag]) for run in runs if tag in run.data.tags)
    points = Counter(
        (int(run.data.tags[tag]), point.step, point.value)
        for run in runs
        if tag in run.data.tags
        for point in client.get_metric_history(run.info.run_id, "accuracy")
    )
    expected = Counter((it.number, metrics.epoch, metrics.accuracy) for it in records for metrics in it.history)
    runs_lost = {record.number for record in records} - children.keys()
    print(
        f"MLflow has {children.total()} runs of {len(records)} trials and {points.total()} of {expected.total()} "
        f"points: {len(runs_lost)} runs lost, {children.total() - len(children)} doubled, "
        f"{(expected - points).total()} points lost, {(points - expected).total()} too many"
    )


def verdict(met: bool) -> str:
    return "met" if met else "missed"


if __name__ == "__main__":
    main()
