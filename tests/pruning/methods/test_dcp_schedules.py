"""DCP's schedules, with a selector that takes the channels read with the largest weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pruning.auxiliary import AuxiliaryLosses
from pruning.data import Pixels, TensorSplit
from pruning.errors import OptionError
from pruning.finding import find_groups
from pruning.finetune import fine_tune
from pruning.greedy import GreedyRanking
from pruning.groups import ChannelGroups, tensor_of
from pruning.methods.dcp_schedules import joint_schedule, stage_groups, stagewise_schedule
from pruning.models import build_model
from pruning.policy import AuxiliaryPlacement, ModelSpec, Recipe
from pruning.ranking import load_ranking
from pruning.stagewise import fine_tune_s1, train_heads
from pruning.surgery import prune

EXAMPLE = torch.zeros(2, 3, 8, 8)
RECIPE = Recipe(
    epochs=2,
    batch_size=8,
    learning_rate=0.05,
    weight_decay=0.01,
    schedule="constant",
    augment=False,
    precision="float32",
    channels_last=False,
)
HEADS = RECIPE.model_copy(update={"epochs": 1, "learning_rate": 0.2})


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.bn1(self.conv1(x)))))


class Net(nn.Module):
    """Four blocks; the last is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.last = Block(4)
        self.stem, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(Block(4), Block(4), Block(4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.bn(self.stem(x)))).mean((2, 3)))


def make_net() -> Net:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return Net()


def make_split(count: int = 24) -> TensorSplit:
    labels = torch.arange(count) % 3
    images = torch.randint(120, (count, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    images[torch.arange(count), labels] += 100
    return TensorSplit(images.to(torch.uint8), labels, Pixels((0.4,) * 3, (0.25,) * 3))


def make_auxiliary(model: nn.Module) -> AuxiliaryLosses:
    placement = AuxiliaryPlacement(kind="explicit", positions=(1, 3), weight=0.5)
    return AuxiliaryLosses(model, placement, 3, EXAMPLE, seed=1)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


class Largest:
    """Selects half of each group's channels, those read with the largest weights, and moves these weights."""

    name = "largest"

    def __init__(self) -> None:
        self.given: list[dict] = []

    def select(self, network, baseline, groups, batches, auxiliary=None) -> GreedyRanking:
        self.given.append(
            {
                "groups": tuple(groups),
                "heads": () if auxiliary is None else auxiliary.names,
                "of heads": {} if auxiliary is None else weights(auxiliary.heads),
                "network": network,
                "before": weights(network),
                "baseline": weights(baseline),
                "batches": batches,
            }
        )
        assert baseline is not network
        orders = {name: g.read_weights(network).norm(dim=1).argsort(descending=True) for name, g in groups.items()}
        widths = {name: group.width // 2 for name, group in groups.items()}
        with torch.no_grad():
            for name, group in groups.items():
                for part in group.readers:
                    weight = tensor_of(network, part.tensor)
                    gone = [place for channel in orders[name][widths[name] :] for place in part.positions[channel]]
                    weight.mul_(1.125).index_fill_(part.axis, torch.tensor(gone), 0.0)
        losses = {name: torch.ones(1 + width) for name, width in widths.items()}
        self.given[-1]["after"] = weights(network)
        return GreedyRanking(self.name, orders, losses, widths, {name: {"ignored": torch.ones(1)} for name in groups})


def unselected(groups: ChannelGroups, ranking: GreedyRanking) -> dict[str, list[tuple[str, int, list[int]]]]:
    """For each group the tensors, axes and positions that read what is not kept."""
    found = {}
    for name, group in groups.items():
        gone = set(range(group.width)) - set(ranking.keep(name, ranking.fitted_widths[name]))
        found[name] = [
            (part.tensor, part.axis, [place for channel in sorted(gone) for place in part.positions[channel]])
            for part in group.readers
        ]
    return found


BATCHES = list(make_split().batches(12))


def joint(model, groups, auxiliary, selector, **options) -> GreedyRanking:
    options = {"recipe": RECIPE, "head_recipe": HEADS} | options
    return joint_schedule(model, groups, auxiliary, make_split(), BATCHES, selector, **options)


def stagewise(model, groups, auxiliary, selector, **options) -> GreedyRanking:
    options = {"recipe": RECIPE, "example_input": EXAMPLE} | options
    return stagewise_schedule(model, groups, auxiliary, make_split(), BATCHES, selector, **options)


Schedule = Callable[..., GreedyRanking]
both = pytest.mark.parametrize("schedule", [joint, stagewise])


def run(schedule: Schedule, patterns=("inner",), **options):
    model = make_net()
    groups = find_groups(model, EXAMPLE)
    groups = groups.only(groups.matching(patterns))
    selector = Largest()
    return model, groups, selector, schedule(model, groups, make_auxiliary(model), selector, **options)


# ── stages ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_stages_of_resnet56_are_the_published_ones():
    model, example = build_model(ModelSpec(name="resnet56", options={"widths": (2, 4, 8)})), torch.zeros(2, 3, 8, 8)
    groups = find_groups(model, example)
    inner = groups.only(groups.matching(("inner",)))
    auxiliary = AuxiliaryLosses(model, AuxiliaryPlacement(positions=3), 10, example)
    stages = stage_groups(model, inner, auxiliary, example)
    blocks = {name.removesuffix(".conv1"): number for number, name in enumerate(inner, 1)}
    assert [blocks[f"layer{n // 9 + 1}.{n % 9}"] for n in range(27)] == list(range(1, 28))
    numbers = [[blocks[name.removesuffix(".conv1")] for name in stage] for stage in stages]
    assert numbers == [list(range(1, 8)), list(range(8, 15)), list(range(15, 22)), list(range(22, 28))]


def test_a_coupled_group_belongs_where_its_last_reader_is():
    model, example = build_model(ModelSpec(name="resnet18")), torch.zeros(2, 3, 32, 32)
    groups = find_groups(model, example)
    placement = AuxiliaryPlacement(kind="explicit", positions=("layer2.0", "layer3.1"))
    stages = stage_groups(model, groups, AuxiliaryLosses(model, placement, 10, example), example)
    # the sums of a layer are read last by the first block of the next one, those of the last layer by the classifier
    assert [[name for name in stage if groups[name].coupled] for stage in stages] == [
        ["conv1"],
        ["layer2.0.conv2"],
        ["layer3.0.conv2", "layer4.0.conv2"],
    ]
    assert sorted(name for stage in stages for name in stage) == sorted(groups)


def test_stages_go_by_the_order_of_running():
    model = make_net()
    groups = find_groups(model, EXAMPLE)
    inner = groups.only(groups.matching(("inner",)))
    stages = stage_groups(model, inner, make_auxiliary(model), EXAMPLE)
    assert stages == (("blocks.0.conv1",), ("blocks.1.conv1", "blocks.2.conv1"), ("last.conv1",))


class ReadInTraining(nn.Module):
    """Its first convolution is read by a head that runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.extra, self.head = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        logits = self.head(self.third(F.relu(self.second(F.relu(x)))).mean((2, 3)))
        return logits + self.extra(x.mean((2, 3))) if self.training else logits


def test_a_group_with_a_reader_that_runs_in_training_only_is_in_the_last_stage():
    model = ReadInTraining()
    groups = find_groups(model, EXAMPLE)
    assert {part.layer for part in groups["first"].readers} == {"second", "extra"}
    placement = AuxiliaryPlacement(kind="explicit", positions=("third",))
    auxiliary = AuxiliaryLosses(model, placement, 3, EXAMPLE)
    assert stage_groups(model, groups, auxiliary, EXAMPLE) == (("second",), ("first", "third"))


# ── both schedules ───────────────────────────────────────────────────────────────────────────────────────────────────


@both
@pytest.mark.parametrize("patterns", [("inner",), ("all",)])
def test_a_network_cut_to_the_reference_widths_is_the_masked_one(schedule, patterns):
    model, groups, selector, ranking = run(schedule, patterns)
    masked, fresh = selector.given[-1]["network"].eval(), make_net()
    prune(fresh, ranking.fitted_widths, ranking, groups=groups, example_input=EXAMPLE)
    images = BATCHES[0][0]
    assert fresh.stem.weight.numel() < masked.stem.weight.numel() or patterns == ("inner",)
    # float32: sums over fewer channels
    torch.testing.assert_close(fresh.eval()(images), masked(images), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(masked(images), model.eval()(images), atol=1e-2)


@both
def test_the_base_is_the_last_network_with_the_unselected_slices_of_before(schedule):
    _, groups, selector, ranking = run(schedule)
    last = weights(selector.given[-1]["network"])
    assert ranking.base.keys() == last.keys()
    for name, places in unselected(groups, ranking).items():
        before = next(given["before"] for given in selector.given if name in given["groups"])
        for tensor, axis, positions in places:
            index = torch.tensor(positions)
            there = ranking.base[tensor].index_select(axis, index)
            assert there.any()
            assert torch.equal(there, before[tensor].index_select(axis, index))
            last[tensor].index_copy_(axis, index, there)
    assert equal(last, ranking.base)
    assert ranking.fitted == {name: {} for name in groups} or ranking.fitted == {}


@both
def test_one_ranking_tells_of_all_groups(schedule, tmp_path):
    _, groups, _, ranking = run(schedule, ("all",))
    assert ranking.criterion == "largest"
    assert list(ranking.orders) == list(ranking.losses) == list(ranking.fitted_widths) == list(groups)
    assert ranking.fitted_widths == {name: group.width // 2 for name, group in groups.items()}
    ranking.save(tmp_path / "ranking.safetensors")
    read = load_ranking(tmp_path / "ranking.safetensors")
    assert equal(read.base, ranking.base)
    other = {name: group.width - 1 for name, group in groups.items()}
    prune(make_net(), other, read, groups=find_groups(make_net(), EXAMPLE), example_input=EXAMPLE)


@both
def test_the_caller_s_network_heads_and_random_state_are_as_found(schedule):
    model = make_net().eval()
    model.stem.requires_grad_(False)
    auxiliary, groups = make_auxiliary(model), find_groups(model, EXAMPLE)
    before, heads, random = weights(model), weights(auxiliary.heads), torch.get_rng_state()
    schedule(model, groups, auxiliary, Largest())
    assert equal(weights(model), before)
    assert equal(weights(auxiliary.heads), heads)
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert [parameter.requires_grad for parameter in model.stem.parameters()] == [False, False]
    assert all(parameter.grad is None and not parameter._backward_hooks for parameter in model.parameters())


@both
def test_equal_seeds_give_equal_rankings_and_others_do_not(schedule):
    first, again, other = (run(schedule, seed=seed)[3].base for seed in (1, 1, 2))
    assert equal(first, again)
    assert not equal(first, other)


@both
def test_what_no_schedule_can_do_is_refused_before_anything_is_trained(schedule):
    said = []
    options = {"selector": Largest(), "say": said.append}
    model = make_net()
    groups, auxiliary = find_groups(model, EXAMPLE), make_auxiliary(model)
    with pytest.raises(OptionError, match=r"recipe\.compile: expected false"):
        schedule(model, groups, auxiliary, recipe=RECIPE.model_copy(update={"compile": True}), **options)
    with pytest.raises(OptionError, match=r"recipe\.distillation: expected 0"):
        schedule(model, groups, auxiliary, recipe=RECIPE.model_copy(update={"distillation": 0.5}), **options)
    with pytest.raises(OptionError, match="groups: expected at least one channel group"):
        schedule(model, groups.only(()), auxiliary, **options)
    assert said == []


# ── joint ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["joint", "sequential"])
def test_joint_trains_the_heads_then_everything_then_selects_once(kind):
    rec = RECIPE.model_copy(update={"auxiliary": kind})
    said: list[str] = []
    _, groups, selector, _ = run(joint, recipe=rec, say=said.append, seed=3)
    expected = make_net()
    auxiliary = make_auxiliary(expected)
    list(train_heads(expected, auxiliary, make_split(), HEADS, seed=3))
    list(fine_tune(expected, make_split(), rec, auxiliary=auxiliary, seed=3))
    (given,) = selector.given
    assert equal(given["before"], weights(expected))
    assert equal(given["baseline"], weights(expected))
    assert equal(given["of heads"], weights(auxiliary.heads))
    assert given["groups"] == tuple(groups)
    assert given["heads"] == ("blocks.0", "blocks.2")
    assert given["batches"] is BATCHES
    assert [line.split(":")[0] for line in said] == [
        "heads, epoch 1 of 1",
        "network and heads, epoch 1 of 2",
        "network and heads, epoch 2 of 2",
        "selection",
    ]


def test_joint_without_auxiliary_losses_in_the_recipe_is_refused():
    with pytest.raises(OptionError, match=r"recipe\.auxiliary: expected joint or sequential"):
        run(joint, recipe=RECIPE.model_copy(update={"auxiliary": "none"}))


# ── stagewise ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_stagewise_trains_with_one_head_then_selects_in_front_of_it():
    said: list[str] = []
    _, _, selector, _ = run(stagewise, say=said.append, seed=3)
    assert [given["groups"] for given in selector.given] == [
        ("blocks.0.conv1",),
        ("blocks.1.conv1", "blocks.2.conv1"),
        ("last.conv1",),
    ]
    assert [given["heads"] for given in selector.given] == [("blocks.0",), ("blocks.2",), ()]
    expected = make_net()
    auxiliary = make_auxiliary(expected)
    list(fine_tune_s1(expected, auxiliary.only(0), make_split(), RECIPE, seed=3))
    assert equal(selector.given[0]["before"], weights(expected))
    assert equal(selector.given[0]["of heads"], weights(auxiliary.only(0).heads))
    assert all(equal(given["baseline"], weights(expected)) for given in selector.given)
    assert said[0] == "stage 1 of 3, blocks.0: 1 groups"
    assert [line.split(":")[0] for line in said if "epoch 2" in line] == [
        f"stage {number} of 3, epoch 2 of 2" for number in (1, 2, 3)
    ]


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "weight_decay": 0.1}, {"clip_norm": 0.1}])
def test_what_was_unselected_stays_exactly_zero_while_all_else_is_trained(changes):
    _, groups, selector, ranking = run(stagewise, recipe=RECIPE.model_copy(update=changes))
    places = unselected(groups, ranking)
    for earlier, later in zip(selector.given, selector.given[1:], strict=False):
        for name in earlier["groups"]:
            for tensor, axis, positions in places[name]:
                after, now = earlier["after"][tensor], later["before"][tensor]
                index = torch.tensor(positions)
                assert not now.index_select(axis, index).any()
                kept = torch.tensor(sorted(set(range(now.shape[axis])) - set(positions)))
                assert (after.index_select(axis, kept) != now.index_select(axis, kept)).all()


def test_the_last_stage_descends_the_final_loss_alone():
    _, _, selector, _ = run(stagewise, patterns=("last.conv1",), seed=3)
    expected = make_net()
    list(fine_tune(expected, make_split(), RECIPE, seed=3 + 2))
    (given,) = selector.given  # stages without groups are passed over
    assert equal(given["before"], weights(expected))
    assert equal(given["baseline"], weights(expected))


def test_hooks_are_gone_when_the_selector_gets_the_network():
    _, _, selector, _ = run(stagewise)
    network = copy.deepcopy(selector.given[-1]["network"])
    assert not any(parameter._backward_hooks for parameter in network.parameters())
    assert not any(parameter._backward_hooks for parameter in selector.given[-1]["network"].parameters())
