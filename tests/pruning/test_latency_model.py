"""A fitted latency is what it was fitted to where it can be, never falls, and says how far off it is."""

from __future__ import annotations

import copy
import json
import pickle
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pruning import latency_model
from pruning.allocation.budget import project
from pruning.cost import Cost, CostModel, count_cost
from pruning.errors import OptionError, PolicyError
from pruning.finding import find_groups
from pruning.groups import ChannelGroups
from pruning.latency_model import LatencyModel, draw_widths, measure_widths

IMAGES = torch.zeros(2, 3, 8, 8)


def make_chain(width: int = 16) -> nn.Sequential:
    layers = [nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(width, 12, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4))


@cache
def chain() -> tuple[ChannelGroups, CostModel]:
    network = make_chain()
    groups = find_groups(network, IMAGES)
    return groups, CostModel(network, groups, IMAGES)


def drawn(count: int, seed: int = 0) -> np.ndarray:
    return draw_widths(*chain(), count=count, seed=seed)


def linear(widths: np.ndarray) -> np.ndarray:
    """Milliseconds where the first layer is slow to write, the middle ones to multiply, and the third to be read."""
    first, second, third, last = widths.T
    return 3 + 0.02 * first + 1e-3 * (first * second + second * third) + 0.01 * third + 4e-3 * last


@cache
def fitted() -> LatencyModel:
    return LatencyModel.fit(chain()[1], drawn(30), linear(drawn(30)))


# ── the fit ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_latency_that_is_a_sum_of_such_parts_is_recovered() -> None:
    unseen = drawn(50, seed=1)
    assert fitted().microseconds(unseen).tolist() == np.rint(1000 * linear(unseen)).tolist()
    assert fitted().microseconds(unseen).dtype == np.int64
    assert fitted().error < 1e-9


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(2, 12))
def test_a_prediction_never_falls_as_widths_grow_whatever_was_measured(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    model = LatencyModel.fit(chain()[1], drawn(count, seed), rng.lognormal(0, 2, count))
    narrow = drawn(40, seed + 1)
    wide = narrow + rng.integers(0, chain()[1].widths - narrow + 1)
    assert (model.microseconds(narrow) <= model.microseconds(wide)).all()
    assert [model.microseconds(row[None])[0] for row in wide] == model.microseconds(wide).tolist()


def test_the_error_is_that_of_fits_that_did_not_see_the_measurement() -> None:
    widths, cost = drawn(6), chain()[1]
    milliseconds = 1e6 * np.random.default_rng(0).lognormal(size=6)  # so long that whole µs do not show
    errors = []
    for index in range(6):
        others = np.arange(6) != index
        model = LatencyModel.fit(cost, widths[others], milliseconds[others])
        errors.append(abs(model.microseconds(widths[[index]])[0] / (1000 * milliseconds[index]) - 1))
    assert LatencyModel.fit(cost, widths, milliseconds).error == pytest.approx(np.median(errors), rel=1e-6)


@pytest.mark.parametrize("count", [20, 200])
@pytest.mark.parametrize("spread", [0.05, 0.3])
def test_the_error_of_noisy_measurements_is_that_of_new_ones(count: int, spread: float) -> None:
    def noisy(seed: int) -> tuple[np.ndarray, np.ndarray]:
        noise = np.random.default_rng(seed).uniform(1 - spread, 1 + spread, count)
        return drawn(count, seed), linear(drawn(count, seed)) * noise

    models = [LatencyModel.fit(chain()[1], *noisy(seed)) for seed in range(10)]
    widths, milliseconds = noisy(10)
    new = [np.median(abs(model.microseconds(widths) / (1000 * milliseconds) - 1)) for model in models]
    told = np.mean([model.error for model in models])
    assert 0.4 * spread < told < spread
    assert told == pytest.approx(np.mean(new), rel=0.25)


def test_a_slow_network_counts_no_more_than_a_fast_one() -> None:
    widths = np.repeat(drawn(2), 5, axis=0)  # narrowest and full, five times each, by the factors 0.8 and 1.2
    model = LatencyModel.fit(chain()[1], widths, np.repeat([1.0, 100.0], 5) * ([0.8, 1.2] * 5))
    measured = model.microseconds(widths[[0, -1]]) / [1000, 100_000]
    assert abs(measured - 1).max() < 0.2


@pytest.mark.parametrize(
    ("widths", "milliseconds", "message"),
    [
        (np.ones((1, 4)), np.ones(1), r"expected widths \[n, 4\] and milliseconds \[n\], n at least 2, got \[1, 4\]"),
        (np.ones((3, 3)), np.ones(3), r"got \[3, 3\] and \[3\]"),
        (np.ones((3, 4)), np.ones(2), r"got \[3, 4\] and \[2\]"),
        (np.ones((2, 4)), np.array([1, 0]), "expected milliseconds above 0"),
        (np.ones((2, 4)), np.array([1, np.nan]), "expected milliseconds above 0"),
    ],
)
def test_measurements_that_cannot_be_fitted_are_refused(widths, milliseconds, message) -> None:
    with pytest.raises(OptionError, match=message):
        LatencyModel.fit(chain()[1], widths, milliseconds)


# ── as a measure, and as a value ─────────────────────────────────────────────────────────────────────────────────────


def test_budgets_of_time_are_met() -> None:
    groups, cost = chain()
    model, full = fitted(), groups.widths
    for microseconds in range(3050, 4040, 50):
        widths = project(
            groups, cost, lambda t: {n: t * w for n, w in full.items()}, microseconds, measure=model.microseconds
        )
        spent = model.microseconds(np.array([list(widths.values())]))[0]
        assert 0.99 * microseconds <= spent <= microseconds
    with pytest.raises(PolicyError, match="budget: expected 3036 to 4040 µs, which the widths can reach, got 20"):
        project(groups, cost, lambda t: {n: t * w for n, w in full.items()}, 20, measure=model.microseconds)


def test_it_survives_json_and_pickle_and_compares_by_value() -> None:
    model = fitted()
    again = LatencyModel.from_dict(json.loads(json.dumps(model.to_dict())))
    assert again == model == pickle.loads(pickle.dumps(model)) == copy.deepcopy(model)
    assert again.microseconds(drawn(9, 3)).tolist() == model.microseconds(drawn(9, 3)).tolist()
    assert again == model  # also where one has worked and the other has not
    assert model != LatencyModel.fit(chain()[1], drawn(30), 2 * linear(drawn(30)))
    assert model != "a model"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.pop("error"), "latency model: error: "),
        (lambda values: values["parts"][0].update(coefficient=-1.0), r"latency model: parts\.0\.coefficient: "),
        (lambda values: values["widths"].pop("0"), r"expected groups with a width, got \['0'\]"),
        (lambda values: values["widths"].update({"0": 17}), "expected products that grow with the widths"),
        (lambda values: values["parts"][-1]["products"][0].update(factor=-1), "expected products that grow"),
        (lambda values: values.update(extra=1), "latency model: extra: unknown key"),
    ],
)
def test_values_that_are_no_such_model_are_refused(change, message) -> None:
    values = fitted().to_dict()
    change(values)
    with pytest.raises(OptionError, match=message):
        LatencyModel.from_dict(values)


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("round_to", [1, 4])
def test_widths_are_spread_from_the_narrowest_to_the_full_ones(round_to: int) -> None:
    groups, cost = chain()
    widths = draw_widths(groups, cost, count=40, seed=0, round_to=round_to)
    assert widths[0].tolist() == [round_to] * 4
    assert widths[-1].tolist() == list(groups.widths.values())
    assert (widths % round_to == 0).all()
    macs = cost.costs(widths)[0] / cost.full.macs
    assert np.corrcoef(macs, np.arange(40))[0, 1] > 0.7
    assert len(np.unique(widths, axis=0)) > 20
    assert (draw_widths(groups, cost, count=40, seed=0, round_to=round_to) == widths).all()
    assert (draw_widths(groups, cost, count=40, seed=1, round_to=round_to) != widths).any()


def test_stages_are_narrow_and_wide_by_themselves() -> None:
    parts = drawn(40) / chain()[1].widths
    first, last = parts[:, :3].mean(axis=1), parts[:, 3]
    assert ((first < 0.35) & (last > 0.65)).any()
    assert ((first > 0.65) & (last < 0.35)).any()


def test_what_is_measured_are_cuts_of_the_network_to_the_widths_that_are_told(monkeypatch) -> None:
    groups, cost = chain()
    network = make_chain()
    before = copy.deepcopy(network.state_dict())

    def macs(networks, example_input, *, repeats, warmup):
        assert (repeats, warmup) == (7, 1)
        assert len(networks) <= latency_model.TOGETHER + 1
        slow = next(minutes)
        return {
            name: SimpleNamespace(median_ms=slow * count_cost(cut, example_input).macs)
            for name, cut in networks.items()
        }

    minutes = iter([1, 3, 1])
    monkeypatch.setattr(latency_model, "compare_latency", macs)
    some = groups.only(["0", "5"])
    widths, milliseconds = measure_widths(network, some, cost, IMAGES, count=20, repeats=7, warmup=1)
    assert milliseconds == pytest.approx(cost.costs(widths)[0])
    assert (widths[:, [1, 3]] == [16, 12]).all()
    assert len(np.unique(widths[:, [0, 2]], axis=0)) > 8
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_the_whole_network_is_predicted_to_be_slower_than_the_narrowest() -> None:
    network, images = make_chain(64), torch.zeros(8, 3, 16, 16)
    groups = find_groups(network, images)
    cost = CostModel(network, groups, images)
    assert cost.full == Cost(macs=count_cost(network, images).macs, params=count_cost(network, images).params)
    widths, milliseconds = measure_widths(network, groups, cost, images, count=8, repeats=5, warmup=1)
    model = LatencyModel.fit(cost, widths, milliseconds)
    narrow, whole = model.microseconds(widths[[0, -1]])
    assert 0 < narrow < whole
    assert model.error > 0


def test_one_network_is_nothing_to_fit() -> None:
    with pytest.raises(OptionError, match="latency model: expected at least 2 networks to measure, got 1"):
        measure_widths(make_chain(), *chain(), IMAGES, count=1)
