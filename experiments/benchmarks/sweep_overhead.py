"""What the driver of a sweep costs a trial, and whether that grows with the number of trials.

    python experiments/benchmarks/sweep_overhead.py noop --trials 200
    python experiments/benchmarks/sweep_overhead.py simulated --trials 2000 --sampler tpe --mlflow

`noop` runs a real sweep, two trials at a time, whose trials report invented metrics at once. `simulated` has no
workers: the searcher, the watcher, MLflow's outbox and the view are called as Tune would, with several trials in flight
that report once to three times each. The network is ResNet-56 with random weights: 27 searched widths.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from ray import tune
from rich.console import Console

from pruning import CostModel, ImageData, ModelSpec, Policy, Recipe, build_model, find_groups
from pruning.data import Pixels, TensorSplit
from search import driver
from search.config import Experiment, SearchSpace, Tracking
from search.guide import guide_of
from search.inputs import Baseline, Inputs, searched_groups, silent
from search.launching import ray_session
from search.progress import LiveView
from search.rankings import rank_all
from search.results import Metrics
from search.searcher import StudySearcher
from search.sharing import Shared, received, share
from search.space import Space
from search.study import create_study
from search.tracking import Tracker
from search.tracking.place import store_uri
from search.tracking.position import waiting
from search.watcher import Watcher

NOOP_TARGET_MS, RATIO_TARGET = 120, 1.5
EDGE = 200
EPOCHS = 2


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    print(f"load average before: {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        arguments.run(arguments, Path(folder))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--sampler", default="tpe", choices=["random", "tpe", "nsga2", "gp"])
    shared.add_argument("--mlflow", action="store_true", help="tell MLflow, in a SQLite file")
    shared.add_argument("--folder", type=Path, help="where the sweep's files go for a while")
    shared.add_argument("--surrogate", action="store_true", help="it makes half of the proposals; random weights rank")
    parts = parser.add_subparsers(required=True)
    noop = parts.add_parser("noop", parents=[shared], help="a real sweep of trials that do nothing")
    noop.add_argument("--trials", type=int, default=200)
    noop.add_argument("--jobs", type=int, default=2, help="trials at a time")
    noop.set_defaults(run=run_noop)
    simulated = parts.add_parser("simulated", parents=[shared], help="the driver alone")
    simulated.add_argument("--trials", type=int, default=2000)
    simulated.add_argument("--jobs", type=int, default=8, help="trials in flight")
    simulated.set_defaults(run=run_simulated)
    return parser.parse_args()


# ── what a sweep gets ────────────────────────────────────────────────────────────────────────────────────────────────


def make_inputs(arguments: argparse.Namespace, folder: Path) -> Inputs:
    spec, example = ModelSpec(name="resnet56"), torch.zeros(1, 3, 32, 32)
    torch.manual_seed(0)
    network = build_model(spec).eval()
    groups = find_groups(network, example)
    cost = CostModel(network, groups, example)
    two = TensorSplit(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.arange(2), Pixels((0.5,) * 3, (0.25,) * 3))
    proposes = {"surrogate": "sensitivity" if arguments.surrogate else "none", "start": []}
    search = SearchSpace.model_validate(
        {"trials": arguments.trials, "concurrent": arguments.jobs, "sampler": arguments.sampler, **proposes}
    )
    return Inputs(
        experiment=Experiment(
            name="overhead",
            model=spec,
            recipe=Recipe(epochs=EPOCHS),
            search=search,
            tracking=Tracking(enabled=arguments.mlflow),
            storage=folder,
        ),
        model=spec,
        weights=network.state_dict(),
        data=ImageData.from_splits("nothing", tuple(map(str, range(10))), two, two, two),
        groups=groups,
        cost=cost,
        example=example,
        baseline=Baseline(accuracy=0.93, loss=0.3, macs=cost.full.macs, params=cost.full.params),
    )


def make_space(inputs: Inputs) -> Space:
    searched = searched_groups(inputs.experiment, inputs.groups)
    return Space(inputs.experiment, inputs.groups, inputs.cost, searched, inputs.rankings)


def invented(number: int, policy: Policy, epoch: int, inputs: Inputs) -> dict[str, Any]:
    """Return metrics in which width pays, less and less; a few epochs help, and some trials have luck."""
    share = sum(policy.widths.values()) / sum(inputs.groups.widths[name] for name in policy.widths)
    luck = random.Random(number).gauss(0, 0.02)
    accuracy = min(1.0, max(0.0, 0.93 * (1 - math.exp(-5 * share)) * (0.9 + 0.05 * epoch) + luck))
    cost = inputs.cost.cost(policy.widths)
    return Metrics(epoch, accuracy, 1 - accuracy, cost.macs, cost.params, seconds=0.01).to_dict()


# ── a real sweep ─────────────────────────────────────────────────────────────────────────────────────────────────────


def run_noop(arguments: argparse.Namespace, folder: Path) -> None:
    inputs = make_inputs(arguments, folder)
    experiment = inputs.experiment
    with ray_session(experiment, "local"):
        create_study(experiment.folder, experiment)
        began, busy = time.perf_counter(), time.process_time()
        with patch.object(driver, "train", report_at_once), redirect_stdout(io.StringIO()):  # one line each
            inputs, shared = share(inputs)
            ended = driver._launch(inputs, shared, make_space(inputs), experiment.folder, silent, live=True, uri=None)
        whole, busy = time.perf_counter() - began, time.process_time() - busy
    starts = [record.started for record in ended.records if record.started is not None][2 * arguments.jobs :]
    each = 1e3 * (starts[-1] - starts[0]) / (len(starts) - 1)
    verdict = "met" if each <= NOOP_TARGET_MS else "missed"
    print(
        f"noop, {proposers(arguments)}: {arguments.trials} trials, {arguments.jobs} at a time: {each:.0f} ms a trial "
        f"once the workers are up (target {NOOP_TARGET_MS}: {verdict}); {whole:.1f} s with start and end, the driver "
        f"busy for {busy:.1f} s of them"
    )


def report_at_once(config: dict[str, Any], shared: Shared) -> None:
    inputs = received(shared)
    policy = Policy.from_json(config["policy"])
    for epoch in range(EPOCHS + 1):
        tune.report(invented(config["number"], policy, epoch, inputs))


# ── the driver alone ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Part:
    """Some trials: the driver's seconds, how many it was busy, other threads' seconds; the process's MB after them."""

    trials: int
    driver: float
    busy: float
    others: float
    megabytes: float


def run_simulated(arguments: argparse.Namespace, folder: Path) -> None:
    inputs = make_inputs(arguments, folder)
    experiment, baseline = inputs.experiment, inputs.baseline.to_dict()
    create_study(experiment.folder, experiment)
    if arguments.surrogate:
        inputs = replace(inputs, rankings=rank_all(inputs))
    space = make_space(inputs)
    searcher = StudySearcher(experiment.folder, experiment, space, baseline, guide_of(inputs, space))
    tracker = Tracker(experiment.folder, experiment)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        view = LiveView(experiment.search.trials, baseline, experiment.objectives, console=Console(file=nowhere))
        with tracker, view:
            tracker.start(baseline, inputs.groups.widths)
            driver = Driver(searcher, Watcher(searcher, tracker, view), inputs, arguments.jobs)
            parts = list(measured(driver, arguments.trials, lambda: delivered(inputs)))
    print_parts(arguments, parts)
    journal = experiment.folder / "study.journal"
    print(f"journal: {journal.stat().st_size / arguments.trials / 1e3:.1f} kB a trial")


class Driver:
    """Calls what listens to Tune, in Tune's order, for trials that end in an order of their own."""

    def __init__(self, searcher: StudySearcher, watcher: tune.Callback, inputs: Inputs, jobs: int) -> None:
        self._searcher, self._watcher, self._inputs, self._jobs = searcher, watcher, inputs, jobs
        self._random = random.Random(0)
        self._flying: list[Iterator[None]] = []

    def run(self, trials: int, first: int) -> None:
        """Launch some trials and let as many end; at the sweep's begin fewer end than begin."""
        for number in range(first, first + trials):
            trial = self._trial(f"trial{number}")
            next(trial)
            self._flying.append(trial)
            while len(self._flying) >= self._jobs:
                self._step()

    def finish(self) -> None:
        """Let all trials end."""
        while self._flying:
            self._step()

    def _step(self) -> None:
        trial = self._random.choice(self._flying)
        try:
            next(trial)
        except StopIteration:
            self._flying.remove(trial)

    def _trial(self, name: str) -> Iterator[None]:
        config = self._searcher.suggest(name)
        assert isinstance(config, dict)
        trial = SimpleNamespace(trial_id=name, config=config, error_file=None)
        self._watcher.on_trial_start(0, [], trial)
        yield
        policy = Policy.from_json(config["policy"])
        result: dict[str, Any] = {}
        for epoch in range(EPOCHS + 1 - config["number"] % (EPOCHS + 1), EPOCHS + 1):
            result = invented(config["number"], policy, epoch, self._inputs)
            self._searcher.on_trial_result(name, result)
            self._watcher.on_trial_result(0, [], trial, result)
            yield
        result = result or invented(config["number"], policy, EPOCHS, self._inputs)
        self._searcher.on_trial_complete(name, result)
        self._watcher.on_trial_complete(0, [], trial)


def measured(driver: Driver, trials: int, wait: Callable[[], None]) -> Iterator[Part]:
    """Run trials and yield what each few cost."""
    for first in range(0, trials, EDGE):
        count = min(EDGE, trials - first)
        begin, busy, all_busy = time.perf_counter(), time.thread_time(), time.process_time()
        driver.run(count, first)
        if first + count == trials:
            driver.finish()
        elapsed, busy = time.perf_counter() - begin, time.thread_time() - busy
        waited = time.thread_time()
        wait()
        all_busy = time.process_time() - all_busy - (time.thread_time() - waited)
        yield Part(count, elapsed, busy, all_busy - busy, megabytes())


def delivered(inputs: Inputs) -> None:
    """Wait until MLflow has everything."""
    tracking, folder = inputs.experiment.tracking, inputs.experiment.folder
    if tracking.enabled:
        while waiting(folder, store_uri(folder, tracking.uri)):
            time.sleep(0.1)


def proposers(arguments: argparse.Namespace) -> str:
    return f"{arguments.sampler} and surrogate" if arguments.surrogate else str(arguments.sampler)


def megabytes() -> float:
    """Return the size of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def print_parts(arguments: argparse.Namespace, parts: list[Part]) -> None:
    print(f"simulated, {proposers(arguments)}, MLflow {'on' if arguments.mlflow else 'off'}: {arguments.trials} trials")
    print(f"{'trials':>8} {'driver, ms':>11} {'busy, ms':>9} {'other threads, ms':>18} {'size, MB':>9}")
    quarters = {math.ceil(len(parts) * quarter / 4) - 1 for quarter in (1, 2, 3, 4)} | {0}
    done = 0
    for index, part in enumerate(parts):
        done += part.trials
        if index in quarters:
            driver, busy, others = (1e3 * seconds / part.trials for seconds in (part.driver, part.busy, part.others))
            print(f"{done:8} {driver:11.1f} {busy:9.1f} {others:18.1f} {part.megabytes:9.0f}")
    for what in ("driver", "busy"):
        first, last = (getattr(part, what) / part.trials for part in (parts[0], parts[-1]))
        verdict = "met" if last <= RATIO_TARGET * first else "missed"
        print(
            f"{what}: a trial of the last {parts[-1].trials} costs {last / first:.2f} times what one of the first "
            f"{parts[0].trials} did (target {RATIO_TARGET}: {verdict})"
        )


if __name__ == "__main__":
    main()
