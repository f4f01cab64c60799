"""What becomes of one network that is cut by half; `support_matrix.py` runs this in a process of its own.

    python experiments/support_matrix_network.py ours timm/skresnet18 --gib 12

It prints what it knows as a line of JSON, and more after every step.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from pruning import (
    ChannelGroups,
    CostModel,
    ModelSpec,
    NestedRanking,
    PruningError,
    build_model,
    count_cost,
    export_network,
    find_groups,
    input_shape,
    prune,
)
from pruning.lineage import skeleton
from pruning.models.torchvision_import import import_torchvision
from pruning.models.torchvision_models import torchvision_names

Found = dict[str, Any]

CLASSES = 17
"""No layer of these networks is as wide: so torch-pruning is told which one is the last."""
SIZES = (96, 128)
"""Pixels that are tried before the usual size."""


def build(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network without any value that would make a comparison trivial, and two images that it takes."""
    torch.manual_seed(0)
    if "/" not in name and name not in torchvision_names():  # for detection or segmentation
        whole, _, part = name.partition(".")
        told: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": CLASSES}
        network, usual = import_torchvision().models.get_model(whole, **told).get_submodule(part), 320
    else:
        spec = ModelSpec(name=name, num_classes=CLASSES)
        network, usual = build_model(spec), input_shape(spec)[1]
    randomise(network)
    for size in (*SIZES, usual):
        image = torch.randn(2, 3, size, size)
        try:
            for training in (False, True):  # an auxiliary head may want larger images
                skeleton(network).train(training)(image.to("meta"))
            break
        except Exception:  # whatever the network raises where an image is too small
            continue
    return network, image


@torch.no_grad()
def randomise(network: nn.Module) -> None:
    """Fill what a fresh network holds as zeros and ones."""
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 1 or bool((parameter == parameter.flatten()[0]).all()):
                parameter.uniform_(0.5, 1.5)
        if isinstance(bias := getattr(module, "bias", None), Tensor):
            bias.uniform_(-0.5, 0.5)
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)


def examine(name: str) -> Iterator[Found]:
    """Yield what is known of a network, more after every step; what is refused ends with `refused` and why."""
    network, image = build(name)
    found: Found = {"pixels": image.shape[-1]}
    try:
        groups = find_groups(network, image)
        cost = CostModel(network, groups, image)
    except PruningError as error:
        yield found | {"refused": str(error)}
        return
    found |= {"front_end": getattr(groups, "front_end", "fx"), "groups": len(groups), **pinned(groups, cost)}
    if not groups:
        yield found | {"refused": f"no group: {found['why']}"}
        return
    widths = {name: max(group.minimum, (group.width + 1) // 2) for name, group in groups.items()}
    scores = {name: torch.rand(group.width) for name, group in groups.items()}
    found["left"] = cost.cost(widths).macs / cost.full.macs
    yield found
    with_gradients = train(network, image)
    prune(network, widths, NestedRanking.from_scores("random", scores), groups=groups, example_input=image)
    assert count_cost(network, image) == cost.cost(widths), "costs something else than was foretold"
    yield (found := found | {"masked": True})
    without = with_gradients - train(network, image)
    assert not without, f"{len(without)} parameters have no gradient, {min(without)} among them"
    yield (found := found | {"trains": True})
    yield found | {"exported": exported(network, image)}


def pinned(groups: ChannelGroups, cost: CostModel) -> Found:
    """Return how many channels are pinned, their share of the MACs, and the reason of most of them."""
    reasons: Counter[str] = Counter()
    for pin in groups.pinned:
        if "network's output" not in pin.reason:
            reasons[re.sub(r" at '[^']*'$", "", pin.reason)] += cost.macs_of(pin.parts)
    share = sum(cost.macs_of(pin.parts) for pin in groups.pinned) / cost.full.macs
    why = max(reasons, key=lambda reason: reasons[reason], default="")
    return {"pinned": sum(pin.width for pin in groups.pinned), "pinned_macs": share, "why": why}


def train(network: nn.Module, image: Tensor) -> set[str]:
    """Return the parameters that have gradients after one pass in train mode."""
    network.train().zero_grad()
    outputs = [output for output in tree_leaves(network(image)) if isinstance(output, Tensor)]
    loss = sum((output / output.detach().abs().max().clamp_min(1e-6)).square().mean() for output in outputs)
    assert isinstance(loss, Tensor)
    assert bool(loss.isfinite()), "the loss is not finite"
    loss.backward()  # type: ignore[no-untyped-call]
    names = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    network.eval().zero_grad()
    return names


class Flat(nn.Module):
    """Puts all outputs of a network side by side."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([output.flatten(1) for output in tree_leaves(self.network(image))], dim=1)


def exported(network: nn.Module, image: Tensor) -> str:
    """Return `yes`, or why torch.export does not take the network."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            export_network(Flat(network), folder, ["pt2"], image_shape=tuple(image.shape[1:]))
        except PruningError as error:
            return str(error).removeprefix("Flat: ")
    return "yes"


def examine_by_torch_pruning(name: str) -> Iterator[Found]:
    """Yield what is left of a network whose layers, but for the last one, torch-pruning cuts by half."""
    import torch_pruning as tp

    network, image = build(name)
    full = count_cost(network, image).macs
    makes = {layer: (vars(layer).get("out_features"), vars(layer).get("out_channels")) for layer in network.modules()}
    told: dict[str, Any] = {
        "pruning_ratio": 0.5,
        "ignored_layers": [layer for layer in makes if CLASSES in makes[layer]],
    }
    tp.pruner.BasePruner(network.eval(), image, tp.importance.MagnitudeImportance(), **told).step()
    assert network(image).shape == (len(image), CLASSES)
    train(network, image)
    yield {"masked": True, "trains": True, "left": count_cost(network, image).macs / full}


EXAMINERS = {"ours": examine, "torch-pruning": examine_by_torch_pruning}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=EXAMINERS)
    parser.add_argument("name", help="of the network")
    parser.add_argument("--gib", type=float, default=12, help="most memory")
    arguments = parser.parse_args()
    memory = int(arguments.gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    torch.set_num_threads(1)
    for found in EXAMINERS[arguments.engine](arguments.name):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
