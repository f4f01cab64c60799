"""Criteria by label and shares as a command line gives them."""

from fractions import Fraction

import pytest
import tiny
import torch

from pruning import CRITERIA, CriterionSpec, UnknownNameError, find_groups
from search.asked import criteria_by_label, parse_share, parse_shares, width_at, written_share
from search.errors import SearchError


@pytest.mark.parametrize(
    ("text", "share"),
    [("50%", "1/2"), (" 12.5 % ", "1/8"), ("0.3", "3/10"), (".07", "7/100"), ("33.3%", "333/1000")],
)
def test_a_share_is_read_exactly(text, share):
    assert parse_share("--widths", text) == Fraction(share)


@pytest.mark.parametrize("text", ["0%", "100%", "1", "130%", "-5%", "half", "", "50%%", "1/2"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(SearchError, match="--widths: expected a share between 0% and 100%, such as 50%, got"):
        parse_share("--widths", text)


def test_shares_come_ascending_and_once():
    assert parse_shares("--widths", "50%,30%, 0.5") == (Fraction(3, 10), Fraction(1, 2))
    assert [written_share(share) for share in parse_shares("--widths", "30%,12.5%")] == ["12.5 %", "30 %"]


def test_a_width_is_what_remains_when_the_rest_is_rounded_down():
    groups = find_groups(tiny.network(widths=(90, 10)), torch.zeros(1, 1, 8, 8))
    for name, share, width in (("first", "30%", 27), ("first", "70%", 63), ("second", "55%", 6), ("second", "1%", 1)):
        assert width_at(parse_share("", share), groups[name]) == width


def test_without_names_the_experiments_criteria_count_with_their_options(tmp_path):
    specs = ["l1", {"name": "apoz", "options": {"images": 5}}]
    found = criteria_by_label(tiny.experiment(tmp_path, search={"criterion": specs}))
    assert found == {"l1": CriterionSpec(name="l1"), "apoz": CriterionSpec(name="apoz", options={"images": 5})}


def test_a_named_criterion_has_the_options_that_the_experiment_gives_it(tmp_path):
    specs = [{"name": "apoz", "options": {"images": 5}}, "apoz", {"name": "apoz", "options": {"images": 5}}]
    found = criteria_by_label(tiny.experiment(tmp_path, search={"criterion": specs}), "l2, apoz,l2")
    assert list(found) == ["l2", "apoz(images=5)", "apoz"]
    assert found["apoz(images=5)"].options == {"images": 5}


def test_all_are_the_experiments_and_then_all_others(tmp_path):
    found = criteria_by_label(tiny.experiment(tmp_path, search={"criterion": ["taylor", "fpgm"]}), "all")
    assert list(found)[:2] == ["taylor", "fpgm"]
    assert {spec.name for spec in found.values()} == set(CRITERIA.names())


@pytest.mark.parametrize("names", ["l1,fpgn", "fpgn"])
def test_an_unknown_criterion_has_a_near_name(tmp_path, names):
    with pytest.raises(UnknownNameError, match="unknown criterion 'fpgn'; did you mean 'fpgm'"):
        criteria_by_label(tiny.experiment(tmp_path), names)
