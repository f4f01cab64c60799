"""How long `thinet` and `lasso` take to choose channels, against the loops over explicit rows of the published code.

    OMP_NUM_THREADS=1 python experiments/benchmarks/reconstruction.py

Rows are drawn with a common part and unequal scales. For ThiNet the times are of the order alone, with and without the
Gram matrix that takes the rows' place; the published search passes over all rows for each candidate. For the lasso the
times are of ZᵀZ, from Z with its row for every filter and place or from the blocks of PᵀP and WᵀW; and of a choice, by
the published search for a penalty or by the path.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Lasso
from torch import Tensor

from pruning.criteria.thinet import removal_order
from pruning.reconstruction import contract, inner_products, lasso_order

T = TypeVar("T")
Array = NDArray[np.float64]
THINET_LAYERS = ((64, 20_000, 32), (256, 10_000, 128))
"""Channels, rows, removals."""
LASSO_LAYERS = ((64, 64, 9, 2_000), (256, 256, 9, 1_000))
"""Channels, filters, kernel, places."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure how long thinet and lasso take to choose channels.")
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    for channels, rows, removals in THINET_LAYERS:
        compare_removal(channels, rows, removals, repeats)
    for channels, filters, kernel, places in LASSO_LAYERS:
        compare_lasso(channels, filters, kernel, places, repeats)


def compare_removal(channels: int, rows: int, removals: int, repeats: int) -> None:
    rng = np.random.default_rng(channels)
    x = rng.standard_normal((rows, channels)) * rng.gamma(2, size=channels)
    x += rng.standard_normal((rows, 8)) @ rng.standard_normal((8, channels))
    X = torch.from_numpy(x)
    loops, expected = timed(lambda: removed_by_loops(x, removals), repeats)
    all_of_it, order = timed(lambda: removal_order(inner_products(X)), repeats)
    gram = inner_products(X)
    choice, _ = timed(lambda: removal_order(gram), repeats)
    same = order.flip(0)[:removals].tolist() == expected
    print(
        f"thinet, {channels} channels × {rows} rows: {removals} removals by loops {loops:.3f} s; the whole order from "
        f"the Gram matrix {all_of_it:.4f} s, {choice:.4f} s of it without that matrix: {loops / all_of_it:.0f} times "
        f"as fast; {'the same order' if same else 'ANOTHER ORDER'}"
    )


def removed_by_loops(x: Array, removals: int) -> list[int]:
    removed: list[int] = []
    total = np.zeros(len(x))
    for _ in range(removals):
        costs = {j: float(np.linalg.norm(total + x[:, j])) for j in range(x.shape[1]) if j not in removed}
        removed.append(min(costs, key=costs.__getitem__))
        total += x[:, removed[-1]]
    return removed


def compare_lasso(channels: int, filters: int, kernel: int, places: int, repeats: int) -> None:
    generator = torch.Generator().manual_seed(channels)
    P = torch.randn(places, channels, kernel, generator=generator, dtype=torch.float64).relu()
    W = torch.randn(filters, channels, kernel, generator=generator, dtype=torch.float64)
    rows = P.flatten(1)
    blocks, found = timed(lambda: contract(inner_products(rows), W), repeats)
    path, _ = timed(lambda: lasso_order(found, found.sum(dim=1)), repeats)
    building, Z = timed(lambda: explicit_rows(P, W), repeats)
    product, expected = timed(lambda: inner_products(Z.T), repeats)
    difference = float((found - expected).abs().max() / expected.abs().max())
    print(
        f"lasso, {channels} channels, {filters} filters, kernel {kernel}, {places} places: ZᵀZ from Z "
        f"{building + product:.3f} s, from blocks {blocks:.4f} s: {(building + product) / blocks:.1f} times as fast, "
        f"relative difference {difference:.0e}"
    )
    search, penalties = timed(lambda: searched(Z.T.numpy(), channels // 2), 1)
    print(
        f"    {channels // 2} channels by {penalties} penalties on Z {building + search:.2f} s; every width by blocks "
        f"and the path {blocks + path:.3f} s: {(building + search) / (blocks + path):.0f} times as fast"
    )


def explicit_rows(P: Tensor, W: Tensor) -> Tensor:
    """Build Zᵀ `[channels, places·filters]` as the published code does."""
    return torch.matmul(P.transpose(0, 1), W.permute(1, 2, 0)).flatten(1)


def searched(Z: Array, width: int) -> int:
    """Double and halve the penalty until the lasso keeps `width` channels or a tenth more; return how many it took."""
    y, low, high, count = Z.sum(axis=1), 0.0, 1e-4, 0
    Z = np.asfortranarray(Z)
    solver = Lasso(alpha=high, warm_start=True, selection="random", random_state=0)
    while True:
        count += 1
        solver.alpha = high
        if np.count_nonzero(solver.fit(Z, y).coef_) < width:
            break
        high *= 2
    while True:
        count += 1
        solver.alpha = (low + high) / 2
        kept = np.count_nonzero(solver.fit(Z, y).coef_)
        if width <= kept <= 1.1 * width or high - low < 1e-9 * high:
            return count
        low, high = (solver.alpha, high) if kept > width else (low, solver.alpha)


def timed(work: Callable[[], T], repeats: int) -> tuple[float, T]:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


if __name__ == "__main__":
    main()
