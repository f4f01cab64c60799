"""What Tune runs in a worker: one trial, which reports as it goes and leaves what it takes to go on."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import traceback
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from ray import tune

from pruning import BatchSizeWarning, Policy, PruningError
from search.counts import Event, counting_into, read_events
from search.errors import PlaceError
from search.mirror import pulled
from search.places import address_of, discard, fetch, store
from search.results import MEASURED, Metrics
from search.sharing import Shared, received
from search.trial import run_trial
from search.unwritten import going_without, telling
from search.worker import ruins_process, take_share

SNAPSHOTS, EVENTS = "snapshots", "shared.jsonl"
_SEAL = 32
"""Bytes in front of a snapshot's content."""


def train(config: dict[str, Any], shared: Shared) -> None:
    """Run one trial in a worker; what it raises becomes its result, so that Tune repeats lost workers only.

    What ruins the worker is raised: Tune gives the trial, and those after it, another one.
    """
    inputs = received(shared)
    take_share(inputs.experiment.resources)
    policy = Policy.from_json(config["policy"])
    snapshot = snapshot_of(inputs.experiment.folder, config["number"])
    missing, measured = list[str](), list[dict[str, float]]()

    def report(metrics: Metrics, state: Callable[[], dict[str, Any]]) -> None:
        measured.append(metrics.to_dict())
        if 0 < metrics.epoch < policy.recipe.epochs:
            write_snapshot(state() | {MEASURED: measured}, snapshot, policy)
        smaller = [str(note.message) for note in notes if issubclass(note.category, BatchSizeWarning)]
        told = dict.fromkeys([*smaller, *missing])
        facts = {"device": inputs.device_name} | ({"note": "\n".join(told)} if told else {})
        tune.report(metrics.to_dict() | facts)

    with (
        warnings.catch_warnings(record=True, action="always", category=BatchSizeWarning) as notes,
        telling(missing.append),
    ):
        try:
            resume = read_snapshot(snapshot, policy)
            if resume is not None:
                measured += resume[MEASURED]
                tune.report(resume["metrics"] | {MEASURED: measured})  # the driver may have died, and not heard of all
            with counting_into(events_of(inputs.experiment.folder)):
                run_trial(policy, inputs, report, resume)
        except Exception as error:
            if ruins_process(error):
                raise
            tune.report({"error": str(error) if isinstance(error, PruningError) else traceback.format_exc()})
    torch.cuda.empty_cache()  # the worker lives on; what it does not use is for the others


def events_of(folder: Path) -> Path:
    """Return where this process notes what it makes and finds; in a copy, which others have too, a file of its own."""
    if address_of(folder) is None:
        return folder / EVENTS
    return folder / f"shared-{socket.gethostname()}-{os.getpid()}.jsonl"


def all_events(folder: Path) -> list[Event]:
    """Return what all processes have noted.

    Raises:
        PlaceError: the address of a copy cannot be read.
    """
    return [event for path in sorted(pulled(folder).glob("shared*.jsonl")) for event in read_events(path)]


def snapshot_of(folder: Path, number: int) -> Path:
    """Return where a trial writes what it needs to go on; the driver removes it once the trial has ended."""
    return folder / SNAPSHOTS / f"trial-{number}.pt"


def forget(folder: Path, number: int) -> None:
    """Remove what a trial has left to go on from, and drafts of it that a worker left who died."""
    with suppress(PlaceError):
        discard(snapshot_of(folder, number))
    for path in (folder / SNAPSHOTS).glob(f"trial-{number}.*"):
        path.unlink(missing_ok=True)


def write_snapshot(state: dict[str, Any], snapshot: Path, policy: Policy) -> None:
    """Write what the trial needs to go on, if there is room: else it will start again."""
    draft = snapshot.with_suffix(f".{uuid.uuid4().hex}.draft")  # a worker that is cut off may still write its own
    with going_without("trials start afresh where they are interrupted, for they cannot write snapshots", draft):
        content = io.BytesIO()
        torch.save(state, content)
        snapshot.parent.mkdir(parents=address_of(snapshot) is not None, exist_ok=True)
        draft.write_bytes(_seal(content.getvalue(), policy) + content.getvalue())
        draft.replace(snapshot)
        store(snapshot)


def read_snapshot(snapshot: Path, policy: Policy) -> dict[str, Any] | None:
    """Return what an earlier attempt at the trial left: its worker or the whole sweep was stopped.

    None where there is nothing, or not what was written, or what another policy's trial has written.
    """
    with suppress(PlaceError):  # what is here may be older, and does
        fetch(snapshot)
    try:
        written = snapshot.read_bytes()
    except OSError:
        return None
    seal, content = written[:_SEAL], written[_SEAL:]
    if seal != _seal(content, policy):
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    return state


def _seal(content: bytes, policy: Policy) -> bytes:
    """Return what only this content of this policy's trial has: torch loads a file in which bytes have changed."""
    return hashlib.sha256(policy.fingerprint.encode() + content).digest()
