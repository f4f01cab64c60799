"""Start Ray on this machine, or join a cluster; refuse at once what it would wait for."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch

from search.config import Experiment
from search.errors import ExperimentError, SweepError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Where the libraries that compute on a CPU look for the number of their threads."""

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
    except (ConnectionError, ValueError) as error:
        raise SweepError(f"--address {address}: expected a Ray cluster, got: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


def check_resources(experiment: Experiment, address: str) -> None:
    """Refuse what Ray would wait for, before anything is prepared for it: minutes for a cluster, for ever for a CPU.

    Raises:
        ExperimentError: more of a resource than this machine has.
        SweepError: no cluster at the address.
    """
    if ray.is_initialized():
        return
    if address != "local":
        _check_address(address)
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


def _check_address(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise SweepError(f"--address {address}: expected a Ray cluster, got: {error}") from None


def _cpus(experiment: Experiment) -> int:
    """Return as many CPUs as the trials that run at once ask for, at most what the machine has."""
    return min(os.cpu_count() or 1, math.ceil(experiment.search.concurrent * experiment.resources.cpus))


def machine_memory() -> int:
    """Return the bytes of memory of this machine, or of the container that it is."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    told = [path.read_text().strip() for path in map(Path, LIMITS) if path.exists()]
    return min([there, *(int(limit) for limit in told if limit.isdigit())])
