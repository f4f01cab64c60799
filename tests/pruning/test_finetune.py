"""Training as a recipe says, exact resume, evaluation."""

from __future__ import annotations

import copy
import io
import math
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning.data import Pixels, TensorSplit
from pruning.errors import CheckpointError, DataError, OptionError, PruningError
from pruning.finetune import TrainingError, evaluate, fine_tune
from pruning.losses import AUXILIARY_WEIGHTS, CrossEntropy, distance_from_teacher
from pruning.models.torchvision_import import import_torchvision
from pruning.policy import Recipe
from pruning.precision import uses_bfloat16, uses_channels_last
from pruning.schedule import learning_rate_at

CPU = torch.device("cpu")
PLAIN = Recipe(epochs=2, batch_size=8, learning_rate=0.05, augment=False, precision="float32", channels_last=False)


def recipe(**changes) -> Recipe:
    return Recipe.model_validate(PLAIN.model_dump() | changes)


def make_split(count: int = 20, seed: int = 0) -> TensorSplit:
    """Three classes, each brighter in its own channel."""
    labels = torch.arange(count) % 3
    images = torch.randint(120, (count, 3, 6, 6), generator=torch.Generator().manual_seed(seed))
    images[torch.arange(count), labels] += 100
    return TensorSplit(images.to(torch.uint8), labels, Pixels((0.4,) * 3, (0.25,) * 3, padding=1, flip=True))


def make_network(seed: int = 0, dropout: float = 0.3) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(6, 3),
        )


def linear_network() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), make_linear(3 * 6 * 6, 3))


def make_linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
    return layer


def train(model: nn.Module, split: TensorSplit | None = None, rec: Recipe = PLAIN, **options) -> nn.Module:
    list(fine_tune(model, split or make_split(), rec, **options))
    return model


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert all(torch.equal(left[name], right[name]) for name in left | right)


class Recording:
    """A split that writes down what is asked of it and what it gives."""

    def __init__(self, split: TensorSplit) -> None:
        self.split, self.asked, self.given = split, [], []

    def __len__(self):
        return len(self.split)

    def batches(self, batch_size, **options):
        self.asked.append(options)
        self.given.append([])
        for images, labels in self.split.batches(batch_size, **options):
            self.given[-1].append(images.clone())
            yield images, labels


# ── the schedule ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_cosine_falls_from_the_full_rate_to_nearly_zero():
    rates = [learning_rate_at(step, 5, recipe(epochs=4, learning_rate=0.2)) for step in range(20)]
    assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * step / 20)) for step in range(20)])


def test_warmup_climbs_evenly_and_the_cosine_begins_behind_it():
    rates = [learning_rate_at(s, 4, recipe(epochs=3, learning_rate=0.8, warmup_epochs=1)) for s in range(12)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4:] == pytest.approx([0.4 * (1 + math.cos(math.pi * step / 8)) for step in range(8)])


@pytest.mark.parametrize(("epochs", "milestone"), [(10, 0.7), (10, 0.6), (10, 0.9), (20, 0.35), (100, 0.55)])
def test_a_milestone_falls_on_the_first_step_of_its_epoch(epochs, milestone):
    steps = recipe(epochs=epochs, schedule="steps", milestones=(milestone,), decay=0.5, learning_rate=1.0)
    first = round(epochs * milestone) * 7
    assert [learning_rate_at(step, 7, steps) for step in (first - 1, first)] == [1.0, 0.5]


def test_steps_decay_once_for_each_milestone_that_has_passed():
    steps = recipe(epochs=4, schedule="steps", milestones=(0.5, 0.75), decay=0.1, learning_rate=1.0)
    assert [learning_rate_at(step, 1, steps) for step in range(4)] == pytest.approx([1, 1, 0.1, 0.01])


@given(
    schedule=st.sampled_from(["cosine", "steps", "constant"]),
    epochs=st.integers(1, 9),
    warmup=st.floats(0, 12),
    steps=st.integers(1, 9),
)
def test_every_rate_is_positive_and_at_most_the_recipe_s(schedule, epochs, warmup, steps):
    chosen = recipe(schedule=schedule, epochs=epochs, warmup_epochs=warmup, learning_rate=0.3)
    rates = [learning_rate_at(step, steps, chosen) for step in range(epochs * steps)]
    assert all(0 < rate <= 0.3 for rate in rates)


def test_the_rate_changes_at_every_step_and_the_epoch_reports_the_last():
    epochs = list(fine_tune(make_network(), make_split(), PLAIN))
    assert [epoch.learning_rate for epoch in epochs] == [learning_rate_at(step, 3, PLAIN) for step in (2, 5)]


# ── one step against its definition ──────────────────────────────────────────────────────────────────────────────────


def gradients(parameters: list[Tensor], split: TensorSplit) -> list[Tensor]:
    images, labels = next(iter(split.batches(len(split))))
    leaves = [parameter.detach().requires_grad_() for parameter in parameters]
    logits = images.flatten(1).double() @ leaves[0].T + leaves[1]
    loss = -logits.log_softmax(dim=1)[torch.arange(len(labels)), labels].mean()
    return list(torch.autograd.grad(loss, leaves))


def assert_close(model: nn.Module, expected: list[Tensor]) -> None:
    for parameter, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.double(), value, rtol=1e-5, atol=1e-6)  # float32 against float64


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_nesterov_s_with_weight_decay_on_everything(momentum):
    rec = recipe(epochs=3, batch_size=20, momentum=momentum, weight_decay=0.01)
    model, split = linear_network(), make_split()
    expected = [parameter.detach().double() for parameter in model.parameters()]
    velocity = [torch.zeros_like(value) for value in expected]
    for step in range(3):
        rate = learning_rate_at(step, 1, rec)
        decayed = [g + 0.01 * value for g, value in zip(gradients(expected, split), expected, strict=True)]
        velocity = [momentum * v + g for v, g in zip(velocity, decayed, strict=True)]
        expected = [x - rate * (g + momentum * v) for x, g, v in zip(expected, decayed, velocity, strict=True)]
    assert_close(train(model, split, rec), expected)


def test_adamw_takes_momentum_as_its_first_beta():
    rec = recipe(epochs=3, batch_size=20, optimizer="adamw", momentum=0.8, weight_decay=0.1, schedule="constant")
    model, split = linear_network(), make_split()
    expected = [parameter.detach().double() for parameter in model.parameters()]
    first = [torch.zeros_like(value) for value in expected]
    second = [torch.zeros_like(value) for value in expected]
    for step in range(1, 4):
        slopes = gradients(expected, split)
        first = [0.8 * m + 0.2 * g for m, g in zip(first, slopes, strict=True)]
        second = [0.999 * v + 0.001 * g**2 for v, g in zip(second, slopes, strict=True)]
        moves = [
            (m / (1 - 0.8**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8) for m, v in zip(first, second, strict=True)
        ]
        expected = [x - 0.05 * (0.1 * x + move) for x, move in zip(expected, moves, strict=True)]
    assert_close(train(model, split, rec), expected)


def test_a_gradient_that_is_too_long_is_cut_to_clip_norm():
    rec = recipe(epochs=1, batch_size=20, momentum=0.0, weight_decay=0.0, schedule="constant", clip_norm=0.125)
    model = linear_network()
    before = nn.utils.parameters_to_vector(model.parameters()).detach()
    moved = nn.utils.parameters_to_vector(train(model, rec=rec).parameters()).detach() - before
    assert float(moved.norm()) == pytest.approx(0.05 * 0.125, rel=1e-4)


# ── the loss ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_label_smoothing_gives_every_class_its_share():
    logits, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0])
    target = 0.8 * F.one_hot(labels, 4) + 0.2 / 4
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(CrossEntropy(label_smoothing=0.2)(logits, labels), expected)


def test_the_recipe_s_label_smoothing_is_in_the_loss():
    rec = recipe(epochs=1, batch_size=20, label_smoothing=0.3)
    images, labels = next(iter(make_split().batches(20)))
    model = linear_network()
    expected = F.cross_entropy(model(images), labels, label_smoothing=0.3).item()
    (epoch,) = fine_tune(model, make_split(), rec)
    assert epoch.loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_distance_from_the_teacher_is_the_divergence_of_the_softened_labels(temperature):
    student, teacher = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    p, q = (teacher / temperature).softmax(dim=1), (student / temperature).softmax(dim=1)
    expected = temperature**2 * (p * (p / q).log()).sum(dim=1).mean()
    torch.testing.assert_close(distance_from_teacher(student, teacher, temperature), expected)


def test_distillation_blends_the_labels_with_the_teacher_s():
    rec = recipe(epochs=1, batch_size=20, distillation=0.25, temperature=2.0)
    model, teacher = linear_network(), make_network(seed=5)
    images, labels = next(iter(make_split().batches(20)))
    with torch.no_grad():
        taught = copy.deepcopy(teacher).eval()(images)
        distance = distance_from_teacher(model(images), taught, 2.0)
        expected = float(0.75 * F.cross_entropy(model(images), labels) + 0.25 * distance)
    (epoch,) = fine_tune(model, make_split(), rec, teacher=teacher)
    assert epoch.loss == pytest.approx(expected, rel=1e-5)


def test_the_teacher_is_left_as_it_was():
    teacher = make_network(seed=5)
    before = weights(teacher)
    train(make_network(), rec=recipe(distillation=0.5), teacher=teacher)
    assert_equal(weights(teacher), before)
    assert all(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_distillation_needs_a_teacher():
    with pytest.raises(OptionError, match=r"recipe\.distillation: expected a teacher for weight 0\.5"):
        fine_tune(make_network(), make_split(), recipe(distillation=0.5))


@pytest.mark.parametrize(("name", "weight"), [("GoogLeNetOutputs", 0.3), ("InceptionOutputs", 0.4)])
def test_auxiliary_heads_add_their_weighted_losses(name, weight):
    heads = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 1, 2, 3, 0])
    single = [float(F.cross_entropy(head, labels)) for head in heads]
    loss = CrossEntropy()
    assert float(loss(namedtuple(name, "a b c")(*heads), labels)) == pytest.approx(
        single[0] + weight * (single[1] + single[2])
    )
    assert float(loss(namedtuple(name, "a b c")(heads[0], None, None), labels)) == pytest.approx(single[0])


def test_the_tuples_have_torchvision_s_names():
    models = import_torchvision().models
    assert {models.GoogLeNetOutputs.__name__, models.InceptionOutputs.__name__} == set(AUXILIARY_WEIGHTS)


def test_other_outputs_need_a_loss_of_their_own():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear_network()

        def forward(self, x):
            return self.inner(x), x

    with pytest.raises(OptionError, match="expected logits, got tuple"):
        train(Two())
    model = Two()
    before = weights(model)
    train(model, loss=lambda outputs, labels: F.cross_entropy(outputs[0], labels))
    assert not torch.equal(weights(model)["inner.1.weight"], before["inner.1.weight"])


@pytest.mark.parametrize(("call", "place"), [(5, "epoch 2, step 2"), (2, "epoch 1, step 2")])
def test_a_loss_that_is_not_finite_is_an_error_that_says_where(call, place):
    calls = iter(range(1, 100))

    def loss(outputs, labels):
        return F.cross_entropy(outputs, labels) * (math.nan if next(calls) == call else 1.0)

    with pytest.raises(TrainingError, match=f"{place}: expected a finite loss, got nan"):
        train(make_network(), loss=loss)


def test_a_loss_that_is_not_finite_is_found_before_a_long_epoch_ends():
    calls: list[float] = []

    def loss(outputs, labels):
        calls.append(math.inf if len(calls) == 39 else 1.0)
        return F.cross_entropy(outputs, labels) * calls[-1]

    with pytest.raises(TrainingError, match="epoch 1, step 40: expected a finite loss, got inf"):
        train(make_network(), make_split(400), recipe(batch_size=4), loss=loss)
    assert len(calls) < 100


# ── what an epoch sees ───────────────────────────────────────────────────────────────────────────────────────────────


def test_every_image_comes_once_an_epoch_each_time_in_another_order():
    split = Recording(make_split())
    epochs = list(fine_tune(make_network(), split, PLAIN))
    first, second = (torch.cat(given).flatten(1) for given in split.given)
    everything = torch.cat([images for images, _ in split.split.batches(20)]).flatten(1)
    assert not torch.equal(first, second)
    for seen in (first, second):
        assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, everything.tolist()))
    assert [epoch.epoch for epoch in epochs] == [1, 2]
    assert [epoch.images for epoch in epochs] == [20, 20]
    assert all(epoch.seconds > 0 for epoch in epochs)


@pytest.mark.parametrize("augment", [True, False])
def test_images_are_augmented_if_the_recipe_says_so(augment):
    split = Recording(make_split())
    train(make_network(), split, recipe(augment=augment))
    assert [options["augment"] for options in split.asked] == [augment, augment]


def test_a_last_batch_of_one_image_is_left_out():
    (epoch,) = fine_tune(make_network(), make_split(17), recipe(epochs=1))
    assert epoch.images == 16


def test_batches_of_one_are_trained_where_the_recipe_asks_for_them():
    (epoch,) = fine_tune(linear_network(), make_split(3), recipe(epochs=1, batch_size=1))
    assert epoch.images == 3


@pytest.mark.parametrize("count", [0, 1])
def test_an_epoch_without_a_step_is_an_error(count):
    with pytest.raises(DataError, match=f"expected at least 2 training images, got {count}"):
        fine_tune(make_network(), make_split(count), PLAIN)


def test_no_epochs_change_nothing():
    model = make_network()
    before = weights(model)
    assert list(fine_tune(model, make_split(), recipe(epochs=0))) == []
    assert_equal(weights(model), before)


def test_training_learns_what_can_be_learned():
    model, split = make_network(dropout=0.0), make_split(60)
    train(model, split, recipe(epochs=15, batch_size=10))
    assert evaluate(model, make_split(60, seed=1)).accuracy > 0.95


# ── state ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_equal_seeds_give_equal_weights_and_others_do_not():
    rec = recipe(augment=True)
    first, other = (train(make_network(), rec=rec, seed=seed) for seed in (3, 4))
    torch.rand(1)  # the caller's random state does not matter
    again = train(make_network(), rec=rec, seed=3)
    assert_equal(weights(first), weights(again))
    assert not torch.equal(first[0].weight, other[0].weight)


def test_random_state_and_modes_are_the_caller_s_whenever_it_has_the_turn():
    model = make_network().train()
    model[1].eval()
    random = torch.get_rng_state()
    for _ in fine_tune(model, make_split(), recipe(augment=True)):
        assert torch.equal(torch.get_rng_state(), random)
        assert [module.training for module in model] == [True, False, True, True, True, True, True]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_and_random_state_come_back_after_an_error():
    model, random = make_network().eval(), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="on purpose"):
        train(model, loss=fail)
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


def fail(*_):
    raise RuntimeError("on purpose")


def test_frozen_parameters_stay_and_a_frozen_network_is_an_error():
    model = make_network()
    model[0].weight.requires_grad_(False)
    before = weights(model)
    train(model)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[0].bias, before["0.bias"])
    with pytest.raises(OptionError, match="got a frozen network"):
        fine_tune(model.requires_grad_(False), make_split(), PLAIN)


# ── resume ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_until(epoch: int, rec: Recipe) -> tuple[dict[str, Tensor], dict]:
    """Train up to an epoch, and send weights and state through a file."""
    model = make_network()
    for result in fine_tune(model, make_split(), rec, seed=7):
        if result.epoch == epoch:
            break
    file = io.BytesIO()
    torch.save((model.state_dict(), result.state()), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_ends_at_the_same_bits(optimizer, precision):
    rec = recipe(epochs=4, augment=True, optimizer=optimizer, precision=precision, channels_last="auto")
    whole = train(make_network(), rec=rec, seed=7)
    saved, state = run_until(2, rec)
    resumed = make_network(seed=9)
    resumed.load_state_dict(saved)
    epochs = list(fine_tune(resumed, make_split(), rec, seed=7, resume=state))
    assert [epoch.epoch for epoch in epochs] == [3, 4]
    assert_equal(weights(resumed), weights(whole))


def test_momentum_matters_to_the_resumed_run():
    rec = recipe(epochs=4)
    saved, state = run_until(2, rec)
    ends = []
    for keep_momentum in (True, False):
        model = make_network()
        model.load_state_dict(saved)
        optimizer = state["optimizer"] | ({} if keep_momentum else {"state": {}})
        ends.append(train(model, rec=rec, seed=7, resume=state | {"optimizer": optimizer}))
    assert not torch.equal(ends[0][0].weight, ends[1][0].weight)


def test_a_state_does_not_change_while_training_goes_on():
    run = fine_tune(make_network(), make_split(), PLAIN)
    state = next(run).state()
    before = copy.deepcopy(state["optimizer"]["state"][0]["momentum_buffer"])
    next(run)
    assert torch.equal(state["optimizer"]["state"][0]["momentum_buffer"], before)


def test_the_state_of_an_epoch_is_gone_with_the_next():
    first, second = fine_tune(make_network(), make_split(), PLAIN)
    assert second.state()["epoch"] == 2
    with pytest.raises(PruningError, match=r"epoch 1: expected state\(\) before the next epoch begins"):
        first.state()


def test_a_state_of_another_run_is_an_error():
    state = run_until(1, PLAIN)[1]
    with pytest.raises(CheckpointError, match="resume: expected seed 8, got 7"):
        fine_tune(make_network(), make_split(), PLAIN, seed=8, resume=state)
    with pytest.raises(CheckpointError, match="resume: expected recipe"):
        fine_tune(make_network(), make_split(), recipe(learning_rate=0.1), seed=7, resume=state)
    with pytest.raises(CheckpointError, match="got one without optimizer"):
        fine_tune(make_network(), make_split(), PLAIN, resume={k: v for k, v in state.items() if k != "optimizer"})
    with pytest.raises(CheckpointError, match="does not fit this network"):
        fine_tune(linear_network(), make_split(), PLAIN, seed=7, resume=state)
    narrow = make_network()
    narrow[0], narrow[1], narrow[6] = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 3)
    with pytest.raises(CheckpointError, match=r"expected momentum_buffer of \(4, 3, 3, 3\), got \(6, 3, 3, 3\)"):
        fine_tune(narrow, make_split(), PLAIN, seed=7, resume=state)


# ── precision, layout, compiler ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
@pytest.mark.parametrize("channels_last", [True, False])
def test_precision_and_layout_are_what_the_recipe_says(precision, dtype, channels_last):
    seen, model = [], make_network()
    model[0].register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    train(model, rec=recipe(precision=precision, channels_last=channels_last))
    image, output = seen[0]
    assert output.dtype == dtype
    assert model[0].weight.dtype == torch.float32
    for tensor in (image, model[0].weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last) == channels_last


@pytest.mark.parametrize("fast", [True, False])
def test_auto_takes_bfloat16_where_the_processor_has_it_but_not_for_depthwise_convolutions(fast, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    depthwise = nn.Sequential(make_network(), nn.Conv2d(6, 6, 3, groups=6))
    assert uses_bfloat16("auto", make_network(), CPU) == fast
    assert not uses_bfloat16("auto", depthwise, CPU)
    assert uses_bfloat16("bfloat16", depthwise, CPU)
    assert not uses_bfloat16("float32", make_network(), CPU)


def test_auto_lays_images_channels_last_on_the_cpu_and_with_bfloat16_on_cuda():
    assert uses_channels_last("auto", CPU, bfloat16=False)
    assert uses_channels_last("auto", torch.device("cuda"), bfloat16=True)
    assert not uses_channels_last("auto", torch.device("cuda"), bfloat16=False)
    assert not uses_channels_last(False, CPU, bfloat16=True)


def test_compiling_without_a_compiler_is_an_error_of_one_line(monkeypatch):
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", (None, "/no/such/compiler"))
    with pytest.raises(OptionError, match=r"recipe\.compile: expected a working compiler") as error:
        train(make_network(), rec=recipe(compile=True))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_compiled_run_trains_the_same_network():
    plain = train(make_network(dropout=0.0))
    compiled = train(make_network(dropout=0.0), rec=recipe(compile=True))
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(compiled)[name], value, rtol=1e-3, atol=1e-4)  # sums in another order


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_a_gpu_learns_and_leaves_its_random_state():
    model, split, random = make_network(dropout=0.1), make_split(60), torch.cuda.get_rng_state()
    train(model, split, recipe(epochs=15, batch_size=10, precision="auto", channels_last="auto"), device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), random)
    assert evaluate(model, make_split(60, seed=1), device="cuda").accuracy > 0.95


# ── evaluation ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("batch_size", [1, 7, 512])
def test_evaluation_counts_image_by_image(batch_size):
    model, split = make_network().eval(), make_split()
    correct, losses = 0, []
    for image, label in split.batches(1):
        scores = model(image)[0].detach().double().exp()
        correct += int(scores.argmax()) == int(label)
        losses.append(-math.log(float(scores[label] / scores.sum())))
    result = evaluate(model, split, batch_size=batch_size)
    assert result.accuracy == correct / 20
    assert result.loss == pytest.approx(sum(losses) / 20, rel=1e-5)


def test_evaluation_is_in_eval_mode_without_gradients():
    model, seen = make_network().train(), []
    model.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    before = evaluate(copy.deepcopy(model).eval(), make_split())
    assert evaluate(model, make_split()) == before
    assert not any(seen)


def test_evaluation_leaves_the_network_as_it_was():
    model = make_network().train()
    model[1].eval()
    before = weights(model)
    evaluate(model, make_split())
    assert_equal(weights(model), before)
    assert [module.training for module in model] == [True, False, True, True, True, True, True]


def test_an_evaluation_without_images_is_an_error():
    with pytest.raises(DataError, match="at least one image"):
        evaluate(make_network(), make_split(0))
