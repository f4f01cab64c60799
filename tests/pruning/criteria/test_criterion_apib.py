"""APIB against its definition: centred Gram matrices of what the readers saw, and a tight lasso on N² rows."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from small_networks import IMAGE, Residual, batches, chain, pictures, prepared
from torch import nn

from pruning.criteria import CRITERIA, rank_together
from pruning.criteria.apib import APIB
from pruning.errors import OptionError, RankingError
from pruning.finding import find_groups
from pruning.lasso_path import solve_path
from pruning.modes import batch_statistics


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(6)


class Separable(nn.Module):
    """A pointwise convolution whose channels a depthwise one filters before a pointwise one reads them."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 7, 1), nn.BatchNorm2d(7)
        self.depthwise = nn.Conv2d(7, 7, 3, padding=1, groups=7)
        self.second, self.third = nn.Conv2d(7, 5, 1), nn.Conv2d(5, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = torch.relu(self.depthwise(torch.relu(self.norm(self.first(x)))))
        return self.fc(torch.relu(self.third(torch.relu(self.second(x)))).mean((2, 3)))


NETWORKS = pytest.mark.parametrize("make", [Residual, chain, Separable])


def seen_by_layers(model, images):
    """Return what every layer read and put out, by name."""
    found, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            hooks.append(module.register_forward_hook(lambda m, x, y, name=name: found.update({name: (x[0], y)})))
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return found


def centred_gram(x, kernel):
    """Return H·K·H of `[images, …]`."""
    x = x.double().flatten(1)
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    exponent = distances * math.sqrt(0.5 / x.shape[1]) if kernel == "laplace" else distances**2 / x.shape[1]
    H = torch.eye(len(x), dtype=torch.float64) - 1 / len(x)
    return H @ torch.exp(-exponent) @ H


def designs(model, group, seen, kernel, target=None, normalise=False):
    """Return for each reader the N² rows of all channels, and the target's."""
    found = []
    for part in group.readers:
        x, y = seen[part.layer]
        matrices = [centred_gram(x[:, list(positions)], kernel).flatten() for positions in part.positions]
        L = centred_gram(y if target is None else target(part.layer, y), kernel).flatten()
        if normalise:
            matrices, L = [matrix / matrix.norm() for matrix in matrices], L / L.norm()
        found.append((torch.stack(matrices, dim=1).numpy(), L.numpy()))
    return found


def slow_support(parts, penalty, signed=True):
    """Return which coefficients a tight lasso on the readers' rows, one below the other, leaves."""
    X, y = np.concatenate([X for X, _ in parts]), np.concatenate([y for _, y in parts])
    rows = len(parts[0][1])  # alpha = lambda / N², however many readers there are
    fit = Lasso(alpha=penalty * rows / len(X), fit_intercept=False, tol=1e-12, max_iter=10**6, positive=not signed)
    return fit.fit(X, y).coef_ != 0


def supports_agree(ranking, name, parts, signed=True):
    """Compare the support in every segment that is not tiny; return how many were compared."""
    knots, compared = ranking.penalties[name].tolist(), 0
    for segment, (high, low) in enumerate(pairwise(knots)):
        if high - low > 1e-4 * knots[0]:
            expected = slow_support(parts, (high + low) / 2, signed).tolist()
            assert ranking.supports[name][segment].tolist() == expected, (name, segment)
            compared += 1
    return compared


@NETWORKS
@pytest.mark.parametrize("options", [{}, {"kernel": "gauss"}, {"signed": False}, {"kernel": "gauss", "signed": False}])
def test_the_supports_along_the_path_are_those_of_a_tight_lasso_on_the_kernel_matrices(make, options):
    model = prepared(make()).eval()
    images, labels = pictures(14)
    groups = find_groups(model, IMAGE)
    ranking = APIB(**options).rank(model, groups, batches(images, labels, 5))
    seen, compared = seen_by_layers(model, images), 0
    for name, group in groups.items():
        parts = designs(model, group, seen, options.get("kernel", "laplace"))
        compared += supports_agree(ranking, name, parts, options.get("signed", True))
    assert compared >= 5


@NETWORKS
def test_the_statistics_are_products_of_centred_gram_matrices_summed_over_the_readers(make):
    model = prepared(make()).eval()
    images, labels = pictures(10)
    groups = find_groups(model, IMAGE)
    watcher = observed(APIB(), model, groups, images, labels)
    seen = seen_by_layers(model, images)
    for name, group in groups.items():
        parts = designs(model, group, seen, "laplace")
        Q, q = sum(X.T @ X for X, _ in parts) / 100, sum(X.T @ y for X, y in parts) / 100
        np.testing.assert_allclose(watcher.of_groups[name].Q, Q, rtol=1e-10, atol=1e-16)
        np.testing.assert_allclose(watcher.of_groups[name].q, q, rtol=1e-10, atol=1e-16)
    coupled = [name for name, group in groups.items() if group.coupled]
    assert not coupled or len(groups[coupled[0]].readers) == 2


def observed(criterion, model, groups, images, labels):
    """Return who looked for a criterion."""
    found = []

    class Kept(APIB):
        def watcher(self, model, groups):
            found.append(criterion.watcher(model, groups))
            return found[0]

    Kept(images=criterion.images).rank(model, groups, [(images, labels)])
    return found[0]


def test_a_width_is_the_support_at_the_largest_penalty_that_leaves_so_many():
    model = prepared(Residual()).eval()
    images, labels = pictures(14)
    groups = find_groups(model, IMAGE)
    ranking = APIB().rank(model, groups, batches(images, labels, 14))
    parts = designs(model, groups["stem"], seen_by_layers(model, images), "laplace")
    highest = ranking.penalties["stem"][0].item()
    for width in range(1, 4):
        penalty = next(p for p in highest * 0.97 ** np.arange(400) if slow_support(parts, p).sum() == width)
        assert ranking.keep("stem", width) == tuple(np.flatnonzero(slow_support(parts, penalty)))


def test_scores_are_the_penalties_at_which_channels_enter():
    model = prepared(chain()).eval()
    images, labels = pictures(14)
    groups = find_groups(model, IMAGE)
    ranking = APIB().rank(model, groups, batches(images, labels, 14))
    parts = designs(model, groups["0"], seen_by_layers(model, images), "laplace")
    for channel, score in enumerate(ranking.scores["0"].tolist()):
        assert score > 0
        assert not slow_support(parts, score * 1.001)[channel]
        assert slow_support(parts, score * 0.999)[channel]


@pytest.mark.parametrize("normalise", ["none", "frobenius"])
def test_frobenius_compares_directions_only(normalise):
    model = prepared(chain()).eval()
    images, labels = pictures(12)
    groups = find_groups(model, IMAGE).only(["0"])
    watcher = observed(APIB(normalise=normalise), model, groups, images, labels)
    ((X, y),) = designs(model, groups["0"], seen_by_layers(model, images), "laplace", normalise=True)
    same = np.allclose(watcher.of_groups["0"].Q, X.T @ X) and np.allclose(watcher.of_groups["0"].q, X.T @ y)
    assert same == (normalise == "frobenius")


# ── the network's oddities ───────────────────────────────────────────────────────────────────────────────────────────


def silence(model, group, *channels):
    """Make channels zero for every image."""
    for part in (*group.makers, *(part for part in group.carried)):
        tensor = model.state_dict()[part.tensor].movedim(part.axis, 0)
        for channel in channels:
            tensor[list(part.positions[channel])] = 1.0 if "running_var" in part.tensor else 0.0


def test_dead_channels_never_enter_and_come_last():
    model = prepared(Separable())
    groups = find_groups(model, IMAGE)
    silence(model, groups["first"], 0, 3)
    ranking = APIB().rank(model, groups, batches(*pictures(12), 12))
    assert ranking.scores["first"][[0, 3]].tolist() == [0, 0]
    assert ranking.orders["first"].tolist()[-2:] == [0, 3]
    assert ranking.keep("first", 5) == (1, 2, 4, 5, 6)
    assert ranking.keep("first", 6) == (0, 1, 2, 4, 5, 6)


def test_of_equal_channels_the_first_is_ranked_and_its_twin_comes_after_all_that_live():
    model = prepared(chain())
    groups, data = find_groups(model, IMAGE), batches(*pictures(12), 12)
    best = int(APIB().rank(model, groups, data).scores["0"].argmax())
    other, dead = [channel for channel in range(6) if channel != best][:2]
    for part in (*groups["0"].makers, *groups["0"].carried):
        tensor = model.state_dict()[part.tensor].movedim(part.axis, 0)
        tensor[list(part.positions[other])] = tensor[list(part.positions[best])]
    silence(model, groups["0"], dead)
    ranking = APIB().rank(model, groups, data)
    first, twin = sorted((best, other))
    assert ranking.scores["0"][[twin, dead]].tolist() == [0, 0]
    assert ranking.scores["0"][first] > 0
    assert ranking.orders["0"].tolist()[-2:] == [twin, dead]
    assert ranking.keep("0", 5) == tuple(channel for channel in range(6) if channel != dead)


def test_more_channels_than_the_images_tell_apart_are_filled_up_by_their_relevance():
    """Two images have centred kernels of one shape: the path has the most relevant channel alone."""
    model = prepared(Separable()).eval()
    images, labels = pictures(2)
    groups = find_groups(model, IMAGE)
    ranking = APIB().rank(model, groups, [(images, labels)])
    ((X, y),) = designs(model, groups["first"], seen_by_layers(model, images), "laplace")
    best_first = np.argsort(-np.abs(X.T @ y))
    assert ranking.supports["first"].sum(dim=1).tolist() == [1]
    for width in range(1, 8):
        assert ranking.keep("first", width) == tuple(sorted(best_first[:width].tolist()))


def test_a_group_whose_readers_do_not_run_keeps_its_order():
    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.fc = chain(), nn.Linear(5, 3)
            self.side, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            out = self.fc(self.body(x))
            return out + self.head(self.side(x).mean((2, 3))) if self.training else out

    model = prepared(Headed())
    ranking = APIB().rank(model, find_groups(model, IMAGE), batches(*pictures(6), 6))
    assert ranking.scores["side"].tolist() == [0, 0, 0, 0]
    assert ranking.keep("side", 2) == (0, 1)


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def statistics(options, model, images, labels):
    groups = find_groups(model, IMAGE)
    return {name: found.Q for name, found in observed(APIB(**options), model, groups, images, labels).of_groups.items()}


def test_train_mode_takes_the_statistics_of_the_batch_and_leaves_the_running_ones():
    model = prepared(Residual()).eval()
    images, labels = pictures(12)
    groups = find_groups(model, IMAGE)
    before = copy.deepcopy(model.state_dict())
    data = batches(images, labels, 5)
    running, of_batch = (APIB(batch_norm=mode).rank(model, groups, data) for mode in ("eval", "train"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model.norm.training
    assert running.scores["conv1"].tolist() != of_batch.scores["conv1"].tolist()
    with batch_statistics(model):  # of all images at once, although they come in fives
        seen = seen_by_layers(model, images)
    assert supports_agree(of_batch, "conv1", designs(model, groups["conv1"], seen, "laplace")) >= 2


def test_features_explain_what_pointwise_convolutions_read():
    model = prepared(Separable()).eval()
    images, labels = pictures(14)
    groups = find_groups(model, IMAGE)
    data = batches(images, labels, 14)
    by_reader = APIB().rank(model, groups, data)
    by_features = APIB(pointwise_target="features").rank(model, groups, data)
    seen = seen_by_layers(model, images)
    features = seen["fc"][0]
    parts = designs(model, groups["first"], seen, "laplace", target=lambda layer, y: features)
    assert supports_agree(by_features, "first", parts) >= 3
    assert by_features.scores["first"].tolist() != by_reader.scores["first"].tolist()
    for name in ("second", "third"):
        assert by_features.scores[name].tolist() == by_reader.scores[name].tolist()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_features_are_those_of_its_own_images_where_others_look_at_more():
    model = prepared(Separable()).eval()
    images, labels = pictures(14)
    groups = find_groups(model, IMAGE)
    few = APIB(images=6, pointwise_target="features")
    alone = few.rank(model, groups, batches(images[:6], labels[:6], 6))
    criteria = {"few": few, "more": APIB(images=9), "apoz": CRITERIA.build("apoz")}
    together = rank_together(criteria, model, groups, batches(images, labels, 4))
    for name in groups:
        assert together["few"].scores[name].tolist() == pytest.approx(alone.scores[name].tolist(), rel=1e-9)


def test_features_without_a_linear_layer_are_an_error_and_leave_no_hook():
    model = prepared(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 3)))
    with pytest.raises(RankingError, match="pointwise_target: expected a linear layer with features, found none"):
        APIB(pointwise_target="features").rank(model, find_groups(model, IMAGE), batches(*pictures(6), 6))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_first_images_are_looked_at_in_one_pass():
    model = prepared(Residual()).eval()
    images, labels = pictures(14)
    groups = find_groups(model, IMAGE)
    some = APIB(images=8).rank(model, groups, batches(images, labels, 3))
    first = APIB().rank(model, groups, [(images[:8], labels[:8])])
    for name in groups:
        assert some.scores[name].tolist() == pytest.approx(first.scores[name].tolist(), rel=1e-9)


@pytest.mark.parametrize(
    "options",
    [{"kernel": "gauss"}, {"normalise": "frobenius"}, {"batch_norm": "train"}, {"images": 7}],
    ids=str,
)
def test_each_option_changes_the_numbers(options):
    model = prepared(Residual()).eval()
    images, labels = pictures(12)
    plain, other = (statistics(chosen, model, images, labels) for chosen in ({}, options))
    if "batch_norm" in options or "images" in options:  # these are the pass's, not the watcher's
        groups = find_groups(model, IMAGE)
        plain, other = (APIB(**chosen).rank(model, groups, [(images, labels)]).scores for chosen in ({}, options))
    assert not torch.allclose(plain["conv1"], other["conv1"], rtol=1e-3)


def test_unsigned_paths_have_no_channel_that_speaks_against_the_target():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((30, 10))
    Q, q = A.T @ A / 30, np.concatenate([rng.random(5), -rng.random(5)])
    assert not solve_path(Q, q, signed=False).supports[0, 5:].any()
    assert solve_path(Q, q).supports.any(axis=0)[5:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 1}, "images: expected at least 2, got 1"),
        ({"kernel": "linear"}, "kernel: expected laplace or gauss, got 'linear'"),
        ({"normalise": "max"}, "normalise: expected none or frobenius, got 'max'"),
        ({"batch_norm": "off"}, "batch_norm: expected eval or train, got 'off'"),
        ({"pointwise_target": "fc"}, "pointwise_target: expected reader or features, got 'fc'"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(OptionError, match=f"criterion 'apib', {message}"):
        APIB(**options)


def test_one_image_is_an_error():
    model = prepared(Residual())
    with pytest.raises(RankingError, match="criterion 'apib': needs at least 2 images, got 1"):
        APIB().rank(model, find_groups(model, IMAGE), batches(*pictures(1), 1))
