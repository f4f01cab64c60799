"""What the singular values of feature maps say: the rank of each map, and what each channel adds to an image's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NUMBERS = 2**19
"""How many float64 are worked on at once, 4 MiB: memory stays small, and a core's cache holds them."""

STEP, NODES, LAST = 0.7, 35, 5.0
"""Nodes of the integral at s = σ_max·eˣ, x = −18.8, −18.1, …, 5: the error is near exp(−π²/step), 1e-6 as measured.
Below are only singular values that the Gram matrix has lost in rounding, 1e-8·σ_max."""


def ranks(maps: Tensor) -> Tensor:
    """Return the rank of every map, as `torch.linalg.matrix_rank` has it with its default tolerance.

    Singular values count that exceed max(height, width)·ε·σ_max, with ε of the maps' type; half precision counts as
    float32. In float32 they come from Gram matrices, in float64: their squares differ by (max(height, width)·ε)², near
    1e-11, which float32 does not resolve. What could be rounding, in the other way or in this one, `matrix_rank`
    decides itself.

    Args:
        maps: `[images, channels, height, width]`.

    Returns:
        Float64 `[images, channels]`, from 0 to min(height, width); NaN for a map that is not finite.
    """
    flat = maps.flatten(0, 1)
    if flat.dtype.itemsize < 4:
        flat = flat.float()
    finite = flat.isfinite().all(dim=2).all(dim=1)
    if not finite.all():
        flat = torch.where(finite[:, None, None], flat, 0)
    if min(flat.shape[1:]) == 1:
        found = flat.ne(0).any(dim=2).any(dim=1)
    elif flat.dtype == torch.float32:
        size = min(flat.shape[1:])
        at_once = max(1, NUMBERS // (flat[0].numel() + 2 * size**2))
        found = torch.cat([_ranks_by_gram(part) for part in flat.split(at_once)])
    else:
        found = torch.linalg.matrix_rank(flat)
    return found.double().masked_fill(~finite, torch.nan).view(maps.shape[:2])


def _ranks_by_gram(maps: Tensor) -> Tensor:
    """Return the rank of each map, int64 `[maps]`; of float32 and finite `[maps, height, width]`."""
    rows = (maps if maps.shape[1] <= maps.shape[2] else maps.mT).double()
    gram = rows @ rows.mT
    tolerance = max(maps.shape[1:]) * torch.finfo(torch.float32).eps
    doubt = 4  # float32 singular values are off by a few ε·σ_max
    found, certain = _independent_rows(gram, (doubt * tolerance) ** 2)
    left = (~certain).nonzero()[:, 0]
    if len(left):
        sigma = torch.linalg.eigvalsh(gram[left]).clamp(min=0).sqrt()
        sigma = sigma / sigma[:, -1:]
        found[left] = (sigma > tolerance).sum(dim=1)
        unclear = left[((sigma > tolerance / doubt) & (sigma < tolerance * doubt)).any(dim=1)]
        if len(unclear):
            found[unclear] = torch.linalg.matrix_rank(maps[unclear])
    return found


def _independent_rows(gram: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Count the rows that are not zero, and say where that is the rank: where a Cholesky decomposition proves it.

    It is one where G − threshold·trace(G)·1 of those rows is positive definite. That costs a fifth of eigenvalues, and
    settles more than half of the maps of a trained ResNet-56.
    """
    diagonal = gram.diagonal(dim1=1, dim2=2)
    zero, trace = diagonal == 0, diagonal.sum(dim=1, keepdim=True)
    shift = torch.where(zero, 1.0 + trace, -threshold * trace)
    failed = torch.linalg.cholesky_ex(gram + shift.diag_embed()).info
    return (~zero).sum(dim=1), failed == 0


def nuclear_drops(maps: Tensor) -> Tensor:
    """Return by how much the nuclear norm of an image's maps drops when one channel's map is zeroed.

    With A `[channels, height·width]`, rows a_j and G = AAᵀ, ‖A‖_* − ‖A without a_j‖_* is

        −(1/π) ∫₀^∞ ln(s²·[(G + s²)⁻¹]_jj) ds,

    from √x = (1/π) ∫ (1 − t/(x + t)) t^(−1/2) dt, the determinant lemma and one integration by parts. One
    eigendecomposition of G, or of AᵀA where that is smaller, serves all channels and all s. The sums beyond both ends
    are added in closed form: above, the integrand is ‖a_j‖²/s²; below, it is linear in ln s.

    Args:
        maps: `[images, channels, height, width]`.

    Returns:
        Float64 `[images, channels]`, ≥ 0, and 0 where a map is zero; off by a relative 1e-5 for drops above 1e-4·σ_max,
        by an absolute 1e-8·σ_max for smaller ones. NaN for all channels of an image that is not finite.
    """
    flat = maps.flatten(2)
    channels, places = flat.shape[1:]
    at_once = max(1, NUMBERS // (channels * (places + 3 * NODES) + 2 * min(channels, places) ** 2))
    return torch.cat([_nuclear_drops(part.double()) for part in flat.split(at_once)])


def _nuclear_drops(a: Tensor) -> Tensor:
    """Return `nuclear_drops` of float64 `[images, channels, places]`."""
    by_channels = a.shape[1] <= a.shape[2]
    gram = a @ a.mT if by_channels else a.mT @ a
    finite = gram.isfinite().all(dim=2).all(dim=1)
    squares, vectors = torch.linalg.eigh(gram if finite.all() else torch.where(finite[:, None, None], gram, 0))
    squares = squares.clamp(min=0)[:, :, None]
    x = LAST - STEP * torch.arange(NODES - 1, -1, -1, dtype=a.dtype, device=a.device)
    s = squares[:, -1].sqrt() * x.exp()  # [images, nodes]
    t = s.square()[:, None, :]
    if by_channels:
        energies = gram.diagonal(dim1=1, dim2=2)[:, :, None]
        diagonals = vectors.square() @ (t / (squares + t))  # s²·[(G + s²)⁻¹]_jj, [images, channels, nodes]
    else:
        parts = (a @ vectors).square()
        energies = parts.sum(dim=2, keepdim=True)
        diagonals = 1 - parts @ (squares + t).reciprocal()
    diagonals = torch.maximum(diagonals, t / (energies + t)).clamp(max=1)  # its bounds: rounding may leave them
    integral = _integral(-diagonals.log(), s, energies[:, :, 0])
    drops = torch.where(energies[:, :, 0] > 0, integral / math.pi, 0)
    return torch.where(finite[:, None], drops, torch.nan)


def _integral(values: Tensor, s: Tensor, energies: Tensor) -> Tensor:
    """Return ∫ values ds by the trapezoid rule in x = ln s, which goes on beyond the nodes for ever."""
    ratio = math.exp(-STEP)
    inside = (values @ s[:, :, None])[:, :, 0]
    above = energies / s[:, -1:] * ratio / (1 - ratio)  # Σ_k ‖a‖²/s for s = s_last·e^(k·step), k = 1, 2, …
    first = values[:, :, 0]
    growth = (first - values[:, :, 1]).clamp(0, 2 * STEP)  # from node to node, towards 0
    below = s[:, :1] * (first * ratio / (1 - ratio) + growth * ratio / (1 - ratio) ** 2)  # Σ_k (first + k·growth)·s
    return STEP * (inside + above + below)
