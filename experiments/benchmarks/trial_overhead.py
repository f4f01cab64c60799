"""What a trial costs besides training: load, cut, count, recalibrate, write down.

    python experiments/benchmarks/trial_overhead.py --repeats 20 --threads 2

ResNet-56 with random weights, every channel group cut by half, as many random images as CIFAR-10 has for training. The
steps take turns, each repeat with the reference: one training step's forward and backward pass of the uncut network on
128 images. Forward passes that a trial makes once (the check of the cut, two images of recalibration) are counted in.
"""

from __future__ import annotations

import argparse
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pruning import (
    CRITERIA,
    CostModel,
    CriterionSpec,
    ImageData,
    ModelSpec,
    Policy,
    Recipe,
    build_model,
    count_cost,
    find_groups,
    fine_tune,
    prune,
    recalibrate,
)
from pruning.data import Pixels, TensorSplit
from search.config import Experiment, SearchSpace
from search.inputs import Baseline, Inputs, network_with, ranking_key
from search.rankings import policy_ranking
from search.results import Metrics
from search.searcher import StudySearcher
from search.space import Space
from search.study import create_study
from search.trial import run_trial

TARGET_SECONDS = 1.0
REFERENCE = "reference: forward and backward pass"
L1 = CriterionSpec(name="l1")
RECIPE = Recipe(epochs=0, recalibration_images=2)


@dataclass(frozen=True)
class Step:
    """One row of the table.

    Attributes:
        name: what is done.
        run: does it, with what `given` returns; only this is timed.
        given: makes a fresh argument for each repeat.
        counts: whether every trial pays for it.
    """

    name: str
    run: Callable[[Any], object]
    given: Callable[[], Any] = lambda: None
    counts: bool = True


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    load, inputs = os.getloadavg()[0], make_inputs(arguments.images)
    policy = halved(inputs)
    whole = Step("run_trial on two images", lambda _: run_trial(policy, inputs, ignore), counts=False)
    reference = Step(REFERENCE, one_pass, lambda: reference_batch(inputs), counts=False)
    with tempfile.TemporaryDirectory() as folder:
        measured = measure([*trial_steps(inputs, Path(folder), arguments.earlier), whole, reference], arguments.repeats)
    print(
        f"ResNet-56, 3×32×32, {len(inputs.groups)} channel groups cut by half; training images: {arguments.images}; "
        f"threads: {arguments.threads}; repeats: {arguments.repeats}; load average before: {load:.1f}\n"
    )
    print_table(measured)
    total = sum(row.median for row in measured if row.step.counts)
    verdict = "met" if total <= TARGET_SECONDS else "missed"
    print(f"\nA trial without training: {total:.2f} s, target {TARGET_SECONDS:g} s: {verdict}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what a trial costs besides training.")
    parser.add_argument(
        "--repeats", type=int, default=10, help="timed runs of each step, after one that is shown apart"
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch; a trial gets one unless told otherwise")
    parser.add_argument("--images", type=int, default=45_000, help="training images")
    parser.add_argument("--earlier", type=int, default=24, help="trials in the study before the first one measured")
    arguments = parser.parse_args()
    if min(arguments.repeats, arguments.threads) < 1 or arguments.images < 2 or arguments.earlier < 0:
        parser.error("expected at least 1 repeat, 1 thread and 2 images, and no negative number")
    return arguments


# ── what a trial gets ────────────────────────────────────────────────────────────────────────────────────────────────


def make_inputs(images: int) -> Inputs:
    spec, example = ModelSpec(name="resnet56"), torch.zeros(1, 3, 32, 32)
    torch.manual_seed(0)
    network = build_model(spec).eval()
    groups = find_groups(network, example)
    cost = CostModel(network, groups, example)
    sizes = {"train": images, "val": 2, "test": 2}
    splits = {name: random_images(size) for name, size in sizes.items()}
    classes = tuple(map(str, range(spec.num_classes)))
    return Inputs(
        experiment=Experiment(name="overhead", model=spec, recipe=RECIPE, search=SearchSpace(trials=10**6)),
        model=spec,
        weights=network.state_dict(),
        data=ImageData.from_splits("random", classes, splits["train"], splits["val"], splits["test"]),
        groups=groups,
        cost=cost,
        example=example,
        baseline=Baseline(accuracy=0.9, loss=0.3, macs=cost.full.macs, params=cost.full.params),
        rankings={ranking_key(L1): CRITERIA.build("l1").rank(network, groups)},
    )


def random_images(count: int) -> TensorSplit:
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    return TensorSplit(images, torch.arange(count) % 10, Pixels((0.5,) * 3, (0.25,) * 3, padding=4, flip=True))


def halved(inputs: Inputs) -> Policy:
    widths = {name: width // 2 for name, width in inputs.groups.widths.items()}
    return Policy(model=inputs.model, network=inputs.groups.signature, widths=widths, criterion=L1, recipe=RECIPE)


def ignore(_: Metrics, snapshot: Callable[[], dict[str, Any]]) -> None:
    """Take a report; a trial is written down after epochs of training only."""


# ── its steps ────────────────────────────────────────────────────────────────────────────────────────────────────────


def trial_steps(inputs: Inputs, folder: Path, earlier: int) -> list[Step]:
    policy, train = halved(inputs), inputs.data.train
    pickled = pickle.dumps(inputs)

    def cut(network: nn.Module, *, check: bool) -> nn.Module:
        ranking = policy_ranking(inputs, policy)
        prune(network, policy, ranking, groups=inputs.groups, example_input=inputs.example, check=check)
        return network

    def cut_network() -> nn.Module:
        return cut(inputs.network(), check=False)

    return [
        Step("receive what trials share", lambda _: pickle.loads(pickled), counts=False),  # once a worker
        Step("build the network, load its weights", lambda _: network_with(inputs.model, inputs.weights)),
        Step("copy the network", lambda _: inputs.network()),
        Step("cut, with the check", lambda network: cut(network, check=True), inputs.network),
        Step("cut, without the check", lambda network: cut(network, check=False), inputs.network, counts=False),
        Step("count the cost", lambda network: count_cost(network, inputs.example), cut_network),
        Step("recalibrate on two images", lambda network: recalibrate(network, train, images=2), cut_network),
        Step("set up fine-tuning", lambda network: fine_tune(network, train, Recipe(epochs=1)), cut_network),
        Step("write and read the policy", lambda _: Policy.from_json(policy.to_json())),
        Step("ask and tell the study", Study(inputs, folder, earlier).ask_and_tell),
    ]


class Study:
    """A study with some trials in it, kept as a sweep keeps it."""

    def __init__(self, inputs: Inputs, folder: Path, earlier: int) -> None:
        space = Space(inputs.experiment, inputs.groups, inputs.cost, tuple(inputs.groups), inputs.rankings)
        create_study(folder, inputs.experiment)
        self._searcher = StudySearcher(folder, inputs.experiment, space, inputs.baseline.to_dict())
        self._numbers = count()
        for _ in range(earlier):
            self.ask_and_tell(None)

    def ask_and_tell(self, _: object) -> None:
        name = str(next(self._numbers))
        self._searcher.suggest(name)
        metrics = Metrics(epoch=0, accuracy=0.5 + torch.rand(()).item() / 2, loss=1.0, macs=1, params=1).to_dict()
        self._searcher.on_trial_result(name, metrics)
        self._searcher.on_trial_complete(name, metrics)


def reference_batch(inputs: Inputs) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    images, labels = next(iter(random_images(128).batches(128)))
    return inputs.network().train(), images, labels


def one_pass(batch: tuple[nn.Module, torch.Tensor, torch.Tensor]) -> None:
    network, images, labels = batch
    F.cross_entropy(network(images), labels).backward()


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Measured:
    """A step with the seconds of each run, and what the first run added to the memory of the process, MB."""

    step: Step
    seconds: list[float]
    peak: float | None

    @property
    def median(self) -> float:
        """The median without the first run, in which torch sets itself up."""
        return statistics.median(self.seconds[1:])


def measure(steps: Sequence[Step], repeats: int) -> list[Measured]:
    rows = [first_run(step) for step in steps]
    for _ in range(repeats):
        for row in rows:
            row.seconds.append(seconds_of(row.step))
    return rows


def first_run(step: Step) -> Measured:
    forget_peak()
    before = peak_megabytes()
    seconds = seconds_of(step)
    after = peak_megabytes()
    return Measured(step, [seconds], None if before is None or after is None else after - before)


def seconds_of(step: Step) -> float:
    argument = step.given()
    start = time.perf_counter()
    step.run(argument)
    return time.perf_counter() - start


def forget_peak() -> None:
    """Make the present size of the process its largest so far."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> float | None:
    """Return the largest size of the process so far; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmHWM")), None)


def print_table(rows: Sequence[Measured]) -> None:
    reference = next(row.median for row in rows if row.step.name == REFERENCE)
    print(f"{'step':36} {'median, s':>10} {'of a pass':>10} {'first, s':>10} {'memory, MB':>11}")
    for row in rows:
        mark = "" if row.step.counts else "  (not in the total)"
        memory = "unknown" if row.peak is None else f"{row.peak:.0f}"
        share = row.median / reference
        print(f"{row.step.name:36} {row.median:10.4f} {share:10.3f} {row.seconds[0]:10.4f} {memory:>11}{mark}")


if __name__ == "__main__":
    main()
