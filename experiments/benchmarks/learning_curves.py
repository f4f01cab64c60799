"""Measure how trials learn, once: a table of learning curves from which sweeps are replayed.

    OMP_NUM_THREADS=1 python experiments/benchmarks/learning_curves.py --images cifar10

A row is a random policy of a small network on 16 × 16 images: its accuracy and seconds (of the processor) after the cut
and after each of nine epochs. Rows that the table has are not measured again; without `--images` it is only described.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import time
from pathlib import Path

import numpy as np
import optuna
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import nn

from search.config import Experiment, parse_experiment
from search.prepare import prepare
from search.results import Metrics
from search.space import Space
from search.trial import run_trial

TABLE = Path(__file__).parent.parent / "tables" / "learning-curves.csv.gz"
EPOCHS = 9

Floats = NDArray[np.float64]


def network(num_classes: int = 10) -> nn.Module:
    """Six convolutions in three resolutions: six channel groups, 2.5 million MACs on 16 × 16 images."""
    layers: list[nn.Module] = []
    for before, width, stride in [(3, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]:
        convolution = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


def experiment_of(images: Path, storage: Path) -> Experiment:
    """Return the experiment whose trials the rows are."""
    return parse_experiment(
        {
            "name": "learning-curves",
            "model": "learning_curves:network",
            "data": {"name": "image_folder", "options": {"root": str(images), "size": 16, "val_fraction": 0.2}},
            "baseline": {"epochs": 30, "learning_rate": 0.1, "weight_decay": 5e-4, "batch_size": 64},
            "recipe": {"epochs": EPOCHS, "learning_rate": 0.03, "batch_size": 64},
            "search": {
                "groups": "all",
                "criterion": ["l1", "fpgm", "random"],
                "allocation": ["searched", "uniform", "global"],
                "budget": {"minimum": "5%", "maximum": "95%"},
            },
            "storage": str(storage.resolve()),
        }
    )


def measure(experiment: Experiment, table: Path, rows: int) -> None:
    """Add the rows that a table lacks; it is written after each one."""
    inputs = prepare(experiment, print)
    space = Space(experiment, inputs.groups, inputs.cost, tuple(inputs.searched), inputs.rankings)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    policies = [space.suggest(study.ask()) for _ in range(rows)]
    known = read_lines(table)
    for policy in policies[len(known) :]:
        history, seconds, start = list[Metrics](), list[str](), time.process_time()

        def report(metrics: Metrics, _: object) -> None:
            history.append(metrics)  # noqa: B023
            seconds.append(f"{time.process_time() - start:.3f}")  # noqa: B023

        run_trial(policy, inputs, report)
        last, accuracies = history[-1], [f"{metrics.accuracy:.5f}" for metrics in history]
        known.append([policy.criterion.name, str(last.macs), str(last.params), *accuracies, *seconds])
        write(table, inputs.baseline.to_dict(), known)
        print(f"{len(known)} of {rows}: {', '.join(known[-1][: EPOCHS + 4])}", flush=True)


def read_lines(table: Path) -> list[list[str]]:
    """Return the rows of a table as text."""
    text = gzip.decompress(table.read_bytes()).decode().splitlines() if table.exists() else []
    return list(csv.reader(line for line in text if not line.startswith("#")))[1:]


def write(table: Path, baseline: dict[str, float], rows: list[list[str]]) -> None:
    text = io.StringIO()
    for name, value in baseline.items():
        print(f"# baseline {name} {value}", file=text)
    out = csv.writer(text, lineterminator="\n")
    epochs = range(EPOCHS + 1)
    out.writerow(["criterion", "macs", "params", *(f"accuracy@{e}" for e in epochs), *(f"seconds@{e}" for e in epochs)])
    out.writerows(rows)
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


class Curves:
    """What the trials of a table cost, reach and take: MACs `[trials]`, accuracy and seconds `[trials, epochs]`."""

    def __init__(self, macs: Floats, accuracy: Floats, seconds: Floats) -> None:
        self.macs, self.accuracy, self.seconds = macs, accuracy, seconds

    def __len__(self) -> int:
        return len(self.macs)

    def taken(self, order: NDArray[np.intp]) -> Curves:
        """Return some trials in this order."""
        return Curves(self.macs[order], self.accuracy[order], self.seconds[order])


def read(table: Path) -> tuple[Curves, float]:
    """Return the curves of a table, and the baseline's MACs."""
    comments = gzip.decompress(table.read_bytes()).decode().splitlines()
    full = next(float(line.split()[-1]) for line in comments if line.startswith("# baseline macs "))
    values = np.array([row[1:] for row in read_lines(table)], dtype=np.float64)
    accuracy, seconds = values[:, 2 : EPOCHS + 3], values[:, EPOCHS + 3 :]
    return Curves(values[:, 0], accuracy, np.diff(seconds, axis=1, prepend=0.0)), full


def agreement(curves: Curves, epoch: int) -> float:
    """Return the rank correlation of accuracies with the last ones, of what MACs do not explain."""
    share = curves.macs / curves.macs.max()
    rest = [values - np.polyval(np.polyfit(share, values, 4), share) for values in curves.accuracy[:, [epoch, -1]].T]
    return float(spearmanr(*rest).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("--storage", type=Path, default=Path("sweeps"), help="where baseline and rankings are kept")
    parser.add_argument("--rows", type=int, default=53)
    parser.add_argument("--table", type=Path, default=TABLE)
    arguments = parser.parse_args()
    if arguments.images:
        measure(experiment_of(arguments.images, arguments.storage), arguments.table, arguments.rows)
    curves, full = read(arguments.table)
    print(f"{len(curves)} policies, MACs from {curves.macs.min() / full:.0%} to {curves.macs.max() / full:.0%}")
    for epoch in range(EPOCHS):
        print(f"epoch {epoch}: rank correlation with the end {agreement(curves, epoch):.2f}")


if __name__ == "__main__":
    main()
