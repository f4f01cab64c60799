"""HSIC between the channels of a feature map and a target: kernels, centred Gram matrices, and their products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pruning.errors import suggest

KERNELS = ("laplace", "gauss")

Grams = Callable[[slice], Tensor]
"""From a slice of the channels their packed centred Gram matrices, float64 `[channels, N(N+1)/2]`."""

FILLED = 2**18
"""Numbers of Gram matrices that are worked on at a time: they stay in the processor's cache."""
BLOCK = 2**25
"""Numbers of packed Gram matrices that are held at a time; more are made again for each block they meet."""
FEATURES = 2**17
"""Numbers of a target that are taken to float64 at a time."""
ROUNDING = 16 * torch.finfo(torch.float64).eps
"""Two images are equal if their squared distance is a smaller share of the squared norms it comes from."""


@dataclass(frozen=True)
class Dependence:
    """How alike the channels of a group are to each other and to a target, over N images.

    Attributes:
        Q: ⟨K_k, K_l⟩ / N² of the centred Gram matrices of channels k and l, float64 `[channels, channels]`.
        q: ⟨K_k, L⟩ / N² with that of the target, float64 `[channels]`.
        target: ⟨L, L⟩ / N².
    """

    Q: Tensor
    q: Tensor
    target: float

    @classmethod
    def none(cls, channels: int) -> Dependence:
        """Return that of channels that nobody has looked at yet."""
        q = torch.zeros(channels, dtype=torch.float64)
        return cls(torch.outer(q, q), q, 0.0)

    def __add__(self, other: Dependence) -> Dependence:
        return Dependence(self.Q + other.Q, self.q + other.q, self.target + other.target)

    def normalised(self) -> Dependence:
        """Divide every Gram matrix by its Frobenius norm: Q and q are then cosines (CKA); a zero matrix stays zero."""
        norms = self.Q.diagonal().sqrt()
        each = torch.where(norms > 0, 1 / norms, 0.0)
        whole = 1 / math.sqrt(self.target) if self.target > 0 else 0.0
        Q = each[:, None] * self.Q * each
        return Dependence(Q, each * self.q * whole, 1.0 if whole else 0.0)


def dependence(grams: Grams, channels: int, target: Tensor) -> Dependence:
    """Return Q and q of some channels and a target; memory holds two blocks of packed Gram matrices at most.

    Args:
        grams: returns the packed centred Gram matrices of a slice of the channels; where they do not all fit in a block
            it is asked several times for each.
        channels: how many there are.
        target: packed centred Gram matrix, float64 `[N(N+1)/2]`.
    """
    images = (math.isqrt(8 * len(target) + 1) - 1) // 2
    step = max(1, BLOCK // len(target))
    blocks = [slice(start, min(start + step, channels)) for start in range(0, channels, step)]
    Q, q = target.new_zeros(channels, channels), target.new_zeros(channels)
    for index, rows in enumerate(blocks):
        of_rows = grams(rows)
        q[rows] = of_rows @ target
        Q[rows, rows] = of_rows @ of_rows.T
        for columns in blocks[index + 1 :]:
            Q[rows, columns] = of_rows @ grams(columns).T
            Q[columns, rows] = Q[rows, columns].T
    Q = (Q + Q.T) / 2  # a product with its own transpose is symmetric but for rounding
    return Dependence(Q.cpu() / images**2, q.cpu() / images**2, float(target @ target) / images**2)


def channel_grams(maps: Tensor, kernel: str) -> Tensor:
    """Return the packed centred Gram matrix of every channel of `maps`, float64 `[channels, N(N+1)/2]`.

    The kernel of a channel compares the whole maps of two images.

    Args:
        maps: `[images, channels, height, width]`.
        kernel: see `gram`.
    """
    images, channels = len(maps), maps.shape[1]
    packed = maps.new_empty(channels, images * (images + 1) // 2, dtype=torch.float64)
    step = max(1, FILLED // max(images**2, images * maps[0, :1].numel()))
    for start in range(0, channels, step):
        x = maps[:, start : start + step].flatten(2).transpose(0, 1).double()  # [channels, images, places]
        packed[start : start + step] = pack(centred(gram(squared_distances(x), x.shape[2], kernel)))
    return packed


def target_gram(target: Tensor, kernel: str) -> Tensor:
    """Return the packed centred Gram matrix of a target `[images, …]`, float64 `[N(N+1)/2]`."""
    flat = target.flatten(1)
    return pack(centred(gram(squared_distances(flat), flat.shape[1], kernel)))


def squared_distances(x: Tensor) -> Tensor:
    """Return ‖x_i − x_j‖² in float64, `[…, images, images]` of `[…, images, features]`; exactly 0 of equal images."""
    products = sum(part @ part.transpose(-1, -2) for part in _around_mean(x))
    assert isinstance(products, Tensor)
    norms = products.diagonal(dim1=-2, dim2=-1)
    sums = norms[..., :, None] + norms[..., None, :]
    distances = sums - 2 * products
    return distances.masked_fill_(distances <= ROUNDING * sums, 0.0)


def _around_mean(x: Tensor) -> Iterator[Tensor]:
    """Yield the features less their mean over the images, which no distance sees: products cancel less."""
    for part in x.split(max(1, FEATURES // (x.numel() // x.shape[-1])), dim=-1):
        part = part.double()
        yield part - part.mean(dim=-2, keepdim=True)


def gram(distances: Tensor, features: int, kernel: str) -> Tensor:
    """Return the Gram matrix less 1, `[…, images, images]`: centring takes the 1 away, and near 1 digits would be lost.

    Args:
        distances: squared, `[…, images, images]`.
        features: how many features each image has, d.
        kernel: `laplace` is exp(−‖x − x'‖·√(0.5/d)), `gauss` exp(−‖x − x'‖²/d).

    Raises:
        ValueError: no such kernel.
    """
    if kernel == "laplace":
        return torch.expm1(-distances.sqrt() * math.sqrt(0.5 / features))
    if kernel == "gauss":
        return torch.expm1(-distances / features)
    raise ValueError(f"unknown kernel '{kernel}'{suggest(kernel, KERNELS)}")


def centred(K: Tensor) -> Tensor:
    """Return H·K·H with H = I − 11ᵀ/N of symmetric matrices `[…, N, N]`."""
    rows = K.mean(dim=-1, keepdim=True)
    return K - rows - rows.transpose(-1, -2) + rows.mean(dim=-2, keepdim=True)


def pack(K: Tensor) -> Tensor:
    """Return symmetric matrices `[…, N, N]` as vectors `[…, N(N+1)/2]` with the same inner products."""
    images = K.shape[-1]
    rows, columns = torch.triu_indices(images, images, device=K.device)
    weights = torch.full_like(rows, math.sqrt(2.0), dtype=K.dtype).masked_fill_(rows == columns, 1.0)
    return K[..., rows, columns] * weights
