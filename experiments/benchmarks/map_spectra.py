"""How long `chip` and `hrank` take for an image's maps, against the published way, and how exact they are.

    OMP_NUM_THREADS=1 python experiments/benchmarks/map_spectra.py --weights resnet56-4bfd9763.th --images cifar10

The maps of ResNet-56 are what its convolutions read; those of ResNet-50 have its shapes, and are smooth noise behind
mixing and a ReLU. As published, `chip` takes channels + 1 float32 SVDs an image and `hrank` a call of `matrix_rank` a
map; `--slice` of them are timed for each shape of ResNet-50, and the rest is counted at the same price. Totals are for
the maps that the authors look at in `--count` images, counted likewise. The error is the largest relative one of a
channel of an image against float64 SVDs, of the same slice for ResNet-50. Wall time: nothing else should run. Without
weights and images both are random.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pruning import ModelSpec, build_model, load_data, load_weights
from pruning.spectra import nuclear_drops, ranks

T = TypeVar("T")
RESNET56 = {(16, 32): 19, (32, 16): 18, (64, 8): 18}
RESNET50 = {
    (64, 56): 7,
    (256, 56): 4,
    (128, 28): 8,
    (512, 28): 5,
    (256, 14): 12,
    (1024, 14): 7,
    (512, 7): 6,
    (2048, 7): 4,
}
"""How often the authors look at maps of these channels and sizes; those behind a projected shortcut twice."""


@dataclass
class Measured:
    """Seconds an image of a shape, and how far off the fast way is."""

    published: float
    ours: float
    off: str


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    real = maps_of_resnet56(arguments.weights, arguments.images, arguments.resnet56_images)
    report("ResNet-56", {shape: (real[shape], None) for shape in RESNET56}, RESNET56, arguments)
    if arguments.resnet50_images:
        shapes = {shape: (synthetic(*shape, arguments.resnet50_images), arguments.slice) for shape in RESNET50}
        report("ResNet-50, synthetic maps", shapes, RESNET50, arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure how long chip and hrank take for an image's maps.")
    parser.add_argument("--weights", type=Path, help="of ResNet-56")
    parser.add_argument("--images", type=Path, help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("--resnet56-images", type=int, default=4, help="images of each layer to measure on")
    parser.add_argument("--resnet50-images", type=int, default=2, help="of each shape; 0 leaves ResNet-50 out")
    parser.add_argument("--slice", type=int, default=3, help="SVDs and reference channels of each ResNet-50 shape")
    parser.add_argument("--count", type=int, default=640, help="images that the totals are for")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts, for ours")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def maps_of_resnet56(weights: Path | None, folder: Path | None, count: int) -> dict[tuple[int, int], Tensor]:
    """Return what the convolutions of the blocks read, by shape, `[images of all layers, channels, size, size]`."""
    network = build_model(ModelSpec(name="resnet56")).eval()
    if weights:
        load_weights(network, weights)
    pictures = torch.randn(count, 3, 32, 32)
    if folder:
        images = load_data("image_folder", root=str(folder), workers=0).train.subset(count, 0)
        pictures, _ = next(iter(images.batches(count)))
    found: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d) and "layer" in name:
            layer.register_forward_pre_hook(lambda _, x: found[x[0].shape[1], x[0].shape[2]].append(x[0].clone()))
    with torch.no_grad():
        network(pictures)
    return {shape: torch.cat(maps) for shape, maps in found.items()}


def synthetic(channels: int, size: int, count: int) -> Tensor:
    """Return smooth noise, mixed over the channels and behind a ReLU that is closed more often than not."""
    coarse = torch.randn(count, channels, size // 2 + 1, size // 2 + 1)
    smooth = F.interpolate(coarse, size=(size, size), mode="bilinear")
    mixing = torch.randn(channels, channels) / channels**0.5
    return torch.relu(torch.einsum("oc,bchw->bohw", mixing, smooth) - 0.2)


def report(
    network: str,
    shapes: dict[tuple[int, int], tuple[Tensor, int | None]],
    layers: dict[tuple[int, int], int],
    arguments: argparse.Namespace,
) -> None:
    for criterion, measure, last in (("chip", measure_chip, "largest error"), ("hrank", measure_hrank, "other ranks")):
        print(f"\n{criterion}, {network}: milliseconds an image")
        print(f"{'channels':>8} {'size':>5} {'images':>7} {'published':>12} {'ours':>9} {'ratio':>7} {last:>14}")
        totals = [0.0, 0.0]
        for (channels, size), (maps, part) in shapes.items():
            found = measure(maps, part, arguments.repeats)
            totals[0] += found.published * layers[channels, size] * arguments.count
            totals[1] += found.ours * layers[channels, size] * arguments.count
            print(
                f"{channels:8} {size:5} {len(maps):7} {1e3 * found.published:12.2f} {1e3 * found.ours:9.3f} "
                f"{found.published / found.ours:7.1f} {found.off:>14}",
                flush=True,
            )
        print(
            f"{sum(layers.values())} layers, {arguments.count} images, extrapolated: published {totals[0]:.0f} s, ours "
            f"{totals[1]:.1f} s, {totals[0] / totals[1]:.1f} times as fast; peak memory so far {peak_gib():.2f} GiB"
        )


def measure_chip(maps: Tensor, part: int | None, repeats: int) -> Measured:
    channels = maps.shape[1]
    drops, ours = timed(lambda: nuclear_drops(maps), repeats)
    if part is None:
        _, published = timed(lambda: [list(svds(image)) for image in maps.flatten(2)], 1)
        published /= len(maps)
    else:
        _, published = timed(lambda: list(islice(svds(maps[0].flatten(1)), part)), 1)
        published *= (channels + 1) / part
    error = 0.0
    for image, of_image in zip(maps[:1] if part else maps, drops, strict=False):
        norms = svds(image.flatten(1).double())
        whole = next(norms)
        for drop, norm in zip(of_image[:part], norms, strict=False):
            exact = float(whole - norm)
            error = max(error, abs(float(drop) - exact) / exact if exact else float(drop))
    return Measured(published, ours / len(maps), f"{error:.1e}")


def svds(a: Tensor) -> Iterator[Tensor]:
    """Yield the nuclear norm of `[channels, places]`, and then those without each channel, one SVD each."""
    yield torch.linalg.svdvals(a).sum()
    for channel in range(len(a)):
        zeroed = a.clone()
        zeroed[channel] = 0
        yield torch.linalg.svdvals(zeroed).sum()


def measure_hrank(maps: Tensor, part: int | None, repeats: int) -> Measured:
    found, ours = timed(lambda: ranks(maps), repeats)
    flat = maps.flatten(0, 1)[: part and 64 * part]
    one_by_one, published = timed(lambda: [torch.linalg.matrix_rank(one).item() for one in flat], 1)
    other = sum(a != b for a, b in zip(one_by_one, found.flatten().tolist(), strict=False))
    return Measured(published / len(flat) * maps.shape[1], ours / len(maps), f"{other} of {len(flat)}")


def timed(work: Callable[[], T], repeats: int) -> tuple[T, float]:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - start)
    return result, best


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
