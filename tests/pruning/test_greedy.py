"""A ranking found pick by pick: its scores, its file, and the weights that it brings to a cut."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pruning.errors import RankingError, SurgeryError
from pruning.finding import find_groups
from pruning.greedy import FittingRanking, GreedyRanking
from pruning.ranking import load_ranking, write_ranking
from pruning.surgery import prune

EXAMPLE = torch.zeros(1, 3, 6, 6)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))


@pytest.fixture
def ranking():
    generator = torch.Generator().manual_seed(1)
    return GreedyRanking(
        "dcp",
        {"0": torch.tensor([2, 0, 3, 1]), "2": torch.tensor([1, 0, 2])},
        {"0": torch.tensor([4.0, 2.0, 2.4, 2.2]), "2": torch.tensor([1.0, 0.5, 0.5, 0.0])},
        {"0": 2, "2": 3},
        {"0": {"2.weight": torch.randn(3, 4, 3, 3, generator=generator), "2.bias": torch.ones(3)}},
    )


def test_scores_are_the_smallest_relative_drop_so_far(ranking):
    assert ranking.drops["0"].tolist() == pytest.approx([0.5, 0.1, 0.05])
    assert ranking.scores["0"].tolist() == pytest.approx([0.1, 0.0, 0.5, 0.05])  # channel 1 was never tried
    assert ranking.scores["2"].tolist() == pytest.approx([0.0, 0.5, 0.0])
    assert ranking.keep("0", 2) == (0, 2)
    assert isinstance(ranking, FittingRanking)


def test_a_file_gives_it_back_whole(ranking, tmp_path):
    ranking.base = {"0.bias": torch.arange(4.0)}
    ranking.save(tmp_path / "r.safetensors")
    again = load_ranking(tmp_path / "r.safetensors")
    assert isinstance(again, GreedyRanking)
    assert (again.criterion, again.fitted_widths) == ("dcp", {"0": 2, "2": 3})
    for name in ("0", "2"):
        assert torch.equal(again.orders[name], ranking.orders[name])
        assert torch.equal(again.losses[name], ranking.losses[name])
    assert {key: value.tolist() for key, value in again.base.items()} == {"0.bias": [0, 1, 2, 3]}
    assert all(torch.equal(again.fitted["0"][key], value) for key, value in ranking.fitted["0"].items())


def test_a_file_without_its_tensors_is_refused(ranking, tmp_path):
    parts = {"order": ranking.orders, "loss": ranking.losses, "fitted": {}}
    write_ranking(tmp_path / "r.safetensors", "greedy", "dcp", parts, {"fitted_widths": {"0": 2, "2": 3}})
    load_ranking(tmp_path / "r.safetensors")
    write_ranking(tmp_path / "r.safetensors", "greedy", "dcp", parts)
    with pytest.raises(RankingError, match="expected the tensors of a greedy one, got others: 'fitted_widths'"):
        load_ranking(tmp_path / "r.safetensors")


@pytest.mark.parametrize(("width", "fitted"), [(2, True), (3, False)])
def test_a_cut_takes_the_fitted_weights_at_their_width_only(network, ranking, width, fitted):
    cut = copy.deepcopy(network)
    kept = prune(cut, {"0": width}, ranking, example_input=EXAMPLE)
    source = ranking.fitted["0"]["2.weight"] if fitted else network[2].weight
    assert torch.equal(cut[2].weight, source[:, list(kept["0"])])
    assert torch.equal(cut[2].bias, torch.ones(3) if fitted else network[2].bias)


def test_base_tensors_are_under_the_fitted_ones(network, ranking):
    ranking.base = {"0.bias": torch.arange(4.0), "2.weight": torch.zeros(3, 4, 3, 3), "2.bias": torch.zeros(3)}
    cut = copy.deepcopy(network)
    prune(cut, {"0": 2}, ranking, example_input=EXAMPLE)
    assert cut[0].bias.tolist() == [0, 2]
    assert torch.equal(cut[2].weight, ranking.fitted["0"]["2.weight"][:, [0, 2]])
    other = copy.deepcopy(network)
    prune(other, {"0": 3}, ranking, example_input=EXAMPLE)
    assert bool((other[2].weight == 0).all())


def test_a_cut_that_fails_gives_the_weights_back(network, ranking):
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(SurgeryError):
        prune(network, {"0": 2}, ranking, groups=find_groups(network, EXAMPLE), example_input=torch.zeros(1, 3, 9, 9))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_a_network_of_other_shapes_is_refused(network, ranking):
    ranking.base = {"0.bias": torch.zeros(5)}
    with pytest.raises(RankingError, match=r"ranking 'dcp', '0.bias': expected \[5\], got \[4\]"):
        prune(network, {"0": 2}, ranking, example_input=EXAMPLE)


@pytest.mark.parametrize("losses", [[1.0, torch.nan], [], [1.0] * 6])
def test_losses_that_are_none_are_refused(losses):
    with pytest.raises(RankingError, match="dcp, group 'g': expected finite losses"):
        GreedyRanking("dcp", {"g": torch.arange(4)}, {"g": torch.tensor(losses)}, {}, {})
