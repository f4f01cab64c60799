"""How long `dcp` takes on ResNet-56 with three heads: as published, in exact and in fast mode, and what they pick.

    OMP_NUM_THREADS=1 python experiments/benchmarks/dcp_selection.py --weights resnet56-4bfd9763.th --images cifar10

Half of each group is picked. As published, each pick takes two passes over the images, each through both whole
networks; `--picks` of them are timed for each group, in exact mode's state, and the rest is counted at the same price.
All run with as many threads, in float32 but for fast mode's passes, in bfloat16 where the machine is faster in it.
`--reordered` adds exact mode on the same batches in another order: what one order keeps and the other does not, chance
decides. `--without-reconstruction` adds exact mode without L_M: what a cheaper gradient of it could save at most. Wall
time: nothing else should run. Without weights and images both are random.
"""

from __future__ import annotations

import argparse
import copy
import resource
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from pruning import ChannelGroups, ModelSpec, Recipe, build_model, find_groups, load_data, load_weights
from pruning.auxiliary import AuxiliaryLosses
from pruning.criteria.dcp import DCP
from pruning.data import ImageSplit, Pixels, TensorSplit
from pruning.greedy import GreedyRanking
from pruning.policy import AuxiliaryPlacement
from pruning.stagewise import train_heads

Data = list[tuple[torch.Tensor, torch.Tensor]]
EXAMPLE = torch.zeros(1, 3, 32, 32)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    network = build_model(ModelSpec(name="resnet56")).eval()
    if arguments.weights:
        load_weights(network, arguments.weights)
    train = images(arguments.images, arguments.count)
    heads = AuxiliaryLosses(network, AuxiliaryPlacement(positions=3), 10, EXAMPLE)
    for _ in train_heads(network, heads, train, Recipe(epochs=2, learning_rate=0.1, augment=False)):
        pass
    groups = find_groups(network, EXAMPLE)
    groups = groups.only(groups.matching(tuple(arguments.groups)))
    data = list(train.batches(128))
    criteria = {
        f"fast, growth {growth:g}": DCP(complete=False, mode="fast", growth=growth) for growth in arguments.growth
    }
    criteria["exact"] = DCP(complete=False)
    if arguments.without_reconstruction:
        criteria["exact, L_S alone"] = DCP(complete=False, reconstruction_weight=0)
    if arguments.reordered:
        criteria["exact, batches in another order"] = DCP(complete=False)
    rankings, seconds = {}, {}
    for mode, criterion in criteria.items():
        started = time.perf_counter()
        rankings[mode] = criterion.rank(network, groups, data[::-1] if "order" in mode else data, heads)
        seconds[mode] = time.perf_counter() - started
        print(f"{mode}: {seconds[mode]:.1f} s, peak memory so far {peak_gib():.2f} GiB", flush=True)
    exact = rankings["exact"]
    per_pick, alike, first = as_published(network, groups, data, heads, exact, arguments.picks)
    picks = sum(exact.fitted_widths.values())
    published = sum(per_pick[name] * width for name, width in exact.fitted_widths.items())
    print(f"published: {published:.0f} s for {picks} picks, counted from {first}; {alike} of them as exact mode's")
    for mode, ranking in rankings.items():
        common = {name: shared(exact, ranking, name) for name in groups}
        each = ", ".join(f"{name} {count}/{exact.fitted_widths[name]}" for name, count in common.items())
        print(f"{mode}: {published / seconds[mode]:.1f} times as fast; kept as exact mode: {each}; ", end="")
        print(f"{sum(common.values()) / picks:.1%}", flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure how long dcp takes to select channels.")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=Path, help="folder with train/<class>/ and test/<class>/")
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--groups", nargs="+", default=["*.conv1"], help="the 27 inner ones")
    parser.add_argument("--picks", type=int, default=1)
    parser.add_argument("--growth", type=float, nargs="+", default=[2.0])
    parser.add_argument("--reordered", action="store_true", help="also see how far exact mode agrees with itself")
    parser.add_argument("--without-reconstruction", action="store_true", help="also see what L_M costs in exact mode")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def images(folder: Path | None, count: int) -> ImageSplit:
    if folder:
        return load_data("image_folder", root=str(folder)).train.subset(count, 0)
    pixels = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
    return TensorSplit(Pixels(pixels, torch.arange(count) % 10), (0.5,) * 3, (0.25,) * 3)


def as_published(
    network: nn.Module, groups: ChannelGroups, data: Data, heads: AuxiliaryLosses, exact: GreedyRanking, picks: int
) -> tuple[dict[str, float], int, int]:
    """Return the seconds a pick of every group, how many picks were as exact mode's, and how many there were."""
    cut, per_pick, alike = copy.deepcopy(network), {}, 0
    heads.heads.eval().requires_grad_(False)
    for name, group in groups.items():
        (part,) = group.readers
        layer, whole = cut.get_submodule(part.layer), network.get_submodule(part.layer)
        started = time.perf_counter()
        order = pick(cut, network, layer, whole, data, heads, picks)
        per_pick[name] = (time.perf_counter() - started) / picks
        alike += sum(a == b for a, b in zip(order, exact.orders[name].tolist(), strict=False))
        layer.weight.data.copy_(exact.fitted[name][part.tensor])  # the groups behind see this one cut
    return per_pick, alike, picks * len(groups)


def pick(
    cut: nn.Module, whole: nn.Module, layer: nn.Module, uncut: nn.Module, data: Data, heads: AuxiliaryLosses, picks: int
) -> list[int]:
    cut.requires_grad_(False)
    whole.requires_grad_(False)
    original, weight, picked = layer.weight.detach().clone(), layer.weight.requires_grad_(True), []
    weight.data.zero_()
    for _ in range(picks):
        weight.grad = None
        for batch in data:
            (loss_of(batch, cut, whole, layer, uncut, heads) * len(batch[1])).backward()
        scores = weight.grad.square().sum(dim=(0, 2, 3))
        scores[picked] = -1
        picked.append(int(scores.argmax()))
        weight.data[:, picked[-1]] = original[:, picked[-1]]
        mask = torch.zeros_like(weight)
        mask[:, picked] = 1
        optimizer = torch.optim.SGD([weight], 0.01, 0.9, weight_decay=1e-4, nesterov=True)
        for batch in data:
            optimizer.zero_grad()
            loss_of(batch, cut, whole, layer, uncut, heads).backward()
            weight.grad *= mask
            optimizer.step()
    return picked


def loss_of(
    batch: tuple[torch.Tensor, torch.Tensor],
    cut: nn.Module,
    whole: nn.Module,
    layer: nn.Module,
    uncut: nn.Module,
    heads: AuxiliaryLosses,
) -> torch.Tensor:
    found = {}
    hooks = [m.register_forward_hook(lambda m, _, out: found.update({m: out})) for m in (layer, uncut)]
    try:
        with heads.attached(cut):
            final = cut(batch[0])
            logits = [*heads.logits(), final]
        with torch.no_grad():
            whole(batch[0])
    finally:
        for hook in hooks:
            hook.remove()
    judge = next(output for output in logits if output.requires_grad)
    return F.mse_loss(found[layer], found[uncut]) / 2 + F.cross_entropy(judge, batch[1])


def shared(first: GreedyRanking, second: GreedyRanking, name: str) -> int:
    width = first.fitted_widths[name]
    return len(set(first.keep(name, width)).intersection(second.keep(name, width)))


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
