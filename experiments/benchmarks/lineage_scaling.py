"""How the time to find groups grows with depth, and what very many groups cost.

    OMP_NUM_THREADS=1 python experiments/benchmarks/lineage_scaling.py

CIFAR ResNets of growing depth, 32×32 pixels: seconds of `find_groups` by layer. The reference is the time by layer of
the first depth in the same run: the ratio stays near 1 where the time grows in proportion. Then a chain of narrow
convolutions, each of which is a group: seconds to find all groups, to cut half of each (`remove`), and to do so by
policy and ranking (`prune`, without the check).
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pruning import CRITERIA, find_groups, prune, remove
from pruning.models.resnet_cifar import ResNetCifar

CHANNELS = 4


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    print(f"threads: {arguments.threads}; repeats: {arguments.repeats}; load average before: {os.getloadavg()[0]:.1f}")
    deeper(arguments.depths, arguments.repeats)
    many_groups(arguments.groups, arguments.repeats)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure how finding groups scales with depth and their number.")
    parser.add_argument("--depths", type=int, nargs="+", default=[50, 98, 200, 302, 602], help="6·n + 2 each")
    parser.add_argument("--groups", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if min(arguments.groups, arguments.repeats, arguments.threads) < 1:
        parser.error("expected at least 1 group, 1 repeat and 1 thread")
    if any(depth < 8 or (depth - 2) % 6 for depth in arguments.depths):
        parser.error("expected depths of 6·n + 2")
    return arguments


def deeper(depths: list[int], repeats: int) -> None:
    networks = {depth: ResNetCifar(depth) for depth in depths}
    example, runs = torch.zeros(1, 3, 32, 32), {depth: list[float]() for depth in depths}
    find_groups(networks[depths[0]], example)  # what torch sets up once
    for _ in range(repeats):
        for depth, network in networks.items():
            runs[depth].append(seconds_of(lambda network=network: find_groups(network, example)))
    print(f"\n{'layers':>8} {'seconds':>9} {'ms a layer':>11} {'of the first':>13}")
    first = statistics.median(runs[depths[0]]) / depths[0]
    for depth in depths:
        seconds = statistics.median(runs[depth])
        print(f"{depth:8} {seconds:9.3f} {1e3 * seconds / depth:11.2f} {seconds / depth / first:13.2f}")


def many_groups(count: int, repeats: int) -> None:
    network, example = chain(count), torch.zeros(1, 3, 8, 8)
    groups = find_groups(network, example)
    assert len(groups) == count, len(groups)
    halves = dict.fromkeys(groups, CHANNELS // 2)
    kept = dict.fromkeys(groups, tuple(range(CHANNELS // 2)))

    def by_policy(copied: nn.Module) -> None:
        prune(copied, halves, CRITERIA.build("l1").rank(copied, groups), groups=groups, check=False)

    work: dict[str, Callable[[nn.Module], Any]] = {
        "find_groups": lambda copied: find_groups(copied, example),
        "remove": lambda copied: remove(copied, groups, kept),
        "rank by L1 and prune": by_policy,
    }
    print(f"\n{count} groups of {CHANNELS} channels in a chain\n{'':22} {'seconds':>9} {'ms a group':>11}")
    for name, do in work.items():
        copies = [copy.deepcopy(network) for _ in range(repeats)]
        seconds = statistics.median(seconds_of(lambda do=do, copied=copied: do(copied)) for copied in copies)
        print(f"{name:22} {seconds:9.3f} {1e3 * seconds / count:11.3f}")


def chain(groups: int) -> nn.Module:
    layers: list[nn.Module] = []
    for index in range(groups):
        layers += [nn.Conv2d(CHANNELS if index else 3, CHANNELS, 3, padding=1), nn.BatchNorm2d(CHANNELS), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(CHANNELS, 2, 1))


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
