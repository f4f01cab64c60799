import copy

import pytest
import torch
from gated_networks import Separable
from small_networks import IMAGE, Residual, chain, pictures, prepared

from pruning import count_cost, prune
from pruning.criteria import CRITERIA
from pruning.errors import OptionError, RankingError
from pruning.finding import find_groups


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(4)


def ranked(model, groups=None, **options):
    return CRITERIA.build("cpmc", **options).rank(model, groups or find_groups(model, IMAGE), [pictures(2)])


def values(model, group):
    """Return the sum of the absolute weights that make and that read each channel, one by one."""
    found = []
    for channel in range(group.width):
        total = 0.0
        for part in (*group.makers, *group.readers):
            weight = model.get_parameter(part.tensor).movedim(part.axis, 0)
            for position in part.positions[channel]:
                total += sum(abs(number) for number in weight[position].flatten().tolist())
        found.append(total)
    return found


def saved(model, groups, name):
    """Return MACs and parameters that a network cut by one channel saves."""
    cut = copy.deepcopy(model)
    prune(
        cut, {name: groups[name].width - 1}, CRITERIA.build("l1").rank(cut, groups), groups=groups, example_input=IMAGE
    )
    before, after = count_cost(model, IMAGE), count_cost(cut, IMAGE)
    return before.macs - after.macs, before.params - after.params


@pytest.mark.parametrize("make", [chain, Residual, Separable])
def test_is_the_share_of_the_weights_and_how_little_a_channel_costs(make):
    model = prepared(make())
    groups = find_groups(model, IMAGE)
    costs = {name: saved(model, groups, name) for name in groups}
    most_macs, most_params = (max(column) for column in zip(*costs.values(), strict=True))
    scores = ranked(model, macs_weight=0.7, params_weight=1.9).scores
    for name, group in groups.items():
        value = values(model, group)
        macs, params = costs[name]
        expected = [v / max(value) + 0.7 * (1 - macs / most_macs) + 1.9 * (1 - params / most_params) for v in value]
        assert scores[name].tolist() == pytest.approx(expected, rel=1e-12)


def test_costs_count_the_places_where_weights_are_applied():
    model = prepared(chain())  # 8 × 8 places, then pooled to 4 × 4, then 2 × 2, then 1
    macs = {"0": 64 * 27 + 4 * 4 * 9, "4": 4 * 6 * 9 + 5}
    scores = ranked(model, params_weight=0).scores
    for name, group in find_groups(model, IMAGE).items():
        value = values(model, group)
        expected = [v / max(value) + 1 - macs[name] / macs["0"] for v in value]
        assert scores[name].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("make", [chain, Residual, Separable])
def test_one_factor_on_all_weights_changes_nothing(make):
    model = prepared(make())
    before = ranked(model).scores
    for parameter in model.parameters():
        parameter.data *= 4  # exact
    after = ranked(model).scores
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("weight", [0, 1, 1000])
def test_a_dead_channel_is_the_last_of_its_group_whatever_the_costs(weight):
    model = prepared(Separable())
    groups = find_groups(model, IMAGE)
    for name in groups:
        for part in (*groups[name].makers, *groups[name].readers):
            model.get_parameter(part.tensor).data.movedim(part.axis, 0)[list(part.positions[1])] = 0
    ranking = ranked(model, macs_weight=weight, params_weight=weight)
    assert [order[-1].item() for order in ranking.orders.values()] == [1, 1]


def test_a_group_without_weights_is_ranked_by_its_costs_alone():
    model = prepared(chain())
    model[4].weight.data.zero_()
    model[7].weight.data.zero_()
    assert ranked(model).scores["4"].tolist() == pytest.approx([2 - (4 * 54 + 5) / (64 * 27 + 4 * 36) - 60 / 66] * 4)


@pytest.mark.parametrize("option", ["macs_weight", "params_weight"])
def test_each_cost_puts_the_costly_group_below_the_others(option):
    model = prepared(chain())
    none = {"macs_weight": 0, "params_weight": 0}
    free, paid = ranked(model, **none).scores, ranked(model, **none | {option: 100}).scores
    assert free["0"].max() == free["4"].max() == 1
    assert paid["0"].max() < paid["4"].min()  # a channel of the first group takes more of both


def test_of_the_images_only_the_first_one_s_size_counts():
    model = prepared(Residual())
    groups = find_groups(model, IMAGE)

    def stream():
        yield pictures(3)
        raise AssertionError("asked for a batch that is not needed")

    scores = CRITERIA.build("cpmc").rank(model, groups, stream()).scores
    again = ranked(model).scores
    assert all(torch.equal(scores[name], again[name]) for name in groups)


def test_the_size_of_the_images_matters():
    model = prepared(chain())
    groups = find_groups(model, IMAGE)
    one, other = (
        CRITERIA.build("cpmc").rank(model, groups, [(torch.zeros(1, 3, size, size), torch.zeros(1))]).scores["4"]
        for size in (8, 16)
    )
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("option", ["macs_weight", "params_weight"])
@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_bad_options_are_errors(option, weight):
    with pytest.raises(OptionError, match=f"criterion 'cpmc', {option}: expected a number of at least 0, got {weight}"):
        CRITERIA.build("cpmc", **{option: weight})


def test_a_nan_is_an_error_that_names_the_group():
    model = prepared(chain())
    model[0].weight.data[2] = torch.nan
    with pytest.raises(RankingError, match="criterion 'cpmc', group '0'"):
        ranked(model)
