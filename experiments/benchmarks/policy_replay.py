"""What policies that nobody measured would have scored: regressions on a table of measured ones (policy_table.py).

One for each epoch, of log-odds on widths, criterion and MACs, and on the log-odds of the epoch before: gradient
boosting, which has nothing in common with the surrogate of the search. Costs are counted, not predicted. The idea of a
benchmark by regression: Siems et al., NAS-Bench-301, 2020.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.model_selection import KFold, cross_val_predict

from pruning import Policy
from search.inputs import Inputs
from search.results import Metrics

MARGIN = 0.002
FOLDS = 5

Vector = NDArray[np.float64]


class Replay:
    """Answers as trials would, at once.

    Args:
        inputs: the network of the table, and its baseline.
        table: as policy_table.py writes it.
        epochs: how many of them are ever asked for.
        ahead: see `Bench` of sweep_efficiency.py.
    """

    def __init__(self, inputs: Inputs, table: Path, epochs: int, ahead: float) -> None:
        self.inputs, self.ahead = inputs, ahead
        lines = gzip.decompress(table.read_bytes()).decode().splitlines()
        rows = list(csv.DictReader(line for line in lines if not line.startswith("#")))
        self._criteria = sorted({row["criterion"] for row in rows})
        self._epochs = min(epochs + 1, sum(name.startswith("accuracy@") for name in rows[0]))
        features = np.array(
            [
                self._features({n: int(row[n]) for n in inputs.searched}, row["criterion"], int(row["macs"]))
                for row in rows
            ]
        )
        self._models: list[GradientBoostingRegressor] = []
        self._seconds: list[Vector] = []
        self._known: list[tuple[Vector, Vector]] = []
        before = np.zeros((len(rows), 0))
        for epoch in range(self._epochs):
            known = np.array([row[f"accuracy@{epoch}"] != "" for row in rows])
            asked = np.hstack([features, before])[known]
            some = [row for row, is_known in zip(rows, known, strict=True) if is_known]
            accuracy = np.array([float(row[f"accuracy@{epoch}"]) for row in some])
            model = GradientBoostingRegressor(n_estimators=600, learning_rate=0.05, subsample=0.5, random_state=0)
            self._known.append((asked, accuracy))
            self._models.append(model.fit(asked, log_odds(accuracy)))
            costs = np.stack([np.ones(len(some)), [float(row["macs"]) for row in some]], axis=1)
            spent = np.array([float(row[f"seconds@{epoch}"]) for row in some])
            self._seconds.append(np.linalg.lstsq(costs, spent, rcond=None)[0])
            found = np.full((len(rows), 1), np.nan)
            found[known, 0] = log_odds(accuracy)
            before = np.hstack([before, found])

    def __str__(self) -> str:
        found = (quality(model, *known) for model, known in zip(self._models, self._known, strict=True))
        return "\n".join(f"replay of epoch {epoch}: {text}" for epoch, text in enumerate(found))

    def measure(self, policy: Policy, goes_on: Callable[[Metrics], bool]) -> list[Metrics]:
        """Return what a trial would have measured, epoch after epoch, as long as it goes on."""
        cost, history = self.inputs.cost.cost(policy.widths), list[Metrics]()
        features, odds = self._features(policy.widths, policy.criterion.name, cost.macs), list[float]()
        for epoch in range(min(policy.recipe.epochs, self._epochs - 1) + 1):
            odds.append(float(self._models[epoch].predict([[*features, *odds]])[0]))
            seconds = float(self._seconds[epoch] @ [1.0, cost.macs])
            accuracy = 1 / (1 + np.exp(-odds[-1]))
            history.append(Metrics(epoch, accuracy, 1 - accuracy, cost.macs, cost.params, seconds=max(0.0, seconds)))
            if epoch < policy.recipe.epochs and not goes_on(history[-1]):
                break
        return history

    def _features(self, widths: Mapping[str, int], criterion: str, macs: int) -> list[float]:
        kept = [widths[name] / group.width for name, group in self.inputs.searched.items()]
        logs = np.log(kept)
        return [*kept, *logs, float(logs.sum()), float(np.log(macs)), *(criterion == name for name in self._criteria)]


def quality(model: GradientBoostingRegressor, features: Vector, accuracy: Vector) -> str:
    """Return how well rows are predicted by a model that has not seen them."""
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    found = 1 / (1 + np.exp(-cross_val_predict(clone(model), features, log_odds(accuracy), cv=folds)))
    error = found - accuracy
    share = 1 - np.square(error).mean() / accuracy.var()
    return f"{len(accuracy)} rows, R² {share:.3f}, error {np.sqrt(np.square(error).mean()):.3f} (cross-validated)"


def log_odds(accuracy: Vector | Sequence[float]) -> Vector:
    p = np.clip(np.asarray(accuracy, dtype=np.float64), MARGIN, 1 - MARGIN)
    odds: Vector = np.log(p / (1 - p))
    return odds
