"""Start Ray on this machine, or join a cluster; refuse at once what it would wait for."""

from __future__ import annotations

import logging
import math
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from search.config import Experiment
from search.errors import ExperimentError, PlaceError, SweepError
from search.places import discard, is_there, shown, store

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Where the libraries that compute on a CPU look for the number of their threads."""

NODE_PATIENCE_S = 120
"""How long a node may take to start a worker and look for files."""

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container's limit of memory stands."""


@contextmanager
def ray_session(experiment: Experiment, address: str) -> Iterator[None]:
    """Start Ray on this machine, or join a cluster; leave it as it was.

    Raises:
        SweepError: no cluster at the address.
    """
    torch.cuda.empty_cache()  # what the preparation has left is for the trials
    if ray.is_initialized():
        yield
        return
    threads = str(experiment.resources.threads)
    options: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "runtime_env": {"env_vars": dict.fromkeys(THREADS, threads)},
    }
    if address == "local":
        options |= {"num_cpus": _cpus(experiment), "include_dashboard": False}
        if experiment.resources.memory_gib > 0:  # Ray would count what is free now: trials might wait for ever
            options["_memory"] = machine_memory()
    try:
        ray.init(address=address, **options)
    except (ConnectionError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise SweepError(f"--address {address}: {_why_not_joined(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def check_resources(experiment: Experiment, address: str) -> None:
    """Refuse what Ray would wait for, before anything is prepared for it: minutes for a cluster, for ever for a CPU.

    Raises:
        ExperimentError: more of a resource than this machine has.
        SweepError: no cluster at the address, or one whose nodes do not all see the files that trials need.
    """
    if ray.is_initialized():
        return
    if address != "local":
        _check_address(address)
        with ray_session(experiment, address):
            check_places(experiment)
        return
    asked = experiment.resources
    limits: list[tuple[str, float, float]] = [
        ("cpus", asked.cpus, os.cpu_count() or 1),
        ("gpus", asked.gpus, torch.cuda.device_count()),
    ]
    if asked.memory_gib > 0:
        limits.append(("memory_gib", asked.memory_gib, math.floor(10 * machine_memory() / 2**30) / 10))
    for name, value, there in limits:
        if value > there:
            raise ExperimentError(f"resources.{name}: expected at most {there:g} on this machine, got {value:g}")


def _why_not_joined(error: Exception) -> str:
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    hint = "; a cluster with a token takes those with RAY_AUTH_MODE=token and its RAY_AUTH_TOKEN"
    return f"expected a Ray cluster, got: {reason}{hint}"


def _check_address(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise SweepError(f"--address {address}: expected a Ray cluster, got: {error}") from None


def check_places(experiment: Experiment) -> None:
    """Refuse a cluster with a node that does not see the experiment's storage, images or weights at the same place.

    Nodes that join later are not asked.

    Raises:
        SweepError: names the place and the node.
    """
    needed = [Path(place).resolve() for place in (experiment.data.options.get("root"), experiment.weights) if place]
    with token_in(experiment.storage) as token:
        places = {token: token.parent, **{place: place for place in needed if is_there(place)}}
        nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        asked = [_missing.options(scheduling_strategy=place).remote(list(places)) for place in there]
        for node, answer in zip((node["NodeManagerAddress"] for node in nodes), asked, strict=True):
            try:
                missing = ray.get(answer, timeout=NODE_PATIENCE_S)
            except ray.exceptions.RayError as error:
                raise SweepError(f"node {node}: does not answer: {' '.join(str(error).split())[:200]}") from None
            if isinstance(missing, PlaceError):
                raise SweepError(f"node {node}: {missing}")
            if missing is not None:
                raise does_not_see(node, places[missing])


@contextmanager
def token_in(storage: Path) -> Iterator[Path]:
    """Yield a file in the storage that another folder of the same name has not."""
    storage = storage.resolve()
    storage.mkdir(parents=True, exist_ok=True)
    token = storage / f".seen-by-all-{uuid.uuid4().hex}"
    token.touch()
    try:
        store(token)
        yield token
    finally:
        discard(token)


def does_not_see(node: str, place: Path) -> SweepError:
    """Return what is raised where a node lacks a place that all need."""
    why = "on several machines storage, images and weights have to be where all of them see them"
    return SweepError(f"node {node}: does not see {shown(str(place))}; {why}")


@ray.remote(num_cpus=0, max_retries=0)
def _missing(places: list[Path]) -> Path | PlaceError | None:
    try:
        return next((place for place in places if not is_there(place)), None)
    except PlaceError as error:
        return error


def _cpus(experiment: Experiment) -> int:
    """Return as many CPUs as the trials that run at once ask for, at most what the machine has."""
    return min(os.cpu_count() or 1, math.ceil(experiment.search.concurrent * experiment.resources.cpus))


def machine_memory() -> int:
    """Return the bytes of memory of this machine, or of the container that it is."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    told = [path.read_text().strip() for path in map(Path, LIMITS) if path.exists()]
    return min([there, *(int(limit) for limit in told if limit.isdigit())])
