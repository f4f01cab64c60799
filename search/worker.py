"""A worker process: what it is allowed to take, and whether an error has ruined it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from search.config import Resources

# Of CUDA's errors those after which every further call in the process fails with the same one.
_RUINOUS = re.compile(
    r"device-side assert|illegal memory access|illegal instruction|misaligned address|unspecified launch failure"
    r"|launch timed out|invalid program counter|hardware stack error|uncorrectable ECC error"
    r"|operation not supported on global/shared address space"
)


def take_share(resources: Resources) -> None:
    """Keep this process to one trial's share: of the CPU's cores, and of the memory of a GPU that trials share."""
    torch.set_num_threads(resources.threads)
    if 0 < resources.gpus < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(resources.gpus)


def ruins_process(error: BaseException) -> bool:
    """Return whether the process can use its GPU no more, by what the error, or one that led to it, says."""
    return any(isinstance(cause, RuntimeError) and _RUINOUS.search(str(cause)) for cause in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
