"""A cut is made whole and proved, or the network is exactly as it was."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from two_heads import IMAGES, TwoHeads, held
from zeroing import distance, half, random_ranking, randomise, zeroed

import pruning.cutting
import pruning.masking
from pruning.cutting import remove
from pruning.errors import PolicyError, PruningError, RankingError, SurgeryError
from pruning.finding import find_groups
from pruning.groups import ChannelGroups, Slice
from pruning.inputs import noise_like, run_on
from pruning.masking import check_equal, masked_outputs, run_nudged
from pruning.models import build_model
from pruning.policy import ModelSpec, Policy
from pruning.ranking import NestedRanking
from pruning.surgery import prune


def two_heads() -> nn.Module:
    torch.manual_seed(0)
    return randomise(TwoHeads())


def firsts(groups: ChannelGroups) -> NestedRanking:
    return NestedRanking("firsts", {name: torch.arange(group.width) for name, group in groups.items()})


# ── what a cut does ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_cut_network_is_the_zeroed_one() -> None:
    network = two_heads().double().eval()
    groups = find_groups(network, IMAGES.double())
    images = torch.randn(2, 3, 16, 16, dtype=torch.double)
    ranking, whole = random_ranking(groups), copy.deepcopy(network)
    kept = prune(network, half(groups), ranking, example_input=images)
    assert kept == {name: ranking.keep(name, width) for name, width in half(groups).items()}
    assert distance(network(images), zeroed(whole, groups, kept)(images)) < 1e-12  # float64
    assert distance(network.train()(images)[1], whole.train()(images)[1]) > 1e-3


def test_a_cut_network_is_built_like_a_narrow_one() -> None:
    widths = {"conv1": 9, "layer1.1.conv1": 7, "layer3.2.conv1": 30}
    network = build_model(ModelSpec(name="resnet20"))
    groups = find_groups(network, IMAGES)
    prune(network, widths, firsts(groups), groups=groups, example_input=IMAGES)
    inner = [16, 7, 16, 32, 32, 32, 64, 64, 30]
    narrow = build_model(ModelSpec(name="resnet20", options={"widths": [9, 25, 57], "inner_widths": inner}))
    # Of the zeros that the shortcuts pad, a cut leaves those beside the channels that stay.
    shortcuts = {"layer2.0.shortcut", "layer3.0.shortcut"}
    for (name, cut), (_, built) in zip(network.named_modules(), narrow.named_modules(), strict=True):
        assert name in shortcuts or list(cut.children()) or repr(cut) == repr(built)
    assert [tuple(p.shape) for p in network.parameters()] == [tuple(p.shape) for p in narrow.parameters()]
    assert [(b.shape, b.dtype) for b in network.buffers()] == [(b.shape, b.dtype) for b in narrow.buffers()]


def test_full_widths_change_nothing() -> None:
    network = two_heads()
    groups = find_groups(network, IMAGES)
    before = held(network)
    assert prune(network, groups.widths, firsts(groups), groups=groups, example_input=IMAGES) == {}
    assert prune(network, {}, firsts(groups), groups=groups, example_input=IMAGES) == {}
    remove(network, groups, {name: range(group.width) for name, group in groups.items()}, IMAGES)
    assert held(network) == before


def test_a_group_that_is_not_named_stays_whole() -> None:
    network = two_heads()
    groups = find_groups(network, IMAGES)
    untouched = network.fc.bias
    prune(network, {"inner": 2}, firsts(groups), groups=groups, example_input=IMAGES)
    assert network.inner.weight.shape == (2, 8, 3, 3)
    assert network.fc.bias is untouched


def test_the_kept_channels_make_the_same_cut_on_another_copy() -> None:
    network, other = two_heads(), two_heads()
    groups = find_groups(network, IMAGES)
    kept = prune(network, half(groups), random_ranking(groups), groups=groups, example_input=IMAGES)
    remove(other, groups, kept)
    pairs = zip(network.state_dict().items(), other.state_dict().items(), strict=True)
    assert all(name == also and torch.equal(a, b) for (name, a), (also, b) in pairs)


def test_every_group_can_shrink_to_one_channel() -> None:
    network = two_heads()
    groups = find_groups(network, IMAGES)
    prune(network, dict.fromkeys(groups, 1), firsts(groups), groups=groups, example_input=IMAGES)
    assert {p.shape[0] for p in network.stem.parameters()} == {1}
    assert network.fc.in_features == 1


def test_what_belongs_to_a_network_beside_its_channels_stays() -> None:
    network = two_heads().double()
    network.stem.weight.requires_grad_(False)
    network.drop.eval()
    network.inner.register_forward_hook(lambda *_: None)
    modes = [module.training for module in network.modules()]
    hooks = [dict(module._forward_hooks) for module in network.modules()]
    random = torch.get_rng_state()
    groups = find_groups(network, IMAGES.double())

    prune(network, half(groups), firsts(groups), groups=groups, example_input=IMAGES.double())

    assert [module.training for module in network.modules()] == modes
    assert [dict(module._forward_hooks) for module in network.modules()] == hooks
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert {name for name, p in network.named_parameters() if not p.requires_grad} == {"stem.weight"}
    assert {p.dtype for p in network.parameters()} == {torch.double}
    assert all(p.is_leaf and p.grad is None for p in network.parameters())
    assert torch.equal(torch.get_rng_state(), random)


class Draws(nn.Module):
    """Draws a random number at each call, to no effect."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        torch.rand(())
        return self.b(self.a(x))


def test_numbers_that_the_network_draws_are_given_back() -> None:
    network = Draws()
    groups, random = find_groups(network, IMAGES), torch.get_rng_state()
    prune(network, {"a": 2}, firsts(groups), groups=groups, example_input=IMAGES)
    assert torch.equal(torch.get_rng_state(), random)


def test_the_check_leaves_batch_norm_statistics_alone() -> None:
    network = two_heads().train()
    groups = find_groups(network, IMAGES)
    before = network.bn.running_mean[:4].clone()
    prune(network, {"stem": 4}, firsts(groups), groups=groups, example_input=IMAGES)
    assert torch.equal(network.bn.running_mean, before)
    assert network.bn.num_batches_tracked == 0


# ── mistakes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kept", "error", "message"),
    [
        ({"stem": (1, 0)}, SurgeryError, r"kept.stem: expected ascending indices below 8, got \[1, 0\]"),
        ({"stem": (1, 1)}, SurgeryError, "kept.stem: expected ascending"),
        ({"stem": (0, 8)}, SurgeryError, "kept.stem: expected ascending indices below 8"),
        ({"stem": (-1, 0)}, SurgeryError, "kept.stem: expected ascending"),
        ({"stem": ()}, PolicyError, "widths.stem: expected 1 to 8 channels, got 0"),
        ({"inner": (0,), "stern": (0,)}, PolicyError, "no channel group 'stern' in this network; did you mean 'stem'"),
    ],
)
def test_indices_that_do_not_fit_are_refused(kept: Any, error: type[PruningError], message: str) -> None:
    network = two_heads()
    groups, before = find_groups(network, IMAGES), held(network)
    with pytest.raises(error, match=message):
        remove(network, groups, kept, IMAGES)
    assert held(network) == before


def test_a_check_needs_an_example() -> None:
    network = two_heads()
    groups = find_groups(network, IMAGES)
    with pytest.raises(SurgeryError, match="expected an `example_input` for the check, got none"):
        prune(network, {"stem": 4}, firsts(groups), groups=groups)
    with pytest.raises(SurgeryError, match="expected an `example_input`"):
        prune(network, {"stem": 4}, firsts(groups), check=False)


def test_widths_and_rankings_of_another_network_are_refused() -> None:
    network = two_heads()
    groups, before = find_groups(network, IMAGES), held(network)
    with pytest.raises(PolicyError, match=r"widths.stem: expected 1 to 8 channels, got 9"):
        prune(network, {"inner": 2, "stem": 9}, firsts(groups), groups=groups, example_input=IMAGES)
    with pytest.raises(RankingError, match="ranking 'other': no group 'stem'"):
        prune(network, {"stem": 4}, NestedRanking("other", {}), groups=groups, example_input=IMAGES)
    policy = Policy(model=ModelSpec(name="x"), network="0" * 16, widths={"stem": 4})
    with pytest.raises(PolicyError, match="made for a network with signature 0000000000000000"):
        prune(network, policy, firsts(groups), groups=groups, example_input=IMAGES)
    assert held(network) == before


def test_a_network_that_was_cut_before_is_refused() -> None:
    network = two_heads()
    groups = find_groups(network, IMAGES)
    prune(network, {"inner": 3}, firsts(groups), groups=groups, example_input=IMAGES)
    before = held(network)
    for example in (None, IMAGES):
        with pytest.raises(
            SurgeryError, match=r"'inner.weight': expected 6 channels, got 3; was the network cut before"
        ):
            remove(network, groups, {"inner": (0, 1)}, example)
    with pytest.raises(SurgeryError, match=r"'inner.weight': expected a parameter or a buffer, got none"):
        remove(nn.Sequential(nn.Linear(2, 2)), groups, {"inner": (0, 1)})
    assert held(network) == before


# ── all or nothing ───────────────────────────────────────────────────────────────────────────────────────────────────


class Stopped(BaseException):
    """Not an Exception: as an interrupt from the keyboard is not."""


def stop_at(count: int, function: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    left = iter(range(count))

    def stopping(*arguments: Any, **named: Any) -> Any:
        if next(left, None) is None:
            raise error
        return function(*arguments, **named)

    return stopping


@pytest.mark.parametrize(
    "error", [Stopped(), KeyboardInterrupt(), MemoryError("no more")], ids=lambda e: type(e).__name__
)
@pytest.mark.parametrize(
    ("place", "count"),
    [
        ("masked_outputs", 0),
        *[("_shrink", count) for count in (0, 1, 7, 20)],
        *[("_tell_sizes", count) for count in (0, 5)],
        ("check_equal", 0),
        ("_difference", 0),
    ],
)
def test_whatever_stops_a_cut_leaves_everything_as_it_was(
    monkeypatch: pytest.MonkeyPatch, place: str, count: int, error: BaseException
) -> None:
    network = two_heads()
    groups, before, random = find_groups(network, IMAGES), held(network), torch.get_rng_state()
    values = copy.deepcopy(network.state_dict())
    module = pruning.cutting if hasattr(pruning.cutting, place) else pruning.masking
    monkeypatch.setattr(module, place, stop_at(count, getattr(module, place), error))
    with pytest.raises(type(error)):
        prune(network, half(groups), random_ranking(groups), groups=groups, example_input=IMAGES)
    assert held(network) == before
    assert all(torch.equal(tensor, values[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


class Stubborn(nn.Module):
    """Its forward fails, is interrupted, or is wrong as soon as it is not as wide as it was built."""

    def __init__(self, protest: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.check = Check(protest)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.check(F.relu(self.a(x))))


class Check(nn.Identity):
    """An identity for whoever follows channels."""

    def __init__(self, protest: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.protest = protest
        self.register_forward_hook(lambda module, inputs, output: self.protest(output) if output.shape[1] < 8 else None)


def fail(x: Tensor) -> Tensor:
    raise RuntimeError("this network is eight channels wide")


def interrupt(x: Tensor) -> Tensor:
    raise KeyboardInterrupt


def shift(x: Tensor) -> Tensor:
    return x.roll(1, dims=1)


def spoil(x: Tensor) -> Tensor:
    return x * torch.nan


@pytest.mark.parametrize(
    ("protest", "error", "message"),
    [
        (fail, SurgeryError, "^cut network fails in layer 'check': this network is eight channels wide$"),
        (shift, SurgeryError, "^cut network differs from the masked one by .*, more than"),
        (spoil, SurgeryError, "^cut network differs from the masked one by nan"),
        (interrupt, KeyboardInterrupt, None),
    ],
)
def test_a_network_that_the_cut_broke_is_given_back_whole(
    protest: Callable[[Tensor], Tensor], error: type[BaseException], message: str | None
) -> None:
    network = Stubborn(protest).train()
    groups, before = find_groups(network, IMAGES), held(network)
    with pytest.raises(error, match=message):
        prune(network, {"a": 5}, random_ranking(groups), groups=groups, example_input=IMAGES)
    assert held(network) == before


def test_a_training_head_that_does_not_fit_is_found() -> None:
    network = two_heads().eval()
    groups = find_groups(network, IMAGES)
    last = groups["last"]
    forgetful = replace(last, readers=tuple(part for part in last.readers if part.layer != "aux"))
    before = held(network)
    with pytest.raises(SurgeryError, match="cut network fails in layer 'aux'"):
        prune(network, {"last": 5}, firsts(groups), groups=ChannelGroups((forgetful,)), example_input=IMAGES)
    assert held(network) == before


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.a(x)
        return {"first": self.first(x), "rest": [self.second(x), x.shape[0]]}


@pytest.mark.parametrize("layer", ["first", "second"])
def test_every_output_is_compared(layer: str) -> None:
    network = TwoOutputs()
    groups = find_groups(network, IMAGES)
    wrong = tuple(reverse(part) if part.layer == layer else part for part in groups["a"].readers)
    before = held(network)
    with pytest.raises(SurgeryError, match="cut network differs from the masked one"):
        remove(network, ChannelGroups((replace(groups["a"], readers=wrong),)), {"a": (0, 1, 5)}, IMAGES)
    assert held(network) == before


def reverse(part: Slice) -> Slice:
    """The same places for other channels, as a follower would find that lost its way."""
    return replace(part, positions=part.positions[::-1])


def test_an_example_that_does_not_fit_is_told_before_the_cut() -> None:
    network = two_heads()
    groups, before = find_groups(network, IMAGES), held(network)
    with pytest.raises(SurgeryError, match=r"TwoHeads does not run on \(1, 5, 16, 16\)"):
        prune(network, {"stem": 4}, firsts(groups), groups=groups, example_input=torch.zeros(1, 5, 16, 16))
    assert held(network) == before


# ── no memory is lost ────────────────────────────────────────────────────────────────────────────────────────────────


def test_two_hundred_cuts_leave_no_network_behind() -> None:
    def cut(width: int) -> weakref.ref[nn.Module]:
        network = two_heads()
        groups = find_groups(network, IMAGES)
        prune(network, {"stem": width, "inner": width}, firsts(groups), groups=groups, example_input=IMAGES)
        return weakref.ref(network)

    def tensors() -> int:
        gc.collect()
        return sum(type(thing) in (Tensor, nn.Parameter) for thing in gc.get_objects())

    alive = [cut(1 + number % 6) for number in range(10)]
    before = tensors()
    alive += [cut(1 + number % 6) for number in range(190)]
    assert tensors() <= before
    assert not any(network() for network in alive)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_network_on_a_gpu_is_cut_there() -> None:
    network = two_heads().cuda()
    groups = find_groups(network, IMAGES)
    prune(network, half(groups), random_ranking(groups), groups=groups, example_input=IMAGES)
    assert {tensor.device.type for tensor in network.state_dict().values()} == {"cuda"}


class UnderTwoNames(nn.Module):
    """One layer that two attributes hold."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.also_b = self.b

    def forward(self, x: Tensor) -> Tensor:
        return self.also_b(self.a(x)).mean((2, 3))


def test_a_layer_with_two_names_keeps_its_weights_when_a_cut_is_refused() -> None:
    torch.manual_seed(0)
    network = UnderTwoNames()
    groups = find_groups(network, IMAGES)
    before = network.b.weight
    masked_outputs(network, groups, {"a": (0, 1, 2)}, IMAGES)
    assert network.b.weight is network.also_b.weight is before
    prune(network, {"a": 3}, random_ranking(groups), groups=groups, example_input=IMAGES)
    assert network.b.in_channels == 3


def test_rounding_of_an_output_that_is_zero_is_not_refused() -> None:
    for seed in range(8):
        torch.manual_seed(seed)
        layers = (nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.InstanceNorm2d(32), nn.AdaptiveAvgPool2d(1))
        network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 4, bias=False)).double().eval()
        images = torch.randn(2, 3, 8, 8).double()
        groups = find_groups(network, images)
        assert network(images).abs().max() < 1e-12
        prune(network, half(groups), random_ranking(groups), groups=groups, example_input=images)


@pytest.mark.parametrize("hears_the_input", [True, False])
def test_what_differs_more_than_rounding_makes_it_is_refused(hears_the_input: bool) -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, padding=1), nn.InstanceNorm2d(32), nn.AdaptiveAvgPool2d(1))
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 4, bias=False)).double().eval()
    if not hears_the_input:
        nn.init.zeros_(network[0].weight)
    noise = noise_like(IMAGES, network)
    zeros = run_on(network, noise).detach()
    rounding = float((run_nudged(network, noise) - zeros).detach().abs().max())
    assert 1e-17 < rounding < 1e-14
    check_equal(network, IMAGES, [zeros + 90 * rounding])
    with pytest.raises(SurgeryError, match="cut network differs from the masked one by"):
        check_equal(network, IMAGES, [zeros + 110 * rounding])


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_network_of_half_precision_is_checked_as_well(kind: torch.dtype) -> None:
    network = TwoOutputs().to(kind)
    groups = find_groups(network, IMAGES.to(kind))
    wrong = tuple(reverse(part) if part.layer == "first" else part for part in groups["a"].readers)
    before = held(network)
    with pytest.raises(SurgeryError, match="cut network differs from the masked one"):
        remove(network, ChannelGroups((replace(groups["a"], readers=wrong),)), {"a": (0, 1, 5)}, IMAGES)
    assert held(network) == before
    prune(network, {"a": 3}, random_ranking(groups), groups=groups, example_input=IMAGES)
    assert {parameter.dtype for parameter in network.parameters()} == {kind}


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_rounding_hides_no_more_of_an_output_than_it_does_in_single(kind: torch.dtype) -> None:
    """However far rounding moves it: a network of a large gain could hide a wrong cut."""

    class Amplifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(0.01 / torch.finfo(kind).eps, dtype=kind))

        def forward(self, x: Tensor) -> Tensor:
            return (self.gain * x.mean((1, 2, 3))).sin()

    network = Amplifier()
    noise = noise_like(IMAGES, network)
    given = run_on(network, noise).detach()
    assert float((run_nudged(network, noise) - given).abs().max()) > 1e-3
    largest = float(given.abs().max())
    check_equal(network, IMAGES, [given + 9e-5 * largest])
    with pytest.raises(SurgeryError, match=r"differs from the masked one by 0\.000\d+, more than"):
        check_equal(network, IMAGES, [given + 2e-4 * largest])


def test_outputs_that_are_no_numbers_do_not_keep_a_difference_from_being_told() -> None:
    class WithMask(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.mean((1, 2, 3)), x > 0

    network = WithMask()
    mean, mask = run_on(network, noise_like(IMAGES, network))
    check_equal(network, IMAGES, [mean, mask])
    with pytest.raises(SurgeryError, match="cut network differs from the masked one by"):
        check_equal(network, IMAGES, [mean + 0.1, mask])
