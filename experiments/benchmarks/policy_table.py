"""Measure many policies of one network, once: a table from which searches are replayed without training anything.

    OMP_NUM_THREADS=1 python experiments/benchmarks/policy_table.py --weights resnet20-12fca82f.th --images cifar10

Each row is a policy of ResNet-20's inner groups: criterion and widths, and what was measured after the cut (batch norm
recalibrated), and for some rows after one and two epochs of fine-tuning. The design is fixed by the seed: a budget
drawn from 15 % to 95 % of the MACs, and widths towards it that are even, drawn for each group or for each stage, or
drawn around those of a rule. Rows that were measured before, in the file or in its draft, are not measured again.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pruning import ALLOCATIONS, Policy, Recipe, project
from search.config import Experiment, parse_experiment
from search.inputs import Inputs
from search.prepare import prepare
from search.results import Metrics
from search.trial import run_trial

TABLE = Path(__file__).parent.parent / "tables" / "resnet20-cifar10.csv.gz"
CRITERIA = ("l1", "fpgm", "taylor", "hrank")
RULES = ("hsic_lasso", "sensitivity")
SPREADS = {"even": 0.0, "groups": 0.4, "groups, far": 0.9, "stages": 0.6, **{f"around {rule}": 0.25 for rule in RULES}}
"""How the widths of a row are drawn, and the deviation of a width's logarithm."""
SHARES = {
    "even": 0.06,
    "groups": 0.3,
    "groups, far": 0.14,
    "stages": 0.14,
    **{f"around {rule}": 0.18 for rule in RULES},
}
ALONE = {"start": [], "surrogate": "none"}
BUDGETS = (0.15, 0.95)
EPOCHS = 2
MEASURED = ("accuracy", "loss", "macs", "params", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="of ResNet-20")
    parser.add_argument("--images", type=Path, required=True, help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("--rows", type=int, default=2400)
    parser.add_argument("--trained", type=int, default=300, help="so many of the rows are fine-tuned, too")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--storage", type=Path, default=Path("sweeps"), help="where rankings are kept")
    parser.add_argument("--table", type=Path, default=TABLE)
    arguments = parser.parse_args()
    experiment = experiment_of(arguments.weights, arguments.images, arguments.storage)
    inputs = prepare(experiment, print)
    rows = list(design(inputs, arguments.rows))
    measured = known(arguments.table)
    left = [row for row in order(rows, arguments.trained) if key(row) not in measured]
    print(f"{len(rows)} rows, {len(left)} to measure")
    draft = arguments.table.with_suffix(".draft.jsonl")
    draft.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with draft.open("a") as file, ProcessPoolExecutor(arguments.workers, context) as pool:
        jobs = [pool.submit(measure, experiment.model_dump_json(), row) for row in left]
        for count, job in enumerate(as_completed(jobs), start=1):
            row = job.result()
            measured[key(row)] = row
            print(json.dumps(row), file=file, flush=True)
            if count % 50 == 0 or count == len(left):
                print(f"{count} of {len(left)} measured", flush=True)
    write(arguments.table, inputs, [measured[key(row)] for row in rows if key(row) in measured])
    print(f"{arguments.table}: {arguments.table.stat().st_size / 1e6:.2f} MB")


def experiment_of(weights: Path, images: Path, storage: Path) -> Experiment:
    """Return the experiment whose trials the rows are."""
    return parse_experiment(
        {
            "name": "policy-table",
            "model": {"name": "resnet20", "num_classes": 10},
            "weights": str(weights.resolve()),
            "data": {"name": "image_folder", "options": {"root": str(images.resolve()), "val_fraction": 0.2}},
            "recipe": {"epochs": EPOCHS, "recalibration_images": 2048},
            "search": {"criterion": list(CRITERIA), "allocation": ["searched", *RULES], **ALONE},
            "storage": str(storage.resolve()),
        }
    )


def design(inputs: Inputs, rows: int) -> Iterator[dict[str, Any]]:
    """Yield different rows, not yet measured: row by row the same, however many are asked for."""
    rng = np.random.default_rng(0)
    groups, full = inputs.searched, inputs.cost.full.macs
    rules = {name: ALLOCATIONS.build(name) for name in RULES}
    stages = sorted({group.width for group in groups.values()})
    seen = set[str]()
    while len(seen) < rows:
        kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
        criterion = str(rng.choice(CRITERIA))
        macs = int(rng.uniform(*BUDGETS) * full)
        centre = {name: float(group.width) for name, group in groups.items()}
        if kind.startswith("around"):
            rule = rules[kind.removeprefix("around ")]
            assert rule.ranked_by is not None
            ranking = inputs.rankings[rule.ranked_by.model_dump_json()]
            centre = {name: float(width) for name, width in rule.widths(groups, inputs.cost, macs, ranking).items()}
        factors = np.exp(rng.normal(0, SPREADS[kind], len(groups)))
        if kind == "stages":
            by_stage = dict(zip(stages, np.exp(rng.normal(0, SPREADS[kind], len(stages))), strict=True))
            factors = np.array([by_stage[group.width] for group in groups.values()])
        wished = dict(zip(groups, factors * np.array(list(centre.values())), strict=True))

        def direction(t: float, wished: dict[str, float] = wished) -> dict[str, float]:
            scale = t / (1 - t) if t < 1 else np.inf
            return {name: min(groups[name].width, max(1.0, scale * wish)) for name, wish in wished.items()}

        row = {"criterion": criterion, "widths": project(groups, inputs.cost, direction, macs), "kind": kind}
        if key(row) not in seen:
            seen.add(key(row))
            yield row


def order(rows: list[dict[str, Any]], trained: int) -> list[dict[str, Any]]:
    """Return the rows with their epochs: every so many is fine-tuned, a sample of the whole design."""
    every = max(1, len(rows) // max(1, trained))
    return [row | {"epochs": EPOCHS if number % every == 0 and trained else 0} for number, row in enumerate(rows)]


def key(row: dict[str, Any]) -> str:
    """Return what tells a row from others."""
    return json.dumps([row["criterion"], *row["widths"].values()])


def known(table: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of the table, and of the draft that earlier runs left beside it."""
    draft = table.with_suffix(".draft.jsonl")
    lines = draft.read_text().splitlines() if draft.exists() else []
    rows = [*(read(table) if table.exists() else []), *(json.loads(line) for line in lines if line.endswith("}"))]
    return {key(row): row for row in rows}


def read(table: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table as `measure` returned them."""
    text = gzip.decompress(table.read_bytes()).decode().splitlines()
    for row in csv.DictReader(line for line in text if not line.startswith("#")):
        names = list(row)
        widths = {name: int(row[name]) for name in names[names.index("kind") + 1 : names.index("macs")]}
        cost = {name: int(row[name]) for name in ("macs", "params")}
        history = [
            cost | {name: float(row[f"{name}@{epoch}"]) for name in ("accuracy", "loss", "seconds")}
            for epoch in range(EPOCHS + 1)
            if row[f"accuracy@{epoch}"]
        ]
        yield {"criterion": row["criterion"], "widths": widths, "kind": row["kind"], "history": history}


@cache
def inputs_of(experiment: str) -> Inputs:
    """Return what a worker needs, once for each process; rankings come from the cache."""
    torch.set_num_threads(1)
    return prepare(Experiment.model_validate_json(experiment))


def measure(experiment: str, row: dict[str, Any]) -> dict[str, Any]:
    """Measure one row; seconds are of the processor."""
    inputs = inputs_of(experiment)
    policy = Policy(
        model=inputs.model,
        network=inputs.groups.signature,
        thinned=inputs.groups.thinned,
        widths=row["widths"],
        criterion={"name": row["criterion"]},
        recipe=Recipe.model_validate(inputs.experiment.recipe.model_dump() | {"epochs": row["epochs"]}),
    )
    start, history = time.process_time(), list[dict[str, Any]]()

    def report(metrics: Metrics, _: object) -> None:
        seconds = round(time.process_time() - start, 3)
        history.append({**{name: getattr(metrics, name) for name in MEASURED}, "seconds": seconds})

    run_trial(policy, inputs, report)
    return {**row, "history": history}


def write(table: Path, inputs: Inputs, rows: list[dict[str, Any]]) -> None:
    """Write the table: the baseline in comments, then a line a policy."""
    text = io.StringIO()
    for name, value in inputs.baseline.to_dict().items():
        print(f"# baseline {name} {value}", file=text)
    names = list(inputs.searched)
    epochs = [f"{name}@{epoch}" for epoch in range(EPOCHS + 1) for name in ("accuracy", "loss", "seconds")]
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["criterion", "kind", *names, "macs", "params", *epochs])
    for row in rows:
        history = row["history"]
        cells: list[Any] = [row["criterion"], row["kind"], *(row["widths"][name] for name in names)]
        cells += [history[0]["macs"], history[0]["params"]]
        for epoch in range(EPOCHS + 1):
            found = history[epoch] if epoch < len(history) else {}
            cells += [round(found[name], 5) if name in found else "" for name in ("accuracy", "loss", "seconds")]
        out.writerow(cells)
    table.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


if __name__ == "__main__":
    main()
