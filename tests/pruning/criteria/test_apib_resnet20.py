"""APIB on the published ResNet-20 and real images: the whole path against tight lassos on the N² rows."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

from pruning import find_groups
from pruning.criteria.apib import APIB

pytestmark = pytest.mark.data


def centred(x, kernel):
    x = x.double().flatten(1)
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    K = torch.exp(-distances * math.sqrt(0.5 / x.shape[1]) if kernel == "laplace" else -distances.square() / x.shape[1])
    H = torch.eye(len(x), dtype=torch.float64) - 1 / len(x)
    return (H @ K @ H).flatten()


@pytest.mark.parametrize("kernel", ["laplace", "gauss"])
@pytest.mark.parametrize("signed", [True, False])
def test_supports_at_every_tenth_knot_are_those_of_a_tight_lasso(resnet20, cifar, kernel, signed):
    images, labels = next(iter(cifar.train.subset(48, seed=0).batches(48)))
    groups = find_groups(resnet20, torch.zeros(1, 3, 32, 32)).only(
        ["layer1.1.conv1", "layer2.0.conv1", "layer3.2.conv1"]
    )
    ranking = APIB(kernel=kernel, signed=signed).rank(resnet20, groups, [(images, labels)])
    for name, group in groups.items():
        (reader,) = group.readers
        layer, seen = resnet20.get_submodule(reader.layer), []
        hook = layer.register_forward_hook(lambda m, x, y, seen=seen: seen.extend((x[0], y)))
        with torch.no_grad():
            resnet20(images)
        hook.remove()
        x, y = seen
        X = torch.stack([centred(x[:, channel], kernel) for channel in range(group.width)], dim=1).numpy()
        knots = ranking.penalties[name].tolist()
        segments = [i for i, (high, low) in enumerate(pairwise(knots)) if high - low > 1e-4 * knots[0]]
        for segment in segments[::10]:
            penalty = (knots[segment] + knots[segment + 1]) / 2
            fit = Lasso(alpha=penalty, fit_intercept=False, tol=1e-12, max_iter=10**6, positive=not signed)
            found = fit.fit(X, centred(y, kernel).numpy()).coef_ != 0
            assert np.array_equal(ranking.supports[name][segment].numpy(), found), (name, segment)
