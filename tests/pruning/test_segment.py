"""A network that runs in parts does what it does in whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from two_heads import TwoHeads, held

from pruning.blocks import watched
from pruning.errors import GraphError
from pruning.finding import find_groups
from pruning.lineage import Traced
from pruning.models import build_model
from pruning.policy import ModelSpec

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelSpec(name=name, num_classes=5))


def parted(model: nn.Module, starts: list[str], end: str | None, images: torch.Tensor = IMAGES) -> torch.Tensor:
    part = Traced(model).segment(model, images[:1], starts, end)
    output: torch.Tensor = part.suffix(part.prefix(images))
    return output


def whole(model: nn.Module, end: str | None, images: torch.Tensor = IMAGES) -> torch.Tensor:
    found: dict[str, torch.Tensor] = {}
    model.eval()
    with torch.no_grad(), watched(model, [end] if end else [], lambda name, value: found.update({name: value.clone()})):
        output = model(images)
    return found[end] if end else output


@pytest.mark.parametrize(
    "name",
    [
        *("resnet20", "preresnet56", "vgg16_bn_cifar", "mobilenet_v2_cifar", "resnet18"),
        pytest.param("googlenet_cifar", marks=pytest.mark.slow),
        pytest.param("resnet50", marks=pytest.mark.slow),
    ],
)
def test_prefix_and_suffix_of_every_group_are_the_network(name):
    model, known = built(name), None
    groups, traced = find_groups(model, IMAGES), Traced(model)
    expected = whole(model, None)
    for group in list(groups.values())[:: max(1, len(groups) // 8)]:
        readers = [part.layer for part in group.readers]
        part = traced.segment(model, IMAGES[:1], readers, None)
        values = part.prefix(IMAGES, known)
        torch.testing.assert_close(part.suffix(values), expected)
        torch.testing.assert_close(part.suffix(values), expected)  # the values are as they were
        known = values


@pytest.mark.parametrize("end", ["layer1.2", "layer2.0", "layer3.1.bn1", "linear", None])
def test_the_end_is_a_block_a_layer_or_the_output(end):
    model = built("resnet20")
    torch.testing.assert_close(parted(model, ["layer1.0.conv2"], end), whole(model, end))


def test_changed_weights_show_in_the_suffix_and_their_gradients_are_right():
    model = built("resnet20").double().eval()
    images = IMAGES.double()
    part = Traced(model).segment(model, images, ["layer2.0.conv2"], "layer2.2")
    values = part.prefix(images)
    weight = model.layer2[0].conv2.weight
    weight.data.normal_()
    torch.testing.assert_close(part.suffix(values).detach(), whole(model, "layer2.2", images))
    inside = torch.autograd.grad(part.suffix(values).square().sum(), weight)
    outputs: list[torch.Tensor] = []
    with watched(model, ["layer2.2"], lambda _, value: outputs.append(value)):
        model(images)
    torch.testing.assert_close(inside, torch.autograd.grad(outputs[0].square().sum(), weight))


def test_starts_may_stand_behind_each_other_and_all_their_outputs_are_seen():
    model = built("resnet20")
    starts, seen = ["layer1.0.conv1", "layer1.1.conv1", "linear"], {}
    part = Traced(model).segment(model, IMAGES, starts, None)
    part.suffix(part.prefix(IMAGES), seen.__setitem__)
    assert part.layers == tuple(starts)
    assert [*part.inputs] == ["layer1.0.conv1"]  # the input of the others depends on it
    for start, output in part.outputs(part.prefix(IMAGES)).items():
        torch.testing.assert_close(output, whole(model, start))
        torch.testing.assert_close(seen[start].detach(), output)


class InPlace(nn.Module):
    """Works in place on a map that the segment gets from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = F.relu(self.conv(x), inplace=True)
        x += y + torch.ones(1)
        return x * self.scale


def test_what_the_network_changes_in_place_is_not_changed_for_the_next_run():
    model = InPlace()
    part = Traced(model).segment(model, IMAGES, ["conv"], None)
    values = part.prefix(IMAGES)
    with torch.no_grad():
        first, second = part.suffix(values), part.suffix(values)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, whole(model, None))


def test_what_is_known_is_not_computed_again():
    model = built("resnet20")
    traced = Traced(model)
    first, second = (traced.segment(model, IMAGES, [f"layer1.{n}.conv2"], None) for n in (0, 2))
    known, runs = first.prefix(IMAGES), []
    with watched(model, ["conv1", "layer1.0.conv1", "layer1.0.conv2"], lambda name, _: runs.append(name)):
        values = second.prefix(IMAGES, known)
    assert runs == ["layer1.0.conv2"]
    fresh = second.prefix(IMAGES)
    assert all(torch.equal(values[name], fresh[name]) for name in fresh)


def test_a_network_and_its_copy_share_the_trace_but_not_the_weights():
    model, other = built("resnet20"), built("resnet20")
    other.linear.bias.data.add_(1)
    traced = Traced(model)
    for network in (model, other):
        part = traced.segment(network, IMAGES, ["layer3.2.conv2"], None)
        torch.testing.assert_close(part.suffix(part.prefix(IMAGES)).detach(), whole(network, None))


def test_the_network_is_left_as_found():
    model = TwoHeads().train()
    model.bn.eval()
    before, state = held(model), torch.get_rng_state()
    parted(model, ["outer"], None, torch.randn(2, 3, 16, 16))
    assert held(model) == before
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    ("starts", "end", "message"),
    [
        (["layer1.0.conv9"], None, "'layer1.0.conv9': expected a layer that runs once, got 0 runs"),
        (["layer1.0.conv1"], "layer9", "'layer9': expected a module that returns one tensor once, got 0 runs"),
        (["layer2.0.conv1"], "layer1", "expected a place behind layer2.0.conv1, got one that does not depend on"),
    ],
)
def test_places_that_do_not_fit_are_one_line(starts, end, message):
    with pytest.raises(GraphError, match=message):
        parted(built("resnet20"), starts, end)


def test_a_network_that_hooks_change_cannot_run_in_parts():
    model = built("resnet20")
    hook = model.layer2.register_forward_hook(lambda module, args, output: output * 2)
    try:
        with pytest.raises(GraphError, match="expected the same in parts as in whole"):
            parted(model, ["layer1.0.conv2"], None)
    finally:
        hook.remove()
