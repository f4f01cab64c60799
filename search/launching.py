"""Start Ray on this machine, or join a cluster; refuse at once what it would wait for."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch

from search.config import Experiment
from search.errors import ExperimentError, SweepError


@contextmanager
def ray_session(experiment: Experiment, address: str) -> Iterator[None]:
    """Start Ray on this machine, or join a cluster; leave it as it was.

    Raises:
        SweepError: no cluster at the address.
    """
    if ray.is_initialized():
        yield
        return
    threads = str(experiment.resources.threads)
    options: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}},
    }
    if address == "local":
        options |= {"num_cpus": _cpus(experiment), "include_dashboard": False}
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
    for name, there in (("cpus", os.cpu_count() or 1), ("gpus", torch.cuda.device_count())):
        asked = getattr(experiment.resources, name)
        if asked > there:
            raise ExperimentError(f"resources.{name}: expected at most {there} on this machine, got {asked:g}")


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
