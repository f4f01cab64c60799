"""What `ccp` costs: the second-order terms of ResNet-56's groups on N images, against one training epoch on them.

    python experiments/benchmarks/ccp_epoch.py --weights resnet56-4bfd9763.th --images cifar10 --threads 1

Without weights and images both are random. The epoch is `fine_tune` as a trial has it: bfloat16 where the device is
faster with it. `ccp` calculates in float32; --autocast shows what bfloat16 would save, and what it does to S. The two
take turns, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from pruning import (
    CRITERIA,
    ChannelGroups,
    ModelSpec,
    QuadraticRanking,
    Recipe,
    build_model,
    find_groups,
    fine_tune,
    load_data,
    load_weights,
)
from pruning.data import Pixels, TensorSplit

TARGET = 1.5


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    network, images = make_network(arguments.weights), make_images(arguments.images, arguments.count)
    groups = find_groups(network, torch.zeros(1, *images.image_shape))
    groups = groups.only(groups.matching((arguments.groups,)))
    rows: dict[str, list[tuple[float, float]]] = {}
    for _ in range(arguments.repeats):
        rows.setdefault("one epoch", []).append(measured(lambda: train(network, images)))
        rows.setdefault("ccp", []).append(measured(lambda: rank(network, groups, images, arguments.batch)))
        if arguments.autocast:
            narrow = measured(lambda: rank(network, groups, images, arguments.batch, bfloat16=True))
            rows.setdefault("ccp, bfloat16", []).append(narrow)
    print(
        f"ResNet-56, {len(groups)} groups ({arguments.groups}), {len(images)} images, ccp in batches of "
        f"{arguments.batch}, threads: {arguments.threads}, repeats: {arguments.repeats}"
    )
    print(f"{'':14} {'median, s':>10} {'fastest, s':>11} {'of an epoch':>12} {'peak memory, MB':>16}")
    epoch = statistics.median(seconds for seconds, _ in rows["one epoch"])
    for name, runs in rows.items():
        median, fastest = statistics.median(seconds for seconds, _ in runs), min(seconds for seconds, _ in runs)
        print(f"{name:14} {median:10.1f} {fastest:11.1f} {median / epoch:12.2f} {max(peak for _, peak in runs):16.0f}")
    ratio = statistics.median(seconds for seconds, _ in rows["ccp"]) / epoch
    print(f"ccp takes {ratio:.2f} epochs, target {TARGET:g}: {'met' if ratio <= TARGET else 'missed'}")
    if arguments.autocast:
        print(f"bfloat16: S of a group is off by {error_of_bfloat16(network, groups, images, arguments.batch):.1%}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what ccp costs against a training epoch.")
    parser.add_argument("--weights", type=Path, help="a checkpoint of ResNet-56")
    parser.add_argument("--images", type=Path, help="folder with train/<class>/; training and validation images run")
    parser.add_argument("--count", type=int, help="how many images; all of the folder's, or 1024 random ones")
    parser.add_argument("--groups", choices=["inner", "coupled", "all"], default="inner")
    parser.add_argument("--batch", type=int, default=64, help="images of a batch of ccp; training takes 128")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--autocast", action="store_true", help="also measure ccp in bfloat16")
    return parser.parse_args()


def make_network(weights: Path | None) -> nn.Module:
    torch.manual_seed(0)
    network = build_model(ModelSpec(name="resnet56"))
    if weights is not None:
        load_weights(network, weights)
    return network


def make_images(folder: Path | None, count: int | None) -> TensorSplit:
    if folder is None:
        size = count or 1024
        pixels = Pixels((0.5,) * 3, (0.25,) * 3, padding=4, flip=True)
        return TensorSplit(torch.randint(256, (size, 3, 32, 32), dtype=torch.uint8), torch.arange(size) % 10, pixels)
    data = load_data("image_folder", root=str(folder))
    images, labels = (
        torch.cat([getattr(split, part) for split in (data.train, data.val)]) for part in ("images", "labels")
    )
    whole = TensorSplit(images, labels, data.train.pixels)
    return whole if count is None else whole.subset(count, seed=0)


def train(network: nn.Module, images: TensorSplit) -> None:
    for _ in fine_tune(copy.deepcopy(network), images, Recipe(epochs=1)):
        pass


def rank(
    network: nn.Module, groups: ChannelGroups, images: TensorSplit, batch: int, *, bfloat16: bool = False
) -> QuadraticRanking:
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        return CRITERIA.build("ccp").rank(network, groups, images.batches(batch))


def error_of_bfloat16(network: nn.Module, groups: ChannelGroups, images: TensorSplit, batch: int) -> float:
    """Return the median over the groups of ‖S − S′‖ / ‖S‖."""
    exact, narrow = (rank(network, groups, images, batch, bfloat16=chosen).quadratic for chosen in (False, True))
    return statistics.median(float((narrow[name] - S).norm() / S.norm()) for name, S in exact.items())


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds, and how far the process grew in the meantime, MB; NaN where the system does not tell."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # its present size is its largest so far
    before, start = megabytes("VmRSS"), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return seconds, megabytes("VmHWM") - before


def megabytes(field: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith(field)), float("nan"))


if __name__ == "__main__":
    main()
