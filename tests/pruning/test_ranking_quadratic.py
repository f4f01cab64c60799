"""A quadratic ranking seeks the best set of every width when it is asked, and comes back from its file."""

from __future__ import annotations

import pickle
from itertools import combinations
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from pruning import ranking as ranking_module
from pruning.allocation import ALLOCATIONS
from pruning.cost import CostModel
from pruning.errors import RankingError
from pruning.finding import find_groups
from pruning.ranking import NestedRanking, QuadraticRanking, Ranking, load_ranking


def drawn(seed: int = 0, **widths: int) -> QuadraticRanking:
    generator = torch.Generator().manual_seed(seed)
    slopes = {
        name: torch.randn(30, width, generator=generator, dtype=torch.float64) + 0.3
        for name, width in (widths or {"a": 8, "b": 5}).items()
    }
    return of_slopes(slopes)


def of_slopes(slopes: dict[str, torch.Tensor]) -> QuadraticRanking:
    quadratic = {name: t.T @ t / len(t) for name, t in slopes.items()}
    return QuadraticRanking(
        "ccp", {name: t.mean(dim=0) for name, t in slopes.items()}, {n: (S + S.T) / 2 for n, S in quadratic.items()}
    )


def loss(ranking: QuadraticRanking, group: str, kept: tuple[int, ...]) -> float:
    S, u = ranking.quadratic[group], ranking.linear[group]
    removed = [channel for channel in range(len(u)) if channel not in kept]
    return float(S[removed][:, removed].sum() / 2 - u[removed].sum())


@pytest.mark.parametrize("seed", range(5))
def test_the_gap_says_how_far_the_kept_set_is_from_the_best_of_all_sets(seed: int) -> None:
    ranking = drawn(seed)
    for width in range(1, 9):
        kept = ranking.keep("a", width)
        best = min(loss(ranking, "a", other) for other in combinations(range(8), width))
        assert len(kept) == width
        assert list(kept) == sorted(set(kept))
        assert -1e-12 <= loss(ranking, "a", kept) - best <= ranking.gap("a", width) + 1e-12
    assert ranking.gap("a", 8) == 0
    assert isinstance(ranking, Ranking)


def test_scores_are_what_a_channel_costs_alone() -> None:
    ranking = drawn()
    for channel in range(8):
        others = tuple(other for other in range(8) if other != channel)
        assert float(ranking.scores["a"][channel]) == pytest.approx(loss(ranking, "a", others))
    assert ranking.keep("a", 7) == tuple(sorted(ranking.scores["a"].argsort()[1:].tolist()))


def test_a_set_is_sought_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, choose = [], ranking_module.choose

    def noting(S, u, count):
        asked.append(count)
        return choose(S, u, count)

    monkeypatch.setattr(ranking_module, "choose", noting)
    ranking = drawn()
    assert ranking.keep("a", 3) == ranking.keep("a", 3)
    ranking.gap("a", 3)
    ranking.keep("b", 3)
    assert asked == [5, 2]


def test_the_global_allocation_takes_its_scores() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3)), nn.Flatten(), nn.Linear(6 * 16, 4))
    example = torch.zeros(1, 3, 8, 8)
    groups = find_groups(model, example)
    cost = CostModel(model, groups, example)
    ranking = drawn(**groups.widths)
    nested = NestedRanking.from_scores("same", ranking.scores)
    rule, macs = ALLOCATIONS.build("global"), cost.full.macs // 2
    assert rule.widths(groups, cost, macs, ranking) == rule.widths(groups, cost, macs, nested)


def test_a_ranking_comes_back_from_its_file_and_from_a_pickle(tmp_path: Path) -> None:
    ranking = drawn(3, **{"layer1.0/conv": 8, "b": 5})
    ranking.save(tmp_path / "ranking")
    again = load_ranking(tmp_path / "ranking")
    for other in (again, QuadraticRanking.load(tmp_path / "ranking"), pickle.loads(pickle.dumps(ranking))):
        assert isinstance(other, QuadraticRanking)
        assert other.criterion == "ccp"
        for group, S in ranking.quadratic.items():
            assert torch.equal(other.quadratic[group], S)
            assert torch.equal(other.linear[group], ranking.linear[group])
            assert [other.keep(group, width) for width in (1, 3)] == [ranking.keep(group, width) for width in (1, 3)]


def test_either_kind_is_read_and_the_other_kind_refused(tmp_path: Path) -> None:
    drawn().save(tmp_path / "quadratic")
    NestedRanking("l1", {"a": torch.tensor([1, 0])}).save(tmp_path / "nested")
    nested = load_ranking(tmp_path / "nested")
    assert isinstance(nested, NestedRanking)
    assert nested.keep("a", 1) == (1,)
    with pytest.raises(RankingError, match="expected nested orders, got a QuadraticRanking"):
        NestedRanking.load(tmp_path / "quadratic")
    with pytest.raises(RankingError, match="expected u and S, got a NestedRanking"):
        QuadraticRanking.load(tmp_path / "nested")
    about = {"format": "1", "ranking": '{"criterion": "ccp", "kind": "cubic"}'}
    save_file({"linear/a": torch.ones(2)}, tmp_path / "cubic", metadata=about)
    with pytest.raises(RankingError, match=r"expected one of greedy, nested, .*quadratic.*, got 'cubic'"):
        load_ranking(tmp_path / "cubic")


def test_a_nested_ranking_says_no_more_in_its_file_than_it_did(tmp_path: Path) -> None:
    NestedRanking.from_scores("l1", {"a": torch.tensor([1.0, 2.0])}).save(tmp_path / "nested")
    assert sorted(load_file(tmp_path / "nested")) == ["order/a", "score/a"]
    assert b'{\\"criterion\\": \\"l1\\"}' in (tmp_path / "nested").read_bytes()


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ranking"
    drawn().save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RankingError, match="ranking "):
        load_ranking(path)
    with pytest.raises(RankingError, match=r"ranking .*missing: No such file"):
        load_ranking(tmp_path / "missing")


def test_what_is_not_a_quadratic_loss_is_refused() -> None:
    u, S = torch.ones(3), torch.eye(3)
    with pytest.raises(RankingError, match=r"ccp, group 'a': expected u \[channels\] and S square, got \[3\] and \[2"):
        QuadraticRanking("ccp", {"a": u}, {"a": torch.eye(2)})
    with pytest.raises(RankingError, match=r"expected u and S of the same groups, got \['a'\] and \['b'\]"):
        QuadraticRanking("ccp", {"a": u}, {"b": S})
    with pytest.raises(RankingError, match="ccp, group 'a': expected S symmetric"):
        QuadraticRanking("ccp", {"a": u}, {"a": S + torch.tensor([0.0, 0.0, 1.0])})
    with pytest.raises(RankingError, match=r"group 'a': channels \[1\] have no finite score"):
        QuadraticRanking("ccp", {"a": torch.tensor([1.0, torch.nan, 0.0])}, {"a": S})
    S[2, 2] = torch.inf
    with pytest.raises(RankingError, match=r"group 'a': channels \[2\] have no finite score"):
        QuadraticRanking("ccp", {"a": u}, {"a": S})


def test_a_group_or_a_width_that_is_not_there_is_refused() -> None:
    for ask in (drawn().keep, drawn().gap):
        with pytest.raises(RankingError, match="ranking 'ccp', group 'b': expected 1 to 5, got 0"):
            ask("b", 0)
        with pytest.raises(RankingError, match="ranking 'ccp', group 'b': expected 1 to 5, got 6"):
            ask("b", 6)
        with pytest.raises(RankingError, match="ranking 'ccp': no group 'c'; there are: a, b"):
            ask("c", 1)


def joined(ranking: QuadraticRanking) -> torch.Tensor:
    """Return S over all groups, without terms between them."""
    return torch.block_diag(*ranking.quadratic.values())


def test_s_over_all_groups_comes_back_with_its_order_and_a_ranking_without_it_says_no_more(tmp_path: Path) -> None:
    plain = drawn(0, z=4, a=6)
    joint = joined(plain)
    joint[0, 5] = joint[5, 0] = 0.25
    ranking = QuadraticRanking.from_joint("ccp", plain.linear, joint)
    ranking.save(tmp_path / "joint")
    for again in (load_ranking(tmp_path / "joint"), pickle.loads(pickle.dumps(ranking))):
        assert isinstance(again, QuadraticRanking)
        assert again.joint is not None
        assert torch.equal(again.joint, joint)
        assert list(again.linear) == list(again.quadratic) == list(again.scores) == ["z", "a"]
        for group, S in plain.quadratic.items():
            assert torch.equal(again.quadratic[group], S)
            assert again.keep(group, 2) == plain.keep(group, 2)
    plain.save(tmp_path / "plain")
    assert plain.joint is None
    assert sorted(load_file(tmp_path / "plain")) == ["linear/a", "linear/z", "quadratic/a", "quadratic/z"]
    assert b'{\\"criterion\\": \\"ccp\\", \\"kind\\": \\"quadratic\\"}' in (tmp_path / "plain").read_bytes()


def test_terms_between_groups_that_do_not_fit_are_refused() -> None:
    ranking = drawn()
    with pytest.raises(RankingError, match=r"ccp: expected S over all 13 channels, got \[8, 8\]"):
        QuadraticRanking.from_joint("ccp", ranking.linear, ranking.quadratic["a"])
    joint = joined(ranking)
    joint[0, 9] = 1
    with pytest.raises(RankingError, match="ccp: expected S over all channels symmetric"):
        QuadraticRanking.from_joint("ccp", ranking.linear, joint)
    joint[0, 9] = joint[9, 0] = torch.nan
    with pytest.raises(RankingError, match=r"'ccp', group 'all together': channels \[0, 9\] have no finite score"):
        QuadraticRanking.from_joint("ccp", ranking.linear, joint)
