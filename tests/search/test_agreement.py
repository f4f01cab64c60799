"""How far rankings agree, against set arithmetic and scipy."""

import csv
import itertools
import statistics
from fractions import Fraction

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import spearmanr

from pruning import GreedyRanking, NestedRanking, QuadraticRanking, find_groups
from search.agreement import (
    agreements,
    mean_chance,
    mean_correlation,
    mean_overlap,
    overlap,
    rank_correlation,
    staying,
)
from search.agreement_tables import agreement_tables, write_agreement
from search.asked import width_at

SHARES = (Fraction(3, 10), Fraction(1, 2), Fraction(7, 10))


@pytest.fixture(scope="module")
def groups():
    """Four inner groups of 6 channels and a coupled one of 8."""
    return find_groups(tiny.blocks(), torch.zeros(1, 1, 8, 8))


def nested(groups, seed):
    generator = torch.Generator().manual_seed(seed)
    return NestedRanking("any", {name: torch.randperm(g.width, generator=generator) for name, g in groups.items()})


def quadratic(groups, seed):
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(g.width, g.width, generator=generator).double() for name, g in groups.items()}
    linear = {name: 5 * torch.randn(g.width, generator=generator).double() for name, g in groups.items()}
    return QuadraticRanking("any", linear, {name: (d @ d.T + (d @ d.T).T) / 2 for name, d in drawn.items()})


class Sets:
    """A ranking that says its kept sets and nothing else."""

    def __init__(self, ranking):
        self.criterion, self.asked, self._keep = ranking.criterion, [], ranking.keep

    def keep(self, group, width):
        self.asked.append(width)
        return self._keep(group, width)


def test_the_overlap_is_the_part_of_the_kept_channels_that_both_keep():
    assert overlap((0, 1, 4, 5), (1, 2, 3, 5)) == 0.5
    assert overlap((3,), (3,)) == 1
    assert overlap((0, 1), (2, 3)) == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [1000, 4])
def test_the_rank_correlation_is_spearmans_with_ties_or_without(seed, levels):
    draw = np.random.default_rng(seed)
    one, other = (draw.integers(levels, size=20).astype(float) for _ in range(2))
    assert rank_correlation(one, other) == pytest.approx(spearmanr(one, other).statistic)
    assert rank_correlation(one, np.exp(one / 10)) == pytest.approx(1)
    assert rank_correlation(one, -one) == pytest.approx(-1)


def test_an_order_that_says_nothing_is_not_correlated():
    assert rank_correlation(np.ones(5), np.arange(5.0)) == 0


def test_in_how_many_cuts_a_channel_stays_is_the_order_where_there_is_one(groups):
    ranking = nested(groups, 0)
    greedy = GreedyRanking("any", ranking.orders, {name: torch.ones(1) for name in groups}, {}, {})
    for name, group in groups.items():
        counts = staying(ranking, group)
        assert np.argsort(-counts).tolist() == ranking.orders[name].tolist()
        assert counts.tolist() == staying(Sets(ranking), group).tolist() == staying(greedy, group).tolist()


def test_where_there_is_none_every_width_has_a_say(groups):
    ranking = quadratic(groups, 1)
    nested_sets = []
    for name, group in groups.items():
        sets = [set(ranking.keep(name, width)) for width in range(1, group.width + 1)]
        expected = [sum(channel in kept for kept in sets) for channel in range(group.width)]
        assert staying(ranking, group).tolist() == expected
        nested_sets += [one <= other for one, other in itertools.pairwise(sets)]
    assert not all(nested_sets)  # else this said nothing


def test_of_a_wide_group_not_every_width_is_asked_but_the_first_and_the_last():
    group = find_groups(tiny.network(widths=(100, 4)), torch.zeros(1, 1, 8, 8))["first"]
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    ranking = Sets(NestedRanking("any", {"first": order}))
    counts = staying(ranking, group)
    assert (len(ranking.asked), ranking.asked[0], ranking.asked[-1]) == (32, 1, 100)
    assert (np.diff(counts[order.numpy()]) <= 0).all()


def test_every_two_are_compared_on_every_group_as_by_hand(groups):
    rankings = {"a": nested(groups, 0), "b": nested(groups, 1), "c": quadratic(groups, 2)}
    found = agreements(rankings, groups, SHARES)
    assert len(found) == 3 * len(groups)
    for one in found:
        first, second, group = rankings[one.first], rankings[one.second], groups[one.group]
        for share in SHARES:
            width = width_at(share, group)
            common = set(first.keep(one.group, width)) & set(second.keep(one.group, width))
            assert one.overlap[share] == len(common) / width
            assert one.chance(share) == width / group.width
        counts = staying(first, group), staying(second, group)
        assert one.correlation == pytest.approx(spearmanr(*counts).statistic)


def test_equal_rankings_agree_wholly_and_opposite_ones_not_at_all(groups):
    ranking = nested(groups, 0)
    opposite = NestedRanking("any", {name: order.flip(0) for name, order in ranking.orders.items()})
    half = (Fraction(1, 2),)
    for one in agreements({"a": ranking, "b": nested(groups, 0), "c": opposite}, groups, half):
        same = {one.first, one.second} == {"a", "b"}
        assert one.overlap[half[0]] == (1 if same else 0)
        assert one.correlation == pytest.approx(1 if same else -1)


def test_orders_drawn_at_random_have_on_average_what_chance_gives(groups):
    rankings = {str(seed): nested(groups, seed) for seed in range(30)}
    found = agreements(rankings, groups, SHARES)
    for share in SHARES:  # 435 pairs on 5 groups: the mean is within a hundredth or two
        assert statistics.fmean(one.overlap[share] - one.chance(share) for one in found) == pytest.approx(0, abs=0.02)
    assert statistics.fmean(one.correlation for one in found) == pytest.approx(0, abs=0.03)


def test_numbering_the_channels_anew_changes_nothing(groups):
    rankings = {"a": nested(groups, 0), "b": nested(groups, 1)}
    shuffle = {name: torch.randperm(group.width) for name, group in groups.items()}
    renamed = {
        label: NestedRanking("any", {name: shuffle[name][order] for name, order in ranking.orders.items()})
        for label, ranking in rankings.items()
    }
    for one, other in zip(agreements(rankings, groups, SHARES), agreements(renamed, groups, SHARES), strict=True):
        assert one.overlap == other.overlap
        assert one.correlation == pytest.approx(other.correlation)


def test_tables_and_file_say_the_means_over_the_groups(groups, tmp_path):
    rankings = {"a": nested(groups, 0), "b": nested(groups, 1), "c": nested(groups, 2)}
    found = agreements(rankings, groups, SHARES)
    with write_agreement(tmp_path / "agreement.csv", found).open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(groups) * len(SHARES)
    *tables, (header, last) = agreement_tables(found, SHARES)
    assert header == ["Spearman's ρ (chance 0)", "a", "b", "c"]
    for share, (headers, lines) in zip(SHARES, tables, strict=True):
        chance = statistics.fmean({r["group"]: float(r["chance"]) for r in rows if near(r, share)}.values())
        assert headers[0] == f"in common at {100 * share} % (chance {100 * chance:.0f} %)"
        assert mean_chance(found, share) == pytest.approx(chance, abs=1e-6)
        for line, order in zip(lines, last, strict=True):
            assert line[0] == order[0]
            for other, cell, correlation in zip("abc", line[1:], order[1:], strict=True):
                of = [r for r in rows if near(r, share) and {r["first"], r["second"]} == {line[0], other}]
                if line[0] == other:
                    assert (cell, correlation, of) == ("", "", [])
                    continue
                assert cell == f"{100 * statistics.fmean(float(r['overlap']) for r in of):.0f} %"
                mean = f"{statistics.fmean(float(r['spearman']) for r in of):.2f}"
                assert correlation == mean.replace("-", "−")


def near(row, share):
    return float(row["share"]) == float(share)


def test_means_do_not_ask_who_comes_first(groups):
    found = agreements({"a": nested(groups, 0), "b": nested(groups, 1)}, groups, SHARES)
    for means in (mean_overlap(found, SHARES[0]), mean_correlation(found)):
        assert means["a", "b"] == means["b", "a"]


def test_many_columns_have_numbers_that_the_rows_explain(groups):
    rankings = {f"criterion-{number}": nested(groups, number) for number in range(9)}
    headers, rows = agreement_tables(agreements(rankings, groups, SHARES), SHARES)[0]
    assert headers[1:] == [str(number) for number in range(1, 10)]
    assert [row[0] for row in rows] == [f"{number} {label}" for number, label in enumerate(rankings, start=1)]
