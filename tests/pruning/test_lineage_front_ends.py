"""Networks that torch.fx cannot trace, and that the groups of both front ends are the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zeroing import half, random_ranking, randomise

from pruning.cost import CostModel, count_cost
from pruning.errors import GraphError
from pruning.finding import find_groups
from pruning.groups import fold
from pruning.lineage import follow
from pruning.lineage.trace import by_export, by_fx
from pruning.models import build_model
from pruning.policy import ModelSpec
from pruning.surgery import prune

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name", ["resnet18", "googlenet", "mobilenet_v3_small", "shufflenet_v2_x0_5", "regnet_y_400mf", "convnext_tiny"]
)
def test_groups_are_the_same_from_either_front_end(name):
    network = build_model(ModelSpec(name=name))
    images = torch.zeros(1, 3, 64, 64)
    by_one, by_other = (fold(follow(network, images, front_ends=[front_end])[0]) for front_end in (by_fx, by_export))
    assert by_one.groups == by_other.groups
    assert (by_one.front_end, by_other.front_end) == ("torch.fx", "torch.export")


class Branching(nn.Module):
    """Python control flow on sizes and values; what is between `a` and `b` is given."""

    def __init__(self, middle, **layers):
        super().__init__()
        self.a, self.bn, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)
        self.fc = nn.Linear(6, 4)
        self.middle = middle
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] < 8:
            raise ValueError(f"too small: {x.shape[2]}")
        x = self.middle(self, self.bn(self.a(x)))
        return self.fc(self.b(x).mean((2, 3)))


def cut_in_half(network, images=IMAGES):
    groups = find_groups(network, images)
    foretold = CostModel(network, groups, images).cost(half(groups))
    prune(network, half(groups), random_ranking(groups), groups=groups, example_input=images)
    assert count_cost(network, images) == foretold
    return groups


def test_control_flow_on_sizes_is_traced_by_export():
    groups = cut_in_half(randomise(Branching(lambda _, x: F.relu(x))))
    assert groups.front_end == "torch.export"
    assert groups.widths == {"a": 8, "b": 6}


def test_a_shuffle_whose_numbers_are_burned_in_is_guessed_and_tried():
    def shuffled(_, x):
        images, channels, height, width = x.shape
        return x.view(images, 2, channels // 2, height, width).transpose(1, 2).reshape(images, channels, height, width)

    assert cut_in_half(randomise(Branching(shuffled))).widths == {"a": 4, "b": 6}


def test_a_number_that_does_not_follow_pins_after_a_trial():
    groups = cut_in_half(randomise(Branching(lambda _, x: x.view(x.shape[0], 8, 16, 16))))
    assert groups.widths == {"b": 6}
    assert "a trial cut failed" in {pin.layer: pin.reason for pin in groups.pinned}["a"]


def test_a_number_of_channels_that_scales_pins_after_a_trial():
    groups = cut_in_half(randomise(Branching(lambda _, x: x * len(x[0]) ** -0.5)))
    assert groups.widths == {"b": 6}
    assert "differs from the masked one" in {pin.layer: pin.reason for pin in groups.pinned}["a"]


def test_a_layer_that_runs_twice_is_put_back_together_twice():
    groups = cut_in_half(randomise(Branching(lambda net, x: net.twice(net.twice(x)), twice=nn.Conv2d(8, 8, 1))))
    assert groups.front_end == "torch.export"
    assert groups.widths == {"a": 8, "b": 6}  # what it reads it makes


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Choosing(nn.Module):
    """Looks at sizes, which torch.fx does not follow, and runs a script, which torch.export does not take."""

    def __init__(self):
        super().__init__()
        self.inner, self.scripted = nn.Conv2d(8, 8, 1), torch.jit.script(Inner())

    def forward(self, x: Tensor) -> Tensor:
        return self.scripted(self.inner(x)) if x.shape[2] > 2 else x


class Around(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.odd, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3), Choosing(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.odd(self.b(F.relu(self.a(x)))).mean((2, 3)))


def test_a_module_that_nothing_traces_is_left_whole_and_pins_what_meets_it():
    groups = cut_in_half(randomise(Around()))
    assert groups.front_end == "torch.fx without a look into odd"
    assert groups.widths == {"a": 6}
    assert {pin.layer: pin.reason for pin in groups.pinned} == {
        "b": "'Choosing' cannot be followed at 'odd'",
        "odd.inner": "'Choosing' cannot be followed at 'odd'",
        "fc": "the network's output at 'output'",
    }


def test_what_no_front_end_takes_is_refused_in_one_line():
    class Deciding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(GraphError, match="Deciding: cannot be traced: "):
        find_groups(Deciding(), IMAGES)


def test_inputs_by_place_and_by_name():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 8, 3), nn.Linear(8, 4)

        def forward(self, image, depth, scale=1.0):
            return self.fc(F.relu(self.a(image) + self.b(depth)).mean((2, 3)) * scale)

    torch.manual_seed(0)
    depth = torch.zeros(1, 1, 16, 16)
    for example in (
        (IMAGES, depth),
        {"depth": depth, "image": IMAGES},
        {"image": IMAGES, "depth": depth, "scale": 2.0},
    ):
        network = randomise(Two())
        groups = find_groups(network, example)
        assert groups.widths == {"a": 8}
        prune(network, {"a": 5}, random_ranking(groups), groups=groups, example_input=example)
        assert network.b.out_channels == 5
    with pytest.raises(GraphError, match="expected one input without a default, got another: 'depth'"):
        find_groups(randomise(Two()), IMAGES)


def test_tensors_that_the_code_makes_are_followed_by_either_front_end():
    def added(_, x):
        return x + torch.arange(x.shape[-1]) + torch.ones(x.shape[0], 1, 16, 16)

    assert cut_in_half(randomise(Branching(added))).widths == {"a": 8, "b": 6}

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc((self.a(x) + torch.arange(14)).mean((2, 3)))

    groups = cut_in_half(randomise(Plain()))
    assert (groups.front_end, groups.widths) == ("torch.fx", {"a": 8})


def test_attention_is_put_back_together():
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.attention, self.fc = (
                nn.Linear(5, 8),
                nn.MultiheadAttention(8, 2, batch_first=True),
                nn.Linear(8, 3),
            )

        def forward(self, x: Tensor) -> Tensor:
            if x.shape[1] < 2:
                raise ValueError("too short")
            x = self.a(x)
            return self.fc(self.attention(x, x, x, need_weights=False)[0])

    groups = cut_in_half(randomise(Attending()), torch.zeros(2, 4, 5))
    assert groups.front_end == "torch.export"
    assert groups.widths == {"a": 8, "attention": 2, "attention.out_proj": 8}
