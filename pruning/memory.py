"""Running out of memory: the same work on fewer images at a time."""

from __future__ import annotations

import gc
import re
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from pruning.errors import PruningError

T = TypeVar("T")

# Beside `torch.OutOfMemoryError`: the driver's own word, that of the CPU's allocator, and of CUDA's libraries, whose
# handles and workspaces torch does not allocate.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|_ALLOC(ATION)?_FAILED|CUBLAS_STATUS_NOT_INITIALIZED"
    r"|unable to find an engine to execute this computation",
    re.IGNORECASE,
)


class DeviceMemoryError(PruningError):
    """Memory that does not hold the work on the least possible number of images."""


class BatchSizeWarning(UserWarning):
    """Memory did not hold what was asked for; the work went on with fewer images at a time."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an allocation failed, on an accelerator or in one of its libraries, or on the CPU."""
    return isinstance(error, RuntimeError) and bool(
        isinstance(error, torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(str(error))
    )


def told_briefly(error: BaseException) -> str:
    """Return the first two sentences of an error; torch's advice on its allocator follows them."""
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ". ".join(first.split(". ")[:2]).rstrip(".")


class Portions:
    """How many images are run at a time: all, until memory runs out; then half as many, and no more ever after.

    Args:
        place: what is run, for messages.
        least: the fewest images that can be run at a time.

    Attributes:
        proven: the last run, at the size that the next one begins with, did not run out of memory.
    """

    def __init__(self, place: str, *, least: int = 1) -> None:
        self.place, self.least, self.proven = place, least, False
        self._most: int | None = None

    def run(self, images: int, work: Callable[[int], T], undo: Callable[[], None] = lambda: None) -> T:
        """Return `work(size)`; where memory runs out, `undo` what it has left and try again with half the size.

        Args:
            images: how many there are; the size to begin with unless fewer have been too many before.
            work: runs all images, `size` at a time.
            undo: called after each attempt that failed, to let go of memory, too.

        Raises:
            DeviceMemoryError: the least size is too much.
        """
        first = size = images if self._most is None else min(images, self._most)
        while True:
            try:
                result = work(size)
                break
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = told_briefly(error)
            # Not before here: the exception holds every tensor of the attempt.
            self.proven = False
            undo()
            gc.collect()
            torch.cuda.empty_cache()
            if size <= self.least:
                fewest = "one image" if self.least == 1 else f"{self.least} images"
                raise DeviceMemoryError(f"{self.place}: expected memory for {fewest} at a time, got: {reason}")
            size = max(self.least, (size + 1) // 2)
        self.proven = True
        if size < first:
            self._most = size
            told = f"{self.place}: memory does not hold {first} images at a time; goes on with {size}"
            warnings.warn(told, BatchSizeWarning, stacklevel=2)
        return result

    def map(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Return `function(images)`, from as many images at a time as fit.

        Args:
            function: treats each image by itself; returns `[images, …]`.
            images: `[images, …]`.
        """

        def work(size: int) -> Tensor:
            found = [function(part) for part in parts_of(images, size)]
            return found[0] if len(found) == 1 else torch.cat(found)

        return self.run(len(images), work)


def parts_of(images: Tensor, size: int) -> tuple[Tensor, ...]:
    """Return a batch in as few parts of at most `size` as there can be, as equal as they can be; itself if it fits."""
    return (images,) if len(images) <= size else images.tensor_split(-(-len(images) // size))
