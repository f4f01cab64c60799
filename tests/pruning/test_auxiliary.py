"""Where auxiliary heads sit, what they compute, and training with them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from three_blocks import (
    EXAMPLE,
    PLAIN,
    Net,
    Recording,
    assert_equal,
    at,
    differ,
    make_auxiliary,
    make_images,
    make_net,
    make_split,
    weights,
)
from torch import Tensor, nn
from two_heads import held

from pruning.auxiliary import AuxiliaryLosses
from pruning.blocks import block_names
from pruning.cutting import remove
from pruning.errors import CheckpointError, DataError, OptionError, PruningError, UnknownNameError
from pruning.finding import find_groups
from pruning.finetune import TrainingError, fine_tune
from pruning.losses import CrossEntropy
from pruning.models import build_model
from pruning.placement import even_positions, possible_counts
from pruning.policy import AuxiliaryPlacement, ModelSpec
from pruning.stagewise import fine_tune_s1, train_heads


class Wrapped(nn.Module):
    """A network inside another module."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)


# ── places ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("blocks", "heads", "expected"),
    [
        (27, 3, (7, 14, 21)),
        (27, 5, (5, 10, 15, 20, 25)),
        (27, 7, (4, 8, 12, 16, 20, 24, 26)),
        (27, 9, (3, 6, 9, 12, 15, 18, 21, 24, 26)),
        (8, 2, (3, 6)),
        (16, 3, (5, 10, 15)),
        (16, 2, (6, 12)),
    ],
)
def test_even_positions_are_the_published_ones(blocks, heads, expected):
    assert even_positions(blocks, heads) == expected


def test_too_many_heads_are_refused_with_the_counts_that_fit():
    with pytest.raises(OptionError, match=r"expected one of 1, 2, 3, 4 heads for 8 blocks, got 5 heads"):
        even_positions(8, 5)


def test_one_block_has_no_room_for_a_head():
    with pytest.raises(OptionError, match="expected at least 2 blocks for 1 blocks, got 1 heads"):
        even_positions(1, 1)


@pytest.mark.parametrize("blocks", [1, 2, 4, 8, 27])
def test_the_possible_counts_are_those_that_are_not_refused(blocks):
    def fits(count: int) -> bool:
        try:
            return bool(even_positions(blocks, count))
        except OptionError:
            return False

    assert possible_counts(blocks) == tuple(count for count in range(1, 40) if fits(count))


@given(blocks=st.integers(1, 60), heads=st.integers(1, 60))
def test_even_positions_ascend_before_the_last_block_or_are_refused(blocks, heads):
    try:
        positions = even_positions(blocks, heads)
    except OptionError:
        return
    assert list(positions) == sorted(set(positions))
    assert len(positions) == heads
    assert positions[0] >= 1
    assert positions[-1] < blocks


@pytest.mark.parametrize(
    ("name", "shape", "count", "some"),
    [
        ("resnet56", 32, 27, {1: "layer1.0", 7: "layer1.6", 14: "layer2.4", 21: "layer3.2", 27: "layer3.8"}),
        ("preresnet56", 32, 27, {7: "layer1.6"}),
        ("resnet18", 64, 8, {3: "layer2.0", 6: "layer3.1"}),
        ("resnet50", 64, 16, {5: "layer2.1", 10: "layer3.2", 15: "layer4.1"}),
        ("vgg19_bn_cifar", 32, 16, {1: "features.2", 6: "features.19", 12: "features.38"}),
        ("mobilenet_v1_cifar", 32, 13, {13: "layers.12"}),
        ("mobilenet_v2", 64, 17, {1: "features.1", 17: "features.17"}),
        ("googlenet_cifar", 32, 9, {1: "inception_a3", 9: "inception_b5"}),
    ],
)
def test_the_blocks_of_a_family_are_found(name, shape, count, some):
    blocks = block_names(build_model(ModelSpec(name=name)), torch.zeros(1, 3, shape, shape))
    assert len(blocks) == count
    assert {number: blocks[number - 1] for number in some} == some


def test_blocks_come_in_the_order_in_which_they_run():
    assert block_names(make_net(), EXAMPLE) == ("early.0", "early.1", "late.0")


def test_a_wrapped_network_has_its_own_blocks():
    assert block_names(Wrapped(), EXAMPLE) == ("backbone.early.0", "backbone.early.1", "backbone.late.0")


def test_an_activation_that_runs_twice_is_no_boundary():
    shared = nn.ReLU()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), shared, nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1), shared)
    assert block_names(model, EXAMPLE) == ("3",)


def test_a_network_without_blocks_is_named():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(PruningError, match=r"expected a network of blocks.*got Sequential"):
        AuxiliaryLosses(model, AuxiliaryPlacement(positions=1), 3, EXAMPLE)


def test_finding_blocks_and_making_heads_leaves_everything_as_it_was():
    model = make_net(dropout=0.5)
    model.late.eval()
    before, buffers, random = held(model), weights(model), torch.get_rng_state()
    make_auxiliary(model)
    assert held(model) == before
    assert_equal(weights(model), buffers)
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("placement", "names"),
    [
        (AuxiliaryPlacement(positions=1), ("early.1",)),
        (at(3, 1), ("early.0", "late.0")),
        (at("late.0", 2), ("early.1", "late.0")),
        (at("bn", "stem"), ("stem", "bn")),
    ],
)
def test_heads_sit_where_the_placement_says_in_the_order_of_running(placement, names):
    assert AuxiliaryLosses(make_net(), placement, 3, EXAMPLE).names == names


@pytest.mark.parametrize("placement", [AuxiliaryPlacement(positions=3), at(1, "late.0", head="ccp", weight=0.5)])
def test_a_placement_survives_json(placement):
    assert AuxiliaryPlacement.model_validate_json(placement.model_dump_json()) == placement


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"kind": "even", "positions": [1, 2]}, "expected how many heads for kind 'even'"),
        ({"kind": "explicit", "positions": 2}, "expected a list of places for kind 'explicit', got 2"),
        ({"kind": "explicit", "positions": []}, "expected a list of places for kind 'explicit', got none"),
        ({"positions": 0}, "greater than or equal to 1"),
        ({"positions": 1, "head": "mlp"}, "'dcp' or 'ccp'"),
        ({"positions": 1, "weight": 0}, "greater than 0"),
    ],
)
def test_an_impossible_placement_does_not_load(content, message):
    with pytest.raises(ValidationError, match=message):
        AuxiliaryPlacement.model_validate(content)


@pytest.mark.parametrize(
    ("places", "error", "message"),
    [
        ((4,), OptionError, "expected block numbers from 1 to 3, got 4"),
        ((1, "early.0"), OptionError, "expected each place once, got 'early.0' twice"),
        (("early.7",), UnknownNameError, "unknown module 'early.7'; did you mean 'early"),
        (("head",), PruningError, r"head of 'head': expected a feature map .*, got \[1, 3\]"),
    ],
)
def test_a_place_that_takes_no_head_is_refused(places, error, message):
    model = make_net()
    before = held(model)
    with pytest.raises(error, match=message):
        make_auxiliary(model, *places)
    assert held(model) == before


def test_a_module_that_runs_twice_takes_no_head():
    conv = nn.Conv2d(3, 3, 1)
    with pytest.raises(PruningError, match="head of '0': expected a module that runs once, got 2 runs"):
        make_auxiliary(nn.Sequential(conv, nn.ReLU(), conv), "0")


def test_a_feature_map_that_the_next_layer_overwrites_takes_no_head():
    with pytest.raises(PruningError, match=r"head of '0'.*that the next layer changes in place"):
        make_auxiliary(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)), "0")


@pytest.mark.parametrize(
    ("name", "place", "block"),
    [
        ("resnet18", "layer1.0.conv1", "layer1.0"),
        ("resnet18", "layer1.0.bn1", "layer1.0"),
        ("resnet56", "layer3.8.conv2", "layer3.8"),
        ("googlenet_cifar", "inception_a3.branch3x3.1", "inception_a3"),
    ],
)
def test_a_place_inside_a_block_is_refused_with_those_that_are_possible(name, place, block):
    model = build_model(ModelSpec(name=name))
    blocks = block_names(model, torch.zeros(1, 3, 64, 64))
    message = (
        f"auxiliary head of '{place}': expected a place between blocks, got one inside block '{block}'; possible: "
    )
    with pytest.raises(OptionError) as error:
        AuxiliaryLosses(model, at(place), 10, torch.zeros(1, 3, 64, 64))
    assert str(error.value) == message + ", ".join(blocks[:6]) + ", …"


@pytest.mark.parametrize(
    ("name", "place"), [("resnet18", "maxpool"), ("resnet18", "layer2"), ("vgg19_bn_cifar", "features.0")]
)
def test_a_place_that_is_no_boundary_but_inside_no_block_takes_a_head(name, place):
    example = torch.zeros(1, 3, 32, 32)
    assert AuxiliaryLosses(build_model(ModelSpec(name=name)), at(place), 10, example).names == (place,)


def test_block_numbers_need_blocks():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(PruningError, match=r"expected a network of blocks.*; name modules as positions instead$"):
        make_auxiliary(model, 1)


@pytest.mark.parametrize(
    ("name", "count", "heads", "names"),
    [
        ("resnet34", 16, 3, ("layer2.1", "layer3.2", "layer4.1")),
        ("vgg11_bn", 8, 2, ("features.10", "features.20")),
        ("mobilenet_v2", 17, 2, ("features.6", "features.12")),
        ("mobilenet_v3_small", 11, 2, ("features.4", "features.8")),
        ("efficientnet_b0", 16, 3, ("features.3.1", "features.5.1", "features.6.3")),
        ("densenet121", 4, 1, ("features.denseblock3",)),
        ("googlenet", 9, 2, ("inception4b", "inception5a")),
        ("shufflenet_v2_x0_5", 16, 1, ("stage3.4",)),
        ("squeezenet1_1", 8, 3, ("features.6", "features.10", "features.11")),
    ],
)
def test_heads_spread_evenly_over_a_torchvision_network(name, count, heads, names):
    model, example = build_model(ModelSpec(name=name)), torch.zeros(1, 3, 64, 64)
    assert len(block_names(model, example)) == count
    auxiliary = AuxiliaryLosses(model, AuxiliaryPlacement(positions=heads), 10, example)
    assert auxiliary.names == names
    with auxiliary.attached(model.eval()), torch.no_grad():
        model(example)
        assert [tuple(logits.shape) for logits in auxiliary.logits()] == [(1, 10)] * heads


def test_no_classes_are_refused():
    with pytest.raises(OptionError, match="num_classes: expected at least 1, got 0"):
        make_auxiliary(make_net(), classes=0)


# ── heads and losses ─────────────────────────────────────────────────────────────────────────────────────────────────


def by_hand(features: Tensor, head: nn.Sequential, kind: str) -> Tensor:
    """Classify a feature map without a torch layer, in train mode."""
    linear = head[-1]
    if kind == "dcp":
        mean = features.mean((0, 2, 3), keepdim=True)
        variance = ((features - mean) ** 2).mean((0, 2, 3), keepdim=True)
        scale, shift = (tensor.view(1, -1, 1, 1) for tensor in (head[0].weight, head[0].bias))
        features = ((features - mean) / torch.sqrt(variance + head[0].eps) * scale + shift).clamp_min(0)
    pooled = features.flatten(2).sum(2) / features[0, 0].numel()
    return pooled @ linear.weight.T + linear.bias


@pytest.mark.parametrize("kind", ["dcp", "ccp"])
def test_the_losses_equal_a_computation_by_hand(kind):
    model = make_net()
    auxiliary = make_auxiliary(model, head=kind, weight=0.3)
    for parameter in auxiliary.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5, generator=torch.Generator().manual_seed(0))
    images, labels = make_images(), torch.tensor([0, 1, 2, 0, 1, 2])
    with auxiliary.attached(model):
        model(images)
        losses = auxiliary.losses(labels)
    features, maps, expected = model.bn(model.stem(images)), [], []
    for block in (*model.early, *model.late):
        features = block(features)
        maps.append(features)
    for head, features in zip(auxiliary.heads, (maps[0], maps[2]), strict=True):
        log = by_hand(features, head, kind).log_softmax(1)
        expected.append(-0.3 * sum(log[image, label] for image, label in enumerate(labels)) / 6)
    # float32, sums in another order
    assert torch.stack(losses).tolist() == pytest.approx(torch.stack(expected).tolist(), rel=1e-5)


def test_heads_are_what_the_papers_say():
    dcp, ccp = (make_auxiliary(make_net(), 1, head=kind).heads[0] for kind in ("dcp", "ccp"))
    assert [type(layer) for layer in dcp[:2]] == [nn.BatchNorm2d, nn.ReLU]
    assert not dcp[-1].bias.any()
    assert not any(isinstance(layer, (nn.BatchNorm2d, nn.ReLU)) for layer in ccp)


def test_equal_seeds_give_equal_heads_and_others_do_not():
    first, again, other = (make_auxiliary(make_net(), seed=seed).heads for seed in (3, 3, 4))
    assert_equal(weights(first), weights(again))
    assert differ(weights(first), weights(other))


def test_the_network_s_state_dict_knows_nothing_of_the_heads():
    model = make_net()
    before = list(model.state_dict())
    auxiliary = make_auxiliary(model)
    with auxiliary.attached(model):
        model(make_images())
        assert list(model.state_dict()) == before
    assert sum(parameter.numel() for parameter in auxiliary.parameters()) == 2 * (4 + 4 + 4 * 3 + 3)


def test_gradients_reach_what_lies_in_front_of_a_head_only():
    model = make_net()
    auxiliary = make_auxiliary(model, 2)
    with auxiliary.attached(model):
        model(make_images())
        auxiliary.losses(torch.zeros(6, dtype=torch.int64))[0].backward()
    touched = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched == {"stem", "bn", "early"}


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_gone_at_the_end_also_after_an_exception(fails):
    model = make_net()
    auxiliary, before = make_auxiliary(model), held(model)
    images = make_images()[:, : 2 if fails else 3]
    try:
        with auxiliary.attached(model.eval()):
            assert held(model) != before
            model(images)
    except RuntimeError:
        assert fails
    assert held(model.train()) == before
    with pytest.raises(PruningError, match="expected a forward pass of the whole network while attached"):
        auxiliary.logits()


def test_losses_need_a_forward_pass():
    auxiliary = make_auxiliary(model := make_net())
    with (
        auxiliary.attached(model),
        pytest.raises(PruningError, match="expected a forward pass of the whole network while attached"),
    ):
        auxiliary.losses(torch.tensor([0]))


def test_attached_heads_do_not_attach_again():
    auxiliary = make_auxiliary(model := make_net())
    before = held(model)
    with (
        pytest.raises(PruningError, match="expected them to be free, got attached ones"),
        auxiliary.attached(model),
        auxiliary.attached(model),
    ):
        pass
    assert held(model) == before


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_without_a_class_is_one_clear_line(label):
    auxiliary = make_auxiliary(model := make_net())
    with auxiliary.attached(model):
        model(make_images())
        with pytest.raises(DataError, match=rf"^labels: expected classes 0 to 2, got {label}$"):
            auxiliary.losses(torch.tensor([0, 1, 2, 0, label, 0]))


def cut(model: nn.Module, name: str, keep: int) -> None:
    example = torch.zeros(2, 3, 8, 8)
    remove(model, find_groups(model, example), {name: range(keep)}, example)


def test_a_cut_inside_a_block_leaves_the_heads_in_place():
    model = make_net()
    auxiliary = make_auxiliary(model)
    cut(model, "early.0.conv1", 2)
    with auxiliary.attached(model):
        model(make_images())
        assert [tuple(logits.shape) for logits in auxiliary.logits()] == [(6, 3), (6, 3)]


def test_a_cut_between_blocks_needs_new_heads():
    model = make_net()
    auxiliary = make_auxiliary(model)
    cut(model, "stem", 3)
    with auxiliary.attached(model):
        model(make_images())
        with pytest.raises(PruningError, match=r"head of 'early\.0': expected 4 channels, got 3; make the heads after"):
            auxiliary.logits()
    auxiliary = make_auxiliary(model)
    with auxiliary.attached(model):
        model(make_images())
        assert len(auxiliary.losses(torch.zeros(6, dtype=torch.int64))) == 2


def test_heads_for_a_cut_network_are_copies_where_they_fit_and_new_elsewhere():
    model, example = Narrowing(), torch.zeros(2, 3, 8, 8)
    auxiliary = make_auxiliary(model, 1, 2, weight=0.5)
    before = weights(auxiliary.heads)
    cut(model, "second.down", 4)
    fitting, again, other = (auxiliary.for_network(model, example, seed=seed) for seed in (1, 1, 2))
    assert_equal(weights(fitting.heads[0]), weights(auxiliary.heads[0]))
    assert fitting.heads[1][-1].in_features == 4
    assert_equal(weights(fitting.heads), weights(again.heads))
    assert set(differ(weights(fitting.heads), weights(other.heads))) == {"1.4.weight"}
    assert (fitting.names, fitting.placement, fitting.num_classes) == (auxiliary.names, auxiliary.placement, 3)
    list(fine_tune(model, make_split(), PLAIN, auxiliary=fitting))
    assert_equal(weights(auxiliary.heads), before)
    assert differ(weights(fitting.heads[0]), weights(auxiliary.heads[0]))


class Narrowing(nn.Module):
    """Two blocks that put out channels of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Down(3, 4), Down(4, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)).mean((2, 3)))


class Down(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(width, 5, 3, padding=1), nn.Conv2d(5, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.down(F.relu(self.up(x))))


@pytest.mark.parametrize("places", [("late.0",), (1,), (1, "early.0"), (0,)])
def test_some_of_the_heads_are_shared_with_the_whole(places):
    model = make_net()
    auxiliary = make_auxiliary(model, weight=0.5)
    part = auxiliary.only(*places)
    numbers = sorted({"early.0": 0, "late.0": 1}.get(place, place) for place in places)
    assert part.names == tuple(auxiliary.names[number] for number in numbers)
    assert list(part.heads) == [auxiliary.heads[number] for number in numbers]
    assert part.placement == at(*part.names, weight=0.5)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    with auxiliary.attached(model.eval()), part.attached(model):
        model(make_images())
        whole, some = auxiliary.losses(labels), part.losses(labels)
    assert [loss.item() for loss in some] == [whole[number].item() for number in numbers]


@pytest.mark.parametrize("places", [(), (0, 0), (0, "early.0"), (2,), (-1,), ("stem",)])
def test_only_takes_heads_that_there_are_each_once(places):
    with pytest.raises(OptionError, match=r"auxiliary heads: expected .*early\.0, late\.0.*, got"):
        make_auxiliary(make_net()).only(*places)


def test_the_heads_state_travels_and_is_refused_by_others():
    first, second = make_auxiliary(make_net(), seed=1), make_auxiliary(make_net(), seed=2)
    second.load_state_dict(first.state_dict())
    assert_equal(weights(first.heads), weights(second.heads))
    for other in (make_auxiliary(make_net(), 1), make_auxiliary(make_net(), classes=4)):
        with pytest.raises(
            CheckpointError, match=r"auxiliary heads: expected the weights of \d such heads, got others"
        ):
            other.load_state_dict(first.state_dict())


# ── training the heads ───────────────────────────────────────────────────────────────────────────────────────────────


def test_training_the_heads_leaves_the_network_as_it_was():
    model = make_net(dropout=0.5)
    model.late.eval()
    model.stem.requires_grad_(False)
    auxiliary = make_auxiliary(model)
    before, buffers, heads, random = held(model), weights(model), weights(auxiliary.heads), torch.get_rng_state()
    for _ in train_heads(model, auxiliary, make_split(), PLAIN):
        assert held(model) == before
    assert_equal(weights(model), buffers)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    trained = differ(heads, weights(auxiliary.heads))
    assert len(trained) == len(heads)


def test_heads_learn_from_the_eval_mode_s_feature_maps():
    """One plain SGD step by hand on one batch."""
    model, split = make_net(), make_split(8)
    auxiliary = make_auxiliary(model, 2, head="ccp", weight=0.01)
    linear = copy.deepcopy(auxiliary.heads[0][-1])
    images, labels = next(split.batches(8))
    with torch.no_grad():
        features = copy.deepcopy(model).eval()
        features = features.early(features.bn(features.stem(images))).mean((2, 3))
    F.cross_entropy(linear(features), labels).backward()
    expected = linear.weight - 0.1 * linear.weight.grad
    list(train_heads(model, auxiliary, split, PLAIN))
    # float32, images in another order
    torch.testing.assert_close(auxiliary.heads[0][-1].weight, expected.detach(), rtol=1e-5, atol=1e-6)


def test_training_the_heads_lowers_their_loss_and_resumes():
    model, recipe = make_net(), PLAIN.model_copy(update={"epochs": 4, "momentum": 0.9})
    whole, halved = make_auxiliary(model), make_auxiliary(model)
    losses = [epoch.loss for epoch in train_heads(model, whole, make_split(), recipe)]
    assert losses[-1] < losses[0]
    epochs = train_heads(model, halved, make_split(), recipe)
    next(epochs)
    state = next(epochs).state()
    list(train_heads(model, halved, make_split(), recipe, resume=state))
    assert_equal(weights(whole.heads), weights(halved.heads))


@pytest.mark.parametrize("train", [train_heads, fine_tune_s1])
@pytest.mark.parametrize(
    ("change", "message"),
    [({"distillation": 0.5}, "recipe.distillation: expected 0"), ({"compile": True}, "recipe.compile: expected false")],
)
def test_what_does_not_go_with_auxiliary_losses_is_refused(train, change, message):
    model = make_net()
    with pytest.raises(OptionError, match=message):
        train(model, make_auxiliary(model), make_split(), PLAIN.model_copy(update=change))


@pytest.mark.parametrize("train", [train_heads, fine_tune_s1])
def test_a_label_without_a_class_ends_the_training_and_leaves_no_hook(train):
    model = make_net()
    auxiliary, before = make_auxiliary(model, classes=2), held(model)
    with pytest.raises(DataError, match="labels: expected classes 0 to 1, got 2"):
        list(train(model, auxiliary, make_split(), PLAIN))
    assert [(name, plain, hooks) for name, plain, hooks, _ in held(model)] == [
        (name, plain, hooks) for name, plain, hooks, _ in before
    ]


# ── Algorithm S1 ─────────────────────────────────────────────────────────────────────────────────────────────────────


class TwoSteps:
    """The algorithm by hand on a network of its own; only its first forward pass moves the running statistics."""

    def __init__(self, model: Net, head: nn.Sequential, momentum: float, weight_decay: float) -> None:
        self.model, self.head = copy.deepcopy(model).train(), copy.deepcopy(head).train()
        self.momentum, self.weight_decay = momentum, weight_decay
        self.velocities: list[dict[nn.Parameter, Tensor]] = [{}, {}]

    def train(self, images: Tensor, labels: Tensor, rate: float, both_first: bool) -> None:
        features = self.model.early(self.model.bn(self.model.stem(images)))
        auxiliary = F.cross_entropy(self.head(features), labels)
        pooled = self.model.late(features).mean((2, 3))
        first = self.gradients(auxiliary)
        second = self.gradients(F.cross_entropy(self.model.head(pooled), labels)) if both_first else None
        self.descend(first, rate, self.velocities[0])
        if second is None:
            statistics = {name: value.clone() for name, value in self.model.named_buffers()}
            second = self.gradients(F.cross_entropy(self.model(images), labels))
            for name, value in self.model.named_buffers():
                value.copy_(statistics[name])
        self.descend(second, rate, self.velocities[1])

    def gradients(self, loss: Tensor) -> dict[nn.Parameter, Tensor]:
        parameters = [*self.model.parameters(), *self.head.parameters()]
        found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
        return {p: gradient for p, gradient in zip(parameters, found, strict=True) if gradient is not None}

    @torch.no_grad()
    def descend(self, gradients: dict[nn.Parameter, Tensor], rate: float, velocities: dict) -> None:
        for parameter, gradient in gradients.items():
            step = gradient + self.weight_decay * parameter
            velocities[parameter] = self.momentum * velocities.get(parameter, torch.zeros_like(step)) + step
            step = step + self.momentum * velocities[parameter]  # Nesterov's
            parameter -= rate * step


@pytest.mark.parametrize("both_first", [False, True])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.9, 0.01)])
def test_each_batch_makes_the_two_steps_of_the_paper(both_first, momentum, weight_decay):
    model = make_net()
    auxiliary, split = make_auxiliary(model, 2), Recording(make_split())
    expected = TwoSteps(model, auxiliary.heads[0], momentum, weight_decay)
    recipe = PLAIN.model_copy(update={"momentum": momentum, "weight_decay": weight_decay, "epochs": 2})
    list(fine_tune_s1(model, auxiliary, split, recipe, step_decay=0.8, both_gradients_first=both_first))
    assert len(split.given) == 6
    for step, (images, labels) in enumerate(split.given):
        expected.train(images, labels, 0.1 * 0.8**step, both_first)
    for trained, by_hand_ in ((model, expected.model), (auxiliary.heads[0], expected.head)):
        # float32: the same operations, fused in the optimizer
        torch.testing.assert_close(trained.state_dict(), by_hand_.state_dict(), rtol=1e-4, atol=1e-5)


def test_the_two_variants_differ():
    results = []
    for both_first in (False, True):
        model = make_net()
        list(fine_tune_s1(model, make_auxiliary(model), make_split(), PLAIN, both_gradients_first=both_first))
        results.append(weights(model))
    assert differ(*results)


@pytest.mark.parametrize("both_first", [False, True])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_move_once_a_batch(both_first, momentum):
    model = make_net()
    model.bn.momentum = momentum
    expected, recording = copy.deepcopy(model.stem), Recording(make_split())
    layer = nn.BatchNorm2d(4, momentum=momentum)
    model.stem.requires_grad_(False)
    list(fine_tune_s1(model, make_auxiliary(model), recording, PLAIN, both_gradients_first=both_first))
    for images, _ in recording.given:
        layer(expected(images))
    assert int(model.bn.num_batches_tracked) == len(recording.given) == 3
    torch.testing.assert_close(model.bn.running_mean, layer.running_mean)
    torch.testing.assert_close(model.bn.running_var, layer.running_var)
    assert model.bn.track_running_stats


def test_the_batches_are_those_of_fine_tune():
    recipe = PLAIN.model_copy(update={"augment": True, "epochs": 2})
    plain, stage = Recording(make_split()), Recording(make_split())
    list(fine_tune(make_net(), plain, recipe, seed=5))
    list(fine_tune_s1(model := make_net(), make_auxiliary(model), stage, recipe, seed=5))
    assert all(torch.equal(left[0], right[0]) for left, right in zip(plain.given, stage.given, strict=True))


def test_equal_seeds_give_equal_networks_and_others_do_not():
    results = []
    for seed in (1, 1, 2):
        model = make_net(dropout=0.5)
        list(fine_tune_s1(model, make_auxiliary(model), make_split(), PLAIN, seed=seed))
        torch.rand(1)  # the global state plays no part
        results.append(weights(model))
    assert_equal(results[0], results[1])
    assert differ(results[0], results[2])


def test_all_is_as_found_whenever_the_caller_has_the_turn():
    model = make_net(dropout=0.5).eval()
    auxiliary = make_auxiliary(model)
    auxiliary.heads.eval()
    random = torch.get_rng_state()
    modules = {name: (module.training, len(module._forward_hooks)) for name, module in model.named_modules()}
    for _ in fine_tune_s1(model, auxiliary, make_split(), PLAIN.model_copy(update={"epochs": 2})):
        assert modules == {n: (module.training, len(module._forward_hooks)) for n, module in model.named_modules()}
        assert not any(module.training for module in auxiliary.heads.modules())
        assert torch.equal(torch.get_rng_state(), random)


def test_an_epoch_reports_both_losses_and_the_last_rate():
    model = make_net()
    auxiliary, before = make_auxiliary(model, 1, weight=0.5), copy.deepcopy(model).train()
    heads = copy.deepcopy(auxiliary.heads)
    (epoch,) = fine_tune_s1(
        model, auxiliary, make_split(8), PLAIN.model_copy(update={"label_smoothing": 0.1}), both_gradients_first=True
    )
    images, labels = next(make_split(8).batches(8))
    loss = CrossEntropy(0.1)
    features = before.early[0](before.bn(before.stem(images)))
    auxiliary_loss = 0.5 * loss(heads[0](features), labels)
    final_loss = loss(before.head(before.late(before.early[1](features)).mean((2, 3))), labels)
    # float32, images in another order
    assert epoch.auxiliary_loss == pytest.approx(auxiliary_loss.item(), rel=1e-5)
    assert epoch.final_loss == pytest.approx(final_loss.item(), rel=1e-5)
    assert (epoch.epoch, epoch.learning_rate, epoch.images) == (1, 0.1, 8)


def test_a_last_batch_of_one_image_is_left_out():
    model = make_net()
    epochs = list(fine_tune_s1(model, make_auxiliary(model), make_split(17), PLAIN))
    assert [epoch.images for epoch in epochs] == [16]


def test_clipping_bounds_each_of_the_two_steps():
    model = make_net()
    before = weights(model)
    recipe = PLAIN.model_copy(update={"clip_norm": 1e-3})
    list(fine_tune_s1(model, make_auxiliary(model), make_split(8), recipe))
    moved = sum(float((model.state_dict()[name] - before[name]).square().sum()) for name, _ in model.named_parameters())
    assert 0 < moved**0.5 <= 2 * 0.1 * 1e-3 * 1.01  # two steps, 1 % for float32


@pytest.mark.parametrize("decay", [0.0, 1.1])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(OptionError, match="step_decay: expected above 0, at most 1"):
        fine_tune_s1(model := make_net(), make_auxiliary(model), make_split(), PLAIN, step_decay=decay)


def test_a_frozen_network_is_refused():
    model = make_net().requires_grad_(False)
    with pytest.raises(OptionError, match="got a frozen network"):
        fine_tune_s1(model, make_auxiliary(model), make_split(), PLAIN)


def test_one_image_is_refused():
    with pytest.raises(DataError, match="expected at least 2 training images, got 1"):
        fine_tune_s1(model := make_net(), make_auxiliary(model), make_split(1), PLAIN)


def test_a_loss_that_explodes_ends_the_training():
    recipe = PLAIN.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(TrainingError, match=r"epoch 1, step \d: expected a finite loss"):
        list(fine_tune_s1(model := make_net(), make_auxiliary(model), make_split(), recipe))
