"""HSIC statistics against their definitions: loops over images and channels, and H·K·H written out."""

import math

import pytest
import torch

from pruning import hsic
from pruning.hsic import Dependence, centred, channel_grams, dependence, gram, pack, squared_distances, target_gram


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(4)


def slow_gram(x, kernel):
    """Return the Gram matrix of images `[images, features]`, pair by pair."""
    features = x.shape[1]
    K = torch.zeros(len(x), len(x), dtype=torch.float64)
    for i, one in enumerate(x.double()):
        for j, other in enumerate(x.double()):
            distance = math.sqrt(sum((one - other).square().tolist()))
            exponent = distance * math.sqrt(0.5 / features) if kernel == "laplace" else distance**2 / features
            K[i, j] = math.exp(-exponent)
    return K


def slow(maps, target, kernel):
    """Return Q and q by the definition, ⟨HKH, HK'H⟩ / N²."""
    images = len(maps)
    H = torch.eye(images, dtype=torch.float64) - 1 / images
    centre = [H @ slow_gram(maps[:, channel].flatten(1), kernel) @ H for channel in range(maps.shape[1])]
    L = H @ slow_gram(target.flatten(1), kernel) @ H
    Q = [[float((a * b).sum()) / images**2 for b in centre] for a in centre]
    q = [float((a * L).sum()) / images**2 for a in centre]
    return torch.tensor(Q, dtype=torch.float64), torch.tensor(q, dtype=torch.float64)


def fast(maps, target, kernel):
    return dependence(lambda part: channel_grams(maps[:, part], kernel), maps.shape[1], target_gram(target, kernel))


@pytest.mark.parametrize("kernel", ["laplace", "gauss"])
def test_the_products_are_those_of_the_definition(kernel):
    maps, target = torch.randn(7, 5, 3, 2).relu(), torch.randn(7, 4, 3, 2)
    found = fast(maps, target, kernel)
    Q, q = slow(maps, target, kernel)
    torch.testing.assert_close(found.Q, Q, rtol=1e-11, atol=1e-15)
    torch.testing.assert_close(found.q, q, rtol=1e-11, atol=1e-15)
    assert torch.equal(found.Q, found.Q.T)


def test_the_kernels_are_laplace_with_half_over_features_and_gauss_with_one():
    x = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    distances = squared_distances(x)
    assert (1 + gram(distances, 4, "laplace"))[0, 1].item() == pytest.approx(math.exp(-2 * math.sqrt(0.5 / 4)))
    assert (1 + gram(distances, 4, "gauss"))[0, 1].item() == pytest.approx(math.exp(-4 / 4))
    with pytest.raises(ValueError, match="unknown kernel 'gaus'; did you mean 'gauss'"):
        gram(distances, 4, "gaus")


def test_blocks_of_channels_and_of_features_change_nothing(monkeypatch):
    maps, target = torch.randn(6, 7, 4, 4), torch.randn(6, 50)
    whole = fast(maps, target, "laplace")
    for name, size in (("FILLED", 40), ("BLOCK", 45), ("FEATURES", 60)):
        monkeypatch.setattr(hsic, name, size)
    asked = []

    def grams(part):
        asked.append(part)
        return channel_grams(maps[:, part], "laplace")

    parts = dependence(grams, 7, target_gram(target, "laplace"))
    assert len(asked) > 4
    assert max(part.stop - part.start for part in asked) == 2
    torch.testing.assert_close(parts.Q, whole.Q, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.q, whole.q, rtol=1e-12, atol=0)


def test_rounding_between_equal_images_is_no_distance():
    x = torch.randn(5, 301, dtype=torch.float64)[torch.arange(67) % 5]
    distances = squared_distances(x)
    same = torch.arange(67)[:, None] % 5 == torch.arange(67) % 5
    assert (distances[same] == 0).all()
    assert (distances[~same] > 100).all()


def test_a_constant_map_is_exactly_zero_and_equal_images_are_at_distance_zero():
    maps = torch.randn(9, 3, 8, 8).relu()
    maps[:, 1] = 0.1
    maps[4:, 2] = torch.randn(8, 8)
    found = fast(maps, torch.randn(9, 20), "laplace")
    assert (found.Q[1] == 0).all()
    assert found.q[1] == 0
    distances = squared_distances(maps[:, 2].flatten(1))
    assert (distances[4:, 4:] == 0).all()
    assert (distances[:4].sum(dim=1) > 0).all()


@pytest.mark.parametrize("kernel", ["laplace", "gauss"])
def test_a_common_shift_is_not_seen_and_small_differences_keep_their_digits(kernel):
    maps, target = torch.randn(6, 4, 3, 3, dtype=torch.float64) * 1e-3, torch.randn(6, 5)
    near, far = fast(maps, target, kernel), fast(maps + 1000, target, kernel)
    torch.testing.assert_close(far.Q, near.Q, rtol=1e-7, atol=0)  # 1000 + 1e-3 has eleven digits of the difference
    Q, _ = slow(maps, target, kernel)
    torch.testing.assert_close(near.Q.diagonal(), Q.diagonal(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("kernel", "scale", "power"), [("laplace", 1e-12, 1), ("gauss", 1e-6, 2)])
def test_differences_that_one_less_them_does_not_show_keep_their_digits(kernel, scale, power):
    maps = torch.randn(6, 3, 4, 4, dtype=torch.float64)
    once, twice = (channel_grams(maps * factor * scale, kernel) for factor in (1, 2))
    torch.testing.assert_close(twice, once * 2**power, rtol=1e-8, atol=0)  # the kernels are linear in the power here


def test_packed_matrices_have_the_same_inner_products():
    K, L = (torch.randn(2, 5, 5, dtype=torch.float64) for _ in range(2))
    K, L = K + K.mT, L + L.mT
    assert pack(K).shape == (2, 15)
    torch.testing.assert_close((pack(K) * pack(L)).sum(-1), (K * L).sum((-1, -2)), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(centred(K).sum(-1), torch.zeros(2, 5, dtype=torch.float64))


def test_normalised_are_cosines_and_zero_stays_zero():
    maps, target = torch.randn(8, 4, 3, 3), torch.randn(8, 6)
    maps[:, 2] = 1
    found = fast(maps, target, "gauss")
    cosines = found.normalised()
    assert cosines.Q.diagonal().tolist() == pytest.approx([1, 1, 0, 1])
    expected = found.Q[0, 3] / (found.Q[0, 0] * found.Q[3, 3]).sqrt()
    assert cosines.Q[0, 3].item() == pytest.approx(expected.item())
    L = target_gram(target, "gauss")
    G = channel_grams(maps, "gauss")
    assert cosines.q[0].item() == pytest.approx(torch.cosine_similarity(G[0], L, dim=0).item())
    assert cosines.q[2] == 0
    assert not Dependence(found.Q, 0 * found.q, 0.0).normalised().q.any()
