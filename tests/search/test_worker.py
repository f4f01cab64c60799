import pytest
import torch

from pruning import DataError, PruningError
from search.config import Resources
from search.worker import ruins_process, take_share


@pytest.fixture
def taken(monkeypatch):
    """What a worker limits itself to, on a machine with a GPU."""
    calls = []
    monkeypatch.setattr(torch, "set_num_threads", lambda count: calls.append(("threads", count)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda fraction: calls.append(("memory", fraction))
    )
    return calls


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"gpus": 0.25, "threads": 3}, [("threads", 3), ("memory", 0.25)]),
        ({"gpus": 0.5, "cpus": 4.5}, [("threads", 4), ("memory", 0.5)]),
        ({"gpus": 1}, [("threads", 1)]),
        ({"gpus": 2}, [("threads", 1)]),
        ({"gpus": 0, "cpus": 0.5}, [("threads", 1)]),
    ],
)
def test_a_worker_takes_its_threads_and_its_part_of_a_shared_gpu(taken, resources, expected):
    take_share(Resources(**resources))
    assert taken == expected


def test_without_a_gpu_there_is_no_memory_to_limit(taken, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    take_share(Resources(gpus=0.5))
    assert taken == [("threads", 1)]


RUINOUS = [
    "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: misaligned address",
    "CUDA error: unspecified launch failure",
    "CUDA error: an illegal instruction was encountered",
    "CUDA error: the launch timed out and was terminated",
    "CUDA error: uncorrectable ECC error encountered",
]


@pytest.mark.parametrize("text", RUINOUS)
def test_an_error_that_stays_with_the_process_ruins_it_also_behind_another(text):
    error, caused, followed = RuntimeError(text), PruningError("could not go on"), PruningError("could not go on")
    caused.__cause__ = error
    followed.__context__ = error
    assert ruins_process(error)
    assert ruins_process(caused)
    assert ruins_process(followed)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: invalid configuration argument"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        DataError("label: device-side assert triggered"),
    ],
)
def test_other_errors_leave_the_process_as_it_was(error):
    assert not ruins_process(error)
