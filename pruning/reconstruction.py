"""What a layer's filters see of a group at sampled places, and the sums of it from which choices and weights follow."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning.errors import RankingError
from pruning.groups import ChannelGroups, Slice, tensor_of
from pruning.lasso_path import solve_path
from pruning.streaming import Reading

Place = tuple[str, str]
"""A group, and the qualified name of a weight that reads it."""

_ENTRIES_AT_ONCE = 2**23
"""64 MiB of float64: more rows than that are made in several parts."""


def check_readers(model: nn.Module, groups: ChannelGroups, criterion: str) -> None:
    """Refuse groups that are read by other layers than those whose output is a sum over channels that we can take.

    Raises:
        RankingError: with the first such layer.
    """
    for group in groups.values():
        for part in group.readers:
            layer = model.get_submodule(part.layer)
            plain = isinstance(layer, nn.Conv2d) and layer.groups == 1
            if not plain and not isinstance(layer, nn.Linear):
                raise RankingError(
                    f"criterion '{criterion}', group '{group.name}': expected Conv2d without groups or Linear as "
                    f"reader, got {type(layer).__name__} '{part.layer}'"
                )


def reader_blocks(weight: Tensor, part: Slice) -> Tensor:
    """Return the weights that read a group, `[filters, channels, inputs of one channel]`; a kernel counts as inputs."""
    positions = torch.tensor(part.positions, device=weight.device)
    return weight.index_select(1, positions.flatten()).reshape(len(weight), len(positions), -1)


def with_blocks(weight: Tensor, part: Slice, blocks: Tensor) -> Tensor:
    """Return `weight` with other values where it reads a group; see `reader_blocks`."""
    positions = torch.tensor(part.positions, device=weight.device).flatten()
    values = blocks.reshape(len(weight), len(positions), *weight.shape[2:])
    return weight.index_copy(1, positions, values.to(weight))


def blocks_of(model: nn.Module, groups: ChannelGroups) -> dict[Place, Tensor]:
    """Return `reader_blocks` of every reader in float64, by group and weight."""
    return {
        (group.name, part.tensor): reader_blocks(tensor_of(model, part.tensor).detach(), part).double()
        for group in groups.values()
        for part in group.readers
    }


@dataclass
class Sample:
    """Which rows of a layer's input to look at.

    Attributes:
        points: so many output places of every image, drawn with replacement by the image's pixels and the seed alone:
            neither the batch nor the place in it matters. None takes all places, as does a layer that has no more.
        seed: of the draw.
        also_few: draw also where there are no more places than points.
    """

    points: int | None
    seed: int = 0
    also_few: bool = False
    _known: tuple[Tensor, Tensor] | None = field(default=None, init=False, repr=False)

    def rows(self, reading: Reading) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what the layer's filters see of the group, in parts.

        Yields:
            Float64 `[rows, channels, inputs of one channel]` as in `reader_blocks`, and for each row a second number
            of the draw, uniform in [0, 1), float64 `[rows]`; empty where all places are taken.
        """
        places = reading.output[0, ..., 0].numel() if _is_linear(reading) else reading.output[0, 0].numel()
        images, device = len(reading.labels), reading.inputs.device
        if self.points is None or (places <= self.points and not self.also_few):
            chosen = torch.arange(places, device=device).expand(images, -1)
            rest = torch.empty(images, 0, dtype=torch.float64, device=device)
        else:
            drawn = self._drawn(reading.images, self.points).to(device)
            chosen, rest = (drawn[..., 0] * places).long(), drawn[..., 1]
        yield from _rows(reading, chosen, rest)

    def _drawn(self, images: Tensor, points: int) -> Tensor:
        """Return two numbers for each point, uniform in [0, 1), float64 `[images, points, 2]`; once for a batch."""
        if self._known is None or self._known[0] is not images:
            numbers = [_generator(image, self.seed).random((points, 2)) for image in images.detach().cpu()]
            self._known = images, torch.from_numpy(np.stack(numbers))
        return self._known[1]


def _generator(image: Tensor, seed: int) -> np.random.Generator:
    pixels = image.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return np.random.default_rng([seed, int.from_bytes(hashlib.blake2b(pixels, digest_size=16).digest())])


def _is_linear(reading: Reading) -> bool:
    return isinstance(reading.layer, nn.Linear)


def _rows(reading: Reading, places: Tensor, rest: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    layer, channels = reading.layer, len(reading.part.positions)
    positions = torch.tensor(reading.part.positions, device=places.device).flatten()
    kernel = 1 if isinstance(layer, nn.Linear) else layer.weight[0, 0].numel()  # type: ignore[index]
    step = max(1, _ENTRIES_AT_ONCE // (places.shape[1] * len(positions) * kernel))
    for inputs, chosen, numbers in zip(reading.inputs.split(step), places.split(step), rest.split(step), strict=True):
        if isinstance(layer, nn.Conv2d):
            seen = _windows(layer, inputs.index_select(1, positions), chosen, reading.output.shape[-1])
        else:
            tokens = inputs.reshape(len(inputs), -1, inputs.shape[-1])  # [images, places, inputs]
            image = torch.arange(len(tokens), device=tokens.device)[:, None]
            seen = tokens[image, chosen].index_select(2, positions)
        yield seen.reshape(chosen.numel(), channels, -1).double(), numbers.flatten()


def _windows(layer: nn.Conv2d, x: Tensor, places: Tensor, width: int) -> Tensor:
    """Return the inputs under the kernel at output places, `[images, points, channels, height, width]`."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    corners = (places // width * layer.stride[0], places % width * layer.stride[1])
    along = [
        corner[..., None] + dilation * torch.arange(size, device=x.device)
        for corner, dilation, size in zip(corners, layer.dilation, layer.kernel_size, strict=True)
    ]
    image = torch.arange(len(x), device=x.device)[:, None, None, None]
    return x[image, :, along[0][..., :, None], along[1][..., None, :]].movedim(-1, 2)


def inner_products(rows: Tensor) -> Tensor:
    """Return AᵀA for rows A `[rows, columns]`, `[columns, columns]`.

    On the CPU numpy makes it, which sees that both factors are the same and does half the work; torch does not.
    """
    if rows.device.type != "cpu":
        return rows.T @ rows
    A = rows.detach().numpy()
    return torch.from_numpy(A.T @ A)


def gram_of_contributions(rows: Tensor, weights: Tensor) -> Tensor:
    """Return `Σ xᵀx` over rows and filters, with `x` what each channel adds to a filter's output at a row.

    With `rows` as matrix P and `weights` as W this is the sum over the blocks of `(PᵀP) ∘ (WᵀW)`; x is never made.

    Args:
        rows: `[rows, channels, inputs of one channel]`.
        weights: `[filters, channels, inputs of one channel]`.

    Returns:
        `[channels, channels]`.
    """
    P, W = rows.flatten(1), weights.flatten(1)
    blocks = (rows[:, :, one].T @ P * (weights[:, :, one].T @ W) for one in range(rows.shape[2]))
    return _summed(blocks, rows.shape[1])


def contract(gram: Tensor, weights: Tensor) -> Tensor:
    """Return the same as `gram_of_contributions`, from PᵀP.

    Args:
        gram: PᵀP, `[channels·inputs of one channel, channels·inputs of one channel]`.
        weights: `[filters, channels, inputs of one channel]`, float64.
    """
    _, channels, inputs = weights.shape
    W = weights.flatten(1)
    return _summed((gram[one::inputs].double() * (weights[:, :, one].T @ W) for one in range(inputs)), channels)


def _summed(blocks: Iterator[Tensor], channels: int) -> Tensor:
    total = sum(block.view(channels, channels, -1).sum(dim=2) for block in blocks)
    assert isinstance(total, Tensor)
    return (total + total.T) / 2


def least_squares(gram: Tensor, kept: Sequence[int], effect: Tensor, ridge: float) -> Tensor:
    """Return what to add to the kept coefficients so that they stand in for the others.

    Minimises `‖A_K·Δ − A_R·effect_R‖² + λ·‖Δ‖²` with K the kept columns of the rows A, R the others, and λ `ridge`
    times the mean of the kept columns' squares: so nothing moves that the rows say nothing about. λ grows tenfold for
    as long as rounding leaves the matrix indefinite.

    Args:
        gram: AᵀA, `[columns, columns]`.
        kept: ascending.
        effect: the coefficients of all columns, `[columns, outputs]`.
        ridge: 0 or more.

    Returns:
        Float64 `[kept, outputs]`.

    Raises:
        RankingError: a matrix that is far from positive semidefinite, or not finite.
    """
    inside = torch.zeros(len(gram), dtype=torch.bool)
    inside[list(kept)] = True
    among, others = gram[inside][:, inside].double(), gram[inside][:, ~inside].double()
    target = others @ effect[~inside].double()
    mean = among.diagonal().mean()
    if mean == 0:
        return torch.zeros_like(target)
    strength = ridge * mean
    while True:
        factor, failed = torch.linalg.cholesky_ex(among + strength * torch.eye(len(among), dtype=torch.float64))
        if not failed:
            return torch.cholesky_solve(target, factor)
        if not strength <= mean:
            raise RankingError("least squares: expected inner products, got a matrix that is none of them")
        strength = max(10 * strength, 1e-15 * mean)


def lasso_order(gram: Tensor, target: Tensor) -> Tensor:
    """Return how the support of the lasso grows from the largest penalty to none.

    The support is that of `min ½·bᵀGb − tᵀb + α·|b|₁`, exactly for every α, from one path of least angle regression.
    Channels that never come in, such as those that are always zero, follow by their diagonal of G.

    Args:
        gram: G, float64 `[channels, channels]`.
        target: t, float64 `[channels]`.

    Returns:
        Steps, int64: j + 1 where channel j comes in, −(j + 1) where it leaves.
    """
    supports = solve_path(gram.numpy(), target.numpy()).supports
    before = np.concatenate([np.zeros((1, len(gram)), dtype=bool), supports])
    steps: list[int] = []
    for old, new in pairwise(before):
        steps += [-int(channel) - 1 for channel in np.flatnonzero(old & ~new)]
        steps += [int(channel) + 1 for channel in np.flatnonzero(new & ~old)]
    absent = torch.from_numpy(~before[-1])
    rest = [int(channel) for channel in torch.sort(gram.diagonal(), descending=True, stable=True).indices]
    return torch.tensor(steps + [channel + 1 for channel in rest if absent[channel]])
