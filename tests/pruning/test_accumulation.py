"""Batches that memory does not hold: training in parts gives the network that training in one piece gives."""

from __future__ import annotations

import copy
import warnings
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from scarce import Scarce, Witness
from three_blocks import PLAIN, Block, assert_equal, differ, make_auxiliary, make_net, make_split, weights
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pruning import memory
from pruning.finetune import fine_tune
from pruning.memory import BatchSizeWarning, DeviceMemoryError
from pruning.policy import Recipe
from pruning.stagewise import fine_tune_s1, train_heads

EXACT = {"rtol": 1e-6, "atol": 1e-6}  # float64 but for the losses, which are taken in float32


@pytest.fixture(autouse=True)
def no_collection(monkeypatch):
    """Nothing that an attempt leaves needs the collector, which is slow."""
    monkeypatch.setattr(memory.gc, "collect", lambda: 0)


class Frozen(nn.BatchNorm2d):
    """Batch norm that stays in eval mode."""

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(False)


def group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


def network(norm=lambda _: nn.Identity(), **scarce) -> nn.Module:
    """Three blocks in float64 with another normalisation, and a place before the end that runs out of memory."""
    model = make_net()
    with torch.random.fork_rng([]):
        torch.manual_seed(7)
        model.drop = Scarce(**scarce)
        model.bn = nn.Sequential(norm(4), Witness(model.drop))
        for block in (module for module in model.modules() if isinstance(module, Block)):
            block.bn1 = norm(5)
    model.register_forward_pre_hook(lambda _, images: (images[0].double(),))
    return model.double()


def recipe(**changes) -> Recipe:
    return Recipe.model_validate(PLAIN.model_dump() | {"epochs": 2, "momentum": 0.9} | changes)


def run(model, rec, way, *, count=20, heads=True):
    """Train, with heads or without, and return weights, heads' weights and losses."""
    auxiliary = None
    if heads:
        auxiliary = make_auxiliary(make_net(), 1, 3, head="ccp", weight=0.4)
        auxiliary.heads.double()
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        epochs = list(way(model, make_split(count), rec, auxiliary))
    losses = [(epoch.loss, epoch.auxiliary_loss) for epoch in epochs]
    return weights(model), weights(auxiliary.heads) if auxiliary else {}, losses, [str(note.message) for note in notes]


def tune(model, split, rec, auxiliary):
    teacher = network() if rec.distillation else None
    return fine_tune(model, split, rec, auxiliary=auxiliary, teacher=teacher, seed=5)


def both_first(model, split, rec, auxiliary):
    return fine_tune_s1(model, auxiliary, split, rec, both_gradients_first=True, step_decay=0.9, seed=5)


WAYS = {
    "sgd": (tune, {}),
    "adamw": (tune, {"optimizer": "adamw", "learning_rate": 0.01}),
    "smoothing, clipping, decay": (tune, {"label_smoothing": 0.2, "clip_norm": 0.05, "weight_decay": 0.01}),
    "distillation": (tune, {"distillation": 0.6, "temperature": 2.0}),
    "algorithm S1": (tune, {"auxiliary": "sequential", "clip_norm": 0.1}),
    "both gradients first": (both_first, {"clip_norm": 0.1}),
}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("way", "changes"), WAYS.values(), ids=WAYS)
def test_training_in_parts_is_training_in_one_piece(way, changes, backward):
    rec = recipe(**changes)  # 20 images in batches of 8, 8 and 4
    whole = run(network(), rec, way)
    parted = network(most=3, backward=backward)
    found = run(parted, rec, way)
    torch.testing.assert_close(found[:3], whole[:3], **EXACT)
    assert whole[3] == []
    assert found[3] == ["training: memory does not hold 8 images at a time; goes on with 2"]
    assert max(parted.drop.seen[parted.drop.seen.index(2) :]) == 2
    assert parted.bn[1].left == 0


@pytest.mark.parametrize("norm", [group_norm, Frozen])
@pytest.mark.parametrize("heads", [False, True])
def test_norms_that_do_not_look_at_the_batch_do_not_notice(norm, heads):
    whole, found = (run(network(norm, most=most), recipe(), tune, heads=heads) for most in (9, 3))
    torch.testing.assert_close(found[:3], whole[:3], **EXACT)


def test_parts_of_unequal_size_weigh_by_their_images():
    rec = recipe(batch_size=7, learning_rate=0.3)
    whole, found = (run(network(most=most), rec, tune, count=21) for most in (9, 4))
    torch.testing.assert_close(found[:3], whole[:3], **EXACT)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("way", ["sgd", "algorithm S1", "both gradients first"])
def test_running_out_between_two_parts_leaves_no_trace(way, backward):
    way, changes = WAYS[way]
    rec = recipe(**changes)
    whole = run(network(), rec, way)
    torn = network(most=4, fails=(2, 9), backward=backward)  # behind a part that did fit, and once more, much later
    found = run(torn, rec, way)
    torch.testing.assert_close(found[:3], whole[:3], **EXACT)
    assert [told[-1] for told in found[3]] == ["2", "1"] or backward  # the heads' step never comes to the place
    assert torn.bn[1].left == 0


@pytest.mark.parametrize("backward", [False, True])
def test_heads_train_in_parts_on_the_frozen_network(backward):
    def train(most):
        model = network(Frozen, most=most, backward=backward)
        auxiliary = make_auxiliary(make_net(), 1, 3, head="ccp")
        auxiliary.heads.double()
        losses = [epoch.loss for epoch in train_heads(model, auxiliary, make_split(), recipe(), seed=5)]
        return weights(auxiliary.heads), losses

    whole = train(9)
    if backward:  # no gradient passes the network
        torch.testing.assert_close(train(3), whole, rtol=0, atol=0)
        return
    with pytest.warns(BatchSizeWarning, match="goes on with 2"):
        torch.testing.assert_close(train(3), whole, **EXACT)


# ── batch norm ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_batch_norm_sees_the_parts_and_no_attempt_that_failed():
    model, expected = network(nn.BatchNorm2d, most=4), network(nn.BatchNorm2d)
    (images, labels) = next(make_split(8).batches(8, shuffle=True, generator=torch.Generator().manual_seed(0)))

    class Once:
        def __len__(self):
            return 8

        def batches(self, *_, **__):
            yield images, labels

    with pytest.warns(BatchSizeWarning):
        list(fine_tune(model, Once(), recipe(epochs=1, momentum=0.0)))
    expected.train()
    optimizer = torch.optim.SGD(expected.parameters(), 0.1)
    for part, its_labels in zip(images.split(4), labels.split(4), strict=True):
        (F.cross_entropy(expected(part).float(), its_labels) / 2).backward()
    optimizer.step()
    torch.testing.assert_close(weights(model), weights(expected), **EXACT)
    assert int(model.bn[0].num_batches_tracked) == 2


# ── what does not fit at all ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("way", ["sgd", "algorithm S1", "both gradients first"])
def test_one_image_that_does_not_fit_is_one_line_and_leaves_the_network_alone(way):
    model = network(nn.BatchNorm2d, most=0).eval()
    before = weights(model)
    way, changes = WAYS[way]
    told = r"^training: expected memory for one image at a time, got: CUDA out of memory\. Tried to allocate 2\.00 GiB$"
    with pytest.raises(DeviceMemoryError, match=told):
        run(model, recipe(**changes), way)
    assert_equal(weights(model), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert model.drop.seen == [8, 4, 2, 1]


# ── what it costs ────────────────────────────────────────────────────────────────────────────────────────────────────


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Given:
    """A split of batches that are there already."""

    def __init__(self, batches):
        self.given = batches

    def __len__(self):
        return 8 * len(self.given)

    def batches(self, *_, **__):
        yield from self.given


def operations(work):
    with Operations() as counter:
        work()
    return counter.found


def test_a_batch_that_fits_costs_no_operation_more_than_the_bare_loop():
    given = [batch for _ in range(8) for batch in make_split(8).batches(8)]
    rec = recipe(epochs=1)

    def tuned(count):
        return operations(lambda: list(fine_tune(make_net(), Given(given[:count]), rec)))

    def bare(count):
        model = make_net().train()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, nesterov=True)

        def loop():
            for images, labels in given[:count]:
                loss = F.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                loss.detach()

        return operations(loop)

    # The first step makes the momenta and, in fine_tune, copies of the running statistics.
    assert tuned(6) - tuned(2) == bare(6) - bare(2)


def test_what_fits_is_trained_to_the_last_bit_as_without_a_limit():
    one, other = make_net(), make_net()
    other.drop = Scarce(8)
    plain = copy.deepcopy(one)
    for model in (one, other):
        list(fine_tune(model, make_split(), recipe()))
    assert not differ(weights(one), weights(other))
    assert differ(weights(one), weights(plain))
