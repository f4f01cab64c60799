"""A policy keeps its shares, stage by stage and role by role, in another network of the family."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import AuxiliaryPlacement, CriterionSpec, ModelSpec, Policy, PolicyError, Recipe
from pruning.errors import OptionError
from pruning.layout import Layout, layout_of
from pruning.transfer import thinned_counterparts, transfer_policy

EXAMPLES = settings(deadline=None, derandomize=True, max_examples=60)
CRITERIA = [CriterionSpec(name="l1"), CriterionSpec(name="fpgm"), CriterionSpec(name="taylor", options={"a": 1})]
NARROW = {"widths": [12, 23, 41]}


@cache
def laid_out(name: str, narrow: bool = False) -> Layout:
    return layout_of(ModelSpec(name=name, options=NARROW if narrow else {}))


def policy_for(layout: Layout, widths: dict[str, int], **more) -> Policy:
    chosen = {"network": layout.groups.signature, "thinned": layout.groups.thinned}
    return Policy(model=layout.model, widths=widths, **chosen, **more)


@st.composite
def policies(draw, layout: Layout):
    """Policies of a network: some of its groups, by one criterion or several, with losses or without."""
    names = draw(st.lists(st.sampled_from(list(layout.groups)), min_size=1, unique=True))
    widths = {name: draw(st.integers(1, layout.groups[name].width)) for name in names}
    named = draw(st.lists(st.sampled_from(names), unique=True))
    places = st.lists(st.integers(1, len(layout.blocks)) | st.sampled_from(layout.blocks), min_size=1, unique=True)
    free = st.builds(AuxiliaryPlacement, kind=st.just("explicit"), positions=places.map(tuple))
    auxiliary = st.none() | st.just(AuxiliaryPlacement(positions=2)) | free
    return policy_for(
        layout,
        widths,
        criterion=draw(st.sampled_from(CRITERIA)),
        criteria={name: draw(st.sampled_from(CRITERIA)) for name in named},
        auxiliary=draw(auxiliary),
        recipe=draw(st.builds(Recipe, epochs=st.integers(0, 9))),
        seed=draw(st.integers(0, 9)),
    )


def shares(policy: Policy, layout: Layout) -> dict[str, float]:
    return {name: (layout.groups.widths | policy.widths)[name] / width for name, width in layout.groups.widths.items()}


# ── laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["resnet20", "vgg16_bn_cifar", "mobilenet_v2_cifar", "regnet_y_400mf"])
def test_transferred_to_its_own_network_a_policy_is_what_it_was(name):
    layout = laid_out(name)

    @EXAMPLES
    @given(policy=policies(layout))
    def holds(policy):
        moved = transfer_policy(policy, layout, layout)
        assert moved.policy == policy
        assert moved.policy.fingerprint == policy.fingerprint
        assert moved.unmatched == ()
        assert moved.sources == {name: {name: 1} for name in layout.groups}

    holds()


@EXAMPLES
@given(policy=policies(laid_out("resnet20")))
def test_every_block_of_resnet20_is_in_resnet56_and_comes_back_from_there(policy):
    small, large = laid_out("resnet20"), laid_out("resnet56")
    there = transfer_policy(policy, small, large)
    back = transfer_policy(there.policy, large, small).policy
    assert small.groups.widths | back.widths == small.groups.widths | policy.widths


@EXAMPLES
@given(kept=st.lists(st.integers(1, 64), min_size=3, max_size=3))
def test_by_way_of_resnet110_a_share_comes_back_nearly(kept):
    """No block of 18 is the middle one: the two beside it give back its share less a seventeenth of each bend."""
    small, large = laid_out("resnet20"), laid_out("resnet110")
    policy = policy_for(small, {f"layer3.{block}.conv1": width for block, width in enumerate(kept)})
    there = transfer_policy(policy, small, large).policy
    back = transfer_policy(there, large, small).policy
    bend = abs(kept[0] - 2 * kept[1] + kept[2]) / 34
    assert back.widths["layer3.0.conv1"] == kept[0]
    assert back.widths["layer3.2.conv1"] == kept[2]
    assert abs(back.widths["layer3.1.conv1"] - kept[1]) <= bend + 1  # half a channel lost there, half one back


@EXAMPLES
@given(
    kept=st.lists(st.integers(1, 16), min_size=3, max_size=3).map(sorted),
    falls=st.booleans(),
    target=st.sampled_from([("resnet56", False), ("resnet110", False), ("resnet20", True), ("resnet32", True)]),
)
def test_shares_that_rise_or_fall_with_depth_still_do(kept, falls, target):
    source, layout = laid_out("resnet20"), laid_out(*target)
    ordered = kept[::-1] if falls else kept
    policy = policy_for(source, {f"layer1.{block}.conv1": width for block, width in enumerate(ordered)})
    moved = transfer_policy(policy, source, layout).policy
    widths = [width for name, width in moved.widths.items()][:: -1 if falls else 1]
    assert set(moved.widths) == {name for name in layout.groups if name.startswith("layer1.")}
    assert all(one <= other for one, other in pairwise(widths))


@EXAMPLES
@given(policy=policies(laid_out("resnet20")), target=st.sampled_from([("resnet56", False), ("resnet44", True)]))
def test_each_share_is_that_of_the_neighbours_interpolated_and_rounded(policy, target):
    source, layout = laid_out("resnet20"), laid_out(*target)
    policy = policy.model_copy(update={"auxiliary": None})
    moved, of_source = transfer_policy(policy, source, layout), shares(policy, source)
    for stage in (1, 2, 3):
        inner = [name for name in layout.groups if name.startswith(f"layer{stage}.") and name.endswith("conv1")]
        expected = np.interp(
            np.linspace(0, 1, len(inner)),
            [0, 0.5, 1],
            [of_source[f"layer{stage}.{block}.conv1"] for block in range(3)],
        )
        for name, share in zip(inner, expected, strict=True):
            width = layout.groups[name].width
            assert abs(moved.policy.widths.get(name, width) - share * width) <= 0.5 + 1e-9
    for name in ("conv1", "layer2.0.conv2", "layer3.0.conv2"):
        width = layout.groups[name].width
        found = moved.policy.widths.get(name, width)
        assert found == max(1, found)
        assert abs(found - of_source[name] * width) <= 0.5 or found == 1


# ── by example ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_group_listens_to_the_blocks_beside_its_depth():
    small, large = laid_out("resnet20"), laid_out("resnet56")
    policy = policy_for(small, {"layer1.0.conv1": 4, "layer1.1.conv1": 8, "layer1.2.conv1": 16})
    moved = transfer_policy(policy, small, large)
    assert [moved.policy.widths[f"layer1.{block}.conv1"] for block in range(9)] == [4, 5, 6, 7, 8, 10, 12, 14, 16]
    assert moved.sources["layer1.1.conv1"] == {"layer1.0.conv1": 0.75, "layer1.1.conv1": 0.25}
    assert moved.sources["layer1.4.conv1"] == {"layer1.1.conv1": 1}
    assert set(moved.policy.widths) == {f"layer1.{block}.conv1" for block in range(9)}
    assert moved.policy.model == large.model
    moved.policy.check(large.groups)


def test_roles_do_not_mix():
    source, target = laid_out("resnet20"), laid_out("resnet56")
    moved = transfer_policy(policy_for(source, {"layer2.0.conv2": 8}), source, target)
    assert moved.policy.widths == {"layer2.0.conv2": 8}


def test_convolutions_without_blocks_go_with_those_between_the_same_poolings():
    source, target = laid_out("vgg16_bn_cifar"), laid_out("vgg19_bn_cifar")
    halves = {name: width // 2 for name, width in source.groups.widths.items()}
    cut = halves | {"features.14": 64, "features.17": 128, "features.20": 256}
    moved = transfer_policy(policy_for(source, cut), source, target)
    assert moved.unmatched == ()
    third = ["features.14", "features.17", "features.20", "features.23"]
    assert [moved.policy.widths[name] for name in third] == [64, 107, 171, 256]  # ¼, 5/12, ⅔, 1 of 256, rounded
    others = {name: width for name, width in moved.policy.widths.items() if name not in third}
    assert others == {name: target.groups[name].width // 2 for name in others}


# ── what is thinned ──────────────────────────────────────────────────────────────────────────────────────────────────


STAGE = "trunk_output.block{0}.block{0}-{1}.f.b.0"
"""The grouped convolution of a block of a RegNet."""


@cache
def regnet(size: str, *thinned: str) -> Layout:
    return layout_of(ModelSpec(name=f"regnet_y_{size}"), (3, 64, 64), thinned)


@pytest.mark.parametrize("thinned", [["trunk_output.block3.*"], [STAGE.format(3, 0), STAGE.format(4, 5)], ["*"]])
def test_transferred_to_its_own_network_a_policy_thins_what_it_thinned(thinned):
    source = regnet("400mf", *thinned)
    policy = policy_for(source, {name: group.minimum for name, group in source.groups.items()})
    assert thinned_counterparts(policy, source.groups, regnet("400mf").groups) == policy.thinned
    assert transfer_policy(policy, source, source).policy == policy


def test_convolutions_are_thinned_as_the_nearest_of_their_stage():
    source = regnet("400mf", STAGE.format(3, 0), STAGE.format(3, 5), STAGE.format(4, 5))  # of blocks 1, 3, 6, 6
    policy = policy_for(source, {"trunk_output.block3.block3-0.f.a.0": 4})
    counterparts = thinned_counterparts(policy, source.groups, regnet("800mf").groups)
    # Of 8 blocks in stage 3 the first and the last are as near to those of 6 as can be; stage 4 has two.
    assert counterparts == tuple(STAGE.format(*place) for place in ((3, 0), (3, 7), (4, 1)))
    target = regnet("800mf", *counterparts)
    moved = transfer_policy(policy, source, target).policy
    assert moved.thinned == tuple(sorted(counterparts))
    moved.check(target.groups)


def test_a_network_without_such_convolutions_thins_none():
    source = regnet("400mf", "*")
    assert thinned_counterparts(policy_for(source, {}), source.groups, laid_out("resnet20").groups) == ()


def test_a_narrow_group_keeps_at_least_one_channel_and_half_a_channel_is_none():
    source, target = laid_out("resnet20"), layout_of(ModelSpec(name="resnet20", options={"widths": [3, 3, 3]}))
    moved = transfer_policy(policy_for(source, {"layer1.0.conv1": 1, "layer1.1.conv1": 8}), source, target)
    assert moved.policy.widths == {"layer1.0.conv1": 1, "layer1.1.conv1": 1}  # 0.19 and 1.5 channels


def test_other_classes_change_nothing_but_the_model():
    source = laid_out("resnet20")
    target = layout_of(ModelSpec(name="resnet20", num_classes=100))
    policy = policy_for(source, {"layer1.0.conv1": 5}, seed=3)
    moved = transfer_policy(policy, source, target).policy
    assert moved == policy.model_copy(update={"model": target.model})


def test_a_group_is_ranked_as_its_nearest_counterpart():
    source, target = laid_out("resnet20"), laid_out("resnet56")
    widths = {f"layer1.{block}.conv1": 8 for block in range(3)}
    policy = policy_for(source, widths, criterion=CRITERIA[0], criteria={"layer1.1.conv1": CRITERIA[1]})
    moved = transfer_policy(policy, source, target).policy
    names = [moved.criterion_of(f"layer1.{block}.conv1").name for block in range(9)]
    assert names == ["l1", "l1", "l1", "fpgm", "fpgm", "fpgm", "fpgm", "l1", "l1"]  # in the middle the earlier one


def test_what_nothing_maps_to_is_named_and_stays_whole():
    source, target = laid_out("resnet20"), laid_out("resnet18")
    moved = transfer_policy(policy_for(source, dict.fromkeys(source.groups, 4)), source, target)
    assert moved.unmatched == ("layer4.0.conv1", "layer4.0.conv2", "layer4.1.conv1")
    assert not set(moved.unmatched) & set(moved.policy.widths)
    assert set(moved.sources) == set(target.groups) - set(moved.unmatched)


def test_a_network_with_nothing_in_common_is_refused():
    source, target = laid_out("resnet56"), laid_out("vgg16_bn_cifar")
    inner = policy_for(source, {"layer1.0.conv1": 4})
    with pytest.raises(PolicyError, match=r"transfer: expected a network like resnet56, got vgg16_bn_cifar: no group"):
        transfer_policy(inner, source, target)
    with pytest.raises(PolicyError, match=r"policy\.widths: expected at least one channel group, got none"):
        transfer_policy(policy_for(source, {}), source, source)
    with pytest.raises(PolicyError, match=r"widths: no channel group .layer1\.0\.conv1. in this network"):
        transfer_policy(inner, target, target)


# ── auxiliary losses ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("positions", "moved"),
    [
        ((3, 6), (9, 18)),
        (("layer1.2", 5), ("layer1.8", 15)),
        ((8,), (24,)),
        ((9,), (27,)),
        (("layer2",), ("layer2",)),  # no block: a name that both networks have
    ],
)
def test_losses_sit_behind_as_great_a_part_of_the_blocks(positions, moved):
    source, target = laid_out("resnet20"), laid_out("resnet56")
    auxiliary = AuxiliaryPlacement(kind="explicit", positions=positions, head="ccp", weight=0.5)
    policy = policy_for(source, {"conv1": 4}, auxiliary=auxiliary)
    there = transfer_policy(policy, source, target).policy
    assert there.auxiliary == auxiliary.model_copy(update={"positions": moved})
    assert transfer_policy(there, target, source).policy.auxiliary == auxiliary


def test_losses_that_meet_at_one_block_are_one_and_none_comes_to_the_last_block():
    source, target = laid_out("resnet56"), laid_out("resnet20")
    auxiliary = AuxiliaryPlacement(kind="explicit", positions=(1, 2, 25, 26))
    moved = transfer_policy(policy_for(source, {"conv1": 4}, auxiliary=auxiliary), source, target).policy
    assert moved.auxiliary.positions == (1, 8)


def test_losses_without_room_are_refused():
    source, target = laid_out("resnet56"), laid_out("resnet20")
    many = policy_for(source, {"conv1": 4}, auxiliary=AuxiliaryPlacement(positions=20))
    with pytest.raises(OptionError, match="for 9 blocks, got 20 heads"):
        transfer_policy(many, source, target)
    beyond = policy_for(source, {"conv1": 4}, auxiliary=AuxiliaryPlacement(kind="explicit", positions=(28,)))
    with pytest.raises(OptionError, match=r"auxiliary\.positions: expected blocks from 1 to 27, got 28"):
        transfer_policy(beyond, source, target)
    plain = layout_of(ModelSpec(name="test_layout:chain"), (3, 8, 8))
    few = policy_for(source, {"conv1": 4}, auxiliary=AuxiliaryPlacement(kind="explicit", positions=(1,)))
    with pytest.raises(OptionError, match="expected a network with blocks for '1', got one without"):
        transfer_policy(few, source, plain)
    named = policy_for(plain, {"0": 4}, auxiliary=AuxiliaryPlacement(kind="explicit", positions=("0",)))
    assert transfer_policy(named, plain, plain).policy == named
