"""A mix of rankings cuts each group as that group's own ranking alone would cut it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from pruning import (
    CRITERIA,
    GreedyRanking,
    MixedRanking,
    ModelSpec,
    NestedRanking,
    Policy,
    build_model,
    find_groups,
    load_ranking,
    prune,
    remove,
)
from pruning.errors import RankingError
from pruning.greedy import FittingRanking
from pruning.policy import CriterionSpec
from pruning.ranking import Ranking

IMAGE = torch.zeros(1, 3, 6, 6, dtype=torch.float64)
WIDTHS = {"stem": 4, "wide": 3, "narrow": 2, "reader": 5}


class Concat(nn.Module):
    """One layer reads two groups, side by side; in the order of the graph `wide` comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.narrow, self.wide = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 3, padding=1)
        self.reader, self.fc = nn.Conv2d(9, 7, 3), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = torch.cat([self.wide(x), self.narrow(x)], dim=1).relu()
        return self.fc(self.reader(x).relu().mean((2, 3)))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return Concat().double().eval()


def data(count: int = 24) -> list[tuple[Tensor, Tensor]]:
    images = torch.randn(count, *IMAGE.shape[1:], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(zip(images.split(8), (torch.arange(count) % 3).split(8), strict=True))


def ranked(model: nn.Module, name: str, **options) -> Ranking:
    return CRITERIA.build(name, **options).rank(model, find_groups(model, IMAGE), data())


def cut_alone(model: nn.Module, ranking: Ranking, widths: dict[str, int]) -> tuple[nn.Module, dict]:
    alone = copy.deepcopy(model)
    return alone, prune(alone, widths, ranking, example_input=IMAGE)


# ── which channels stay ──────────────────────────────────────────────────────────────────────────────────────────────


def test_each_group_keeps_what_its_own_ranking_keeps_at_every_width(network):
    by_group = {
        "stem": ranked(network, "l1"),
        "wide": ranked(network, "ccp"),
        "narrow": ranked(network, "lasso"),
        "reader": ranked(network, "dcp"),
    }
    mixed, groups = MixedRanking(by_group), find_groups(network, IMAGE)
    assert isinstance(mixed, Ranking)
    assert isinstance(mixed, FittingRanking)
    assert mixed.criterion == "l1, ccp, lasso, dcp"
    for name, group in groups.items():
        for width in range(1, group.width + 1):
            assert mixed.keep(name, width) == by_group[name].keep(name, width)


def test_pruning_a_resnet_by_a_mix_is_cutting_group_by_group_by_each_criterion_alone():
    torch.manual_seed(0)
    network, example = build_model(ModelSpec(name="resnet20")).eval(), torch.zeros(1, 3, 32, 32)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    groups = find_groups(network, example)
    inner = [name for name, group in groups.items() if not group.coupled]
    rankings = [CRITERIA.build(name).rank(network, groups) for name in ("l1", "fpgm", "bn_scale")]
    by_group = {name: rankings[number % 3] for number, name in enumerate(inner)}
    widths = {name: groups[name].width // 2 - number for number, name in enumerate(inner)}

    mixed = copy.deepcopy(network)
    kept = prune(mixed, widths, MixedRanking(by_group), groups=groups, example_input=example)

    alone = {}
    for name, width in widths.items():
        alone |= prune(copy.deepcopy(network), {name: width}, by_group[name], groups=groups, example_input=example)
    assert kept == alone
    assert len(kept) == 9
    remove(network, groups, alone)
    assert all(torch.equal(value, mixed.state_dict()[name]) for name, value in network.state_dict().items())
    for ranking in rankings:  # or the test would not tell them apart
        assert kept != {name: ranking.keep(name, width) for name, width in widths.items()}


def test_a_policy_with_several_criteria_is_cut_by_the_mix_of_their_rankings(network):
    rankings = {name: ranked(network, name) for name in ("l1", "fpgm")}
    policy = Policy(
        model=ModelSpec(name="concat"),
        network=find_groups(network, IMAGE).signature,
        widths=WIDTHS,
        criterion=CriterionSpec(name="l1"),
        criteria={"wide": CriterionSpec(name="fpgm")},
    )
    mixed = MixedRanking({name: rankings[policy.criterion_of(name).name] for name in policy.widths})
    kept = prune(network, policy, mixed, example_input=IMAGE)
    assert kept == {name: rankings["fpgm" if name == "wide" else "l1"].keep(name, w) for name, w in WIDTHS.items()}


def test_scores_are_those_of_the_rankings_that_have_some(network):
    l1, drawn, fpgm = (ranked(network, name) for name in ("l1", "random", "fpgm"))
    mixed = MixedRanking({"stem": l1, "narrow": fpgm, "wide": NestedRanking("plain", drawn.orders)})
    assert list(mixed.scores) == ["stem", "narrow"]
    assert torch.equal(mixed.scores["stem"], l1.scores["stem"])
    assert torch.equal(mixed.scores["narrow"], fpgm.scores["narrow"])


def test_a_mix_travels(network):
    lasso = ranked(network, "lasso")
    mixed = MixedRanking({"stem": lasso, "wide": ranked(network, "l1"), "narrow": lasso})
    again = pickle.loads(pickle.dumps(mixed))
    assert [again.keep(name, 2) for name in again.by_group] == [mixed.keep(name, 2) for name in mixed.by_group]
    assert again.by_group["stem"] is again.by_group["narrow"]


def test_a_group_that_nobody_ranked_and_a_width_that_is_none_are_errors(network):
    mixed = MixedRanking({"stem": ranked(network, "l1"), "wide": ranked(network, "fpgm")})
    with pytest.raises(RankingError, match=r"^ranking 'l1, fpgm': no group 'wite'; did you mean 'wide'\?$"):
        mixed.keep("wite", 1)
    with pytest.raises(RankingError, match=r"^ranking 'fpgm', group 'wide': expected 1 to 5, got 6$"):
        mixed.keep("wide", 6)
    with pytest.raises(RankingError, match="no group 'reader'"):
        prune(network, {"reader": 2}, mixed, example_input=IMAGE)


# ── which weights the readers have ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("names", [("lasso", "thinet"), ("thinet", "dcp"), ("dcp", "lasso"), ("l1", "dcp")])
def test_a_layer_behind_a_concatenation_has_the_fits_of_all_that_it_reads(network, names, turned):
    of_wide, of_narrow = (ranked(network, name) for name in names)
    alone, _ = cut_alone(network, of_wide, {"wide": 3})
    other, _ = cut_alone(network, of_narrow, {"narrow": 2})
    before = network.reader.weight.clone()
    by_group = {"wide": of_wide, "narrow": of_narrow}
    mixed = MixedRanking(dict(reversed(by_group.items())) if turned else by_group)
    kept = prune(network, {"narrow": 2, "wide": 3}, mixed, example_input=IMAGE)
    assert kept == {"wide": of_wide.keep("wide", 3), "narrow": of_narrow.keep("narrow", 2)}
    expected = torch.cat([alone.reader.weight[:, :3], other.reader.weight[:, 5:]], dim=1)
    assert torch.equal(network.reader.weight, expected)
    whole = torch.cat([before[:, list(kept["wide"])], before[:, 5:][:, list(kept["narrow"])]], dim=1)
    assert [torch.equal(network.reader.weight[:, part], whole[:, part]) for part in (slice(3), slice(3, 5))] == [
        names[0] == "l1",
        False,
    ]
    fitted_bias = (alone if names[1] != "dcp" else other).reader.bias
    assert torch.equal(network.reader.bias, fitted_bias)


def test_a_bias_that_two_fitted_is_that_of_the_last_in_the_order_of_the_graph(network):
    of_wide, of_narrow = ranked(network, "dcp", rate=0.5), ranked(network, "random_dcp", rate=0.5)
    widths = {"narrow": of_narrow.fitted_widths["narrow"], "wide": of_wide.fitted_widths["wide"]}
    alone, _ = cut_alone(network, of_wide, {"wide": widths["wide"]})
    other, _ = cut_alone(network, of_narrow, {"narrow": widths["narrow"]})
    assert not torch.equal(alone.reader.bias, other.reader.bias)
    prune(network, widths, MixedRanking({"narrow": of_narrow, "wide": of_wide}), example_input=IMAGE)
    assert torch.equal(network.reader.bias, other.reader.bias)


@pytest.mark.parametrize(("name", "options"), [("lasso", {}), ("thinet", {}), ("dcp", {"rate": 0.5})])
def test_a_mix_of_one_ranking_fits_what_that_ranking_fits(network, name, options):
    ranking, groups = ranked(network, name, **options), find_groups(network, IMAGE)
    widths = getattr(ranking, "fitted_widths", WIDTHS)
    mixed = MixedRanking(dict.fromkeys(groups, ranking)).weights(network, groups, widths)
    expected = ranking.weights(network, groups, widths)
    assert mixed.keys() == expected.keys()
    assert len(mixed) >= 4
    assert all(torch.equal(mixed[tensor], expected[tensor]) for tensor in expected)


def test_fits_of_resnet_blocks_stay_with_their_blocks():
    torch.manual_seed(0)
    network, example = build_model(ModelSpec(name="resnet20")).eval(), torch.zeros(1, 3, 32, 32)
    groups = find_groups(network, example)
    chosen = groups.only(["layer1.0.conv1", "layer1.1.conv1", "layer2.0.conv1"])
    images = [(torch.randn(8, 3, 32, 32), torch.arange(8))]
    names = ("lasso", "thinet", "l1")
    by_group = {
        group: CRITERIA.build(name).rank(network, chosen, images) for group, name in zip(chosen, names, strict=True)
    }
    widths = dict.fromkeys(chosen, 5)
    cut = {"mixed": (MixedRanking(by_group), widths)}
    cut |= {group: (ranking, {group: 5}) for group, ranking in by_group.items()}
    tensors = {}
    for label, (ranking, asked) in cut.items():
        model = copy.deepcopy(network)
        prune(model, asked, ranking, groups=groups, example_input=example)
        tensors[label] = {group: model.get_parameter(group.replace("conv1", "conv2.weight")) for group in chosen}
    for group in chosen:
        assert torch.equal(tensors["mixed"][group], tensors[group][group])


def test_rankings_that_fit_nothing_change_nothing(network):
    mixed = MixedRanking({"stem": ranked(network, "l1"), "wide": ranked(network, "ccp")})
    assert mixed.weights(network, find_groups(network, IMAGE), {"stem": 2, "wide": 2}) == {}


def test_a_ranking_that_trained_the_network_is_refused(network):
    dcp = ranked(network, "dcp")
    dcp.base = {"fc.bias": torch.zeros(3)}
    mixed, before = MixedRanking({"stem": ranked(network, "l1"), "wide": dcp}), copy.deepcopy(network.state_dict())
    with pytest.raises(RankingError, match=r"^ranking 'dcp', group 'wide': expected .* got 'fc.bias', too; .* not mix"):
        prune(network, {"stem": 2, "wide": 3}, mixed, example_input=IMAGE)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_greedy_ranking_from_a_file_fits_the_bias_that_it_fitted_last(network, tmp_path):
    fresh, groups = ranked(network, "dcp", rate=0.5), find_groups(network, IMAGE)
    fresh.save(tmp_path / "ranking")
    again = load_ranking(tmp_path / "ranking")
    assert isinstance(again, GreedyRanking)
    expected, found = (one.weights(network, groups, fresh.fitted_widths) for one in (fresh, again))
    assert torch.equal(expected["reader.bias"], fresh.fitted["narrow"]["reader.bias"])
    assert all(torch.equal(found[tensor], value) for tensor, value in expected.items())
