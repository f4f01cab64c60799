"""Laws of a cut, over random networks of all that a rule follows, in strange orders, and some that none does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from typing import Any
from unittest.mock import patch

import pytest
import torch
from channel_labels import Channel
from hypothesis import given, note, settings
from hypothesis import strategies as st
from random_layers import FunctionalConvolution, Step
from random_networks import PLAIN, plans
from random_programs import Plan
from torch import Tensor, nn
from two_heads import held
from zeroing import outputs, random_ranking

import pruning.cutting
import pruning.masking
from pruning.cost import Cost, CostModel, count_cost
from pruning.finding import find_groups
from pruning.groups import ChannelGroups
from pruning.lineage import FIXED, Lineage, Role, follow
from pruning.ranking import NestedRanking
from pruning.surgery import prune

SHORT, LONG, PARTS = 200, 1000, 5


@dataclass(frozen=True)
class Cut:
    """A drawn network, and widths and channels drawn for it."""

    plan: Plan
    seed: int

    def network(self) -> nn.Module:
        """Return a copy of the network before the cut."""
        return copy.deepcopy(self.uncut)

    @cached_property
    def uncut(self) -> nn.Module:
        return self.plan.network()

    @cached_property
    def images(self) -> Tensor:
        return self.plan.images()

    @cached_property
    def lineage(self) -> Lineage:
        return follow(self.uncut, self.images, thinned=self.groups.thinned)[0]

    @cached_property
    def groups(self) -> ChannelGroups:
        return find_groups(self.uncut, self.images)

    @cached_property
    def widths(self) -> dict[str, int]:
        generator = torch.Generator().manual_seed(self.seed)
        return {
            name: int(torch.randint(1, group.width + 1, (), generator=generator)) for name, group in self.groups.items()
        }

    @cached_property
    def ranking(self) -> NestedRanking:
        return random_ranking(self.groups, self.seed)

    @cached_property
    def kept(self) -> dict[str, tuple[int, ...]]:
        cut = {name: width for name, width in self.widths.items() if width < self.groups[name].width}
        return {name: self.ranking.keep(name, width) for name, width in cut.items()}

    def prune(self, network: nn.Module) -> None:
        kept = prune(network, self.widths, self.ranking, groups=self.groups, example_input=self.images)
        assert kept == self.kept

    @cached_property
    def network_cut(self) -> nn.Module:
        network = self.network()
        self.prune(network)
        return network

    @cached_property
    def masked(self) -> list[Tensor]:
        """What the uncut network gives when each step gives zeros for the channels that go."""
        with torch.no_grad():
            return outputs(masked_step_by_step(self)(self.images))


# ── the laws ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def a_cut_network_is_the_masked_one(cut: Cut) -> None:
    with torch.no_grad():
        pruned, whole = cut.network_cut(cut.images), cut.uncut(cut.images)
    assert apart(pruned, cut.masked) < 1e-9  # float64; some norms divide by the tiny variance of a few places
    assert cut.kept or apart(pruned, whole) == 0


def apart(first: Any, second: Any) -> float:
    """Return the largest difference between two outputs, in parts of the largest entry or of 1."""
    pairs = list(zip(outputs(first), outputs(second), strict=True))
    assert all(one.shape == other.shape for one, other in pairs)
    return max(float((one - other).abs().max() / other.abs().max().clamp_min(1)) for one, other in pairs)


def masked_step_by_step(cut: Cut) -> nn.Module:
    """Return the uncut network in which every step gives zeros for each channel that goes.

    Of the groups it takes the makers alone; what becomes of their channels the plan says itself.
    """
    network, labels = cut.network(), cut.plan.labels(cut.groups.thinned)
    gone = set[int]()
    for name, kept in cut.kept.items():
        for part in cut.groups[name].makers:
            lost = set(range(cut.groups[name].width)).difference(kept)
            places = [place for channel in lost for place in part.positions[channel]]
            gone |= {labels.find(labels.makers[part.tensor][place]) for place in places}
    for name, runs in labels.made.items():
        keeps = [[torch.tensor([labels.find(label) not in gone for label in part]) for part in made] for made in runs]
        network.get_submodule(name).register_forward_hook(zeros_for(keeps))
    return network


def zeros_for(keeps: list[list[Tensor]]) -> Callable[..., Any]:
    """Return a hook that makes the outputs of each run of a step zero where they are not kept."""
    runs = cycle(keeps)

    def zero(step: Step, inputs: tuple[Tensor, ...], output: Any) -> Any:
        parts = output if isinstance(output, tuple) else (output,)
        masked = tuple(of_kept(step, inputs, part, keep) for part, keep in zip(parts, next(runs), strict=True))
        return masked if isinstance(output, tuple) else masked[0]

    return zero


def of_kept(step: Step, inputs: tuple[Tensor, ...], output: Tensor, keep: Tensor) -> Tensor:
    axis, places = step.operation.axis, keep.nonzero().flatten()
    kept = step.operation.of_kept(step, inputs[0], keep)
    kept = output.index_select(axis, places) if kept is None else kept
    return torch.zeros_like(output).index_copy(axis, places, kept)


def costs_are_exact(cut: Cut) -> None:
    foretold = CostModel(cut.uncut, cut.groups, cut.images).cost(cut.widths)
    assert foretold == count_cost(cut.network_cut, cut.images) == counted_by_hooks(cut.network_cut, cut.images)


def counted_by_hooks(network: nn.Module, images: Tensor) -> Cost:
    macs = 0

    def count(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        if isinstance(layer, nn.Linear):
            macs += output.numel() * layer.in_features
        elif layer_kind(layer).startswith("ConvTranspose"):
            macs += inputs[0].numel() * layer.weight[0].numel()
        elif layer_kind(layer).startswith("Conv") or isinstance(layer.operation, FunctionalConvolution):
            macs += output.numel() * layer.weight[0].numel()

    def layer_kind(layer: nn.Module) -> str:
        return next((kind.__name__ for kind in type(layer).__mro__ if kind.__module__.startswith("torch.nn")), "")

    counting = copy.deepcopy(network)
    for layer in counting.modules():
        if isinstance(layer, (Step, nn.Linear)) or layer_kind(layer).startswith("Conv"):
            layer.register_forward_hook(count)
    with torch.no_grad():
        counting(images[:1])
    return Cost(macs, sum(parameter.numel() for parameter in network.parameters()))


def groups_share_no_position(cut: Cut) -> None:
    taken = set[tuple[str, int, int]]()
    for group in cut.groups.values():
        assert {len(part.positions) for part in group.slices} == {group.width}
        for part in group.slices:
            places = {(part.tensor, part.axis, place) for positions in part.positions for place in positions}
            assert len(places) == sum(map(len, part.positions))
            assert not places & taken
            taken |= places


def every_channel_is_in_a_group_or_pinned(cut: Cut) -> None:
    made = {channel for note in cut.lineage.notes() if note.role is Role.MAKER for channel in note.ids.tolist()} - {
        FIXED
    }
    assert len(made) == sum(cut.groups.widths.values()) + sum(pin.width for pin in cut.groups.pinned)


def whatever_can_be_cut_is_found(cut: Cut) -> None:
    found: set[Channel] = set()
    for group in cut.groups.values():
        for channel in range(group.width):
            found.add(frozenset((part.tensor, place) for part in group.makers for place in part.positions[channel]))
    missed = cut.plan.labels(cut.groups.thinned).removable() - found
    assert not missed, (missed, cut.groups.pinned)


def groups_are_the_same_each_time(cut: Cut) -> None:
    network, random = disarranged(cut).float(), torch.get_rng_state()
    before = traces(network)
    assert find_groups(network, cut.images.float()[:1]) == cut.groups
    assert traces(network) == before
    assert torch.equal(torch.get_rng_state(), random)


class Stopped(BaseException):
    """Not an Exception: as an interrupt from the keyboard is not."""


def stopping(function: Callable[..., Any], calls: int) -> Callable[..., Any]:
    left = iter(range(calls))

    def stop(*arguments: Any, **named: Any) -> Any:
        if next(left, None) is None:
            raise Stopped
        return function(*arguments, **named)

    return stop


FAILING = ((pruning.cutting, "_shrink"), (pruning.cutting, "_tell_sizes"), (pruning.masking, "_difference"))


def a_cut_that_fails_leaves_everything_as_it_was(cut: Cut) -> None:
    shrunk = {(part.tensor, part.axis) for name in cut.kept for part in cut.groups[name].slices}
    module, place = FAILING[cut.seed % len(FAILING)]
    calls = cut.seed % max(1, len(shrunk)) if place == "_shrink" else 0
    if not shrunk:
        return
    network, random = cut.network(), torch.get_rng_state()
    before, values = held(network), copy.deepcopy(network.state_dict())
    with patch.object(module, place, stopping(getattr(module, place), calls)), pytest.raises(Stopped):
        cut.prune(network)
    assert held(network) == before
    assert all(torch.equal(tensor, values[name]) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    with torch.no_grad():
        assert apart(network(cut.images), cut.uncut(cut.images)) == 0


def a_cut_leaves_no_trace(cut: Cut) -> None:
    network, random = disarranged(cut), torch.get_rng_state()
    before = traces(network)
    cut.prune(network)
    assert traces(network) == before
    assert torch.equal(torch.get_rng_state(), random)


def disarranged(cut: Cut) -> nn.Module:
    """Return a copy of the network, some modules in train mode, some parameters frozen."""
    network = cut.network()
    for index, module in enumerate(network.modules()):
        module.training = (cut.seed + index) % 3 > 0
    for index, parameter in enumerate(network.parameters()):
        parameter.requires_grad_((cut.seed + index) % 2 > 0)
    return network


def traces(network: nn.Module) -> list[Any]:
    """Return whatever a module and its parameters hold beside their numbers."""
    found: list[Any] = []
    for name, module in network.named_modules():
        hooks = [len(table) for key, table in vars(module).items() if "hooks" in key and table is not None]
        tensors = [(leaf, p.requires_grad, p.grad, p.is_leaf) for leaf, p in module.named_parameters(recurse=False)]
        buffers = [(leaf, b.requires_grad, b.dtype) for leaf, b in module.named_buffers(recurse=False)]
        found.append((name, type(module), module.training, hooks, tensors, buffers, sorted(vars(module))))
    return found


def a_cut_network_trains(cut: Cut) -> None:
    network = copy.deepcopy(cut.network_cut).train()
    images = cut.images.clone().requires_grad_()  # torch 2.13's group norm may crash without gradients of its input
    with torch.random.fork_rng(devices=[]):
        sum(part.square().mean() for part in outputs(network(images))).backward()


LAWS = (
    whatever_can_be_cut_is_found,
    every_channel_is_in_a_group_or_pinned,
    groups_share_no_position,
    groups_are_the_same_each_time,
    a_cut_network_is_the_masked_one,
    costs_are_exact,
    a_cut_that_fails_leaves_everything_as_it_was,
    a_cut_leaves_no_trace,
    a_cut_network_trains,
)


def check_laws(plan: Plan, seed: int) -> None:
    note(plan.source())
    cut = Cut(plan, seed)
    note(f"widths {cut.widths} of {cut.groups.widths}")
    for law in LAWS:
        law(cut)


SEEDS = st.integers(0, 999)


@settings(max_examples=SHORT, derandomize=True)
@given(plan=plans(), seed=SEEDS)
def test_the_laws_of_a_cut_hold_for_random_networks(plan: Plan, seed: int) -> None:
    check_laws(plan, seed)


@settings(max_examples=SHORT // 4, derandomize=True)
@given(plan=plans(PLAIN, longest=5))
def test_of_plain_layers_nothing_is_pinned_but_what_comes_out(plan: Plan) -> None:
    note(plan.source())
    pinned = find_groups(plan.network(), plan.images()).pinned
    reasons = {"the network's output at 'output'", "nothing reads them", "they can only be removed all at once"}
    assert {pin.reason for pin in pinned} <= reasons


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(PARTS))
def test_the_laws_of_a_cut_hold_for_many_random_networks(part: int) -> None:
    @settings(max_examples=LONG, database=None, print_blob=True)
    @given(plan=plans(longest=8), seed=SEEDS)
    def check(plan: Plan, seed: int) -> None:
        check_laws(plan, seed)

    check()
