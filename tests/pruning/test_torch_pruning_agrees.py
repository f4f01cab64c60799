"""Where torch-pruning is exact, its groups are ours, and the same kept channels give the same network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from zeroing import distance, half, random_ranking, randomise

from pruning.cutting import remove
from pruning.finding import find_groups
from pruning.models import build_model
from pruning.policy import ModelSpec

tp = pytest.importorskip("torch_pruning")

# Without convolution groups and heads that run in training only, which it does not follow.
NETWORKS = (
    "resnet18 resnet50 vgg16_bn alexnet squeezenet1_1 googlenet densenet121 mobilenet_v2 mobilenet_v3_large "
    "efficientnet_b0 mnasnet1_0 convnext_tiny preresnet56"
)


@pytest.mark.filterwarnings("ignore:Unwrapped parameters")
@pytest.mark.parametrize("name", NETWORKS.split())
def test_groups_and_cut_networks_are_the_same(name: str) -> None:
    torch.manual_seed(0)
    options = {"aux_logits": False} if name == "googlenet" else {}
    ours = randomise(build_model(ModelSpec(name=name, options=options))).eval()
    theirs, images = copy.deepcopy(ours), torch.randn(2, 3, 64, 64)
    groups = find_groups(ours, images)
    graph = tp.DependencyGraph().build_dependency(theirs, example_inputs=images)

    (last,) = (pin.layer for pin in groups.pinned)  # they would cut the classes, too
    assert partition(graph, theirs) - {frozenset({last})} == {
        frozenset(part.layer for part in group.makers) for group in groups.values()
    }

    ranking = random_ranking(groups)
    kept = {group: ranking.keep(group, width) for group, width in half(groups).items()}
    for group, indices in kept.items():
        layer = theirs.get_submodule(groups[group].makers[0].layer)
        gone = sorted(set(range(groups[group].width)).difference(indices))
        graph.get_pruning_group(layer, cut_outputs(layer), idxs=gone).prune()
    remove(ours, groups, kept)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]
    with torch.no_grad():
        assert distance(ours(images), theirs.eval()(images)) < 1e-6  # equal weights; at most another order of sums


def partition(graph: tp.DependencyGraph, network: nn.Module) -> set[frozenset[str]]:
    """Return for each of their groups the layers whose filters go."""
    names = {module: name for name, module in network.named_modules()}
    makers = (tp.prune_conv_out_channels, tp.prune_linear_out_channels)
    return {
        frozenset(names[dependency.target.module] for dependency, _ in group if dependency.handler in makers)
        for group in graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear])
    }


def cut_outputs(layer: nn.Module) -> object:
    return tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels
