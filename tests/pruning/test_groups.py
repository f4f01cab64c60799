"""Groups are a function of the network's shape alone, and finding them leaves the network as it was."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from two_heads import IMAGES, TwoHeads, held

from pruning.errors import PolicyError, UnknownNameError
from pruning.finding import find_groups
from pruning.groups import ChannelGroup, ChannelGroups, Slice
from pruning.models import build_model
from pruning.policy import ModelSpec


def resnet20() -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelSpec(name="resnet20"))


# ── what the groups are ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_group_names_every_place_of_its_channels() -> None:
    def each(tensor: str, axis: int) -> Slice:
        return Slice(tensor, axis, tuple((channel,) for channel in range(16)))

    carried = [each(f"layer1.0.bn1.{name}", 0) for name in ("weight", "bias", "running_mean", "running_var")]
    assert find_groups(resnet20(), IMAGES)["layer1.0.conv1"] == ChannelGroup(
        name="layer1.0.conv1",
        width=16,
        coupled=False,
        makers=(each("layer1.0.conv1.weight", 0),),
        carried=tuple(carried),
        readers=(each("layer1.0.conv2.weight", 1),),
    )


def test_a_channel_in_front_of_a_grouped_convolution_is_a_whole_convolution_group() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1, groups=4), nn.Flatten(), nn.Linear(12 * 4, 2))
    (group,) = find_groups(network, torch.zeros(1, 3, 2, 2)).values()
    assert group.width == 4
    assert group.makers == (Slice("0.weight", 0, ((0, 1), (2, 3), (4, 5), (6, 7))),)
    assert Slice("1.weight", 0, ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10, 11))) in group.carried
    assert group.readers == (Slice("3.weight", 1, tuple(tuple(range(12 * c, 12 * c + 12)) for c in range(4))),)


def test_groups_come_in_the_order_of_the_graph_and_bear_the_name_of_their_first_maker() -> None:
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]
    inner = [f"{block}.conv1" for block in blocks]
    names = list(find_groups(resnet20(), IMAGES))
    assert [name for name in names if name in inner] == inner
    assert names[0] == "conv1"
    assert len(names) == 9 + 3  # the second and the third stage add channels of their own to the sum


def test_a_sum_or_a_concatenation_couples() -> None:
    groups = find_groups(TwoHeads(), IMAGES)
    assert {name: group.coupled for name, group in groups.items()} == {
        "stem": True,
        "inner": False,
        "left": True,
        "right": True,
        "last": False,
    }


def test_the_head_that_runs_in_training_only_is_a_reader() -> None:
    readers = find_groups(TwoHeads().eval(), IMAGES)["last"].readers
    assert {part.layer for part in readers} == {"fc", "aux"}


def test_a_layer_of_one_channel_is_no_group() -> None:
    network = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 4, 1), nn.Flatten(), nn.Linear(16, 1))
    groups = find_groups(network, torch.zeros(1, 3, 2, 2))
    assert list(groups) == ["1"]
    assert [(pin.layer, pin.width, pin.reason) for pin in groups.pinned] == [
        ("0", 1, "they can only be removed all at once"),
        ("3", 1, "the network's output at 'output'"),
    ]


def test_channels_of_one_layer_that_go_separate_ways_are_several_groups() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Conv2d(*size, 1) for size in ((3, 4), (3, 4), (3, 8), (8, 2)))

        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.c(x) + torch.cat([self.a(x), self.b(x)], dim=1))

    groups = find_groups(Parts(), IMAGES)
    assert groups.widths == {"c": 4, "c#2": 4}
    assert [part.layer for part in groups["c#2"].makers] == ["c", "b"]
    assert groups["c#2"].makers[0].positions == ((4,), (5,), (6,), (7,))


def test_channels_are_counted_as_their_first_maker_counts_them() -> None:
    class ScaledBackwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.a, self.b = nn.Parameter(torch.rand(4)), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            scale = self.scale.flip(0)[:, None, None]
            return self.b(self.a(x) * scale)

    (group,) = find_groups(ScaledBackwards(), IMAGES).values()
    assert group.makers[0].positions == ((0,), (1,), (2,), (3,))
    assert group.carried[0] == Slice("scale", 0, ((3,), (2,), (1,), (0,)))


# ── what they depend on ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("build", [TwoHeads, resnet20])
def test_modes_frozen_weights_types_and_batch_size_change_nothing(build: Any) -> None:
    groups = find_groups(build(), IMAGES)
    assert find_groups(build().eval(), IMAGES) == groups
    assert find_groups(build().requires_grad_(False), IMAGES) == groups
    assert find_groups(build().double(), IMAGES.double()[:1]) == groups
    partly = build()
    next(partly.children()).requires_grad_(False).eval()
    assert find_groups(partly, IMAGES) == groups


def test_the_signature_is_of_names_and_widths() -> None:
    groups = find_groups(resnet20(), IMAGES)
    torch.manual_seed(1)
    again = find_groups(build_model(ModelSpec(name="resnet20", num_classes=3)), torch.zeros(1, 3, 32, 32))
    wider = find_groups(build_model(ModelSpec(name="resnet20", options={"widths": [16, 32, 66]})), IMAGES)
    assert groups.signature == again.signature
    assert len({groups.signature, wider.signature, find_groups(TwoHeads(), IMAGES).signature}) == 3


# ── the network is left as found ─────────────────────────────────────────────────────────────────────────────────────


class Draws(nn.Module):
    """Draws a random number of its own at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * float(torch.rand(())))


@pytest.mark.parametrize("build", [TwoHeads, resnet20, Draws])
def test_the_network_and_the_random_state_are_left_as_found(build: Any) -> None:
    network = build()
    list(network.modules())[-1].eval()
    next(network.parameters()).requires_grad_(False)
    calls: list[nn.Module] = []
    for module in network.modules():
        module.register_forward_hook(lambda module, *_: calls.append(module))
        module.register_forward_pre_hook(lambda module, _: calls.append(module))
    before, values = held(network), copy.deepcopy(network.state_dict())
    random = torch.get_rng_state()

    find_groups(network, IMAGES)

    assert held(network) == before
    assert all(torch.equal(tensor, values[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not calls


def test_groups_keep_no_network_alive() -> None:
    network = TwoHeads()
    alive = weakref.ref(network)
    groups = find_groups(network, IMAGES)
    del network
    gc.collect()
    assert alive() is None
    assert len(groups) == 5


# ── reading weights, choosing, checking ──────────────────────────────────────────────────────────────────────────────


def test_filters_and_read_weights_are_the_weights_channel_by_channel() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=4), nn.Flatten(), nn.Linear(8 * 4, 2))
    (group,) = find_groups(network, torch.zeros(1, 3, 2, 2)).values()
    made, read = network[0].weight, network[3].weight
    for channel in range(4):
        filters = made[2 * channel : 2 * channel + 2].flatten()
        columns = read[:, 8 * channel : 8 * channel + 8].T.flatten()
        assert torch.equal(group.filters(network)[channel], filters)
        assert torch.equal(group.read_weights(network)[channel], columns)


def test_patterns_choose_groups_in_the_order_of_the_graph() -> None:
    groups = find_groups(TwoHeads(), IMAGES)
    assert groups.matching(("right", "st*")) == ("stem", "right")
    assert groups.matching(("inner",)) == ("inner", "last")
    assert groups.matching(("coupled",)) == ("stem", "left", "right")
    assert groups.matching(("all",)) == tuple(groups)
    assert list(groups.only(["right", "stem"])) == ["stem", "right"]


def test_a_pattern_that_matches_nothing_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown channel group 'rigth'; did you mean 'right'"):
        find_groups(TwoHeads(), IMAGES).matching(("stem", "rigth"))


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"rigth": 3}, "widths: no channel group 'rigth' in this network; did you mean 'right'"),
        ({"stem": 8, "right": 0}, "widths.right: expected 1 to 4 channels, got 0"),
        ({"stem": 9}, "widths.stem: expected 1 to 8 channels, got 9"),
    ],
)
def test_widths_that_do_not_fit_are_refused(widths: dict[str, int], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        find_groups(TwoHeads(), IMAGES).check_widths(widths)


def test_groups_are_a_mapping() -> None:
    groups = find_groups(TwoHeads(), IMAGES)
    assert isinstance(groups, ChannelGroups)
    assert list(groups.widths) == list(groups) == [group.name for group in groups.values()]
    assert "stem" in groups
    assert "nothing" not in groups
