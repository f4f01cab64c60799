"""How long APIB takes to find its penalty: whole lasso paths, once, against kernels and lassos again for each penalty.

The published way (the authors' code, with its tolerances) is timed for one penalty on some groups and extrapolated to
all groups of each width and to as many penalties as the authors' search asks for: it doubles until the budget is met,
then bisects. Reloading and rebuilding the network for each penalty, which their code does too, is not counted. Seconds
are the processor's, of all threads together: they compare on a busy machine, too.

    python experiments/benchmarks/apib_paths.py --weights resnet56-4bfd9763.th --images cifar10
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Lasso
from torch import Tensor, nn

from pruning import (
    ALLOCATIONS,
    ChannelGroups,
    CostModel,
    ModelSpec,
    PathRanking,
    build_model,
    find_groups,
    load_data,
    load_weights,
)
from pruning.criteria.apib import APIB
from pruning.lasso_path import LassoPath, solve_path
from pruning.streaming import Reading, Request, observe

EXAMPLE = torch.zeros(1, 3, 32, 32)
START = 8e-4
"""The authors' first penalty for ResNet-56."""
FLOOR = 5
"""Their ω for ResNet-56."""


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    network = build_model(ModelSpec(name=arguments.model)).eval()
    if arguments.weights:
        load_weights(network, arguments.weights)
    batches = images(arguments.images, arguments.count)
    groups = find_groups(network, EXAMPLE)
    cost = CostModel(network, groups, EXAMPLE)
    groups = groups.only(groups.matching(("inner",)))
    budget = int(arguments.macs * cost.full.macs)

    forward = min(seconds_of(lambda: network_pass(network, batches)) for _ in range(3))
    ranking, paths, total, another = ours(network, groups, cost, batches, budget)
    print(f"one forward pass alone: {forward:.2f} s")
    penalty, evaluations = search_as_published(ranking, groups, cost, budget)
    print(f"the authors' search: {evaluations} penalties until the MACs are within 1 %, at α = {penalty:.3g}")
    published = as_published(network, groups, batches, paths, penalty, arguments.groups)
    whole = forward + evaluations * published
    print(
        f"published: {published:.2f} s a penalty for {len(groups)} groups, extrapolated; {whole:.1f} s for the search"
    )
    print(f"ours is {whole / total:.1f} times as fast: {total:.2f} s, {total / forward:.1f} forward passes")
    print(f"another budget on the same images: ours {another:.2f} s, published {whole - forward:.1f} s")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure how long APIB takes to find its penalty.")
    parser.add_argument("--model", default="resnet56")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=Path, help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--macs", type=float, default=0.455, help="budget as a part of the network's MACs")
    parser.add_argument("--groups", type=int, default=1, help="how many of each width are timed in the published way")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def images(folder: Path | None, count: int) -> list[tuple[Tensor, Tensor]]:
    if folder:
        return list(load_data("image_folder", root=str(folder), workers=0).train.subset(count, 0).batches(count))
    return [(torch.randn(count, 3, 32, 32), torch.arange(count) % 10)]


def network_pass(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for pictures, _ in batches:
            network(pictures)


def seconds_of(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def ours(
    network: nn.Module,
    groups: ChannelGroups,
    cost: CostModel,
    batches: list[tuple[Tensor, Tensor]],
    budget: int,
) -> tuple[PathRanking, dict[str, LassoPath], float, float]:
    """Rank and allocate; print where the seconds go, return all of them and those of the penalty."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    criterion = APIB(images=len(batches[0][0]))
    started = time.process_time()
    watcher = criterion.watcher(network, groups)
    observe(network, groups, batches, [Request(watcher, criterion.images, together=True)])
    statistics = time.process_time() - started
    started = time.process_time()
    ranking = watcher.ranking()
    of_paths = time.process_time() - started
    started = time.process_time()
    widths = ALLOCATIONS.build("hsic_lasso", minimum_width=FLOOR).widths(groups, cost, budget, ranking)
    search = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
    print(
        f"forward pass and statistics {statistics:.2f} s, {len(groups)} paths {of_paths:.2f} s, penalty {search:.3f} s"
    )
    print(f"peak memory grew by {grown:.0f} MiB")
    print(f"widths at {cost.cost(widths).macs / 1e6:.2f} M MACs of {budget / 1e6:.2f} M: {[*widths.values()]}")
    found = watcher.of_groups
    paths = {name: solve_path(found[name].Q.numpy(), found[name].q.numpy()) for name in groups}
    return ranking, paths, statistics + of_paths + search, search


def search_as_published(ranking: PathRanking, groups: ChannelGroups, cost: CostModel, budget: int) -> tuple[float, int]:
    """Return the penalty that the authors' search ends at, and how many it asks for; on stored paths asking is free."""

    def macs(penalty: float) -> int:
        widths = {}
        for name in groups:
            segment = int((ranking.penalties[name] > penalty).sum()) - 1
            sizes = ranking.sizes[name]
            size = int(sizes[min(segment, len(sizes) - 1)]) if segment >= 0 and len(sizes) else 0
            widths[name] = max(FLOOR, size)
        return cost.cost(widths).macs

    right, evaluations = START, 1
    while macs(right) >= budget:
        right, evaluations = 2 * right, evaluations + 1
    left, middle = 0.0, right
    while abs(macs(middle) - budget) > 0.01 * budget and right > 1e-15:
        middle, evaluations = (left + right) / 2, evaluations + 1
        left, right = (middle, right) if macs(middle) > budget else (left, middle)
    return middle, evaluations


def as_published(
    network: nn.Module,
    groups: ChannelGroups,
    batches: list[tuple[Tensor, Tensor]],
    paths: dict[str, LassoPath],
    penalty: float,
    of_each: int,
) -> float:
    """Return the seconds that one penalty takes for all groups; print whether the supports are those of the paths."""
    chosen, taken = Chosen(groups, of_each), {}
    observe(network, groups, batches, [Request(chosen, together=True, images=len(batches[0][0]))])
    equal = tight = 0
    for name, (maps, output) in chosen.kept.items():
        started = time.process_time()
        design, target = published_design(maps, output)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fit = Lasso(alpha=penalty, selection="random", random_state=0).fit(design, target)
        taken.setdefault(groups[name].width, []).append(time.process_time() - started)
        equal += bool(np.array_equal(fit.coef_ != 0, paths[name].support(penalty)))
        exact = Lasso(alpha=penalty, fit_intercept=False, tol=1e-12, max_iter=10**5).fit(
            design.astype(np.float64), target.astype(np.float64)
        )
        tight += bool(np.array_equal(exact.coef_ != 0, paths[name].support(penalty)))
    print(f"supports at this penalty as by the published lasso: {equal} of {len(chosen.kept)}", end="; ")
    print(f"as by a tight one on its kernels: {tight} of {len(chosen.kept)}")
    return sum(np.median(taken[group.width]) for group in groups.values())


class Chosen:
    """Keeps what the first groups of each width read and put out: the published way is timed on them."""

    def __init__(self, groups: ChannelGroups, of_each: int) -> None:
        left = Counter(dict.fromkeys(groups.widths.values(), of_each))
        self.names, self.kept = set(), {}
        for name, width in groups.widths.items():
            if left[width] > 0:
                left[width] -= 1
                self.names.add(name)

    def see(self, reading: Reading) -> None:
        if reading.group.name in self.names:
            self.kept[reading.group.name] = reading.maps.clone(), reading.output.clone()


def published_design(maps: Tensor, output: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the centred Gram matrices as the authors' code makes them, in float32, `[N², channels]` and `[N²]`."""
    images = len(maps)
    H = torch.eye(images) - 1 / images
    columns = [H @ laplace(maps[:, channel].flatten(1)) @ H for channel in range(maps.shape[1])]
    design = torch.stack(columns).flatten(1).T.contiguous().numpy()
    return design, (H @ laplace(output.flatten(1)) @ H).flatten().numpy()


def laplace(x: Tensor) -> Tensor:
    products = x @ x.T
    norms = products.diagonal()
    distances = (norms[:, None] + norms - 2 * products).clamp(min=0).sqrt()
    return torch.exp(-distances * (0.5 / x.shape[1]) ** 0.5)


if __name__ == "__main__":
    main()
