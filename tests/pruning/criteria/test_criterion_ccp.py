import copy
from itertools import combinations

import pytest
import torch
from small_networks import IMAGE, Residual, batches, chain, pictures, prepared
from torch.nn import functional as F

from pruning.criteria import CRITERIA
from pruning.errors import OptionError, RankingError
from pruning.finding import find_groups
from pruning.groups import ChannelGroup, ChannelGroups, Slice, tensor_of
from pruning.statistics import reader_gates


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def ranked(model, data, **options):
    return CRITERIA.build("ccp", **options).rank(model, find_groups(model, IMAGE), data)


def losses(model, images, labels):
    with torch.no_grad():
        return F.cross_entropy(model.eval()(images), labels, reduction="none")


def scaled(model, slices, channel, factor):
    other = copy.deepcopy(model)
    for part in slices:
        weight = tensor_of(other, part.tensor).data.movedim(part.axis, 0)
        weight[list(part.positions[channel])] *= factor
    return other


def slopes(model, group, images, labels, step=1e-5):
    """Return d loss / d gate `[images, channels]`: difference quotients, the weights that read a channel scaled."""
    columns = []
    for channel in range(group.width):
        up, down = (losses(scaled(model, group.readers, channel, 1 + s), images, labels) for s in (step, -step))
        columns.append((up - down) / (2 * step))
    return torch.stack(columns, dim=1)


def assert_same(first, second, rtol=1e-9):
    for part in ("linear", "quadratic", "scores"):
        for name, tensor in getattr(first, part).items():
            torch.testing.assert_close(getattr(second, part)[name], tensor, rtol=rtol, atol=1e-14)


def test_for_one_image_the_quadratic_term_is_the_paper_s_jacobian_product():
    model, (images, labels) = prepared(chain()).eval(), pictures(1)
    with torch.no_grad():
        maps = model[:4](images)

    def outputs(gates):
        return model[4:](maps * gates[None, :, None, None]).softmax(dim=1)[0]

    ones = torch.ones(6, dtype=torch.float64)
    J, f = torch.autograd.functional.jacobian(outputs, ones), outputs(ones).detach()
    curvature = torch.diag(F.one_hot(labels[0], 5) / f**2)
    ranking = ranked(model, [(images, labels)])
    torch.testing.assert_close(ranking.quadratic["0"], J.T @ curvature @ J, rtol=1e-9, atol=1e-14)
    assert torch.linalg.matrix_rank(ranking.quadratic["0"]) == 1


def test_the_linear_term_is_the_product_of_the_reading_weights_and_their_gradient():
    model, (images, labels) = prepared(chain()), pictures()
    weight = model[4].weight
    (gradient,) = torch.autograd.grad(F.cross_entropy(model.eval()(images), labels), weight)
    expected = (weight * gradient).sum(dim=(0, 2, 3)).detach()
    torch.testing.assert_close(ranked(model, [(images, labels)]).linear["0"], expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("build", [chain, Residual])
def test_both_terms_are_means_over_the_images_of_the_loss_s_difference_quotients(build):
    model, (images, labels) = prepared(build()), pictures()
    ranking = ranked(model, batches(images, labels, 5))
    for name, group in find_groups(model, IMAGE).items():
        t = slopes(model, group, images, labels)
        torch.testing.assert_close(ranking.linear[name], t.mean(dim=0), rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(ranking.quadratic[name], t.T @ t / len(t), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("build", [chain, Residual])
def test_the_quadratic_term_is_symmetric_and_positive_semidefinite(build):
    for name, S in ranked(prepared(build()), batches(*pictures(), 5)).quadratic.items():
        assert S.dtype == torch.float64
        assert torch.equal(S, S.T), name
        values = torch.linalg.eigvalsh(S)
        assert values[0] >= -1e-14 * values[-1]


def test_a_shortcut_beside_a_reader_has_no_gate():
    model, (images, labels) = prepared(Residual()).eval(), pictures(5)
    (part,) = (part for part in find_groups(model, IMAGE)["stem"].readers if part.layer == "conv1")
    group = ChannelGroup("stem", 4, False, (), (), (part,))
    plain = model(images)
    with reader_gates(model, ChannelGroups((group,)), "any") as gates:
        assert torch.equal(model(images), plain)
        gates.of_layers["conv1"].clear()
        found = gates.slopes(F.cross_entropy(model(images), labels, reduction="sum"), 5)["stem"]
    torch.testing.assert_close(found, slopes(model, group, images, labels), rtol=1e-5, atol=1e-8)
    both_ways = (Slice("norm.weight", 0, part.positions), Slice("norm.bias", 0, part.positions))
    with_shortcut = slopes(model, ChannelGroup("stem", 4, False, (), (), both_ways), images, labels)
    assert not torch.allclose(found, with_shortcut, rtol=0.1)


def test_of_two_equal_channels_one_goes_although_alone_both_look_cheap():
    model = prepared(chain())
    for tensor in model[:2].state_dict().values():
        if tensor.dim():
            tensor[1] = tensor[0]
    model[4].weight.data[:, 1] = model[4].weight.data[:, 0]
    ranking = ranked(model, [pictures(60)])
    assert ranking.scores["0"][0] == pytest.approx(float(ranking.scores["0"][1]))
    cheapest = ranking.scores["0"].argsort()[:2].tolist()
    assert sorted(cheapest) == [0, 1]
    assert len({0, 1} & set(ranking.keep("0", 4))) == 1


def test_the_true_loss_of_a_cut_is_nearer_to_the_pairwise_model_than_to_single_channels():
    model, (images, labels) = prepared(chain()), pictures(200)
    ranking = ranked(model, [(images, labels)])
    group, before = find_groups(model, IMAGE)["0"], losses(model, images, labels).mean()
    S, u, alone = ranking.quadratic["0"], ranking.linear["0"], ranking.scores["0"]
    true, pairwise, single = [], [], []
    for removed in combinations(range(6), 3):
        cut = model
        for channel in removed:
            cut = scaled(cut, group.readers, channel, 0)
        z = torch.zeros(6, dtype=torch.float64)
        z[list(removed)] = 1
        true.append(losses(cut, images, labels).mean() - before)
        pairwise.append(z @ S @ z / 2 - u @ z)
        single.append(alone @ z)
    agreement = [float(torch.corrcoef(torch.tensor([true, model]))[0, 1]) for model in (pairwise, single)]
    assert agreement[0] > agreement[1]


def test_batch_size_and_order_do_not_matter():
    model, (images, labels) = prepared(Residual()), pictures()
    whole = ranked(model, [(images, labels)])
    for data in (batches(images, labels, 1), batches(images, labels, 5), batches(images, labels, 5)[::-1]):
        other = ranked(model, data)
        assert_same(whole, other)
        assert all(other.keep(name, 2) == whole.keep(name, 2) for name in whole.scores)


def test_images_takes_the_first_images():
    model, (images, labels) = prepared(chain()), pictures()
    assert_same(ranked(model, [(images[:6], labels[:6])]), ranked(model, batches(images, labels, 4), images=6))
    with pytest.raises(OptionError, match="criterion 'ccp', images: expected at least 1, got 0"):
        CRITERIA.build("ccp", images=0)


def test_a_channel_that_nobody_reads_costs_nothing_and_goes_first():
    model = prepared(chain())
    model[4].weight.data[:, 2] = 0
    ranking = ranked(model, [pictures()])
    assert ranking.scores["0"][2] == 0
    assert bool((ranking.quadratic["0"][2] == 0).all())


def test_a_frozen_network_is_scored_like_any_other_also_without_gradients_around():
    model, data = prepared(chain()), [pictures()]
    expected = ranked(model, data)
    model.requires_grad_(False)
    with torch.no_grad():
        assert_same(expected, ranked(model, data))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_no_hook_is_left_after_an_error():
    model, (images, labels) = prepared(chain()), pictures()

    def broken():
        yield images, labels
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        ranked(model, broken())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_nan_is_an_error_that_names_group_and_channel():
    model = prepared(chain())
    model[0].weight.data[1] = torch.nan
    with pytest.raises(RankingError, match=r"'ccp', group '0': channels \[.*1.*\] have no finite score"):
        ranked(model, [pictures()])


def test_no_data_is_an_error():
    with pytest.raises(RankingError, match="criterion 'ccp': needs data, expected batches"):
        ranked(prepared(chain()), None)
