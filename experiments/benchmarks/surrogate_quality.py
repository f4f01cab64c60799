"""How well a surrogate predicts policies that it has not seen, and how soon it finds good ones, on a table of policies.

    python experiments/benchmarks/surrogate_quality.py --table experiments/tables/resnet20-cifar10.csv.gz \
        --curves sweeps/cache/rankings/sensitivity-….safetensors

Rows of the table (see policy_table.py; its draft will do) are drawn to learn from, the others are predicted. Printed
are means over the draws: ρ, Spearman's correlation over all other rows; ρ*, its mean within bands of MACs, in which
the cost alone says little; R² of the accuracy. Then searches are replayed on the table, by rows drawn at random and by
those that the surrogate would choose next: the part of the whole table's hypervolume after so many rows.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import moocore
import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.ensemble import RandomForestRegressor

from pruning import CostModel, ModelSpec, SensitivityRanking, build_model, find_groups, load_ranking
from search.surrogate import Ladder, Observation, Prior, Surrogate
from search.surrogate.choice import choose
from search.surrogate.proposing import OPTIMISM

DRAWS = 10
SIZES = (0, 5, 20, 50, 100, 200)
LEAST = 5
"""Fewer rows say nothing to a fit without a prior."""
BANDS = 8
STEPS = (8, 16, 24, 32, 48, 64)
BATCH = 4


@dataclass(frozen=True)
class Row:
    """A measured policy; `observation` has its accuracies after the cut and after the last epoch."""

    observation: Observation
    macs: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True, help="a table of policies of ResNet-20, or its draft")
    parser.add_argument("--curves", type=Path, help="a ranking of criterion sensitivity, for the prior")
    parser.add_argument("--baseline", type=float, default=0.9971, help="accuracy of the uncut network, for a draft")
    arguments = parser.parse_args()
    rows, accuracy = read(arguments.table, arguments.baseline)
    prior = None
    if arguments.curves:
        ranking = load_ranking(arguments.curves)
        assert isinstance(ranking, SensitivityRanking)
        prior = Prior.of_curves(ranking)
    task = Task.of(rows, accuracy, prior)
    trained = [row for row in rows if row.observation.last is not None]
    print(f"{len(rows)} policies, {len(trained)} of them fine-tuned\n")
    compare("after the cut", task, [replace(row, observation=replace(row.observation, last=None)) for row in rows])
    compare("after fine-tuning", task, trained, trained=True)
    replay(task, rows)


# ── the table ────────────────────────────────────────────────────────────────────────────────────────────────────────


def read(table: Path, accuracy: float) -> tuple[list[Row], float]:
    """Return the rows of a table or of a draft, and the baseline's accuracy."""
    if table.suffix == ".jsonl":
        lines = [json.loads(line) for line in table.read_text().splitlines() if line.endswith("}")]
        latest = {json.dumps([row["criterion"], row["widths"]]): row for row in lines}
        return [from_draft(row) for row in latest.values()], accuracy
    text = gzip.decompress(table.read_bytes()).decode().splitlines()
    comments = dict(line.removeprefix("# baseline ").split() for line in text if line.startswith("#"))
    cells = csv.DictReader(line for line in text if not line.startswith("#"))
    return [from_table(row) for row in cells], float(comments["accuracy"])


def from_draft(row: dict) -> Row:
    history = row["history"]
    last = history[-1]["accuracy"] if len(history) > 1 else None
    return Row(Observation(row["widths"], row["criterion"], history[0]["accuracy"], last), history[0]["macs"])


def from_table(row: dict[str, str]) -> Row:
    names = list(row)
    widths = {name: int(row[name]) for name in names[names.index("kind") + 1 : names.index("macs")]}
    last = [row[name] for name in names if name.startswith("accuracy@")][-1]
    observation = Observation(widths, row["criterion"], float(row["accuracy@0"]), float(last) if last else None)
    return Row(observation, int(row["macs"]))


@dataclass(frozen=True)
class Task:
    """What a surrogate is made from."""

    ladder: Ladder
    criteria: tuple[str, ...]
    baseline: dict[str, float]
    prior: Prior | None

    @classmethod
    def of(cls, rows: Sequence[Row], accuracy: float, prior: Prior | None) -> Task:
        network, example = build_model(ModelSpec(name="resnet20")), torch.zeros(1, 3, 32, 32)
        groups = find_groups(network, example)
        cost = CostModel(network, groups, example)
        searched = groups.only(tuple(rows[0].observation.widths))
        criteria = tuple(sorted({row.observation.criterion for row in rows}))
        baseline = {"accuracy": accuracy, "macs": cost.full.macs, "params": cost.full.params}
        return cls(Ladder.of(searched, cost), criteria, baseline, prior)

    def surrogate(self, rows: Sequence[Row], *, with_prior: bool = True) -> Surrogate:
        prior = self.prior if with_prior else None
        model = Surrogate(self.ladder, self.criteria, ("accuracy", "macs"), self.baseline, prior)
        model.fit([row.observation for row in rows])
        return model

    def predict(self, model: Surrogate, rows: Sequence[Row], optimism: float = 0.0) -> np.ndarray:
        """Return the accuracies that a surrogate expects, or hopes for, `[rows]`."""
        widths, values = self.widths(rows), np.zeros(len(rows))
        of_rows = np.array([row.observation.criterion for row in rows])
        for criterion in self.criteria:
            some = of_rows == criterion
            found = model.predict(widths[some], criterion)
            values[some] = found.mean + optimism * found.deviation
        return values

    def widths(self, rows: Sequence[Row]) -> np.ndarray:
        return self.ladder.matrix([row.observation.widths for row in rows])

    def features(self, rows: Sequence[Row]) -> np.ndarray:
        """Return shares of channels kept and the criterion, `[rows, groups + criteria]`."""
        labels = [[row.observation.criterion == criterion for criterion in self.criteria] for row in rows]
        return np.hstack([self.widths(rows) / self.ladder.full, np.array(labels, dtype=float)])


# ── predictions ──────────────────────────────────────────────────────────────────────────────────────────────────────

Predict = Callable[[Sequence[Row], Sequence[Row]], np.ndarray]


def accuracies(rows: Sequence[Row]) -> np.ndarray:
    """Return the accuracy that is to be predicted: the last that is known."""
    found = [row.observation.first if row.observation.last is None else row.observation.last for row in rows]
    return np.array(found, dtype=float)


def predictors(task: Task) -> dict[str, Predict]:
    def by_macs(known: Sequence[Row], others: Sequence[Row]) -> np.ndarray:
        seen, asked = (np.log([row.macs for row in rows]) for rows in (known, others))
        if len(known) < LEAST:
            return np.full(len(others), np.nan)
        p = np.clip(accuracies(known), 0.005, 0.995)
        return 1 / (1 + np.exp(-np.polyval(np.polyfit(seen, np.log(p / (1 - p)), 2), asked)))

    def by_forest(known: Sequence[Row], others: Sequence[Row]) -> np.ndarray:
        if len(known) < LEAST:
            return np.full(len(others), np.nan)
        forest = RandomForestRegressor(200, random_state=0).fit(task.features(known), accuracies(known))
        return forest.predict(task.features(others))

    def by_surrogate(with_prior: bool) -> Predict:
        return lambda known, others: task.predict(task.surrogate(known, with_prior=with_prior), others)

    found: dict[str, Predict] = {"MACs alone": by_macs, "random forest": by_forest, "no curves": by_surrogate(False)}
    return found | ({"with curves": by_surrogate(True)} if task.prior else {})


def compare(what: str, task: Task, rows: list[Row], *, trained: bool = False) -> None:
    sizes = [size for size in SIZES if LEAST * bool(trained) <= size <= 0.7 * len(rows)]
    print(f"{what:<18}" + "".join(f" | {size:>4}: ρ    ρ*     R²" for size in sizes))
    for name, predict in predictors(task).items():
        print(f"{name:<18}", end="")
        for size in sizes:
            found = np.mean([scores(predict, *drawn(rows, size, draw)) for draw in range(DRAWS)], axis=0)
            cells = ["     –" if np.isnan(mean) else f"{mean:6.3f}" for mean in found]
            print(" | " + " ".join(cells), end="", flush=True)
        print()
    print()


def drawn(rows: list[Row], size: int, draw: int) -> tuple[list[Row], list[Row]]:
    order = np.random.default_rng(draw).permutation(len(rows))
    return [rows[index] for index in order[:size]], [rows[index] for index in order[size:]]


def scores(predict: Predict, known: list[Row], others: list[Row]) -> tuple[float, float, float]:
    found, true = predict(known, others), accuracies(others)
    bands = np.array_split(np.argsort([row.macs for row in others], kind="stable"), min(BANDS, len(others) // 10 + 1))
    within = [rank(found[band], true[band]) for band in bands]
    return rank(found, true), float(np.mean(within)), float(1 - ((found - true) ** 2).mean() / true.var())


def rank(found: np.ndarray, true: np.ndarray) -> float:
    return float(spearmanr(found, true)[0]) if np.isfinite(found).all() else np.nan


# ── searches ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def replay(task: Task, rows: list[Row]) -> None:
    """Print which part of the table's hypervolume is reached after so many rows, after the cut."""
    rows = [replace(row, observation=replace(row.observation, last=None)) for row in rows]
    steps = [step for step in STEPS if step <= len(rows) / 2]
    print("rows tried        " + "".join(f"{step:>8}" for step in steps))
    ways = {"at random": None, "no curves": False} | ({"with curves": True} if task.prior else {})
    for name, with_prior in ways.items():
        parts = [[*parts_of(task, rows, steps, with_prior, draw)] for draw in range(DRAWS)]
        mean, deviation = np.mean(parts, axis=0), np.std(parts, axis=0)
        print(f"{name:<18}" + "".join(f"{part:8.3f}" for part in mean) + f"   ± {deviation.max():.3f}", flush=True)


def parts_of(task: Task, rows: list[Row], steps: Sequence[int], with_prior: bool | None, draw: int) -> Iterator[float]:
    left, known = drawn(rows, len(rows), draw)[0], list[Row]()
    whole = volume(points(task, rows, accuracies(rows)))
    for step in steps:
        while len(known) < step:
            chosen = list(range(BATCH))
            if with_prior is not None:
                model = task.surrogate(known, with_prior=with_prior)
                hoped = points(task, left, task.predict(model, left, OPTIMISM))
                chosen = choose(hoped, points(task, known, task.predict(model, known)), BATCH) or chosen
            known += [left[index] for index in chosen]
            left = [row for index, row in enumerate(left) if index not in chosen]
        yield volume(points(task, known[:step], accuracies(known[:step]))) / whole


def points(task: Task, rows: Sequence[Row], accuracy: np.ndarray) -> np.ndarray:
    costs = np.array([row.macs for row in rows], dtype=float) / task.baseline["macs"]
    return np.stack([1 - accuracy, costs], axis=1).reshape(-1, 2)


def volume(some: np.ndarray) -> float:
    return float(moocore.hypervolume(some, ref=1.0))


if __name__ == "__main__":
    main()
