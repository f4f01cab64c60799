from math import prod

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pruning import polynomials
from pruning.polynomials import Polynomials, Product

FULL = {"a": 7, "b": 1, "c": 40}


@st.composite
def products(draw):
    axes = []
    for _ in range(draw(st.integers(0, 3))):
        lost = draw(st.dictionaries(st.sampled_from(sorted(FULL)), st.integers(1, 9)))
        axes.append((sum(n * FULL[name] for name, n in lost.items()) + draw(st.integers(0, 100)), lost))
    return Product(draw(st.integers(0, 10_000)), tuple(axes))


def value(product, widths):
    sizes = (size - sum(n * (FULL[name] - widths[name]) for name, n in lost.items()) for size, lost in product.axes)
    return product.factor * prod(sizes)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(products(), max_size=5), seed=st.integers(0, 99))
def test_each_value_is_the_sum_of_its_products_to_the_last_digit(parts, seed):
    rng = np.random.default_rng(seed)
    shares = rng.integers(0, 3, (len(parts), 2))
    rows = rng.integers(1, list(FULL.values()), (9, 3), endpoint=True)
    expected = []
    for row in rows.tolist():
        values = [value(part, dict(zip(FULL, row, strict=True))) for part in parts]
        expected.append([sum(n * v for n, v in zip(column, values, strict=True)) for column in shares.T.tolist()])
    assert Polynomials(FULL, parts, shares)(rows).tolist() == expected


def test_many_rows_are_as_those_one_by_one(monkeypatch):
    monkeypatch.setattr(polynomials, "AT_ONCE", 4)
    rows = np.random.default_rng(0).integers(1, 8, (11, 3))
    sums = Polynomials(FULL, [Product(2, ((7, {"a": 1}), (47, {"a": 1, "c": 1}))), Product(5, ())], np.ones((2, 1)))
    assert sums(rows).tolist() == [sums(row[None]).tolist()[0] for row in rows]
    assert sums(rows[:0]).shape == (0, 1)
