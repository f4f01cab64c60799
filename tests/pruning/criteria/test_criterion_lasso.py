import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso as Solver
from slow_reconstruction import filters_of, seen_rows, stacked
from small_networks import IMAGE, Residual, batches, chain, pictures, prepared
from torch import nn

from pruning import ModelSpec, load_ranking, prune
from pruning.criteria import CRITERIA
from pruning.errors import OptionError, RankingError
from pruning.finding import find_groups
from pruning.models import build_model
from pruning.reconstruction import contract, gram_of_contributions, inner_products, lasso_order, least_squares
from pruning.refitting import ReconstructionRanking


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def ranked(model, data, groups=None, **options):
    return CRITERIA.build("lasso", **options).rank(model, groups or find_groups(model, IMAGE), data)


def first_supports(gram, target):
    """Return the support of the tightly solved lasso at many penalties: for each size the first that is met."""
    values, vectors = np.linalg.eigh(gram)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    y = np.linalg.pinv(root) @ target
    largest = np.abs(target).max() / len(root)
    found = {}
    for penalty in np.geomspace(largest, 1e-4 * largest, 300)[1:]:
        fit = Solver(alpha=penalty, fit_intercept=False, tol=1e-13, max_iter=200_000).fit(root, y)
        support = tuple(np.flatnonzero(fit.coef_).tolist())
        found.setdefault(len(support), support)
    return found


@pytest.mark.parametrize("build", [chain, Residual])
def test_the_kept_set_is_the_support_of_the_lasso_on_all_rows(build):
    model, (images, labels) = prepared(build()), pictures()
    groups = find_groups(model, IMAGE)
    ranking = ranked(model, batches(images, labels, 5), points_per_image=None)
    for name, group in groups.items():
        Z = stacked(model, group, images)
        assert ranking.scores[name].tolist() == pytest.approx((Z**2).sum(axis=0).tolist(), rel=1e-9)
        y, compared = Z.sum(axis=1), 0
        for penalty in np.geomspace(np.abs(Z.T @ y).max() / len(Z), 1e-4 * np.abs(Z.T @ y).max() / len(Z), 40)[1:]:
            fit = Solver(alpha=penalty, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(Z, y)
            support = tuple(np.flatnonzero(fit.coef_).tolist())
            kept = [ranking.keep(name, width) for width in range(1, group.width + 1)]
            assert support in kept, (name, penalty)
            compared += 1
        assert compared == 39


@pytest.mark.parametrize("seed", range(3))
def test_the_path_has_the_support_of_every_size_that_the_lasso_has_first(seed):
    rng = np.random.default_rng(seed)
    Z = rng.standard_normal((60, 12)) @ rng.standard_normal((12, 12))
    gram, target = Z.T @ Z, Z.T @ rng.standard_normal(60)
    steps = lasso_order(torch.from_numpy(gram), torch.from_numpy(target))
    ranking = ReconstructionRanking("lasso", {"g": steps}, {}, {}, whole_channels=False, ridge=0.0)
    supports = first_supports(gram, target)
    assert len(supports) > 6
    for size, support in supports.items():
        if size:
            assert ranking.keep("g", size) == support


def test_some_paths_lose_channels_on_the_way_and_their_sets_are_not_nested():
    leaving = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        Z = rng.standard_normal((60, 12)) @ rng.standard_normal((12, 12))
        leaving += int((lasso_order(torch.from_numpy(Z.T @ Z), torch.from_numpy(Z.T @ Z[:, 0])) < 0).sum())
        leaving += int((lasso_order(torch.from_numpy(Z.T @ Z), torch.from_numpy(Z.sum(axis=1) @ Z)) < 0).sum())
    assert leaving > 0
    steps = {"g": torch.tensor([2, 3, -2, 1, 4, 2])}
    ranking = ReconstructionRanking("lasso", steps, {}, {}, whole_channels=False, ridge=0.0)
    assert [ranking.keep("g", width) for width in (1, 2, 3, 4)] == [(1,), (1, 2), (0, 2, 3), (0, 1, 2, 3)]


def test_scaling_the_target_and_the_penalty_together_changes_nothing():
    rng = np.random.default_rng(5)
    Z = torch.from_numpy(rng.standard_normal((60, 9)))
    gram = Z.T @ Z
    for scale in (1e-30, 1e-12, 1e9):
        assert torch.equal(lasso_order(scale * gram, scale * gram.sum(1)), lasso_order(gram, gram.sum(1)))


def test_channels_that_never_come_in_follow_by_their_squares():
    gram = torch.diag(torch.tensor([4.0, 0.0, 9.0, 1.0, 9.0])).double()
    assert lasso_order(gram, torch.tensor([0.0, 0, 0, 1, 0]).double()).tolist() == [4, 3, 5, 1, 2]


def test_blocks_of_grams_are_the_gram_of_the_blocks():
    P, W = torch.randn(50, 6, 9).double(), torch.randn(7, 6, 9).double()
    Z = torch.einsum("rci,fci->rfc", P, W).flatten(0, 1)
    torch.testing.assert_close(gram_of_contributions(P, W), Z.T @ Z)
    torch.testing.assert_close(inner_products(Z), Z.T @ Z)
    torch.testing.assert_close(contract(P.flatten(1).T @ P.flatten(1), W), Z.T @ Z)


@pytest.mark.parametrize("build", [chain, Residual])
def test_the_weights_are_the_least_squares_fit_of_each_reader_at_any_width(build):
    model, (images, labels) = prepared(build()), pictures(40)
    groups = find_groups(model, IMAGE)
    ranking = ranked(model, [(images, labels)], points_per_image=None, ridge=1e-14)
    compared = 0
    for name, group in groups.items():
        for width in range(1, group.width):
            kept, weights = list(ranking.keep(name, width)), ranking.weights(model, groups, {name: width})
            for part in group.readers:
                rows, filters = seen_rows(model, part, images), filters_of(model, part)
                P = rows[:, kept].flatten(1).numpy()
                if np.linalg.matrix_rank(P) < P.shape[1]:
                    continue
                y = (rows.flatten(1) @ filters.flatten(1).T).numpy()
                solved = torch.from_numpy(np.linalg.lstsq(P, y, rcond=None)[0].T).reshape(len(filters), width, -1)
                expected = model.get_parameter(part.tensor).detach().clone()
                for number, channel in enumerate(kept):
                    target = expected[:, list(part.positions[channel])]
                    expected[:, list(part.positions[channel])] = solved[:, number].reshape(target.shape)
                torch.testing.assert_close(weights[part.tensor], expected, rtol=1e-6, atol=1e-8)
                compared += 1
    assert compared >= 5


def test_least_squares_moves_nothing_that_the_rows_say_nothing_about():
    A = torch.randn(30, 4).double()
    A[:, 1] = 0
    A[:, 2] = A[:, 0]  # the two share what they take over
    change = least_squares(A.T @ A, [0, 1, 2], torch.ones(4, 1), 1e-12)
    assert change[1] == 0
    assert change[0].item() == pytest.approx(change[2].item(), rel=1e-3)
    one = np.linalg.lstsq(A[:, [0]].numpy(), A[:, 3].numpy(), rcond=None)[0][0]
    assert float(change.sum()) == pytest.approx(one, rel=1e-6)
    assert least_squares(torch.zeros(3, 3), [0, 2], torch.ones(3, 1), 1e-6).tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("ridge", [0.0, 1e-300])
def test_an_indefinite_matrix_gets_the_ridge_that_it_needs(ridge):
    A = torch.randn(3, 40).double()  # fewer rows than columns
    change = least_squares(A.T @ A, list(range(30)), torch.ones(40, 2), ridge)
    assert bool(change.isfinite().all())
    fitted, wanted = A[:, :30] @ change, A[:, 30:] @ torch.ones(10, 2).double()
    torch.testing.assert_close(fitted, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("gram", [50 - 49 * torch.eye(3), -torch.eye(3), torch.full((3, 3), torch.nan)])
def test_a_matrix_of_no_inner_products_is_an_error(gram):
    with pytest.raises(RankingError, match="least squares: expected inner products"):
        least_squares(gram.double(), [0, 1], torch.ones(3, 1), 1e-6)


def test_a_channel_that_others_can_stand_in_for_costs_nothing():
    """Two channels that are equal except for their scale: either one can make the output of both."""
    model, (images, labels) = prepared(chain()), pictures(60)
    with torch.no_grad():
        for tensor in (model[0].weight, model[0].bias, model[1].running_mean):
            tensor[4] = tensor[1]
        model[1].running_var[4] = model[1].running_var[1]
        model[1].weight[4], model[1].bias[4] = 0.5 * model[1].weight[1], 0.5 * model[1].bias[1]
    groups, before = find_groups(model, IMAGE), model.eval()(images)
    ranking = ranked(model, [(images, labels)], ridge=1e-10)
    steps = {"0": torch.tensor([1, 2, 3, 4, 6, 5]), "4": ranking.steps["4"]}
    without = ReconstructionRanking("lasso", steps, {}, ranking.grams, whole_channels=False, ridge=1e-10)
    weight = without.weights(model, groups, {"0": 5})["4.weight"]
    torch.testing.assert_close(weight[:, 1], (model[4].weight[:, 1] + 0.5 * model[4].weight[:, 4]).detach())
    prune(model, {"0": 5}, without, groups=groups, example_input=IMAGE)
    torch.testing.assert_close(model(images), before, rtol=1e-5, atol=1e-6)


def test_a_dead_channel_goes_first_and_its_weights_stay_as_they_are():
    model, data = prepared(chain()), [pictures()]
    model[1].weight.data[2], model[1].bias.data[2] = 0, -1
    ranking = ranked(model, data)
    assert all(2 not in ranking.keep("0", width) for width in range(1, 6))
    dead = ReconstructionRanking(
        "lasso", {"0": torch.tensor([3, 1, 2, 4, 5, 6])}, {}, ranking.grams, whole_channels=False, ridge=1e-6
    )
    weight = dead.weights(model, find_groups(model, IMAGE), {"0": 3})["4.weight"]
    torch.testing.assert_close(weight[:, 2], model[4].weight[:, 2].detach())
    assert not torch.allclose(weight[:, 1], model[4].weight[:, 1])


def test_a_common_scale_of_the_reader_s_weights_changes_no_set():
    model, data = prepared(chain()), [pictures()]
    before = ranked(model, data)
    model[4].weight.data *= 1e-4
    after = ranked(model, data)
    assert [after.keep("0", width) for width in range(1, 7)] == [before.keep("0", width) for width in range(1, 7)]


def test_sampled_rows_do_not_depend_on_the_batches():
    model, (images, labels) = prepared(Residual()), pictures()
    whole = ranked(model, [(images, labels)], points_per_image=4)
    for data in (batches(images, labels, 5), batches(images, labels, 1)[::-1]):
        other = ranked(model, data, points_per_image=4)
        for name, grams in whole.grams.items():
            assert torch.equal(other.steps[name], whole.steps[name])
            for tensor, gram in grams.items():
                torch.testing.assert_close(other.grams[name][tensor], gram)


def test_many_columns_are_summed_in_float32(monkeypatch):
    model, data = prepared(Residual()), [pictures()]
    exact = ranked(model, data)
    monkeypatch.setattr("pruning.criteria.lasso.FLOAT64_COLUMNS", 30)
    rounded = ranked(model, data)
    assert rounded.grams["conv1"]["conv2.weight"].dtype == torch.float64  # 27 columns
    assert rounded.grams["stem"]["conv1.weight"].dtype == torch.float32
    assert [rounded.keep("stem", width) for width in (1, 2, 3)] == [exact.keep("stem", width) for width in (1, 2, 3)]
    torch.testing.assert_close(rounded.scores["stem"], exact.scores["stem"], rtol=1e-5, atol=0)
    groups = find_groups(model, IMAGE)
    one, other = (ranking.weights(model, groups, {"stem": 2})["conv1.weight"] for ranking in (exact, rounded))
    torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


def test_every_option_changes_something():
    model, (images, labels) = prepared(Residual()), pictures(16)
    groups, data = find_groups(model, IMAGE), [(images, labels)]
    plain = ranked(model, data)
    for options in ({"images": 8}, {"points_per_image": 5}, {"seed": 1}):
        assert not torch.equal(ranked(model, data, **options).scores["stem"], plain.scores["stem"]), options
    first = ranked(model, [(images[:8], labels[:8])]).scores["stem"]
    assert torch.equal(first, ranked(model, data, images=8).scores["stem"])
    without = ranked(model, data, reconstruct=False)
    assert without.weights(model, groups, {"stem": 2}) == {}
    assert torch.equal(without.steps["stem"], plain.steps["stem"])
    near, far = (ranked(model, data, ridge=ridge).weights(model, groups, {"stem": 2}) for ridge in (1e-6, 1e6))
    torch.testing.assert_close(far["conv1.weight"], model.conv1.weight.detach(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(near["conv1.weight"], model.conv1.weight)


@pytest.mark.parametrize("reconstruct", [True, False])
def test_a_file_gives_the_same_choice_and_weights(tmp_path, reconstruct):
    model = prepared(Residual())
    groups = find_groups(model, IMAGE)
    ranking = ranked(model, [pictures()], reconstruct=reconstruct)
    ranking.save(tmp_path / "ranking.safetensors")
    again = load_ranking(tmp_path / "ranking.safetensors")
    assert isinstance(again, ReconstructionRanking)
    widths = {"stem": 2, "conv1": 2}
    assert [again.keep(name, 2) for name in widths] == [ranking.keep(name, 2) for name in widths]
    expected, found = (one.weights(model, groups, widths) for one in (ranking, again))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_another_network_is_refused():
    model = prepared(chain())
    ranking = ranked(model, [pictures()])
    model[4] = nn.Conv2d(6, 4, 1).double()
    with pytest.raises(
        RankingError, match=r"ranking 'lasso', '4\.weight': expected 54 columns, got 6 channels of 1 inputs"
    ):
        ranking.weights(model, find_groups(model, IMAGE), {"0": 3})
    with pytest.raises(RankingError, match="ranking 'lasso': no group '1'"):
        ranking.keep("1", 2)
    with pytest.raises(RankingError, match="ranking 'lasso', group '0': expected 1 to 6, got 7"):
        ranking.keep("0", 7)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([1, 1], "expected channels to come before they leave, got step 1 out of turn"),
        ([1, -2], "expected channels to come before they leave, got step -2 out of turn"),
        ([1, 3], r"expected every channel to come in at last, got \[0, 2\]"),
        ([], r"expected every channel to come in at last, got \[\]"),
    ],
)
def test_steps_that_are_none_are_an_error(steps, message):
    with pytest.raises(RankingError, match=f"lasso, group 'g': {message}"):
        ReconstructionRanking("lasso", {"g": torch.tensor(steps)}, {}, {}, whole_channels=False, ridge=0.0)


def test_a_nan_is_an_error_that_names_group_and_channel():
    model = prepared(chain())
    model[4].weight.data[:, 1] = torch.nan
    with pytest.raises(RankingError, match=r"criterion 'lasso', group '0': channels \[1\] have no finite score"):
        ranked(model, [pictures()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "criterion 'lasso', images: expected at least 1, got 0"),
        ({"points_per_image": 0}, "criterion 'lasso', points_per_image: expected at least 1, got 0"),
        ({"ridge": float("nan")}, "criterion 'lasso', ridge: expected 0 or more, got nan"),
        ({"seed": -1}, "criterion 'lasso', seed: expected 0 or more, got -1"),
    ],
)
def test_an_impossible_option_is_an_error(options, message):
    with pytest.raises(OptionError, match=message):
        CRITERIA.build("lasso", **options)


def test_a_reader_of_another_kind_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 5, 2)).double()
    message = (
        "criterion 'lasso', group '0': expected Conv2d without groups or Linear as reader, got ConvTranspose2d '2'"
    )
    with pytest.raises(RankingError, match=message):
        ranked(model, [pictures()])


@pytest.mark.data
@pytest.mark.parametrize(("name", "unfitted"), [("thinet", {"compensate": False}), ("lasso", {"reconstruct": False})])
def test_fitted_weights_bring_each_layer_nearer_to_its_output_on_images_it_has_not_seen(
    name, unfitted, resnet20, cifar
):
    model, data = resnet20, cifar
    image = torch.zeros(1, 3, 32, 32)
    groups = find_groups(model, image)
    inner = groups.only(groups.matching(("inner",)))
    batches = list(data.train.subset(128, seed=0).batches(64))
    fresh = next(iter(data.test.subset(64, seed=0).batches(64)))[0]
    rankings = [CRITERIA.build(name, **options).rank(model, inner, batches) for options in ({}, unfitted)]
    for group in inner.values():
        reader = group.readers[0].layer
        wanted, errors = output_of(model, reader, fresh), []
        for ranking in rankings:
            cut = build_model(ModelSpec(name="resnet20")).eval()
            cut.load_state_dict(model.state_dict())
            prune(cut, {group.name: group.width // 2}, ranking, groups=groups, example_input=image)
            errors.append(float((output_of(cut, reader, fresh) - wanted).square().mean()))
        assert errors[0] < errors[1], group.name


def output_of(model, layer, images):
    found = []
    hook = model.get_submodule(layer).register_forward_hook(lambda m, x, y: found.append(y))
    with torch.no_grad():
        model(images)
    hook.remove()
    return found[0]
