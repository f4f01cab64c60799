"""Ray's object store, full of somebody else's objects."""

import os
import secrets
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import faults
import pytest
import ray
from disks import disks
from processes import wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.cluster, pytest.mark.timeout(3600)]

HOST = ray.util.get_node_ip_address()
BYTES = 78_643_200
FILLS = """
import contextlib, sys, time, numpy, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
held = []
for count in [2**20] * 9 + [2**13] * 64:  # 8 MiB, then what else there is room for
    with contextlib.suppress(ray.exceptions.RayError):
        held.append(ray.get(ray.put(numpy.zeros(count))))  # what is looked at stays where it is
print("full", flush=True)
time.sleep(3600)
"""


@contextmanager
def started(command, environment, **options):
    process = subprocess.Popen(list(map(str, command)), env=environment, start_new_session=True, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def full_store(place, *options, enter=()):
    """Yield the address of a node whose object store another program holds full."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    paths = os.pathsep.join(map(str, faults.PATH))
    environment = {**os.environ, **token, "PYTHONPATH": paths, **faults.ENVIRONMENT}
    place.environment = token
    start = [*enter, Path(sys.executable).with_name("ray"), "start", "--block", "--head", "--port", port]
    start += ["--num-cpus", 2, "--object-store-memory", BYTES, "--include-dashboard", "false", "--disable-usage-stats"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    address = f"{HOST}:{port}"
    with started([*start, *options], environment, **quiet):
        wait_for(lambda: not socket.socket().connect_ex((HOST, port)))
        filling = [sys.executable, "-c", FILLS, address]
        with started(filling, environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as filler:
            assert filler.stdout.readline() == b"full\n"
            yield address


def test_a_sweep_goes_on_beside_a_full_store(new_place, kept):
    place = new_place()
    with full_store(place) as address:
        code = place.run("run", place.file, "--plain", "--address", address)
    assert code == 0, place.err
    kept(place, "the object store is full", "held by another program", 1)


def test_a_sweep_beside_a_full_store_and_a_full_disk_is_kept_or_refused_in_one_line(new_place, kept):
    place = new_place()
    with disks() as disk:
        spilled = place.folder / "spilled"
        spilled.mkdir()
        disk.mount(spilled, 64)
        disk.fill(spilled)
        with full_store(place, "--object-spilling-directory", spilled, enter=disk.enter) as address:
            code = place.run("run", place.file, "--plain", "--address", address)
    if code == 2:
        assert place.complaint.startswith("error: ")
        assert place.run() == 0, place.err
    assert code in (0, 2), place.err
    kept(place, "the object store is full", "and so is the disk to which it spills", 1)
