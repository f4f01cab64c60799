"""A ranking gives nested sets, best first, ties to the lower index, and comes back from its file."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pruning.errors import RankingError
from pruning.ranking import NestedRanking, Ranking

EXAMPLES = settings(deadline=None, derandomize=True)
few_values = st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0]), min_size=1, max_size=12)


@EXAMPLES
@given(scores=few_values)
def test_the_best_stay_and_ties_go_to_the_lower_index(scores: list[float]) -> None:
    ranking = NestedRanking.from_scores("any", {"a": torch.tensor(scores)})
    best_first = sorted(range(len(scores)), key=lambda channel: (-scores[channel], channel))
    for width in range(1, len(scores) + 1):
        assert ranking.keep("a", width) == tuple(sorted(best_first[:width]))


@EXAMPLES
@given(scores=few_values)
def test_a_narrower_cut_keeps_a_part_of_what_a_wider_one_keeps(scores: list[float]) -> None:
    ranking = NestedRanking.from_scores("any", {"a": torch.tensor(scores)})
    sets = [set(ranking.keep("a", width)) for width in range(1, len(scores) + 1)]
    assert all(narrow < wide for narrow, wide in pairwise(sets))
    assert sets[-1] == set(range(len(scores)))


def test_scores_are_kept_as_float64_and_orders_count_channels() -> None:
    ranking = NestedRanking.from_scores("any", {"a": torch.tensor([1, 3, 2], dtype=torch.bfloat16, requires_grad=True)})
    assert ranking.scores["a"].dtype == torch.float64
    assert not ranking.scores["a"].requires_grad
    assert ranking.orders["a"].tolist() == [1, 2, 0]
    assert isinstance(ranking, Ranking)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_score_that_is_not_finite_names_group_and_criterion(bad: float) -> None:
    message = r"criterion 'fpgm', group 'layer1.conv1': channels \[1, 2\] have no finite score"
    with pytest.raises(RankingError, match=message):
        NestedRanking.from_scores("fpgm", {"fine": torch.ones(2), "layer1.conv1": torch.tensor([1.0, bad, bad])})


@pytest.mark.parametrize("order", [[0, 1, 1], [1, 2, 3], [0, 2], [-1, 0, 1]])
def test_an_order_has_every_channel_once(order: list[int]) -> None:
    with pytest.raises(RankingError, match="any, group 'a': expected every channel once, got"):
        NestedRanking("any", {"a": torch.tensor(order)})


@pytest.mark.parametrize("width", [0, -1, 4])
def test_a_width_outside_the_group_is_refused(width: int) -> None:
    ranking = NestedRanking("l1", {"stem": torch.arange(3)})
    with pytest.raises(RankingError, match=f"ranking 'l1', group 'stem': expected 1 to 3, got {width}"):
        ranking.keep("stem", width)


def test_a_group_that_was_not_ranked_offers_the_nearest() -> None:
    with pytest.raises(RankingError, match="ranking 'l1': no group 'sten'; did you mean 'stem'"):
        NestedRanking("l1", {"stem": torch.arange(3)}).keep("sten", 1)


# ── files ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@EXAMPLES
@given(scores=st.dictionaries(st.text(max_size=9), few_values, max_size=3), keep_scores=st.booleans())
def test_a_ranking_comes_back_from_its_file(
    tmp_path_factory: pytest.TempPathFactory, scores: dict[str, list[float]], keep_scores: bool
) -> None:
    made = NestedRanking.from_scores("crit", {name: torch.tensor(values) for name, values in scores.items()})
    ranking = made if keep_scores else NestedRanking("crit", made.orders)
    path = tmp_path_factory.mktemp("ranking") / "ranking.safetensors"
    ranking.save(path)
    again = NestedRanking.load(path)
    assert again.criterion == "crit"
    assert tensors(again) == tensors(ranking)


def tensors(ranking: NestedRanking) -> list[dict[str, list[float]]]:
    return [{name: tensor.tolist() for name, tensor in part.items()} for part in (ranking.orders, ranking.scores)]


def test_orders_that_share_memory_can_be_saved(tmp_path: Path) -> None:
    order, columns = torch.tensor([2, 0, 1]), torch.rand(3, 2, dtype=torch.float64)
    shared = NestedRanking("any", {"a": order, "b": order}, {"a": columns[:, 0], "b": columns[:, 1]})
    shared.save(tmp_path / "ranking")
    assert tensors(NestedRanking.load(tmp_path / "ranking")) == tensors(shared)


def test_a_file_that_is_not_a_ranking_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ranking.safetensors"
    with pytest.raises(RankingError, match=r"ranking .*missing: No such file"):
        NestedRanking.load(tmp_path / "missing")
    with pytest.raises(RankingError, match="ranking "):
        NestedRanking.load(tmp_path)
    NestedRanking("any", {"a": torch.arange(3)}).save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RankingError, match=r"ranking .*ranking.safetensors: "):
        NestedRanking.load(path)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(RankingError, match=r"ranking .*ranking.safetensors: "):
        NestedRanking.load(path)
    save_file({"weight": torch.ones(2)}, path, metadata={"format": "pt"})
    with pytest.raises(RankingError, match="expected format 1, got pt"):
        NestedRanking.load(path)
    save_file({"weight": torch.ones(2)}, path)
    with pytest.raises(RankingError, match="expected format 1, got None"):
        NestedRanking.load(path)


def test_a_damaged_order_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ranking.safetensors"
    NestedRanking("any", {"a": torch.arange(3)}).save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RankingError, match="any, group 'a': expected every channel once"):
        NestedRanking.load(path)
