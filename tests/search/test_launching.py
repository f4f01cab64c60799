"""What Ray is asked for, and what is refused before."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch

from search import launching
from search.config import Resources
from search.errors import ExperimentError
from search.launching import check_resources, machine_memory, ray_session

GIB = 2**30


@pytest.fixture
def asked(monkeypatch):
    """What Ray is started with; it is not."""
    options = {}
    away = SimpleNamespace(is_initialized=lambda: False, init=lambda **found: options.update(found), shutdown=int)
    monkeypatch.setattr(launching, "ray", away)
    monkeypatch.setattr(launching.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(launching, "machine_memory", lambda: 8 * GIB)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    return options


def experiment(tmp_path, concurrent=3, **resources):
    return tiny.experiment(tmp_path, search={"concurrent": concurrent}, resources=resources)


@pytest.mark.parametrize(
    ("resources", "threads"), [({}, 1), ({"cpus": 0.5}, 1), ({"cpus": 4.5}, 4), ({"cpus": 4, "threads": 2}, 2)]
)
def test_a_trial_has_a_thread_for_each_whole_cpu_unless_it_is_told(asked, tmp_path, resources, threads):
    assert Resources(**resources).threads == threads
    with ray_session(experiment(tmp_path, **resources), "local"):
        assert set(asked["runtime_env"]["env_vars"].values()) == {str(threads)}
    assert {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"} == set(asked["runtime_env"]["env_vars"])


@pytest.mark.parametrize(("concurrent", "cpus", "expected"), [(3, 4, 12), (9, 4, 16), (3, 0.5, 2)])
def test_this_machine_is_asked_for_what_the_trials_need_at_once(asked, tmp_path, concurrent, cpus, expected):
    with ray_session(experiment(tmp_path, concurrent, cpus=cpus), "local"):
        assert asked["num_cpus"] == expected


def test_memory_is_counted_as_the_machine_s_where_trials_ask_for_some(asked, tmp_path):
    with ray_session(experiment(tmp_path), "local"):
        assert "_memory" not in asked
    with ray_session(experiment(tmp_path, memory_gib=0.5), "local"):
        assert asked["_memory"] == 8 * GIB
    asked.clear()
    with ray_session(experiment(tmp_path, memory_gib=0.5), "10.0.0.1:6379"):
        assert not {"_memory", "num_cpus"} & set(asked)


@pytest.mark.parametrize(("name", "there"), [("cpus", 16), ("gpus", 2), ("memory_gib", 8)])
def test_as_much_as_there_is_may_be_asked_for_and_no_more(asked, tmp_path, name, there):
    check_resources(experiment(tmp_path, **{name: there}), "local")
    told = f"^resources.{name}: expected at most {there} on this machine, got {there}.5$"
    with pytest.raises(ExperimentError, match=told):
        check_resources(experiment(tmp_path, **{name: there + 0.5}), "local")


@pytest.mark.parametrize(("limits", "expected"), [([], None), (["max"], None), ([str(GIB)], GIB), (["9" * 19], None)])
def test_a_container_has_the_memory_of_its_limit(tmp_path, monkeypatch, limits, expected):
    whole = machine_memory() if not limits else None
    for number, limit in enumerate(limits):
        (tmp_path / f"{number}").write_text(f"{limit}\n")
    monkeypatch.setattr(launching, "LIMITS", [str(tmp_path / "none"), *(str(tmp_path / f"{n}") for n in range(1))])
    there = launching.os.sysconf("SC_PAGE_SIZE") * launching.os.sysconf("SC_PHYS_PAGES")
    assert machine_memory() == (expected or there)
    assert whole is None or whole <= there


HUNGRY = """
import search, ray, time

@ray.remote(max_retries=2)
def rank():
    with open({log!r}, "a") as log:
        log.write("begun\\n")
    time.sleep(60)

ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
try:
    ray.get(rank.remote(), timeout=90)
except ray.exceptions.OutOfMemoryError:
    print("out of memory")
"""


def test_a_task_that_memory_never_holds_ends(tmp_path):
    log = tmp_path / "log"
    tight = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"}
    command = [sys.executable, "-c", HUNGRY.format(log=str(log))]
    done = subprocess.run(command, env={**os.environ, **tight}, capture_output=True, text=True, timeout=200)
    assert "out of memory" in done.stdout.splitlines(), done.stderr[-500:]
    assert len(log.read_text().splitlines()) <= 3
