"""What each counter counts, and what a forward pass holds in memory: the tables of pruning/README.md, as markdown.

python experiments/counters.py
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode
from torch_pruning.utils import count_ops_and_params

from pruning import ModelSpec, build_model, count_cost, count_memory
from pruning.latency import _LiveStorages
from pruning.lineage.trace import trace

NETWORKS = (
    "resnet20 resnet18 resnet50 mobilenet_v2 efficientnet_b0 regnet_y_400mf densenet121 convnext_tiny vit_b_16 swin_t"
)
KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "biases": (_ConvNd, nn.Linear),
    "normalisation": (_BatchNorm, nn.LayerNorm),
    "attention": (nn.MultiheadAttention,),
    "activation functions": (nn.ReLU, nn.ReLU6, nn.GELU),
    "pooling": (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
}
"""What torch-pruning counts in layers of some kinds, besides the products that we count."""
LAYERS = ("aten.convolution", "aten.mm", "aten.addmm")
"""Kernels of convolutions and linear layers."""


def main() -> None:
    torch.set_num_threads(1)
    print("| network | ours | FlopCounterMode ÷ 2 | more than ours | torch-pruning | more than ours |")
    print("|---|---:|---:|---|---:|---|")
    for name in NETWORKS.split():
        network, image = subject(name)
        print_macs(name, network.to("meta"), image.to("meta"))
    print()
    print("| network | weights | activations | peak | peak of the graph on the CPU | peak of the network on the CPU |")
    print("|---|---:|---:|---:|---:|---:|")
    for name in NETWORKS.split():
        print_memory(name, *subject(name))


def subject(name: str) -> tuple[nn.Module, Tensor]:
    pixels, classes = (32, 10) if name == "resnet20" else (224, 1000)
    return build_model(ModelSpec(name=name, num_classes=classes)).eval(), torch.zeros(1, 3, pixels, pixels)


def print_macs(name: str, network: nn.Module, image: Tensor) -> None:
    ours = count_cost(network, image).macs
    with FlopCounterMode(display=False) as counter:
        network(image)
    total, products = counter.get_total_flops() // 2, weighted(counter, "Global")
    assert products == ours, f"{name}: {products} by torch, {ours} by us"
    others = f"{total - ours:,} products of activations" if total > ours else "–"
    theirs, parts = torch_pruning_parts(network, image, counter, ours)
    assert theirs == ours + sum(parts.values())
    told = ", ".join(f"{kind} {count:+,}" for kind, count in parts.items() if count)
    print(f"| {name} | {ours:,} | {total:,} | {others} | {theirs:,} | {told} |")


def weighted(counter: FlopCounterMode, module: str) -> int:
    """Return the MACs of convolutions and linear layers in a module."""
    counts = counter.get_flop_counts().get(module, {})
    return sum(flops for kernel, flops in counts.items() if str(kernel) in LAYERS) // 2


def torch_pruning_parts(
    network: nn.Module, image: Tensor, counter: FlopCounterMode, ours: int
) -> tuple[int, dict[str, int]]:
    """Return what torch-pruning counts, and by kind what of it is more or less than ours."""
    theirs, _, by_layer, _ = count_ops_and_params(network, image, layer_wise=True)
    parts: Counter[str] = Counter()
    seen = 0
    for name, layer in network.named_modules():
        kind = next((kind for kind, classes in KINDS.items() if isinstance(layer, classes)), None)
        if kind is not None and by_layer[layer]:
            macs = weighted(counter, f"{type(network).__name__}.{name}")
            parts[kind] += int(by_layer[layer]) - macs
            seen += macs
    return int(theirs), {**parts, "weights that functions apply": seen - ours}


def print_memory(name: str, network: nn.Module, image: Tensor) -> None:
    graph = fx.GraphModule(network, trace(network))
    memory = count_memory(network, image)
    lets_go = fx.Interpreter(graph)  # forgets each value after its last use
    peaks = [peak(lets_go.run, image), peak(network, image)]
    told = (memory.weight_bytes, memory.activation_bytes, memory.peak_activation_bytes, *peaks)
    print(f"| {name} |" + "".join(f" {size:,} |" for size in told))


def peak(run: Callable[[Tensor], Any], image: Tensor) -> int:
    """Return the most bytes that tensors made by a run hold at one time."""
    live = _LiveStorages()
    with torch.no_grad(), live:
        run(image)
    return live.peak


if __name__ == "__main__":
    main()
