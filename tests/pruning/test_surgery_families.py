"""Half of every group of whole network families is cut: the result is the zeroed network, trains, and comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from zeroing import distance, half, outputs, random_ranking, randomise, zeroed

from pruning.checkpoint import load_pruned, save_pruned
from pruning.cost import CostModel, count_cost, count_memory
from pruning.finding import find_groups
from pruning.models import build_model
from pruning.policy import ModelSpec, Policy
from pruning.surgery import prune

# The smallest images that the poolings leave something of; Inception's auxiliary head asks for more.
PIXELS = {"alexnet": 64, "googlenet": 64, "inception_v3": 299, "squeezenet1_1": 48}
OPTIONS = {"googlenet": {"aux_logits": True}, "inception_v3": {"aux_logits": True}, "vit_b_16": {"image_size": 32}}

TORCHVISION = (
    "resnet18 resnet50 resnext50_32x4d wide_resnet50_2 regnet_x_400mf regnet_y_400mf densenet121 vgg16_bn alexnet "
    "squeezenet1_1 googlenet inception_v3 mobilenet_v2 mobilenet_v3_large efficientnet_b0 efficientnet_v2_s mnasnet1_0 "
    "shufflenet_v2_x1_0 convnext_tiny vit_b_16 swin_t"
)
OWN = "resnet20 resnet56 preresnet56 vgg16_bn_cifar mobilenet_v1 mobilenet_v2_cifar googlenet_cifar"


def step(model: nn.Module, pixels: int) -> None:
    """One training step; every output has its loss, so that auxiliary heads must fit, too."""
    model.train()
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(2, 3, pixels, pixels, generator=generator)
    sum(F.cross_entropy(logits, torch.arange(2)) for logits in outputs(model(images))).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
    torch.optim.SGD(model.parameters(), lr=1e-2).step()


@pytest.mark.parametrize("name", [*TORCHVISION.split(), *OWN.split()])
def test_half_of_every_group_can_go(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    spec, pixels = ModelSpec(name=name, options=OPTIONS.get(name, {})), PIXELS.get(name, 32)
    model = randomise(build_model(spec)).eval()
    images = torch.randn(2, 3, pixels, pixels)
    groups = find_groups(model, images)
    policy = Policy(model=spec, network=groups.signature, widths=half(groups), thinned=groups.thinned)
    costs, ranking = CostModel(model, groups, images), random_ranking(groups)
    expected = {group: ranking.keep(group, keep) for group, keep in policy.widths.items()}
    with torch.no_grad():
        whole, masked = model(images), zeroed(model, groups, expected)(images)

    kept = prune(model, policy, ranking, groups=groups, example_input=images)

    with torch.no_grad():
        pruned = model(images)
    # Sums over half as many float32 terms round differently: 7e-7 at most. A channel at the wrong place shows at 1e-2.
    assert distance(pruned, masked) < 1e-5
    assert distance(pruned, whole) > 1e-2
    assert kept == expected
    assert count_cost(model, images) == costs.cost(policy.widths)
    assert count_memory(model, images) == costs.memory(policy.widths)

    step(model, pixels)
    save_pruned(tmp_path / "pruned", model, policy, kept, image_shape=(3, pixels, pixels))
    with torch.no_grad():
        trained, loaded = model.eval()(images), load_pruned(tmp_path / "pruned").model(images)
    assert torch.equal(loaded, trained)
    assert distance(trained, pruned) > 0
