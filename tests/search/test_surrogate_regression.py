"""The regression under a surrogate, against the textbook's formulas element by element."""

import numpy as np
import pytest
from scipy.optimize import approx_fprime

from search.surrogate import regression
from search.surrogate.regression import GaussianProcess, Lines, Rows, Scales

LINES = Lines(1.0, 0.8, np.array([-1.0, 0.5]), np.array([0.4, 0.2]))
TYPICAL = Scales(tilt=0.5, bend=0.7, length=0.9, label=0.3, noise=0.2)


def drawn(count, seed, labels=3):
    rng = np.random.default_rng(seed)
    return Rows(rng.normal(size=(count, 2)), rng.normal(size=(count, 4)), rng.integers(0, labels, count))


def observed(count=30, seed=0):
    rows, rng = drawn(count, seed), np.random.default_rng(seed + 1)
    return rows, LINES.expected(rows) + np.sin(rows.place[:, 0]) + 0.3 * rows.label + rng.normal(0, 0.1, count)


def covariance(rows, i, others, j, scales):
    """Return what two policies share, one term after the other."""
    line, other = rows.lines[i], others.lines[j]
    total = LINES.offset_deviation**2
    total += sum(d**2 * a * b for d, a, b in zip(LINES.slope_deviations, line, other, strict=True))
    place, there = rows.place[i], others.place[j]
    total += scales.tilt**2 * sum(a * b for a, b in zip(place, there, strict=True)) / len(place)
    square = sum((a - b) ** 2 for a, b in zip(place, there, strict=True)) / len(place)
    same = rows.label[i] == others.label[j]
    total += scales.bend**2 * np.exp(-square / (2 * scales.length**2)) * (1.0 if same else 0.5)
    return total + scales.label**2 * same


def matrix(rows, others, scales):
    return np.array(
        [[covariance(rows, i, others, j, scales) for j in range(len(others.label))] for i in range(len(rows.label))]
    )


def test_mean_and_deviation_are_those_of_the_textbook(monkeypatch):
    monkeypatch.setattr(regression, "BATCH", 7)
    rows, values = observed()
    model, new = GaussianProcess(rows, values, LINES, TYPICAL, labels=3), drawn(20, seed=5)
    inverse = np.linalg.inv(matrix(rows, rows, model.scales) + model.scales.noise**2 * np.eye(len(values)))
    between = matrix(new, rows, model.scales)
    mean = LINES.expected(new) + between @ inverse @ (values - LINES.expected(rows))
    variance = np.diagonal(matrix(new, new, model.scales) - between @ inverse @ between.T)
    assert model.mean(new) == pytest.approx(mean, abs=1e-8)
    assert model.deviation(new) == pytest.approx(np.sqrt(variance), abs=1e-6)


def test_the_slopes_are_the_changes_of_the_mean_along_a_line():
    model = GaussianProcess(*observed(), LINES, TYPICAL, labels=3)
    new = drawn(1, seed=5)
    steps = [Rows(new.lines + step, new.place, new.label) for step in np.eye(2)]
    assert [model.mean(step)[0] - model.mean(new)[0] for step in steps] == pytest.approx(model.slopes)


def test_the_posterior_is_that_of_a_normal_distribution_and_its_gradient_is_right():
    rows, values = observed(12)
    rest, expected = values - LINES.expected(rows), np.log([0.5, 0.7, 0.9, 0.3, 0.2])
    parts, theta = regression._Parts.between(LINES, rows, rows), expected + 0.2

    def loss(theta):
        K = matrix(rows, rows, Scales(*np.exp(theta))) + np.exp(theta[4]) ** 2 * np.eye(12)
        likelihood = rest @ np.linalg.inv(K) @ rest / 2 + np.linalg.slogdet(K)[1] / 2
        return likelihood + (((theta - expected) / regression.CERTAIN) ** 2).sum() / 2

    value, gradient = regression._posterior(parts, rest, theta, expected)
    assert value == pytest.approx(loss(theta))
    assert gradient == pytest.approx(approx_fprime(theta, loss, 1e-6), abs=1e-3)


def test_no_scale_nearby_is_more_likely():
    rows, values = observed()
    model, expected = GaussianProcess(rows, values, LINES, TYPICAL, labels=3), np.log([0.5, 0.7, 0.9, 0.3, 0.2])
    parts = regression._Parts.between(LINES, rows, rows)
    s = model.scales
    best = np.log([s.tilt, s.bend, s.length, s.label, s.noise])

    def loss(theta):
        return regression._posterior(parts, values - LINES.expected(rows), theta, expected)[0]

    assert loss(best) < loss(expected)
    for step in 0.1 * np.vstack([np.eye(5), -np.eye(5)]):
        assert loss(best) < loss(best + step)


def test_what_was_observed_is_certain_and_what_is_far_is_not():
    rows, values = observed()
    model = GaussianProcess(rows, values, LINES, TYPICAL, labels=3)
    far = Rows(rows.lines, rows.place + 30, rows.label)
    assert model.deviation(rows).max() < 2 * model.scales.noise < model.deviation(far).min()


def test_no_policies_have_no_predictions():
    model, none = GaussianProcess(*observed(), LINES, TYPICAL, labels=3), drawn(0, seed=1)
    assert model.mean(none).shape == model.deviation(none).shape == (0,)
