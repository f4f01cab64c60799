import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search import fronts as module
from search.fronts import Fronts


def dominates(one, other):
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def peeled(points):
    """Return the numbers of each front: what none of those that are left dominates, again and again."""
    left, fronts = dict(enumerate(points)), []
    while left:
        best = [n for n, point in left.items() if not any(dominates(other, point) for other in left.values())]
        fronts.append({number: left.pop(number) for number in best})
    return fronts


def points(objectives, most=40):
    """Few different values, so that many are equal or repeat."""
    return st.lists(st.tuples(*[st.integers(0, 5).map(float)] * objectives), max_size=most)


def filled(stream):
    fronts = Fronts()
    for number, point in stream:
        fronts.add(number, point)
    return fronts


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_after_each_point_the_fronts_are_those_of_sorting_all_anew(objectives):
    @settings(max_examples=150, deadline=None)
    @given(stream=points(objectives))
    def check(stream):
        fronts = Fronts()
        for number, point in enumerate(stream):
            fronts.add(number, point)
            expected = peeled(stream[: number + 1])
            assert len(fronts) == number + 1
            for rank, front in enumerate(expected):
                numbers, members = fronts.members(rank)
                assert numbers.tolist() == sorted(front)
                assert [tuple(member) for member in members.tolist()] == [front[one] for one in sorted(front)]
                assert fronts.before(rank) == sum(map(len, expected[:rank]))
                assert all(fronts.rank(member) == rank for member in front.values())

    check()


@settings(deadline=None)
@given(stream=points(2), seed=st.integers(0, 9))
def test_the_order_in_which_points_come_changes_nothing(stream, seed):
    numbered = list(enumerate(stream))
    one, other = filled(numbered), filled(random.Random(seed).sample(numbered, len(numbered)))
    for rank in range(len(peeled(stream))):
        assert one.members(rank)[0].tolist() == other.members(rank)[0].tolist()


def test_a_point_before_all_others_moves_every_front_back():
    fronts = filled(enumerate([(1.0, 2.0), (2.0, 1.0), (3.0, 3.0)]))
    fronts.add(3, (0.0, 0.0))
    assert [fronts.members(rank)[0].tolist() for rank in range(3)] == [[3], [0, 1], [2]]


def test_a_point_is_compared_with_few_others_where_there_are_many_fronts(monkeypatch):
    compared = []
    for name in ("_dominated", "_dominates"):
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda a, b, plain=plain: compared.append(len(a)) or plain(a, b))
    stream = random.Random(0).sample([(float(place), float(place)) for place in range(500)], 500)
    fronts = filled(enumerate(stream))
    compared.clear()
    fronts.add(500, (499.5, 499.5))
    assert sum(compared) <= 10  # of 500 fronts with a point each


def test_no_points_are_no_fronts():
    assert len(Fronts()) == Fronts().before(0) == Fronts().rank((1.0, 1.0)) == 0
