"""Weights drawn anew."""

from __future__ import annotations

import copy

import pytest
import torch
from three_blocks import make_net, weights
from torch import nn
from two_heads import held

from pruning.cutting import remove
from pruning.data import load_data
from pruning.errors import ModelError
from pruning.finding import find_groups
from pruning.finetune import evaluate, fine_tune
from pruning.initialise import draw_weights
from pruning.models import build_model
from pruning.policy import ModelSpec, Recipe


def trained(name: str = "resnet20") -> nn.Module:
    """A network in which every weight and every statistic has moved from where it began."""
    model = build_model(ModelSpec(name=name))
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.copy_(3 + torch.arange(tensor.numel()).view_as(tensor) % 7)
    return model


def test_no_weight_of_the_old_network_survives():
    model = trained()
    before = weights(model)
    draw_weights(model)
    drawn = weights(model)
    assert not any((drawn[name] == before[name]).any() for name in before)


def test_equal_seeds_give_equal_weights_whatever_was_there_and_others_do_not():
    first, again, other = trained(), build_model(ModelSpec(name="resnet20")), trained()
    for model, seed in ((first, 3), (again, 3), (other, 4)):
        draw_weights(model, seed)
    left, right, third = weights(first), weights(again), weights(other)
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert all(not torch.equal(left[name], third[name]) for name in left if "conv" in name or "linear" in name)


def test_the_draw_is_that_of_the_constructor():
    """The layers draw in the order in which they are built, so that one seed gives the same network either way."""
    model = trained()
    draw_weights(model, 5)
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        built = build_model(ModelSpec(name="resnet20"))
    assert all(torch.equal(value, weights(model)[name]) for name, value in weights(built).items())


def test_running_statistics_start_again():
    model = trained()
    draw_weights(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not module.running_mean.any()
            assert (module.running_var == 1).all()
            assert int(module.num_batches_tracked) == 0


def test_random_state_modes_hooks_and_parameters_stay():
    model = make_net(dropout=0.5).eval()
    model.late.train().requires_grad_(False)
    model.stem.register_forward_hook(lambda *_: None)
    random = torch.get_rng_state()
    before = [(name, plain, entries, [grad for grad, _ in versions]) for name, plain, entries, versions in held(model)]
    draw_weights(model)
    after = [(name, plain, entries, [grad for grad, _ in versions]) for name, plain, entries, versions in held(model)]
    assert after == before
    assert torch.equal(torch.get_rng_state(), random)


def test_a_module_that_cannot_draw_is_named_and_nothing_is_drawn():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    model = nn.Sequential(nn.Conv2d(3, 3, 1), Scaled())
    before = weights(model)
    with pytest.raises(
        ModelError, match=r"^module '1': expected a `reset_parameters` method .*got Scaled without one$"
    ):
        draw_weights(model)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_cut_network_draws_for_its_own_widths():
    model, example = build_model(ModelSpec(name="resnet20")), torch.zeros(2, 3, 16, 16)
    groups = find_groups(model, example)
    remove(model, groups, {name: range(group.width // 4) for name, group in groups.items()}, example)
    draw_weights(model)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.weight[0].numel()
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels)
            assert 0.8 * fan_in**-0.5 < module.weight.abs().max() <= fan_in**-0.5  # uniform within ±1/√fan_in


def test_a_cut_and_redrawn_network_learns():
    digits = load_data("digits", size=8)
    model, example = build_model(ModelSpec(name="resnet20")), torch.zeros(2, 3, 8, 8)
    groups = find_groups(model, example)
    remove(model, groups, {name: range(group.width // 4) for name, group in groups.items()}, example)
    draw_weights(model, 1)
    recipe = Recipe(epochs=2, batch_size=32, learning_rate=0.05, precision="float32", from_scratch=True)
    list(fine_tune(model, digits.train, recipe))
    assert evaluate(model, digits.val).accuracy > 0.4  # 0.1 is chance


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_draw_is_the_same_on_every_device():
    here, there = make_net(), copy.deepcopy(make_net()).cuda()
    random = torch.cuda.get_rng_state()
    draw_weights(here, 2)
    draw_weights(there, 2)
    assert all(torch.equal(value, weights(there)[name].cpu()) for name, value in weights(here).items())
    assert torch.equal(torch.cuda.get_rng_state(), random)
