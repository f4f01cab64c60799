"""Recalibrated statistics against the values the layer really sees."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pruning.batchnorm import recalibrate, recalibrating
from pruning.data import Pixels, TensorSplit
from pruning.errors import DataError, OptionError


def make_split(count: int = 30) -> TensorSplit:
    images = torch.randint(256, (count, 3, 5, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[::3] //= 4  # batches differ
    return TensorSplit(images, torch.arange(count) % 3, Pixels((0.4,) * 3, (0.25,) * 3, padding=2, flip=True))


def make_network() -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 5, 3),
            nn.BatchNorm2d(5),
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(5, 3),
        )


def everything(split: TensorSplit) -> Tensor:
    return next(iter(split.batches(len(split))))[0]


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """The definition: mean and unbiased variance of `[images, channels, …]` over all but the channels."""
    flat = values.double().movedim(1, 0).flatten(1)
    return flat.mean(dim=1), flat.var(dim=1)


def assert_moments(layer: nn.Module, mean: Tensor, variance: Tensor) -> None:
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-5, atol=1e-6)  # stored as float32
    torch.testing.assert_close(layer.running_var.double(), variance, rtol=1e-5, atol=1e-6)


def snapshot(model: nn.Module) -> list:
    batch_norms = (m for m in model.modules() if isinstance(m, nn.BatchNorm2d))
    return [
        [m.training for m in model.modules()],
        [m.momentum for m in batch_norms],
        [p.requires_grad for p in model.parameters()],
        [p.grad for p in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    ]


@pytest.mark.parametrize("batch_size", [2, 7, 15, 30, 256])
def test_the_first_layer_gets_the_moments_of_all_its_values_whatever_the_batch(batch_size):
    model, split = make_network(), make_split()
    recalibrate(model, split, batch_size=batch_size)
    assert_moments(model[1], *moments(model[0](everything(split))))


def test_a_deeper_layer_sees_what_the_layers_before_it_normalise_by_their_batch():
    model, split = make_network(), make_split()
    recalibrate(model, split, batch_size=8, seed=3)
    maps = []
    for images, _ in split.subset(30, 3).batches(8):
        first = model[0](images).double()
        mean, variance = first.mean(dim=(0, 2, 3), keepdim=True), first.var(dim=(0, 2, 3), correction=0, keepdim=True)
        hidden = ((first - mean) / (variance + 1e-5).sqrt()).relu()
        maps.append(nn.functional.conv2d(hidden, model[3].weight.double(), model[3].bias.double()))
    assert_moments(model[4], *moments(torch.cat(maps)))


def test_all_images_in_one_batch_make_eval_mode_agree_with_train_mode():
    model, split = make_network(), make_split()
    model[5].p = 0.0
    for layer in (model[1], model[4]):
        nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(1))
    recalibrate(model, split)
    images = everything(split)
    # The running variance is unbiased, the batch's is not: 1 in 30 images of one pixel each.
    torch.testing.assert_close(model.eval()(images), model.train()(images), rtol=0.05, atol=0.02)


def test_earlier_statistics_do_not_matter_even_if_they_are_not_finite():
    model, split = make_network(), make_split()
    other = copy.deepcopy(model)
    for layer in (other[1], other[4]):
        layer.running_mean.fill_(float("nan"))
        layer.running_var.fill_(1e30)
    recalibrate(model, split, batch_size=8)
    recalibrate(other, split, batch_size=8)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), other.buffers(), strict=True))


def test_only_the_statistics_change():
    model, random = make_network().train(), torch.get_rng_state()
    model[3].eval()
    model[4].eval()
    model[0].weight.requires_grad_(False)
    model[1].momentum, model[4].momentum = None, 0.3
    before, parameters = snapshot(model), [p.clone() for p in model.parameters()]
    recalibrate(model, make_split(), batch_size=8)
    assert snapshot(model) == before
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert int(model[1].num_batches_tracked) == 4


def test_an_error_leaves_the_statistics_as_they_were():
    model, calls = make_network(), iter(range(10))
    model[3].register_forward_hook(lambda *_: 1 / (2 - next(calls)) and None)
    model[1].running_mean.fill_(7.0)
    before, buffers = snapshot(model), [b.clone() for b in model.buffers()]
    with pytest.raises(ZeroDivisionError):
        recalibrate(model, make_split(), batch_size=8)
    assert snapshot(model) == before
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))


def test_one_seed_draws_the_same_images_and_another_seed_others():
    split, means = make_split(), []
    for seed in (1, 1, 2):
        model = make_network()
        recalibrate(model, split, images=9, seed=seed)
        means.append(model[1].running_mean)
    assert torch.equal(means[0], means[1])
    assert not torch.equal(means[0], means[2])
    chosen = everything(split.subset(9, 2))
    torch.testing.assert_close(means[2].double(), moments(make_network()[0](chosen))[0], rtol=1e-5, atol=1e-6)


def test_augmented_images_are_drawn_from_the_seed():
    split, means = make_split(), []
    for augment in (True, True, False):
        model = make_network()
        recalibrate(model, split, augment=augment, seed=1)
        means.append(model[1].running_mean)
    generator = torch.Generator().manual_seed(1)
    ((images, _),) = split.subset(30, 1).batches(30, augment=True, generator=generator)
    assert torch.equal(means[0], means[1])
    torch.testing.assert_close(means[0].double(), moments(make_network()[0](images))[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(means[0], means[2], rtol=1e-3)


def test_layers_without_statistics_and_layers_the_pass_does_not_reach_stay():
    model = make_network()
    model[4] = nn.BatchNorm2d(5, track_running_stats=False)
    model.register_module("head", nn.BatchNorm2d(5))
    model.forward = lambda x: nn.Sequential(*list(model)[:8])(x)
    model.head.running_mean.fill_(7.0)
    model.head.num_batches_tracked.fill_(11)
    recalibrate(model, make_split())
    assert model[4].running_mean is None
    assert model.head.running_mean.tolist() == [7.0] * 5
    assert int(model.head.num_batches_tracked) == 11


def test_a_layer_that_is_used_twice_gets_the_moments_of_all_it_sees():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(x), self.norm(2 * x[:, :, :2])

    model, split = Twice(), make_split()
    recalibrate(model, split, batch_size=8)
    images = everything(split)
    values = torch.cat([images.movedim(1, 0).flatten(1), 2 * images[:, :, :2].movedim(1, 0).flatten(1)], dim=1)
    assert_moments(model.norm, *moments(values.T))


def test_whoever_runs_the_layers_meanwhile_finds_the_same_in_whatever_mode_they_are_put():
    model, split = make_network(), make_split()
    expected = copy.deepcopy(model)
    recalibrate(expected, split, batch_size=8)
    model.eval()
    model[0].train()
    before = snapshot(model)
    with torch.no_grad(), recalibrating(model):
        assert not model[5].training
        for images, _ in split.subset(30, 0).batches(8):
            model[:3].eval()
            hidden = model[:3](images)
            model[3:].eval()
            model[3:](hidden)
    assert snapshot(model) == before
    for index in (1, 4):
        for name, buffer in expected[index].named_buffers():
            torch.testing.assert_close(model[index].get_buffer(name), buffer)


def test_statistics_of_flat_features_and_a_short_last_batch():
    model, split = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(75)), make_split(17)
    recalibrate(model, split, batch_size=8)  # 8 + 8; one image alone has no variance
    seen = torch.cat([images for images, _ in split.subset(17, 0).batches(8)])[:16]
    assert_moments(model[1], *moments(seen.flatten(1)))


def test_no_images_or_no_batch_norm_change_nothing():
    model, plain = make_network(), nn.Sequential(nn.Conv2d(3, 2, 3), nn.Dropout())
    before = [b.clone() for b in model.buffers()]
    recalibrate(model, make_split(), images=0)
    recalibrate(plain, make_split(0))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), before, strict=True))


def test_what_has_no_variance_is_an_error():
    with pytest.raises(OptionError, match="expected at least 2 images and batches of 2, got 1 and 256"):
        recalibrate(make_network(), make_split(), images=1)
    with pytest.raises(OptionError, match="got 2048 and 1"):
        recalibrate(make_network(), make_split(), batch_size=1)
    with pytest.raises(DataError, match="a split of at least 2 images, got 1"):
        recalibrate(make_network(), make_split(1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_finds_the_same_statistics():
    here, there, split = make_network(), make_network(), make_split()
    recalibrate(here, split, batch_size=8)
    recalibrate(there, split, batch_size=8, device="cuda")
    for a, b in zip(here.buffers(), there.cpu().buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)  # convolutions in TF32
