"""Fine-tuning with auxiliary heads: joint, by Algorithm S1, or without them."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from three_blocks import (
    PLAIN,
    Net,
    Recording,
    assert_equal,
    differ,
    make_auxiliary,
    make_net,
    make_split,
    weights,
)
from torch import Tensor
from two_heads import held

from pruning.cutting import remove
from pruning.errors import CheckpointError, DataError, OptionError, PruningError
from pruning.finding import find_groups
from pruning.finetune import fine_tune
from pruning.losses import distance_from_teacher
from pruning.policy import Recipe
from pruning.stagewise import fine_tune_s1


def recipe(kind: str, **changes) -> Recipe:
    return Recipe.model_validate(PLAIN.model_dump() | {"auxiliary": kind, "momentum": 0.9} | changes)


def descend_by_hand(model: Net, rec: Recipe, batches: list[tuple[Tensor, Tensor]], loss_of) -> None:
    """The bare loop: Nesterov's SGD on a loss, batch by batch."""
    model.train()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, rec.learning_rate, rec.momentum, nesterov=True)
    for images, labels in batches:
        optimizer.zero_grad()
        loss_of(images, labels).backward()
        optimizer.step()


@pytest.mark.parametrize("places", [None, (1, 3)])
def test_without_heads_or_with_none_of_them_it_is_plain_training_to_the_last_bit(places):
    rec = recipe("none" if places else "joint", epochs=2, augment=True)
    model, expected, split = make_net(), make_net(), Recording(make_split())
    auxiliary = make_auxiliary(model, *places) if places else None
    before = weights(auxiliary.heads) if auxiliary else {}
    epochs = list(fine_tune(model, split, rec, auxiliary=auxiliary, seed=4))
    descend_by_hand(expected, rec, split.given, lambda x, y: F.cross_entropy(expected(x), y))
    assert_equal(weights(model), weights(expected))
    assert before == {} or not differ(before, weights(auxiliary.heads))
    assert all(epoch.auxiliary_loss == 0 and epoch.final_loss == epoch.loss for epoch in epochs)
    assert set(epochs[-1].state()) == {"format", "recipe", "seed", "epoch", "optimizer"}


def test_joint_training_descends_the_sum_of_all_losses():
    rec = recipe("joint", epochs=2)
    model, split = make_net(), Recording(make_split())
    auxiliary = make_auxiliary(model, 1, 2, weight=0.3)
    both = torch.nn.ModuleList([copy.deepcopy(model), copy.deepcopy(auxiliary.heads)]).train()
    by_hand, heads = both
    auxiliary.heads.eval()  # they are in train mode while they train, whatever the caller has

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        first = by_hand.early[0](by_hand.bn(by_hand.stem(images)))
        second = by_hand.early[1](first)
        final = F.cross_entropy(by_hand.head(by_hand.late(second).mean((2, 3))), labels)
        said = heads[0](first), heads[1](second)
        return final + 0.3 * sum(F.cross_entropy(logits, labels) for logits in said)

    list(fine_tune(model, split, rec, auxiliary=auxiliary))
    descend_by_hand(both, rec, split.given, loss_of)
    # float32: the sum of the losses is taken in another order
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(auxiliary.heads.state_dict(), heads.state_dict(), rtol=1e-4, atol=1e-5)


def test_an_epoch_tells_the_heads_loss_from_the_network_s():
    model, split = make_net(), make_split(8)
    auxiliary = make_auxiliary(model, 2, weight=0.5)
    before, heads = copy.deepcopy(model), copy.deepcopy(auxiliary.heads)
    (epoch,) = fine_tune(model, split, recipe("joint"), auxiliary=auxiliary)
    images, labels = next(split.batches(8))
    features = before.early(before.bn(before.stem(images)))
    of_head = 0.5 * F.cross_entropy(heads[0](features), labels)
    final = F.cross_entropy(before.head(before.late(features).mean((2, 3))), labels)
    # float32, images in another order
    assert epoch.auxiliary_loss == pytest.approx(of_head.item(), rel=1e-5)
    assert epoch.final_loss == pytest.approx(final.item(), rel=1e-5)
    assert epoch.loss == pytest.approx((of_head + final).item(), rel=1e-5)


def test_joint_training_takes_a_teacher_whose_labels_join_the_final_loss_only():
    model, teacher, split = make_net(), make_net(seed=5), make_split(8)
    auxiliary = make_auxiliary(model, 2)
    before, heads = copy.deepcopy(model), copy.deepcopy(auxiliary.heads)
    rec = recipe("joint", distillation=0.25, temperature=2.0)
    (epoch,) = fine_tune(model, split, rec, auxiliary=auxiliary, teacher=teacher)
    images, labels = next(split.batches(8))
    features = before.early(before.bn(before.stem(images)))
    logits = before.head(before.late(features).mean((2, 3)))
    with torch.no_grad():
        distance = distance_from_teacher(logits, copy.deepcopy(teacher).eval()(images), 2.0)
    # float32, images in another order
    expected = 0.75 * F.cross_entropy(logits, labels) + 0.25 * distance
    assert epoch.final_loss == pytest.approx(expected.item(), rel=1e-5)
    assert epoch.auxiliary_loss == pytest.approx(F.cross_entropy(heads[0](features), labels).item(), rel=1e-5)


def test_sequential_is_algorithm_s1():
    rec = recipe("sequential", epochs=2, weight_decay=0.01)
    results = []
    for train in (fine_tune, fine_tune_s1):
        model = make_net(dropout=0.3)
        auxiliary = make_auxiliary(model)
        list(train(model, train=make_split(), recipe=rec, auxiliary=auxiliary, seed=2))
        results.append(weights(model) | weights(auxiliary.heads))
    assert_equal(*results)


def test_the_three_ways_end_at_different_networks():
    results = []
    for kind in ("none", "joint", "sequential"):
        model = make_net()
        list(fine_tune(model, make_split(), recipe(kind), auxiliary=make_auxiliary(model)))
        results.append(weights(model))
    assert differ(results[0], results[1])
    assert differ(results[1], results[2])
    assert differ(results[0], results[2])


@pytest.mark.parametrize("kind", ["joint", "sequential"])
def test_all_is_as_found_whenever_the_caller_has_the_turn(kind):
    model = make_net(dropout=0.5).eval()
    auxiliary = make_auxiliary(model)
    auxiliary.heads.eval()
    random = torch.get_rng_state()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    for _ in fine_tune(model, make_split(), recipe(kind, epochs=2), auxiliary=auxiliary):
        assert torch.equal(torch.get_rng_state(), random)
        assert [len(module._forward_hooks) for module in model.modules()] == hooks
        assert not any(module.training for module in (*model.modules(), *auxiliary.heads.modules()))
    assert all(parameter.grad is None for parameter in (*model.parameters(), *auxiliary.parameters()))


@pytest.mark.parametrize("kind", ["joint", "sequential"])
@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw"}, {"precision": "bfloat16", "augment": True}])
def test_a_resumed_run_ends_at_the_same_bits(kind, changes):
    rec = recipe(kind, epochs=4, weight_decay=0.01, **changes)
    whole = make_net(dropout=0.3)
    heads = make_auxiliary(whole)
    expected = list(fine_tune(whole, make_split(), rec, auxiliary=heads, seed=7))
    begun = make_net(dropout=0.3)
    run = fine_tune(begun, make_split(), rec, auxiliary=make_auxiliary(begun), seed=7)
    next(run)
    state = next(run).state()
    network, file = weights(begun), io.BytesIO()
    next(run)  # the state does not move with it
    torch.save((network, state), file)
    file.seek(0)
    saved, state = torch.load(file, weights_only=True)
    resumed = make_net(seed=9, dropout=0.3)
    resumed.load_state_dict(saved)
    other_heads = make_auxiliary(resumed, seed=9)
    epochs = list(fine_tune(resumed, make_split(), rec, auxiliary=other_heads, seed=7, resume=state))
    assert_equal(weights(resumed), weights(whole))
    assert_equal(weights(other_heads.heads), weights(heads.heads))
    assert [(e.epoch, e.loss, e.auxiliary_loss) for e in epochs] == [
        (e.epoch, e.loss, e.auxiliary_loss) for e in expected[2:]
    ]


def test_algorithm_s1_with_a_decay_resumes_too():
    rec = recipe("sequential", epochs=3)
    whole, halved = make_net(), make_net()
    first, second = make_auxiliary(whole), make_auxiliary(halved)
    list(fine_tune_s1(whole, first, make_split(), rec, step_decay=0.9))
    state = next(fine_tune_s1(halved, second, make_split(), rec, step_decay=0.9)).state()
    with pytest.raises(CheckpointError, match=r"resume: expected auxiliary .*'step_decay': 0.8"):
        fine_tune_s1(halved, second, make_split(), rec, step_decay=0.8, resume=state)
    list(fine_tune_s1(halved, second, make_split(), rec, step_decay=0.9, resume=state))
    assert_equal(weights(whole), weights(halved))
    assert_equal(weights(first.heads), weights(second.heads))


def test_the_state_of_a_run_with_other_heads_is_refused():
    model, rec = make_net(), recipe("joint", epochs=2)

    def state(auxiliary=None):
        return next(fine_tune(copy.deepcopy(model), make_split(), rec, auxiliary=auxiliary)).state()

    with_heads, without = state(make_auxiliary(model)), state()
    with pytest.raises(CheckpointError, match="got one without auxiliary, heads"):
        fine_tune(model, make_split(), rec, auxiliary=make_auxiliary(model), resume=without)
    with pytest.raises(CheckpointError, match="expected a run without auxiliary losses"):
        fine_tune(model, make_split(), rec, resume=with_heads)
    with pytest.raises(CheckpointError, match=r"expected auxiliary .*early\.1"):
        fine_tune(model, make_split(), rec, auxiliary=make_auxiliary(model, 2), resume=with_heads)
    broken = with_heads | {"heads": {}}
    with pytest.raises(CheckpointError, match="expected the weights of 2 such heads, got others"):
        fine_tune(model, make_split(), rec, auxiliary=make_auxiliary(model), resume=broken)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("sequential", {"distillation": 0.5}, "recipe.distillation: expected 0 with auxiliary losses"),
        ("sequential", {"compile": True}, "recipe.compile: expected false with auxiliary losses"),
        ("joint", {"compile": True}, "recipe.compile: expected false with auxiliary losses"),
    ],
)
def test_what_does_not_go_with_heads_is_refused_in_one_line(kind, changes, message):
    model = make_net()
    with pytest.raises(OptionError, match=message) as error:
        fine_tune(model, make_split(), recipe(kind, **changes), auxiliary=make_auxiliary(model), teacher=make_net())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["joint", "sequential"])
def test_a_label_without_a_class_ends_the_training_and_leaves_no_hook(kind):
    model = make_net()
    auxiliary, before = make_auxiliary(model, classes=2), held(model)
    with pytest.raises(DataError, match=r"^labels: expected classes 0 to 1, got 2$"):
        list(fine_tune(model, make_split(), recipe(kind), auxiliary=auxiliary))
    assert [(name, plain) for name, plain, *_ in held(model)] == [(name, plain) for name, plain, *_ in before]
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("kind", ["joint", "sequential"])
def test_heads_that_a_cut_has_left_behind_are_refused_until_they_are_made_for_it(kind):
    model, example = make_net(), torch.zeros(2, 3, 8, 8)
    auxiliary = make_auxiliary(model)
    remove(model, find_groups(model, example), {"stem": range(3)}, example)
    with pytest.raises(PruningError, match=r"head of 'early\.0': expected 4 channels, got 3"):
        list(fine_tune(model, make_split(), recipe(kind), auxiliary=auxiliary))
    fitting = auxiliary.for_network(model, example)
    assert [epoch.images for epoch in fine_tune(model, make_split(), recipe(kind), auxiliary=fitting)] == [20]
