"""What Tune runs in a worker: one trial, which reports as it goes and leaves what it takes to go on."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ray import tune

from pruning import BatchSizeWarning, Policy, PruningError
from search.counts import counting_into
from search.results import Metrics
from search.sharing import Shared, received
from search.trial import run_trial
from search.worker import ruins_process, take_share

SNAPSHOTS, EVENTS = "snapshots", "shared.jsonl"


def train(config: dict[str, Any], shared: Shared) -> None:
    """Run one trial in a worker; what it raises becomes its result, so that Tune repeats lost workers only.

    What ruins the worker is raised: Tune gives the trial, and those after it, another one.
    """
    inputs = received(shared)
    take_share(inputs.experiment.resources)
    policy = Policy.from_json(config["policy"])
    snapshot = snapshot_of(inputs.experiment.folder, config["number"])

    def report(metrics: Metrics, state: Callable[[], dict[str, Any]]) -> None:
        if 0 < metrics.epoch < policy.recipe.epochs:
            _write(state(), snapshot)
        told = dict.fromkeys(str(note.message) for note in notes if issubclass(note.category, BatchSizeWarning))
        facts = {"device": inputs.device_name} | ({"note": "; ".join(told)} if told else {})
        tune.report(metrics.to_dict() | facts)

    with warnings.catch_warnings(record=True, action="always", category=BatchSizeWarning) as notes:
        try:
            resume = _read(snapshot)
            if resume is not None:
                tune.report(resume["metrics"])  # the driver may have died before it heard of them
            with counting_into(inputs.experiment.folder / EVENTS):
                run_trial(policy, inputs, report, resume)
        except Exception as error:
            if ruins_process(error):
                raise
            tune.report({"error": str(error) if isinstance(error, PruningError) else traceback.format_exc()})
    torch.cuda.empty_cache()  # the worker lives on; what it does not use is for the others


def snapshot_of(folder: Path, number: int) -> Path:
    """Return where a trial writes what it needs to go on; the driver removes it once the trial has ended."""
    return folder / SNAPSHOTS / f"trial-{number}.pt"


def _write(state: dict[str, Any], snapshot: Path) -> None:
    snapshot.parent.mkdir(exist_ok=True)
    draft = snapshot.with_suffix(".draft")
    torch.save(state, draft)
    draft.replace(snapshot)


def _read(snapshot: Path) -> dict[str, Any] | None:
    """Return what an earlier attempt at the trial left: its worker or the whole sweep was stopped."""
    if not snapshot.exists():
        return None
    state: dict[str, Any] = torch.load(snapshot, weights_only=True, map_location="cpu")
    return state
