"""What several files of tests share."""

import sys
from pathlib import Path

import fsspec
import pytest
import ray
import tiny
import torch

from search import cli
from search.places import path_of

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def local_ray():
    """Ray on this machine, for a file of tests; its workers find the modules beside them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers: sums of several threads differ in their last digits
    environment = {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    ray.init(address="local", num_cpus=2, runtime_env={"env_vars": environment}, **options)
    yield
    ray.shutdown()
    torch.set_num_threads(threads)


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs the command line in this process and returns exit code, output and complaint."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["prunesearch", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        told = capsys.readouterr()
        return end.value.code, told.out, told.err

    return run


@pytest.fixture
def refused(call, tmp_path):
    """Runs the command line in vain and returns its one line; nothing is written."""

    def run(*arguments):
        before = tiny.files(tmp_path)
        code, _, complaint = call(*arguments)
        assert (code, complaint.count("\n"), complaint[:7]) == (2, 1, "error: ")
        assert tiny.files(tmp_path) == before
        return complaint

    return run


@pytest.fixture
def file(tmp_path):
    """Writes an experiment file with some sections of its own."""

    def write(**sections):
        path = tmp_path / "tiny.yaml"
        path.write_text(tiny.experiment(tmp_path / "sweeps", **sections).to_yaml())
        return path

    return write


@pytest.fixture
def there():
    """What lies at addresses `memory://`, as a file system."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Switch to a machine of a name: each has its own copies; this is `one`."""

    def switch(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return path_of("memory://bucket/sweep")

    switch("one")
    return switch
