"""The memory that the cost model foretells is what the cut network is counted at."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from modelled import JOINED, JOINED_BY_NAME, NETWORKS, Joined, Modelled, Step, build, image_of
from torch import Tensor, nn
from torch.nn import functional as F
from two_heads import IMAGES, TwoHeads
from zeroing import random_ranking

import pruning.activations
from pruning.cost import CostModel, Memory, count_cost, count_memory
from pruning.errors import GraphError, UnknownNameError
from pruning.finding import find_groups
from pruning.groups import ChannelGroup, ChannelGroups, Slice
from pruning.inputs import Example
from pruning.lineage import follow, results
from pruning.lineage.trace import by_export, by_fx, eval_graph
from pruning.surgery import prune


@pytest.fixture(scope="module", params=NETWORKS)
def modelled(request: pytest.FixtureRequest) -> Modelled:
    return Modelled(build(request.param).to("meta"), image_of(NETWORKS[request.param]))


def test_at_full_widths_it_is_the_counted_memory(modelled: Modelled) -> None:
    modelled.check({})


@pytest.mark.parametrize("narrow", [1, 3, None])
def test_any_widths_take_what_the_cut_network_takes(modelled: Modelled, narrow: int | None) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(full: int) -> int:
        return int(torch.randint(1, min(full, narrow or full) + 1, (), generator=generator))

    widths = {name: drawn(group.width) for name, group in modelled.groups.items()}
    modelled.check(widths)
    assert modelled.costs.memory(widths) != modelled.costs.memory({})


def heads(net: Any, x: Tensor) -> Tensor:
    """Attention over the pixels, written out: the number of heads follows a cut."""
    tokens = net.embed(x).flatten(2).transpose(1, 2)  # [images, pixels, channels]
    images, pixels = tokens.shape[:2]
    query, key, value = (
        layer(tokens).reshape(images, pixels, -1, 4).transpose(1, 2) for layer in (net.query, net.key, net.value)
    )
    mixed = (query @ key.transpose(-2, -1)).softmax(-1) @ value
    return net.out(mixed.transpose(1, 2).reshape(images, pixels, -1)).mean(1)


def shuffled(net: Any, x: Tensor) -> Tensor:
    x = net.embed(x)
    images, channels, height, width = x.shape
    return net.read(x.view(images, 2, channels // 2, height, width).transpose(1, 2).reshape(images, -1, height, width))


def by_layer(net: Any, x: Tensor) -> Tensor:
    return net.read(net.shuffle(net.embed(x)))


def turned(net: Any, x: Tensor) -> Tensor:
    """Channels last and back, with a copy that asks for nothing but the order of the axes."""
    return net.read(net.embed(x).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).contiguous())


def tokens_to_maps(net: Any, x: Tensor) -> Tensor:
    """A transposed axis is split, which copies nothing at any width."""
    tokens = net.norm(net.embed(x).flatten(2).transpose(1, 2))
    return net.read(tokens.transpose(1, 2).reshape(x.shape[0], -1, 4, 4))


@pytest.mark.parametrize("run", [heads, shuffled, by_layer, turned, tokens_to_maps])
def test_a_copy_counts_at_width_one_too(run: Callable[[Any, Tensor], Tensor]) -> None:
    layers = {
        "embed": nn.Conv2d(2, 8, 1),
        "read": nn.Conv2d(8, 3, 1),
        "norm": nn.LayerNorm(8),
        "shuffle": nn.ChannelShuffle(2),
        **{name: nn.Linear(8, 12) for name in ("query", "key", "value")},
        "out": nn.Linear(12, 5),
    }
    modelled = Modelled(Step(run, **layers).eval(), torch.zeros(1, 2, 4, 4))
    assert modelled.groups
    modelled.check_narrow()


def test_groups_that_stay_whole_take_what_they_took() -> None:
    network = build("resnet20")
    groups = find_groups(network, IMAGES)
    inner = groups.only(groups.matching(("inner",)))
    widths = {name: group.width // 2 for name, group in inner.items()}
    model = CostModel(network, inner, IMAGES)
    assert model.memory(widths) == CostModel(network, groups, IMAGES).memory(widths) != model.memory({})


def two_heads(image: Tensor = IMAGES, groups: ChannelGroups | None = None) -> CostModel:
    network = TwoHeads()
    return CostModel(network, find_groups(network, IMAGES) if groups is None else groups, image)


TWO_HEADS = two_heads()


@settings(deadline=None, derandomize=True, max_examples=20)
@given(data=st.data())
def test_many_widths_at_once_take_what_each_takes(data: st.DataObject) -> None:
    model = TWO_HEADS
    rows = data.draw(st.lists(st.tuples(*(st.integers(1, int(width)) for width in model.widths)), max_size=5))
    found = model.memories(np.array(rows, dtype=np.int64).reshape(len(rows), len(model.groups)))
    assert all(column.dtype == np.int64 for column in found)
    assert [Memory(*map(int, row)) for row in zip(*found, strict=True)] == [
        model.memory(dict(zip(model.groups, row, strict=True))) for row in rows
    ]


def test_it_is_plain_data() -> None:
    model = two_heads()
    assert pickle.loads(pickle.dumps(model)).memory({"stem": 3}) == model.memory({"stem": 3}) != model.memory({})


def test_a_group_that_does_not_exist_is_told() -> None:
    with pytest.raises(UnknownNameError, match="unknown channel group 'sten'; did you mean 'stem'"):
        two_heads().memory({"sten": 3})


def test_nothing_is_traced_before_the_memory_is_asked_for_and_then_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []

    def watched(*args: Any, **options: Any) -> Any:
        traced.append(args)
        return follow(*args, **options)

    monkeypatch.setattr(pruning.activations, "follow", watched)
    model = two_heads()
    assert model.cost({"stem": 3}) != model.full
    assert not traced
    assert model.memory({"stem": 3}) != model.memory({})
    assert len(traced) == 1


def test_the_network_may_be_cut_before_the_memory_is_asked_for() -> None:
    network = TwoHeads()
    groups = find_groups(network, IMAGES)
    model, whole = CostModel(network, groups, IMAGES), count_memory(network, IMAGES)
    prune(network, {"stem": 3, "inner": 2}, random_ranking(groups), groups=groups, check=False)
    assert model.memory({}) == whole
    assert model.memory({"stem": 3, "inner": 2}) == count_memory(network, IMAGES)


def test_the_memory_is_that_of_the_images_of_the_model_wherever_the_groups_were_found() -> None:
    network = TwoHeads()
    modelled = Modelled(network, torch.zeros(1, 3, 32, 32), find_groups(network, IMAGES))
    modelled.check_narrow()
    assert modelled.costs.memory({}) != two_heads().memory({})


def test_groups_made_by_hand_tell_the_memory_too() -> None:
    found = find_groups(TwoHeads(), IMAGES)
    renamed = ChannelGroups(tuple(replace(group, name=f"my {group.name}") for group in reversed(found.groups)))
    assert two_heads(groups=renamed).memory({"my stem": 3}) == two_heads().memory({"stem": 3})


@pytest.mark.parametrize("maker", ["stern.weight", "inner.weight"])
def test_groups_of_another_network_are_told(maker: str) -> None:
    makers = (Slice(maker, 0, tuple((index,) for index in range(8))),)  # `inner` has six filters
    groups = ChannelGroups((ChannelGroup("stern", 8, False, makers, (), ()),))
    with pytest.raises(GraphError, match="expected groups of this network, got 'stern'"):
        two_heads(groups=groups).memory({})


def test_channels_that_differ_are_refused() -> None:
    def unread(net: Any, x: Tensor) -> Tensor:
        x = net.embed(x)
        x[:, :4].abs()
        return net.read(x)

    network, image = Step(unread, embed=nn.Conv2d(2, 8, 1), read=nn.Conv2d(8, 3, 1)), torch.zeros(1, 2, 4, 4)
    makers = (Slice("embed.weight", 0, tuple((index,) for index in range(8))),)
    groups = ChannelGroups((ChannelGroup("all", 8, False, makers, (), (replace(makers[0], tensor="read.weight"),)),))
    with pytest.raises(GraphError, match="channels of equal size at 'abs_1', got channels of 'all' that differ"):
        CostModel(network, groups, image).memory({})
    Modelled(network, image).check_narrow()  # as found, the four that differ are not in the group


def test_a_network_that_takes_no_single_image_has_groups_but_no_costs() -> None:
    def pairs(net: Any, x: Tensor) -> Tensor:
        return net.read(net.embed(x)).squeeze().flatten(1)

    network, images = Step(pairs, embed=nn.Conv2d(2, 8, 1), read=nn.Conv2d(8, 3, 4)), torch.zeros(2, 2, 4, 4)
    groups = find_groups(network, images)
    assert groups.widths == {"embed": 8}
    for count in (count_cost, count_memory, lambda model, example: CostModel(model, groups, example)):
        with pytest.raises(GraphError, match=r"Step does not run on \(1, 2, 4, 4\)"):
            count(network, images)


# ── other networks ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("example", [JOINED, JOINED_BY_NAME], ids=["in order", "by name"])
def test_several_inputs(example: Example) -> None:
    modelled = Modelled(Joined(), example)
    assert modelled.groups.keys() >= {"image", "numbers", "both"}
    modelled.check_narrow()


def test_several_inputs_by_hand() -> None:
    maps, vectors = 8 * 36, 8 + 6 + 6 + 4 + 18 + 9 + 9 + 2 + 2
    assert count_memory(Joined(), JOINED).activation_bytes == 4 * (2 * maps + vectors)


def test_several_inputs_that_do_not_fit_are_told() -> None:
    with pytest.raises(GraphError, match=r"Joined does not run on \(1, 3, 8, 8\), \(1, 4\), \(1,\): "):
        count_memory(Joined(), (JOINED[0], torch.zeros(2, 4), JOINED[2]))


def with_weight_norm(network: nn.Module, apply: Callable[[nn.Module], nn.Module]) -> nn.Module:
    with torch.no_grad():  # else the old form leaves weights that cannot be copied
        for layer in list(network.modules()):
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                apply(layer)
    return network


@pytest.mark.parametrize("apply", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm], ids=["old", "new"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_weight_norm_takes_its_lengths_besides(apply: Callable[[nn.Module], nn.Module]) -> None:
    plain, network = TwoHeads(), with_weight_norm(TwoHeads(), apply)
    filters = sum(len(layer.weight) for layer in plain.modules() if isinstance(layer, (nn.Conv2d, nn.Linear)))
    bare = count_memory(plain, IMAGES)
    assert count_memory(network, IMAGES) == replace(bare, weight_bytes=bare.weight_bytes + 4 * filters)
    modelled = Modelled(network, IMAGES)
    assert modelled.groups.widths == find_groups(plain, IMAGES).widths
    modelled.check_narrow()


def untraceable(run: Callable[[Any, Tensor], Any], **layers: Any) -> nn.Module:
    """Return a network whose code looks at sizes: torch.fx cannot follow that."""

    def guarded(net: Any, x: Tensor) -> Any:
        if x.shape[2] < 4:
            raise ValueError(f"too small: {x.shape[2]}")
        return run(net, x)

    return Step(guarded, **layers)


def gated(net: Any, x: Tensor) -> Tensor:
    x = net.bn(net.embed(x))
    return net.read(F.relu(x * net.gate(x.mean((2, 3), keepdim=True)).sigmoid())).flatten(1)


def twice(net: Any, x: Tensor) -> Tensor:
    return net.read(net.gate(F.relu(net.gate(net.embed(x)))))


@pytest.mark.parametrize("run", [gated, twice, shuffled, turned, tokens_to_maps])
def test_what_only_torch_export_traces_takes_what_torch_fx_would_tell(run: Callable[[Any, Tensor], Tensor]) -> None:
    layers = {"embed": nn.Conv2d(2, 8, 1), "bn": nn.BatchNorm2d(8), "gate": nn.Conv2d(8, 8, 1), "norm": nn.LayerNorm(8)}
    network, easy = (made(run, **layers, read=nn.Conv2d(8, 3, 1)) for made in (untraceable, Step))
    image = torch.zeros(1, 2, 4, 4)
    modelled = Modelled(network, image)
    assert (modelled.groups.front_end, bool(modelled.groups)) == ("torch.export", True)
    assert count_memory(network, image) == count_memory(easy, image)
    modelled.check_narrow(2 if run is turned else 1)


def test_torch_export_does_not_show_a_copy_that_one_channel_spares() -> None:
    network, image = untraceable(turned, embed=nn.Conv2d(2, 8, 1), read=nn.Conv2d(8, 3, 1)), torch.zeros(1, 2, 4, 4)
    modelled = Modelled(network, image)
    foretold = modelled.costs.memory({"embed": 1})
    prune(network, {"embed": 1}, random_ranking(modelled.groups), groups=modelled.groups, check=False)
    one_channel = 16 * 4
    assert count_memory(network, image).activation_bytes == foretold.activation_bytes - 2 * one_channel


def test_control_flow_in_training_alone() -> None:
    """In eval mode torch.fx could trace it, but channels were followed by torch.export."""

    def run(net: Any, x: Tensor) -> Tensor:
        if net.training and x.shape[2] < 4:
            raise ValueError
        return net.read(F.relu(net.embed(x)))

    modelled = Modelled(Step(run, embed=nn.Conv2d(2, 8, 1), read=nn.Conv2d(8, 3, 1)).eval(), torch.zeros(1, 2, 4, 4))
    assert modelled.groups.front_end == "torch.export"
    modelled.check_narrow()


def test_other_operations_on_one_image_are_told() -> None:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.embed(x)
        return net.read(x.abs() if len(x) > 1 else F.relu(x))

    network = Step(run, embed=nn.Conv2d(2, 8, 1), read=nn.Conv2d(8, 3, 1))
    modelled = Modelled(network, torch.zeros(2, 2, 4, 4))
    with pytest.raises(GraphError, match="expected the same operations on one image as on two"):
        modelled.costs.memory({})


@pytest.mark.parametrize("name", ["resnet20", "shufflenet_v2_x1_0", "googlenet_cifar"])
def test_either_front_end_tells_the_same(name: str) -> None:
    network, image = build(name), image_of(NETWORKS[name])
    by_one, by_other = (told(network, image, [front_end]) for front_end in (by_fx, by_export))
    assert by_one == by_other


def told(network: nn.Module, image: Tensor, front_ends: Sequence[Any]) -> list[int]:
    return [result.nbytes for result in results(eval_graph(network, image, front_ends), image)]
