import pytest
import torch

from pruning import spectra
from pruning.spectra import nuclear_drops, ranks

EPS = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def one_by_one(maps):
    """Return the ranks as published: a call a map."""
    return torch.tensor([[float(torch.linalg.matrix_rank(one)) for one in image] for image in maps]).double()


def without_each(maps):
    """Return the drops as published, channels + 1 SVDs an image, but in float64."""
    drops = torch.zeros(maps.shape[:2], dtype=torch.float64)
    for image, a in enumerate(maps.flatten(2).double()):
        for channel in range(len(a)):
            zeroed = a.clone()
            zeroed[channel] = 0
            drops[image, channel] = torch.linalg.svdvals(a).sum() - torch.linalg.svdvals(zeroed).sum()
    return drops


def low_rank(images, channels, height, width, dtype=torch.float32):
    """Return maps of every rank from 0 to the full one, the deficient ones up to the type's rounding."""
    full = min(height, width)
    left, right = torch.randn(images, channels, height, full), torch.randn(images, channels, full, width)
    wanted = torch.randint(full + 1, (images, channels, 1, 1))
    return ((left * (torch.arange(full) < wanted)).to(dtype) @ right.to(dtype)).to(dtype)


def with_spectrum(sigma, height, width):
    """Return a float32 map with these singular values."""
    left, right = (torch.linalg.qr(torch.randn(n, len(sigma), dtype=torch.float64)).Q for n in (height, width))
    return (left @ torch.diag(sigma) @ right.T).float()


SHAPES = [(1, 1), (1, 9), (9, 1), (2, 2), (7, 7), (8, 8), (16, 16), (32, 32), (5, 12), (12, 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_ranks_are_those_of_a_call_for_each_map(height, width, dtype):
    dense = low_rank(3, 20, height, width, dtype)
    sparse = torch.relu(torch.randn(3, 20, height, width, dtype=dtype) - 1.5)
    repeated = sparse[:, :, torch.arange(height) // 2]
    for maps in (dense, sparse, repeated, dense * 1e-12, torch.relu(dense)):
        found = ranks(maps)
        assert found.dtype == torch.float64
        assert found.tolist() == one_by_one(maps).tolist()


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 4), (8, 8), (32, 32), (4, 20), (20, 4)])
def test_singular_values_at_the_tolerance_are_counted_as_matrix_rank_counts_them(height, width):
    size, tolerance = min(height, width), max(height, width) * EPS
    factors = torch.logspace(-1.5, 1.5, 300).tolist()
    spectra_of = [torch.tensor([1.0] * (size - 1) + [factor * tolerance]).double() for factor in factors]
    maps = torch.stack([with_spectrum(sigma, height, width) for sigma in spectra_of])[None]
    found = ranks(maps)
    assert found.tolist() == one_by_one(maps).tolist()
    assert set(found.flatten().tolist()) == {size - 1, size}  # they do lie on both sides


def test_small_singular_values_count_that_a_float32_gram_matrix_would_lose():
    sigma = torch.logspace(0, -4, 8, dtype=torch.float64)  # squares down to 1e-8 of the first, below float32's ε
    maps = torch.stack([with_spectrum(sigma, 8, 8) for _ in range(50)])[None]
    assert ranks(maps).tolist() == [[8.0] * 50]


def test_the_tolerance_is_each_map_s_own():
    maps = low_rank(2, 10, 8, 8)
    scaled = maps * 2.0 ** torch.arange(-50, 50, 10)[:, None, None]
    assert torch.equal(ranks(scaled), ranks(maps))


def test_a_zero_map_has_rank_zero_and_a_map_of_one_place_rank_one():
    maps = torch.zeros(1, 3, 6, 6)
    maps[0, 1, 2, 3] = 1e-30
    maps[0, 2, 5] = -2.0
    assert ranks(maps).tolist() == [[0.0, 1.0, 1.0]]


def test_a_single_map_is_ranked_too():
    for maps in (low_rank(20, 1, 6, 6)).split(1):
        assert torch.equal(ranks(maps), one_by_one(maps))


def test_maps_of_one_row_need_no_decomposition(monkeypatch):
    for name in ("eigvalsh", "matrix_rank", "cholesky_ex"):
        monkeypatch.setattr(torch.linalg, name, None)
    maps = torch.tensor([0.0, 3.0, 0.0, -1e-30]).view(1, 2, 1, 2)
    maps[0, 0] = 0
    assert ranks(maps).tolist() == ranks(maps.double().mT).tolist() == [[0.0, 1.0]]


def test_half_precision_has_the_rank_of_the_same_numbers_in_float32():
    maps = low_rank(2, 10, 8, 8).bfloat16()
    assert torch.equal(ranks(maps), one_by_one(maps.float()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("height", [1, 4])
def test_a_map_that_is_not_finite_has_no_rank_and_the_others_have_theirs(value, height, dtype):
    maps = torch.randn(2, 3, height, 4).to(dtype)
    expected = ranks(maps)
    maps[1, 2, 0, 1] = value
    found = ranks(maps)
    assert found.isnan().nonzero().tolist() == [[1, 2]]
    found[1, 2] = expected[1, 2]
    assert torch.equal(found, expected)


STACKS = [(1, 3, 3), (2, 1, 1), (5, 1, 1), (6, 1, 4), (16, 8, 8), (9, 3, 3), (64, 8, 8), (40, 4, 4), (12, 5, 7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", STACKS, ids=str)
def test_drops_are_those_of_an_svd_without_each_channel(shape, dtype):
    dense = torch.randn(3, *shape, dtype=dtype)
    sparse = torch.relu(dense - 0.5)
    unequal = dense * torch.logspace(0, -3, shape[0], dtype=dtype)[:, None, None]
    for maps in (dense, sparse, unequal):
        expected = without_each(maps)
        error = (nuclear_drops(maps) - expected).abs()
        assert bool((error <= 1e-5 * expected + 1e-9 * expected.max()).all())  # weak channels: Gram in float64


def test_drops_of_channels_that_nearly_depend_on_each_other():
    base = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    mixed = torch.einsum("ic,bchw->bihw", torch.randn(10, 3, dtype=torch.float64), base)
    for noise in (0, 1e-9, 1e-6, 1e-3):
        maps = mixed + noise * torch.randn_like(mixed)
        torch.testing.assert_close(nuclear_drops(maps), without_each(maps), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("strength", [1e-1, 1e-3, 1e-4])
@pytest.mark.parametrize("channels", [6, 20])
def test_a_weak_channel_is_as_exact_as_the_others(strength, channels):
    # What the integral has below its last node is a large part of such a channel's drop.
    maps = torch.randn(4, channels, 4, 4, dtype=torch.float64)
    maps[:, :, 0, 0] = 0
    maps[:, 2] = 0
    maps[:, 2, 0, 0] = strength  # at right angles to all others: the drop is its norm
    assert nuclear_drops(maps)[:, 2].tolist() == pytest.approx([strength] * 4, rel=1e-5)


def test_drops_where_they_are_known():
    a = torch.randn(5, 5, dtype=torch.float64)
    twice = torch.stack([a, a, torch.zeros_like(a)])[None]
    norm = float(a.norm())
    expected = [norm * (2**0.5 - 1)] * 2 + [0.0]  # two equal rows have one singular value, √2·‖a‖
    assert nuclear_drops(twice)[0].tolist() == pytest.approx(expected, rel=1e-5)
    rows = torch.diag(torch.tensor([1.0, 2.0, 3.0])).view(1, 3, 1, 3)  # at right angles: each its norm
    assert nuclear_drops(rows)[0].tolist() == pytest.approx([1, 2, 3], rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 4, 4), (20, 3, 3)], ids=str)
def test_a_zero_map_adds_exactly_nothing_and_any_other_something(shape):
    maps = torch.relu(torch.randn(5, *shape) - 0.5)
    maps[:, [1, 4]] = 0
    maps[3] = 0
    drops = nuclear_drops(maps)
    assert torch.equal(drops == 0, maps.flatten(2).eq(0).all(dim=2))
    assert bool((drops >= 0).all())


@pytest.mark.parametrize("shape", [(16, 5, 5), (32, 3, 3)], ids=str)
def test_drops_of_channels_below_rounding_stay_positive_and_small(shape):
    maps = torch.randn(20, *shape, dtype=torch.float64) * torch.logspace(0, -18, shape[0]).double()[:, None, None]
    drops, expected = nuclear_drops(maps), without_each(maps)
    assert bool((drops > 0).all())
    assert bool(((drops - expected).abs() <= 1e-5 * expected + 1e-8 * expected.max()).all())


@pytest.mark.parametrize("shape", [(6, 4, 4), (20, 3, 3)], ids=str)
def test_drops_move_with_the_channels_and_grow_with_the_maps(shape):
    maps = torch.randn(4, *shape, dtype=torch.float64)
    drops, order = nuclear_drops(maps), torch.randperm(shape[0])
    torch.testing.assert_close(nuclear_drops(maps[:, order]), drops[:, order], rtol=1e-10, atol=0)
    torch.testing.assert_close(nuclear_drops(-maps.flip(3)), drops, rtol=1e-10, atol=0)
    for scale in (1e-60, 3.0, 1e60):
        torch.testing.assert_close(nuclear_drops(scale * maps), scale * drops, rtol=1e-10, atol=0)


def test_half_precision_is_calculated_in_float64():
    maps = torch.randn(2, 6, 4, 4).bfloat16()
    assert torch.equal(nuclear_drops(maps), nuclear_drops(maps.double()))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("shape", [(6, 4, 4), (20, 3, 3)], ids=str)
def test_an_image_that_is_not_finite_has_no_drops_and_the_others_have_theirs(shape, value):
    maps = torch.randn(3, *shape)
    expected = nuclear_drops(maps)
    maps[1, 2, 0, 1] = value
    found = nuclear_drops(maps)
    assert bool(found[1].isnan().all())
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_images_are_worked_on_a_few_at_a_time_with_the_same_result(monkeypatch):
    maps = torch.relu(low_rank(7, 6, 8, 8))
    expected = ranks(maps), nuclear_drops(maps)
    most = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda a: most.append(len(a)) or eigh(a))
    monkeypatch.setattr(spectra, "NUMBERS", 3000)
    assert torch.equal(ranks(maps), expected[0])
    torch.testing.assert_close(nuclear_drops(maps), expected[1], rtol=1e-12, atol=0)
    assert most == [2, 2, 2, 1]
