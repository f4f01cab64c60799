"""A ranking with curves is its base, and comes back from its file with all that the base knows."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pruning.curves import Curve, SensitivityRanking
from pruning.errors import RankingError
from pruning.greedy import GreedyRanking
from pruning.ranking import NestedRanking, QuadraticRanking, load_ranking

ORDERS = {"b": torch.tensor([2, 0, 1]), "a": torch.tensor([1, 0])}


def nested():
    return NestedRanking.from_scores("l1", {"b": torch.tensor([3.0, 1.0, 9.0]), "a": torch.tensor([0.0, 0.5])})


def quadratic():
    S = torch.diag(torch.arange(1.0, 6.0).double()) + 0.25
    return QuadraticRanking.from_joint("ccp", {"b": torch.zeros(3).double(), "a": torch.ones(2).double()}, S)


def greedy():
    losses = {"b": torch.tensor([3.0, 2.0, 1.0]), "a": torch.tensor([2.0, 1.5])}
    return GreedyRanking("dcp", ORDERS, losses, {"b": 2, "a": 1}, {"a": {"fc.weight": torch.ones(2, 2)}})


def curves():
    first = Curve(torch.tensor([1, 3]), torch.tensor([2.5, 0.1]).double(), torch.tensor([0.25, 0.9]).double())
    return {"b": first, "a": Curve(torch.tensor([1, 2]), torch.rand(2).double(), torch.rand(2).double())}


@pytest.mark.parametrize("make", [nested, quadratic, greedy])
def test_the_file_gives_back_base_and_curves(make, tmp_path):
    ranking = SensitivityRanking(make(), curves())
    ranking.save(tmp_path / "ranking")
    again = load_ranking(tmp_path / "ranking")
    assert isinstance(again, SensitivityRanking)
    assert again.criterion == "sensitivity"
    assert type(again.base) is type(ranking.base)
    assert again.base.criterion == ranking.base.criterion
    assert list(again.curves) == ["b", "a"]
    for name, curve in ranking.curves.items():
        for field in ("widths", "loss", "accuracy"):
            assert torch.equal(getattr(again.curves[name], field), getattr(curve, field))
            assert getattr(again.curves[name], field).dtype == getattr(curve, field).dtype
        assert torch.equal(again.scores[name], ranking.scores[name])
        for width in range(1, len(ranking.scores[name]) + 1):
            assert again.keep(name, width) == ranking.keep(name, width) == ranking.base.keep(name, width)
    if make is greedy:
        assert torch.equal(again.base.fitted["a"]["fc.weight"], torch.ones(2, 2))
        assert again.base.fitted_widths == {"b": 2, "a": 1}


def test_it_has_the_scores_and_the_weights_that_the_base_has():
    assert SensitivityRanking(nested(), {}).scores["b"].tolist() == [3.0, 1.0, 9.0]
    assert SensitivityRanking(NestedRanking("random", ORDERS), {}).scores == {}
    assert SensitivityRanking(nested(), {}).weights(torch.nn.Linear(2, 2), None, {}) == {}
    base = GreedyRanking("dcp", ORDERS, {name: torch.ones(1) for name in ORDERS}, {}, {}, {"weight": torch.eye(2)})
    assert torch.equal(SensitivityRanking(base, {}).weights(torch.nn.Linear(2, 2), None, {})["weight"], torch.eye(2))


def test_what_the_base_has_not_it_has_not_either():
    with pytest.raises(RankingError, match="ranking 'l1': no group 'c'"):
        SensitivityRanking(nested(), curves()).keep("c", 1)


def test_a_file_without_a_curve_is_an_error(tmp_path):
    path = tmp_path / "ranking"
    SensitivityRanking(nested(), curves()).save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if name != "loss/a"}, path, metadata=metadata)
    with pytest.raises(RankingError, match="expected the tensors of a sensitivity one, got others"):
        load_ranking(path)
    tensors["base/file"] = tensors["base/file"][:50]
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(RankingError, match=r"ranking .*base: "):
        load_ranking(path)
