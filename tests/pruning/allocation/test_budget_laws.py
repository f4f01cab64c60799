"""What holds for the projection whatever the network and the measure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pruning.allocation.budget import TOLERANCE, project
from pruning.cost import CostModel
from pruning.errors import PolicyError, UnknownNameError
from pruning.finding import find_groups
from pruning.groups import ChannelGroups

LAW = settings(max_examples=60, deadline=None)
IMAGE = torch.zeros(2, 3, 8, 8)
UNITS = {"macs": "MACs", "params": "parameters", "stairs": "µs"}


class Block(nn.Module):
    def __init__(self, outer: int, inner: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(outer, inner, 3, padding=1), nn.BatchNorm2d(inner)
        self.second = nn.Conv2d(inner, outer, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(torch.relu(self.norm(self.first(x)))))


def draw_network(rng: np.random.Generator, widest: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    width = 3
    for wider in rng.integers(2, widest + 1, size=rng.integers(1, 4)).tolist():
        layers += [nn.Conv2d(width, wider, 3, padding=1, stride=int(rng.integers(1, 3))), nn.ReLU()]
        layers += [Block(wider, int(rng.integers(2, widest + 1))) for _ in range(rng.integers(0, 3))]
        width = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


class Stairs:
    """A cost with landings: blocks of channels cost as much as full ones, and blocks of two groups multiply."""

    def __init__(self, groups: int, rng: np.random.Generator) -> None:
        self.block = rng.integers(1, 6, groups)
        self.each = rng.integers(1, 50, groups)
        self.pairs = rng.integers(0, 4, (groups, groups))

    def __call__(self, widths: np.ndarray) -> np.ndarray:
        blocks = -(-widths // self.block)
        return 100 + blocks @ self.each + ((blocks @ self.pairs) * blocks).sum(axis=1)


@cache
def model_of(seed: int, widest: int) -> tuple[ChannelGroups, CostModel, Stairs]:
    rng = np.random.default_rng(seed)
    network = draw_network(rng, widest)
    groups = find_groups(network, IMAGE)
    return groups, CostModel(network, groups, IMAGE), Stairs(len(groups), rng)


class Problem(NamedTuple):
    groups: ChannelGroups
    cost: CostModel
    direction: Callable[[float], dict[str, float]]
    round_to: int
    kind: str
    measure: str | Stairs

    def project(self, budget: int | None) -> dict[str, int]:
        return project(self.groups, self.cost, self.direction, budget, round_to=self.round_to, measure=self.measure)

    def price(self, widths: dict[str, int]) -> int:
        whole = {**dict(zip(self.cost.groups, self.cost.widths.tolist(), strict=True)), **widths}
        if isinstance(self.measure, Stairs):
            return int(self.measure(np.array([list(whole.values())]))[0])
        return getattr(self.cost.cost(whole), self.measure)

    def legal(self, name: str) -> list[int]:
        group, wish = self.groups[name], self.direction(0.0)[name]
        step = [*range(self.round_to, group.width, self.round_to), group.width]
        enough = [width for width in step if width >= max(group.minimum, wish)]
        return enough or [group.width]

    @property
    def lowest(self) -> int:
        return self.price({name: self.legal(name)[0] for name in self.groups})

    @property
    def highest(self) -> int:
        return self.price(self.groups.widths)

    def budget(self, share: float) -> int:
        return self.lowest + round(share * (self.highest - self.lowest))


@st.composite
def problems(draw, widest: tuple[int, ...] = (6, 24), steps: tuple[int, ...] = (1, 2, 8)) -> Problem:
    groups, cost, stairs = model_of(draw(st.integers(0, 4)), draw(st.sampled_from(widest)))
    some = draw(st.lists(st.sampled_from(sorted(groups)), min_size=1, unique=True))
    kind = draw(st.sampled_from(sorted(UNITS)))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    knots = np.sort(rng.random((len(groups), 4)), axis=1) * rng.uniform(0.3, 1.5)
    jumps = draw(st.booleans())

    def direction(t: float) -> dict[str, float]:
        place = 3 * t
        low = min(int(place), 2)
        part = round(place - low) if jumps else place - low
        shares = knots[:, low] + part * (knots[:, low + 1] - knots[:, low])
        return {name: share * group.width for (name, group), share in zip(groups.items(), shares, strict=True)}

    return Problem(
        groups.only(some), cost, direction, draw(st.sampled_from(steps)), kind, stairs if kind == "stairs" else kind
    )


SHARES = st.floats(0, 1)


@LAW
@given(problem=problems(), share=SHARES)
def test_never_above_the_budget_and_only_widths_that_a_group_may_have(problem: Problem, share: float) -> None:
    budget = problem.budget(share)
    widths = problem.project(budget)
    assert problem.price(widths) <= budget
    assert list(widths) == list(problem.groups)
    assert all(width in problem.legal(name) for name, width in widths.items())


def wider(problem: Problem, widths: dict[str, int]) -> Iterator[int]:
    """The costs where one group alone takes one to eight steps."""
    for name in problem.groups:
        legal = problem.legal(name)
        rung = legal.index(widths[name])
        for width in legal[rung + 1 : rung + 9]:
            yield problem.price({**widths, name: width})


@LAW
@given(problem=problems(), share=SHARES)
def test_within_one_percent_or_no_steps_of_one_group_fit(problem: Problem, share: float) -> None:
    budget = problem.budget(share)
    widths = problem.project(budget)
    spent = problem.price(widths)
    assert spent >= (1 - TOLERANCE) * budget or all(
        price > budget or price == spent for price in wider(problem, widths)
    )


@LAW
@given(problem=problems(widest=(6,), steps=(1, 2)), share=SHARES)
def test_no_widths_at_all_spend_a_cheapest_step_more(problem: Problem, share: float) -> None:
    ladders = [problem.legal(name) for name in problem.groups]
    assume(np.prod([len(ladder) for ladder in ladders]) <= 20_000)
    budget = problem.budget(share)
    widths = problem.project(budget)
    spent = problem.price(widths)
    whole = {**dict(zip(problem.cost.groups, problem.cost.widths.tolist(), strict=True))}
    columns = [problem.cost.groups.index(name) for name in problem.groups]
    rows = np.tile(list(whole.values()), (int(np.prod([len(ladder) for ladder in ladders])), 1))
    rows[:, columns] = list(itertools.product(*ladders))
    if isinstance(problem.measure, Stairs):
        prices = problem.measure(rows)
    else:
        prices = problem.cost.costs(rows)[0 if problem.kind == "macs" else 1]
    best = max(prices[prices <= budget])
    gap = min((price - spent for price in wider(problem, widths) if price > spent), default=0)
    assert spent >= (1 - TOLERANCE) * budget or spent == best or best < spent + gap


@LAW
@given(problem=problems(), shares=st.lists(SHARES, min_size=2, max_size=2), near=st.booleans())
def test_a_larger_budget_never_costs_less(problem: Problem, shares: list[float], near: bool) -> None:
    small, large = sorted(problem.budget(share) for share in shares)
    large = small + (large - small) % 20 if near else large
    assert problem.price(problem.project(small)) <= problem.price(problem.project(large))


@LAW
@given(problem=problems(), more=st.integers(0, 10**12))
def test_a_budget_of_the_full_cost_or_more_gives_the_full_widths(problem: Problem, more: int) -> None:
    assert problem.project(problem.highest + more) == problem.groups.widths


@LAW
@given(problem=problems(), less=st.integers(1, 10**12))
def test_what_no_widths_reach_is_refused_and_the_range_is_told(problem: Problem, less: int) -> None:
    low, high, unit = problem.lowest, problem.highest, UNITS[problem.kind]
    expected = f"budget: expected {low} to {high} {unit}, which the widths can reach, got {low - less}"
    with pytest.raises(PolicyError, match=f"^{re.escape(expected)}$"):
        problem.project(low - less)
    assert problem.price(problem.project(low)) == low
    with pytest.raises(PolicyError, match=f"^budget: expected a number of {unit}, got none$"):
        problem.project(None)


@LAW
@given(problem=problems(), share=SHARES)
def test_equal_inputs_give_equal_widths(problem: Problem, share: float) -> None:
    again = problem._replace(groups=ChannelGroups(problem.groups.groups), direction=lambda t: problem.direction(t))
    assert problem.project(problem.budget(share)) == again.project(problem.budget(share))


def test_a_measure_of_another_name_is_told() -> None:
    groups, cost, _ = model_of(0, 24)
    with pytest.raises(UnknownNameError, match="unknown measure 'mac'; did you mean 'macs'"):
        project(groups, cost, lambda t: groups.widths, 10, measure="mac")
