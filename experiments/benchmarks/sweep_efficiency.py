"""How fast a search finds the trade-off: dominated hypervolume by trials and by seconds, against what one would use.

    OMP_NUM_THREADS=1 python experiments/benchmarks/sweep_efficiency.py --weights resnet20-12fca82f.th --images cifar10
    python experiments/benchmarks/sweep_efficiency.py --table experiments/tables/resnet20-cifar10.csv.gz --seeds 30

All methods propose policies of the same network, with the same criteria to choose from, and have them measured in the
same way: cut, batch norm recalibrated, `--epochs` of fine-tuning. One trial at a time.

- `ours`: the defaults of a sweep: starts, surrogate, TPE on directions that meet a budget;
- `no starts`, `no surrogate`, `plain`: the same without starts, without surrogate, without both;
- `ours, stopping`: `ours` with ParetoASHA; only with epochs;
- `random`, `tpe`, `nsga2`: Ray's own OptunaSearch on a ratio for each group, at random, by TPE, by NSGA-II;
- `asha`: the same at random, stopped by accuracy alone as ASHA does; only with epochs;
- `uniform <criterion>`: equal ratios, budgets spread evenly.

With a table nothing is trained: see policy_replay.py. Otherwise every measurement is kept, and none is made twice;
seconds are of the processor, those of the first time. What starts and surrogate look at before the first trial counts
as theirs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import moocore
import numpy as np
import optuna
import torch
from filelock import FileLock
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from policy_replay import Replay
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from pruning import Policy
from search.config import Experiment, parse_experiment
from search.guide import guide_of
from search.inputs import Inputs
from search.prepare import prepare, space_of
from search.results import Metrics
from search.rungs import Rungs
from search.searcher import StudySearcher
from search.starts import make_starts
from search.study import create_study, enqueue
from search.trial import run_trial

CRITERIA = ("l1", "fpgm", "taylor", "hrank")
ALONE = {"start": [], "surrogate": "none"}
OURS = {
    "ours": dict[str, Any](),
    "no starts": {"start": []},
    "no surrogate": {"surrogate": "none"},
    "plain": ALONE,
    "ours, stopping": {"scheduler": "pareto_asha"},
}
STOPPING = ("asha", "ours, stopping")
STOCK = ("random", "tpe", "nsga2", "asha")
METHODS = (*OURS, *STOCK, *(f"uniform {name}" for name in CRITERIA))
LEAST = 0.1
"""Of a group's channels, the smallest share that raw ratios may keep."""

CHANCE = 0.1
"""Accuracy from which the hypervolume counts."""

FACTOR = 3
"""One in so many trials goes on after a rung."""

GoesOn = Callable[[Metrics], bool]
Points = list[tuple[float, float, float]]
"""After each trial: seconds so far, and the accuracy and share of MACs that it ended with; NaN where it was stopped."""


class Bench(Protocol):
    """Measures policies.

    Attributes:
        inputs: of all methods, with all rankings.
        ahead: how many seconds it takes to rank for starts and surrogate what trials do not need.
    """

    inputs: Inputs
    ahead: float

    def measure(self, policy: Policy, goes_on: GoesOn) -> list[Metrics]:
        """Return what a trial measured, epoch after epoch, as long as it goes on; seconds are since it began."""
        ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="of the network")
    parser.add_argument("--images", type=Path, help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--table", type=Path, help="of measured policies: replay instead")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--trials", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--minimum", default="15%", help="of the budgets of `ours`")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--storage", type=Path, default=Path("sweeps"), help="where rankings and measurements are kept")
    arguments = parser.parse_args()
    asked = {
        name: getattr(arguments, name)
        for name in ("weights", "images", "model", "table", "epochs", "storage", "minimum")
    }
    runs = [(name, seed) for name in arguments.methods for seed in range(arguments.seeds)]
    runs = [(name, seed) for name, seed in runs if name not in STOPPING or arguments.epochs]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, context) as pool:
        judged = pool.submit(judge, asked)
        jobs = {run: pool.submit(one_run, asked, *run, arguments.trials) for run in runs}
        found = {}
        for (name, seed), job in jobs.items():
            found[name, seed] = job.result()
            print(f"{name}, seed {seed}: {hypervolume(found[name, seed]):.4f}", flush=True)
        print(judged.result())
    print_tables(arguments.methods, arguments.seeds, found)


def judge(asked: dict[str, Any]) -> str:
    """Return how good the measurements are, where they are predicted."""
    torch.set_num_threads(1)
    return str(bench_of(key_of(asked))) if asked["table"] else ""


def one_run(asked: dict[str, Any], method: str, seed: int, trials: int) -> Points:
    """Run one method with one seed."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    os.fsync = lambda _: None  # none of these sweeps has to survive a power cut
    bench = bench_of(key_of(asked))
    return list(METHOD[method](bench, asked["epochs"], seed, trials))


# ── methods ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def ours(options: Mapping[str, Any], bench: Bench, epochs: int, seed: int, trials: int) -> Iterator[tuple[float, ...]]:
    """Yield the points of this project's search, whose sweep it is without Ray."""
    asked = bench.inputs.experiment
    search = asked.search.model_validate(
        asked.search.model_dump() | {"seed": seed, "trials": trials, "concurrent": 1, **options}
    )
    recipe = asked.recipe.model_copy(update={"epochs": epochs})
    experiment = asked.model_copy(update={"search": search, "recipe": recipe, "name": "sweep"})
    inputs = replace(bench.inputs, experiment=experiment)
    space = space_of(inputs)
    stops = search.scheduler.name != "none"
    rungs = Rungs(search.scheduler.factor, search.scheduler.first) if stops else None
    spent, start = 0.0 if options == ALONE else bench.ahead, time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "sweep"
        study = create_study(home, experiment)
        for proposal in make_starts(experiment, space):
            enqueue(study, proposal)
        searcher = StudySearcher(home, experiment, space, inputs.baseline.to_dict(), guide_of(inputs, space))
        for number in range(trials):
            config = searcher.suggest(f"t{number}")
            if isinstance(config, str):
                break
            spent, start = spent + time.process_time() - start, 0.0

            def goes_on(metrics: Metrics, trial: int = number) -> bool:
                if rungs is None or metrics.epoch not in rungs.epochs(epochs):
                    return True
                rungs.enter(trial, metrics.epoch, (-metrics.accuracy, metrics.macs))
                return rungs.goes_on(trial, metrics.epoch)

            history = bench.measure(Policy.from_json(config["policy"]), goes_on)
            spent += history[-1].seconds
            start = time.process_time()
            for metrics in history[:-1]:
                searcher.on_trial_result(f"t{number}", metrics.to_dict())
            searcher.on_trial_complete(f"t{number}", history[-1].to_dict())
            yield point(bench, spent, history, epochs)


def stock(name: str, bench: Bench, epochs: int, seed: int, trials: int) -> Iterator[tuple[float, ...]]:
    """Yield the points of Ray's OptunaSearch on a ratio for each group and the criterion."""
    samplers: dict[str, BaseSampler] = {
        "tpe": TPESampler(seed=seed),
        "nsga2": NSGAIISampler(population_size=min(50, max(8, trials // 4)), seed=seed),
    }
    sampler = samplers.get(name, RandomSampler(seed=seed))
    groups = bench.inputs.searched

    def space(trial: optuna.Trial) -> None:
        trial.suggest_categorical("criterion", CRITERIA)
        for group in groups:
            trial.suggest_float(group, LEAST, 1.0)

    searcher: Searcher = OptunaSearch(space, metric=["accuracy", "macs"], mode=["max", "min"], sampler=sampler)
    spent, seen = 0.0, dict[int, list[float]]()
    for number in range(trials):
        start = time.process_time()
        config = searcher.suggest(f"t{number}")
        spent += time.process_time() - start
        widths = {group: max(1, round(config[group] * of.width)) for group, of in groups.items()}

        def goes_on(metrics: Metrics, stops: bool = name == "asha") -> bool:
            if not stops or metrics.epoch not in Rungs(FACTOR).epochs(epochs):
                return True
            rung = seen.setdefault(metrics.epoch, [])
            rung.append(metrics.accuracy)
            return metrics.accuracy >= sorted(rung, reverse=True)[-(-len(rung) // FACTOR) - 1]

        history = bench.measure(policy_of(bench, config["criterion"], widths), goes_on)
        spent += history[-1].seconds
        last = history[-1]
        searcher.on_trial_complete(f"t{number}", {"accuracy": last.accuracy, "macs": last.macs})
        yield point(bench, spent, history, epochs)


def uniform(criterion: str, bench: Bench, epochs: int, seed: int, trials: int) -> Iterator[tuple[float, ...]]:
    """Yield the points of equal ratios; each ratio halves the widest gap that is left."""
    spent = 0.0
    for number in range(trials):
        part = int(f"{number + 1:b}"[::-1], 2) / 2 ** (number + 1).bit_length()
        ratio = LEAST + (part + seed / trials / 10) % 1 * (1 - LEAST)
        widths = {group: max(1, round(ratio * of.width)) for group, of in bench.inputs.searched.items()}
        history = bench.measure(policy_of(bench, criterion, widths), lambda _: True)
        spent += history[-1].seconds
        yield point(bench, spent, history, epochs)


METHOD: dict[str, Callable[[Bench, int, int, int], Iterator[tuple[float, ...]]]] = {
    **{name: partial(ours, options) for name, options in OURS.items()},
    **{name: partial(stock, name) for name in STOCK},
    **{f"uniform {name}": partial(uniform, name) for name in CRITERIA},
}


def policy_of(bench: Bench, criterion: str, widths: dict[str, int]) -> Policy:
    inputs = bench.inputs
    return Policy(
        model=inputs.model,
        network=inputs.groups.signature,
        thinned=inputs.groups.thinned,
        widths=widths,
        criterion={"name": criterion},
        recipe=inputs.experiment.recipe,
    )


def point(bench: Bench, spent: float, history: Sequence[Metrics], epochs: int) -> tuple[float, float, float]:
    last = history[-1]
    accuracy = last.accuracy if last.epoch == epochs else np.nan
    return spent, accuracy, last.macs / bench.inputs.baseline.macs


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


def key_of(asked: dict[str, Any]) -> str:
    return json.dumps(asked, default=str, sort_keys=True)


@cache
def bench_of(asked: str) -> Bench:
    """Return what measures, once for each process."""
    options = json.loads(asked)
    experiment = experiment_of(options)
    inputs, ahead = prepare(experiment), seconds_ahead(experiment)
    if options["table"]:
        return Replay(inputs, Path(options["table"]), options["epochs"], ahead)
    return Trials(inputs, ahead, experiment.storage / "sweep-efficiency.jsonl")


def seconds_ahead(experiment: Experiment) -> float:
    """Return what it costs to rank for starts and surrogate, measured once for a storage."""
    path = experiment.storage / "sweep-efficiency-ahead.json"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            with tempfile.TemporaryDirectory() as folder:
                alone = experiment.search.model_validate(experiment.search.model_dump() | ALONE)
                empty = experiment.model_copy(update={"storage": Path(folder), "search": alone})
                prepare(empty)
                begin = time.process_time()
                prepare(empty)
                middle = time.process_time()
                prepare(empty.model_copy(update={"search": experiment.search}))
                path.write_text(json.dumps(time.process_time() - middle - (middle - begin)))
        return float(json.loads(path.read_text()))


def experiment_of(options: Mapping[str, Any]) -> Experiment:
    return parse_experiment(
        {
            "name": "sweep-efficiency",
            "model": {"name": options["model"], "num_classes": 10},
            "weights": str(Path(options["weights"]).resolve()),
            "data": {
                "name": "image_folder",
                "options": {"root": str(Path(options["images"]).resolve()), "val_fraction": 0.2},
            },
            "recipe": {"epochs": options["epochs"], "recalibration_images": 2048},
            "search": {
                "criterion": list(CRITERIA),
                "budget": {"minimum": options["minimum"], "maximum": "95%"},
            },
            "storage": str(Path(options["storage"]).resolve()),
        }
    )


class Trials:
    """Real trials; what was measured once is read from a file that all processes share."""

    def __init__(self, inputs: Inputs, ahead: float, path: Path) -> None:
        self.inputs, self.ahead, self._path = inputs, ahead, path
        self._known: dict[str, list[Metrics]] = {}
        self._read = 0

    def measure(self, policy: Policy, goes_on: GoesOn) -> list[Metrics]:
        """See `Bench.measure`."""
        self._refresh()
        key = policy.model_copy(update={"seed": 0}).fingerprint
        history: list[Metrics] = []
        for metrics in self._known.get(key, ()):
            history.append(metrics)
            if metrics.epoch == policy.recipe.epochs or not goes_on(metrics):
                return history
        passed, start = len(history), time.process_time()
        history = []

        def report(metrics: Metrics, _: object) -> None:
            history.append(replace(metrics, seconds=time.process_time() - start))
            if metrics.epoch >= passed and metrics.epoch < policy.recipe.epochs and not goes_on(history[-1]):
                raise _StoppedError

        with suppress(_StoppedError):
            run_trial(policy, self.inputs, report)
        self._keep(key, history)
        return history

    def _refresh(self) -> None:
        if self._path.exists():
            with self._path.open() as file:
                file.seek(self._read)
                for line in file:
                    if line.endswith("\n"):
                        self._read += len(line)
                        key, history = json.loads(line)
                        self._known[key] = [Metrics(**metrics) for metrics in history]

    def _keep(self, key: str, history: list[Metrics]) -> None:
        line = json.dumps([key, [metrics.to_dict() for metrics in history]]) + "\n"
        with FileLock(f"{self._path}.lock"), self._path.open("a") as file:
            file.write(line)


class _StoppedError(Exception):
    """The trial does not go on."""


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def hypervolume(points: Points, trials: int | None = None, seconds: float = np.inf) -> float:
    """Return the part of (accuracy from chance to 1) × (MACs from the baseline's to none) that is dominated."""
    ended = [
        (1 - accuracy, macs) for spent, accuracy, macs in points[:trials] if spent <= seconds and accuracy > CHANCE
    ]
    if not ended:
        return 0.0
    return float(moocore.hypervolume(np.array(ended), ref=[1 - CHANCE, 1.0])) / (1 - CHANCE)


def print_tables(methods: Sequence[str], seeds: int, found: Mapping[tuple[str, int], Points]) -> None:
    methods = [name for name in methods if (name, 0) in found]
    trials = max(len(points) for points in found.values())
    steps = [max(1, trials * part // 6) for part in (1, 2, 3, 4, 6)]
    headers = ["method", *(f"{step} trials" for step in steps), "equal seconds", "trials to match", "worse seeds"]
    print(f"\n| {' | '.join(headers)} |")
    print("|---" * (len(steps) + 4) + "|")
    least = min(points[-1][0] for points in found.values())
    for name in methods:
        curves = [found[name, seed] for seed in range(seeds)]
        cells = [mean([hypervolume(points, step) for points in curves]) for step in steps]
        cells.append(mean([hypervolume(points, seconds=least) for points in curves]))
        match, worse = against_ours(name, seeds, found)
        print(f"| {name} | {' | '.join(cells)} | {match} | {worse} |")
    print(f"\nequal seconds: {least:.0f} s, what the quickest run took in all")


def against_ours(name: str, seeds: int, found: Mapping[tuple[str, int], Points]) -> tuple[str, str]:
    """Return after how many trials ours has what a method has at its end, and for how many seeds it never does."""
    if name == "ours" or ("ours", 0) not in found:
        return "", ""
    needed, worse = [], 0
    for seed in range(seeds):
        goal, points = hypervolume(found[name, seed]), found["ours", seed]
        reached = (n for n in range(1, len(points) + 1) if hypervolume(points, n) >= goal)
        first = next(reached, None)
        worse += first is None
        needed.append(len(points) if first is None else first)
    return f"{statistics.mean(needed):.1f}", f"{worse} of {seeds}"


def mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread}"


if __name__ == "__main__":
    main()
