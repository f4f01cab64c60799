import pytest
import torch
from small_networks import IMAGE, Residual, batches, chain, inputs_of, pictures, prepared

from pruning.criteria import CRITERIA, rank_together
from pruning.criteria.apoz import APoZ
from pruning.errors import OptionError, RankingError
from pruning.finding import find_groups


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(3)


@pytest.mark.parametrize("make", [Residual, chain])
def test_is_minus_the_share_of_zeros_where_a_channel_is_read(make):
    model = prepared(make())
    images, labels = pictures(12)
    groups = find_groups(model, IMAGE)
    ranking = APoZ().rank(model, groups, batches(images, labels, 5))
    seen = inputs_of(model, images)
    for name, group in groups.items():
        distinct = {id(seen[part.layer]): (seen[part.layer], part) for part in group.readers}.values()
        for channel in range(group.width):
            zeros = [x[:, list(part.positions[channel])] == 0 for x, part in distinct]
            expected = -sum(float(z.double().mean()) for z in zeros)
            assert ranking.scores[name][channel].item() == pytest.approx(expected)


def test_a_channel_that_never_fires_is_last():
    model = prepared(chain())
    groups = find_groups(model, IMAGE)
    name = next(iter(groups))
    maker = model.get_submodule(groups[name].makers[0].layer)
    maker.weight.data[2] = 0
    if maker.bias is not None:
        maker.bias.data[2] = -1
    for part in groups[name].carried:
        if part.tensor.endswith("bias"):
            model.get_parameter(part.tensor).data[2] = -1
    ranking = APoZ().rank(model, groups, batches(*pictures(12), 5))
    assert ranking.scores[name][2] == -1
    assert ranking.orders[name][-1] == 2


def test_looks_at_the_first_images_only():
    model = prepared(Residual())
    images, labels = pictures(12)
    groups = find_groups(model, IMAGE)
    few = APoZ(images=5).rank(model, groups, batches(images, labels, 4))
    first = APoZ().rank(model, groups, batches(images[:5], labels[:5], 5))
    for name in groups:
        assert few.scores[name].tolist() == first.scores[name].tolist()


def test_is_ranked_in_the_same_pass_as_others():
    model, data = prepared(Residual()), batches(*pictures(12), 5)
    groups = find_groups(model, IMAGE)
    passes = []
    hook = model.register_forward_hook(lambda *_: passes.append(1))
    together = rank_together({"a": APoZ(), "b": APoZ(images=3), "w": CRITERIA.build("l1")}, model, groups, data)
    hook.remove()
    assert len(passes) == len(data)
    for key, alone in {"a": APoZ(), "b": APoZ(images=3), "w": CRITERIA.build("l1")}.items():
        assert list(together) == ["a", "b", "w"]
        expected = alone.rank(model, groups, data)
        assert together[key].criterion == expected.criterion
        assert all(torch.equal(together[key].scores[name], expected.scores[name]) for name in groups)


def test_no_images_and_bad_options_are_errors():
    with pytest.raises(OptionError, match="criterion 'apoz', images: expected at least 1, got 0"):
        APoZ(images=0)
    model = prepared(chain())
    with pytest.raises(RankingError, match="criterion 'apoz': needs data"):
        APoZ().rank(model, find_groups(model, IMAGE), None)
