"""A ranking by a lasso's path: its sets at every width, its scores and its file."""

import pytest
import torch

from pruning.errors import RankingError
from pruning.path_ranking import PathRanking
from pruning.ranking import NestedRanking, load_ranking, write_ranking

PENALTIES = torch.tensor([0.9, 0.5, 0.4, 0.3, 0.2, 0.0], dtype=torch.float64)
SUPPORTS = [[2], [0, 2], [2], [2, 3], [1, 2, 3]]  # channel 0 leaves again
ORDER = [4, 0, 1, 3, 2, 5]


def mask(*supports, channels=6):
    rows = torch.zeros(len(supports), channels, dtype=torch.bool)
    for row, support in zip(rows, supports, strict=True):
        row[list(support)] = True
    return rows


def made(penalties=PENALTIES, supports=None, order=ORDER):
    supports = mask(*SUPPORTS) if supports is None else supports
    return PathRanking("apib", {"g": penalties}, {"g": supports}, {"g": torch.tensor(order)})


def test_a_width_has_the_support_at_the_largest_penalty_that_leaves_so_many():
    ranking = made()
    assert ranking.keep("g", 1) == (2,)
    assert ranking.keep("g", 2) == (0, 2)  # {2, 3} comes later
    assert ranking.keep("g", 3) == (1, 2, 3)


def test_wider_than_the_path_follow_the_others_in_their_order():
    ranking = made()
    assert ranking.keep("g", 4) == (1, 2, 3, 4)
    assert ranking.keep("g", 5) == (0, 1, 2, 3, 4)
    assert ranking.keep("g", 6) == tuple(range(6))


def test_scores_are_the_penalty_at_which_a_channel_first_enters():
    assert made().scores["g"].tolist() == [0.5, 0.2, 0.9, 0.3, 0.0, 0.0]


def test_a_group_without_a_path_is_in_its_order():
    ranking = made(torch.zeros(1), mask())
    assert ranking.scores["g"].tolist() == [0.0] * 6
    assert [ranking.keep("g", width) for width in (1, 2, 5)] == [(4,), (0, 4), (0, 1, 2, 3, 4)]


@pytest.mark.parametrize("empty", [False, True])
def test_a_file_gives_it_back_whole(tmp_path, empty):
    ranking = made(torch.zeros(1), mask()) if empty else made()
    ranking.save(tmp_path / "r.safetensors")
    for again in (load_ranking(tmp_path / "r.safetensors"), PathRanking.load(tmp_path / "r.safetensors")):
        assert isinstance(again, PathRanking)
        assert again.criterion == "apib"
        assert torch.equal(again.penalties["g"], ranking.penalties["g"])
        assert torch.equal(again.supports["g"], ranking.supports["g"])
        assert [again.keep("g", width) for width in range(1, 7)] == [ranking.keep("g", width) for width in range(1, 7)]


def test_files_of_other_kinds_are_refused(tmp_path):
    NestedRanking.from_scores("l1", {"g": torch.ones(2)}).save(tmp_path / "nested.safetensors")
    with pytest.raises(RankingError, match="expected lasso paths, got a NestedRanking"):
        PathRanking.load(tmp_path / "nested.safetensors")
    write_ranking(tmp_path / "half.safetensors", "path", "apib", {"order": {"g": torch.arange(3)}, "penalty": {}})
    with pytest.raises(RankingError, match="expected the tensors of a path one, got others: 'g'"):
        load_ranking(tmp_path / "half.safetensors")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"order": [0, 1, 2, 3, 4, 4]}, "expected every channel once"),
        ({"penalties": PENALTIES[:-1]}, r"expected supports between 5 knots, of 6 channels, got \[5, 6\]"),
        ({"penalties": PENALTIES.flip(0)}, "expected falling penalties"),
        ({"penalties": PENALTIES * torch.nan}, "expected falling penalties"),
        ({"supports": mask([2], [0, 2], [2], [0, 1, 2], [2])}, "expected one more channel at a time"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(RankingError, match=f"apib, group 'g': {message}"):
        made(**parts)


def test_unknown_groups_and_impossible_widths_are_refused():
    ranking = made()
    with pytest.raises(RankingError, match="ranking 'apib': no group 'h'"):
        ranking.keep("h", 1)
    for width in (0, 7):
        with pytest.raises(RankingError, match=f"ranking 'apib', group 'g': expected 1 to 6, got {width}"):
            ranking.keep("g", width)
