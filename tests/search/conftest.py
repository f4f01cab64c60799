"""What several files of tests share."""

from pathlib import Path

import pytest
import ray
import torch

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
