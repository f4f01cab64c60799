"""What the one-shot criteria cost: each part beside the published way, one pass for several, memory on ResNet-50.

    OMP_NUM_THREADS=1 python experiments/benchmarks/criteria.py --weights resnet56-4bfd9763.th --images cifar10

`map_spectra` (hrank, chip), `apib_paths` (apib) and `reconstruction` (thinet, lasso) are scripts of their own, which
time the published ways on a slice and extrapolate; this one runs them with `--parts`. `pass` ranks ResNet-56's inner
groups by apoz, hrank and chip together, against a pass for each. `memory` ranks ResNet-50's inner groups at 224 × 224
in batches of 32, random weights and images, each criterion in a process of its own and those that stream in one more;
it prints by how much the peak exceeds what the process held with the network loaded. Wall time: nothing else should
run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from pruning import (
    CRITERIA,
    AuxiliaryLosses,
    AuxiliaryPlacement,
    ChannelGroups,
    ModelSpec,
    StreamingCriterion,
    build_model,
    find_groups,
    load_data,
    load_weights,
    rank_together,
)

SCRIPTS = ("map_spectra", "apib_paths", "reconstruction")
PARTS = (*SCRIPTS, "pass", "memory")
MAPS = ("apoz", "hrank", "chip")
_FAST = {"mode": "fast", "complete": False, "rate": 0.9, "learning_rate": 1e-9}  # random weights: steps would blow up
OPTIONS = {"dcp": _FAST, "random_dcp": _FAST, "sensitivity": {"shares": (0.25, 0.75)}}
"""Of criteria whose defaults are for small, trained networks."""


def main() -> None:
    arguments = parse_arguments()
    of_resnet56 = [f"--{name}={value}" for name in ("weights", "images") if (value := getattr(arguments, name))]
    for part in arguments.parts:
        print(f"\n── {part} ──", flush=True)
        if part in SCRIPTS:
            script = Path(__file__).with_name(f"{part}.py")
            options = [] if part == "reconstruction" else of_resnet56
            subprocess.run([sys.executable, str(script), *options], check=True)
        elif part == "pass":
            one_pass(arguments)
        else:
            memory(arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what the one-shot criteria cost.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--weights", type=Path, help="of ResNet-56")
    parser.add_argument("--images", type=Path, help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("--count", type=int, default=640, help="images of `pass`")
    parser.add_argument("--memory-images", type=int, default=64, help="images of `memory`")
    parser.add_argument("--criteria", nargs="+", default=CRITERIA.names(), help="those of `memory`")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def one_pass(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    network, groups, batches = resnet56(arguments)
    forward = seconds(lambda: [network(images) for images, _ in batches])
    alone = {name: seconds(partial(rank, network, groups, batches, [name])) for name in MAPS}
    together = seconds(lambda: rank(network, groups, batches, MAPS))
    print(f"ResNet-56, {len(groups)} groups, {arguments.count} images, threads: {arguments.threads}")
    print(f"a forward pass {forward:.1f} s; " + ", ".join(f"{name} {taken:.1f} s" for name, taken in alone.items()))
    print(f"together in one pass {together:.1f} s (target: 40 s), {sum(alone.values()) / together:.2f} times as fast")


def resnet56(arguments: argparse.Namespace) -> tuple[nn.Module, ChannelGroups, list[tuple[Tensor, Tensor]]]:
    network = build_model(ModelSpec(name="resnet56")).eval()
    if arguments.weights:
        load_weights(network, arguments.weights)
    if arguments.images:
        batches = list(
            load_data("image_folder", root=str(arguments.images)).train.subset(arguments.count, 0).batches(128)
        )
    else:
        batches = [(torch.randn(128, 3, 32, 32), torch.arange(128) % 10) for _ in range(arguments.count // 128)]
    groups = find_groups(network, batches[0][0][:1])
    return network, groups.only(groups.matching(("inner",))), batches


def rank(network: nn.Module, groups: ChannelGroups, batches: list[tuple[Tensor, Tensor]], names: Sequence[str]) -> None:
    auxiliary = None
    built = {name: CRITERIA.build(name, **OPTIONS.get(name, {})) for name in names}
    if any(criterion.uses_auxiliary for criterion in built.values()):
        auxiliary = AuxiliaryLosses(network, AuxiliaryPlacement(positions=2), 10, batches[0][0][:1])
    rank_together(built, network, groups, batches, auxiliary)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        work()
    return time.perf_counter() - start


def memory(arguments: argparse.Namespace) -> None:
    streaming = [name for name in arguments.criteria if isinstance(CRITERIA.build(name), StreamingCriterion)]
    print(f"ResNet-50 at 224 × 224, inner groups, {arguments.memory_images} images in batches of 32")
    print(f"{'criterion':<24} {'peak over the network, GB':>26} {'seconds':>9}")
    for names in [*([name] for name in arguments.criteria), *([streaming] if len(streaming) > 1 else [])]:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            peak, taken = pool.submit(peak_of, names, arguments.memory_images, arguments.threads).result()
        label = names[0] if len(names) == 1 else f"{len(names)} in one pass"
        print(f"{label:<24} {peak:26.2f} {taken:9.1f}", flush=True)


def peak_of(names: Sequence[str], count: int, threads: int) -> tuple[float, float]:
    """Return by how many GB the peak exceeds what the process held before, and the seconds."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = build_model(ModelSpec(name="resnet50", num_classes=10)).eval()
    groups = find_groups(network, torch.zeros(1, 3, 224, 224))
    groups = groups.only(groups.matching(("inner",)))
    batches = [(torch.randn(32, 3, 224, 224), torch.arange(32) % 10) for _ in range(count // 32)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    rank(network, groups, batches, names)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6, time.perf_counter() - start


if __name__ == "__main__":
    main()
