"""The path against tight coordinate descent on the design itself, and against the optimality conditions."""

import numpy as np
import pytest
from sklearn.linear_model import Lasso

from pruning.lasso_path import solve_path, twins


def problem(seed, rows=40, channels=12, shared=3):
    """Return a design whose columns have much in common, and a target."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((rows, channels)) + rng.standard_normal((rows, shared)) @ rng.standard_normal(
        (shared, channels)
    )
    return X * rng.gamma(2, size=channels), X @ rng.standard_normal(channels) + rng.standard_normal(rows)


def moments(X, y):
    return X.T @ X / len(X), X.T @ y / len(X)


def middles(path):
    """Return a penalty in each segment that is long enough to have one."""
    pairs = zip(path.penalties[:-1], path.penalties[1:], strict=True)
    return [(segment, (high + low) / 2) for segment, (high, low) in enumerate(pairs) if high - low > 1e-6 * high]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_supports_and_coefficients_along_the_whole_path_are_those_of_a_tight_lasso(seed, signed):
    X, y = problem(seed)
    path = solve_path(*moments(X, y), signed=signed)
    checked = 0
    for segment, penalty in middles(path):
        fit = Lasso(alpha=penalty, fit_intercept=False, tol=1e-12, max_iter=10**6, positive=not signed).fit(X, y)
        np.testing.assert_allclose(path.at(penalty), fit.coef_, rtol=1e-5, atol=1e-7 * np.abs(fit.coef_).max())
        assert path.support(penalty).tolist() == (fit.coef_ != 0).tolist()
        assert path.supports[segment].tolist() == (fit.coef_ != 0).tolist()
        checked += 1
    assert checked >= 3
    assert path.penalties[-1] == 0


@pytest.mark.parametrize(("rows", "channels"), [(2, 8), (4, 12), (6, 40), (60, 40)])
@pytest.mark.parametrize("signed", [True, False])
def test_every_knot_meets_the_optimality_conditions_also_with_more_channels_than_samples(rows, channels, signed):
    for seed in range(8):
        Q, q = moments(*problem(seed, rows, channels))
        path = solve_path(Q, q, signed=signed)
        least = 1e-7 * np.abs(q).max()
        for penalty, b in zip(path.penalties, path.coefficients, strict=True):
            slope = q - Q @ b
            assert (np.abs(slope) if signed else slope).max() <= penalty + least
            inside = np.abs(b) > 1e-9 * np.abs(b).max(initial=0)
            assert np.abs(slope[inside] - penalty * np.sign(b[inside])).max(initial=0) <= least
            assert signed or b.min() >= -1e-9 * np.abs(b).max()
        assert (np.diff(path.penalties) <= 0).all()


def test_channels_that_leave_the_path_and_come_back_are_followed():
    changes = []
    for seed in range(30):
        sizes = solve_path(*moments(*problem(seed, 30, 12))).supports.sum(axis=1)
        changes += np.diff(sizes, prepend=0).tolist()
    assert set(changes) == {1, -1}


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 1e6])
@pytest.mark.parametrize("other", [1e-8, 1.0])
def test_the_units_play_no_part(scale, other):
    Q, q = moments(*problem(1))
    path, scaled = solve_path(Q, q), solve_path(Q * other, q * scale)
    np.testing.assert_allclose(scaled.penalties, path.penalties * scale, rtol=1e-7, atol=1e-12 * scale)
    expected = path.coefficients * scale / other
    np.testing.assert_allclose(scaled.coefficients, expected, rtol=1e-6, atol=1e-9 * scale / other)
    assert scaled.supports.tolist() == path.supports.tolist()


def test_alpha_is_lambda_over_n_as_in_scikit_learn():
    X, y = problem(2)
    path = solve_path(*moments(X, y))
    assert path.penalties[0] == pytest.approx(np.abs(X.T @ y).max() / len(X))
    half = path.penalties[0] / 2
    b = path.at(half)
    signs = np.sign(b)
    on = b != 0
    lam = half * len(X)  # ½‖y − Xb‖² + λ‖b‖₁ without the division
    assert X[:, on].T @ (y - X @ b) == pytest.approx(lam * signs[on])


def test_of_equal_channels_the_first_is_in_the_path_and_zeros_are_not():
    X, y = problem(3)
    X = np.concatenate([X[:, :4], X[:, 1:2], X[:, 4:], np.zeros((len(X), 1)), X[:, 1:2]], axis=1)
    Q, q = moments(X, y)
    assert np.flatnonzero(twins(Q)).tolist() == [4, 14]
    path = solve_path(Q, q)
    assert not path.coefficients[:, [4, 13, 14]].any()
    alone = np.delete(np.arange(15), [4, 13, 14])
    expected = solve_path(Q[np.ix_(alone, alone)], q[alone])
    np.testing.assert_allclose(path.coefficients[:, alone], expected.coefficients)


@pytest.mark.parametrize(("signed", "q"), [(True, [0.0, 0.0]), (False, [-1.0, 0.0])])
def test_nothing_enters_where_nothing_helps(signed, q):
    path = solve_path(np.eye(2), np.array(q), signed=signed)
    assert path.penalties.tolist() == [0]
    assert path.supports.shape == (0, 2)
    assert not path.support(0.0).any()
    assert not path.at(0.0).any()


def test_a_channel_alone_enters_at_its_q():
    path = solve_path(np.array([[2.0]]), np.array([-3.0]))
    assert path.penalties == pytest.approx([3, 0])
    assert path.coefficients[:, 0] == pytest.approx([0, -1.5])
    assert path.at(1.0) == pytest.approx([-1.0])
    assert not path.support(3.5).any()
    assert path.support(2.5).all()
    assert len(solve_path(np.array([[2.0]]), np.array([-3.0]), signed=False).supports) == 0


def test_at_a_knot_the_support_is_that_just_above_it():
    path = solve_path(*moments(*problem(4)))
    for segment, knot in enumerate(path.penalties[1:]):
        assert path.support(knot).tolist() == path.supports[segment].tolist()
    assert not path.support(path.penalties[0]).any()
    assert path.support(0.0).all()


def test_a_path_ends_where_rounding_lets_the_penalty_rise_again(monkeypatch):
    knots = np.array([1e4, 10.0, 20.0, 0.0]), [], np.array([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 1.0, np.nan]])
    monkeypatch.setattr("pruning.lasso_path.lars_path_gram", lambda **_: knots)
    path = solve_path(np.eye(2), np.array([2.0, 1.0]))
    assert path.penalties.tolist() == pytest.approx([2.0, 0.002])
    assert path.supports.tolist() == [[True, False]]
