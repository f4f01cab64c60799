"""A place in a network that runs out of memory."""

from __future__ import annotations

import weakref
from collections.abc import Container
from typing import NoReturn

import torch
from torch import Tensor, nn

TOLD = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8.00 GiB. Try this\nand that"


class Scarce(nn.Module):
    """Passes on what it gets; runs out of memory for more than `most` images, in the forward or the backward pass.

    Attributes:
        seen: images of each call.
        failed: it did in the last call.
    """

    def __init__(self, most: float = float("inf"), *, fails: Container[int] = (), backward: bool = False) -> None:
        super().__init__()
        self.most, self.fails, self.backward = most, fails, backward
        self.seen: list[int] = []
        self.failed = False

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        self.failed = False
        if len(x) <= self.most and len(self.seen) - 1 not in self.fails:
            return x
        if self.backward:
            return _FailsLater.apply(x, self.fail)
        return self.fail()

    def fail(self) -> NoReturn:
        self.failed = True
        raise torch.OutOfMemoryError(TOLD)


class Witness(nn.Module):
    """A place in front of the scarce one. Its `left` counts attempts that failed whose graph is there in the next."""

    def __init__(self, scarce: Scarce) -> None:
        super().__init__()
        self._scarce, self.left, self._last = (scarce,), 0, lambda: None

    def forward(self, x: Tensor) -> Tensor:
        self.left += self._scarce[0].failed and self._last() is not None
        token = _Token()
        self._last = weakref.ref(token)
        return _Holds.apply(x, token)


class _Token:
    """Lives as long as the graph."""


class _Holds(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, token):
        ctx.token = token
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class _FailsLater(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, fail):
        ctx.fail = fail
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.fail()
