"""How long `ccp` takes to choose the channels of one group, and how far from the best set they can be.

    OMP_NUM_THREADS=1 python experiments/benchmarks/ccp_qp.py --channels 64 512 2048

Half of the channels go, by slopes drawn with unequal scales, a common shift and 8 shared directions. The reference is
the same search for pairs in plain Python loops, from the channels that are best one by one, on fewer channels.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pruning.quadratic import choose, evaluate, smallest, swap_pairs

Array = NDArray[np.float64]
SLOPES = 2000


def main() -> None:
    arguments = parse_arguments()
    compare_with_loops(arguments.reference_channels, arguments.repeats)
    print(f"\n{'channels':>8} {'removed':>8} {'seconds':>8} {'value':>10} {'bound':>10} {'one by one':>11}")
    for channels in arguments.channels:
        S, u = drawn(channels)
        count = channels // 2
        seconds = median_seconds(lambda S=S, u=u, count=count: choose(S, u, count), arguments.repeats)
        choice, alone = choose(S, u, count), evaluate(S, u, smallest(np.diagonal(S) / 2 - u, count))
        print(f"{channels:8} {count:8} {seconds:8.3f} {choice.value:10.4g} {choice.bound:10.4g} {alone:11.4g}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure how long ccp takes to choose the channels of one group.")
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 512, 2048])
    parser.add_argument("--reference-channels", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def drawn(channels: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(channels)
    slopes = rng.standard_normal((SLOPES, channels)) * rng.gamma(1, size=channels)
    slopes += rng.standard_normal((SLOPES, 8)) @ rng.standard_normal((8, channels)) + 0.05 * rng.standard_normal(
        channels
    )
    return slopes.T @ slopes / SLOPES, slopes.mean(axis=0)


def compare_with_loops(channels: int, repeats: int) -> None:
    S, u = drawn(channels)
    start = smallest(np.diagonal(S) / 2 - u, channels // 2)
    rows, linear, first = S.tolist(), u.tolist(), set(np.flatnonzero(start).tolist())
    fast = median_seconds(lambda: swap_pairs(S, u, start), repeats)
    slow = median_seconds(lambda: swap_by_loops(rows, linear, first), repeats)
    values = [evaluate(S, u, swap_by_loops(rows, linear, first)), evaluate(S, u, swap_pairs(S, u, start))]
    print(
        f"swaps on {channels} channels: plain loops {slow:.3f} s, value {values[0]:.6g}; here {fast:.4f} s, value "
        f"{values[1]:.6g}: {slow / fast:.0f} times as fast"
    )


def swap_by_loops(S: list[list[float]], u: list[float], chosen: set[int]) -> NDArray[np.bool_]:
    channels = range(len(u))
    while True:
        slope = [sum(S[i][j] for j in chosen) - u[i] for i in channels]
        change, p, q = min(
            (slope[q] - slope[p] + (S[p][p] + S[q][q]) / 2 - S[p][q], p, q)
            for p in chosen
            for q in channels
            if q not in chosen
        )
        if change >= -1e-12:
            return np.isin(np.arange(len(u)), list(chosen))
        chosen = chosen - {p} | {q}


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
