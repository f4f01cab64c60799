"""A ranking says which channels of every group to keep, at any width. Computed once, cut many times."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sized
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruning.errors import CheckpointError, RankingError, suggest
from pruning.limits import MALFORMED, check_claims, parse_json
from pruning.quadratic import Choice, choose

FORMAT = "1"


@runtime_checkable
class Ranking(Protocol):
    """Which channels to keep at any width."""

    criterion: str

    def keep(self, group: str, width: int) -> tuple[int, ...]:
        """Return the `width` channels of `group` to keep, ascending.

        Raises:
            RankingError: a group that was not ranked, or a width it does not have.
        """
        ...


class NestedRanking:
    """A ranking whose kept sets are nested: each group has one order, most important channel first.

    Args:
        criterion: name of the criterion that made it.
        orders: for each group its channels, most important first, int64 `[channels]`.
        scores: where the criterion has them, float64 `[channels]`, higher = keep; else empty.
    """

    def __init__(
        self, criterion: str, orders: Mapping[str, Tensor], scores: Mapping[str, Tensor] | None = None
    ) -> None:
        self.criterion = criterion
        self.orders = dict(orders)
        self.scores = dict(scores or {})
        for group, order in self.orders.items():
            if order.dim() != 1 or not torch.equal(order.sort().values, torch.arange(len(order))):
                raise RankingError(f"{criterion}, group '{group}': expected every channel once, got {order.tolist()}")

    @classmethod
    def from_scores(cls, criterion: str, scores: Mapping[str, Tensor]) -> NestedRanking:
        """Order each group by its scores, ties to the lower index.

        Raises:
            RankingError: a score that is not finite.
        """
        finite = {group: _finite(score, group, criterion) for group, score in scores.items()}
        orders = {group: torch.sort(score, descending=True, stable=True).indices for group, score in finite.items()}
        return cls(criterion, orders, finite)

    def keep(self, group: str, width: int) -> tuple[int, ...]:
        """Return the `width` most important channels of `group`, ascending."""
        check_width(self.criterion, self.orders, group, width)
        return tuple(sorted(self.orders[group][:width].tolist()))

    def save(self, path: Path) -> None:
        """Write orders and scores as safetensors."""
        write_ranking(path, "nested", self.criterion, {"order": self.orders, "score": self.scores})

    @classmethod
    def load(cls, path: Path) -> NestedRanking:
        """Read what `save` wrote.

        Raises:
            RankingError: missing, damaged or another format.
        """
        ranking = load_ranking(path)
        if not isinstance(ranking, cls):
            raise RankingError(f"ranking {path}: expected nested orders, got a {type(ranking).__name__}")
        return ranking


class QuadraticRanking:
    """A ranking of sets: removing channels z changes the loss by ½·zᵀSz − uᵀz, and each width has its own best set.

    The sets of two widths need not be nested. A width's set is sought when it is first asked for. `keep` looks at one
    group at a time, also where S between groups is known: that is for allocations.

    Args:
        criterion: name of the criterion that made it.
        linear: u of each group, `[channels]`.
        quadratic: S of each group, `[channels, channels]`, symmetric and positive semidefinite.

    Attributes:
        scores: how much the loss grows if a channel alone is removed, sᵢᵢ/2 − uᵢ, float64 `[channels]`, higher = keep.
        joint: S over the channels of all groups, in their order, `[all channels, all channels]`; None if not known.

    Raises:
        RankingError: a number that is not finite, or u and S that do not fit.
    """

    joint: Tensor | None = None

    def __init__(self, criterion: str, linear: Mapping[str, Tensor], quadratic: Mapping[str, Tensor]) -> None:
        self.criterion = criterion
        if linear.keys() != quadratic.keys():
            raise RankingError(f"{criterion}: expected u and S of the same groups, got {[*linear]} and {[*quadratic]}")
        for group, u in linear.items():
            if u.dim() != 1 or quadratic[group].shape != 2 * u.shape:
                shapes = f"{list(u.shape)} and {list(quadratic[group].shape)}"
                raise RankingError(f"{criterion}, group '{group}': expected u [channels] and S square, got {shapes}")
        self.linear = {group: _finite(u, group, criterion) for group, u in linear.items()}
        self.quadratic = {group: _finite(S, group, criterion) for group, S in quadratic.items()}
        for group, S in self.quadratic.items():
            if not torch.equal(S, S.T):
                raise RankingError(f"{criterion}, group '{group}': expected S symmetric")
        self.scores = {group: S.diagonal() / 2 - self.linear[group] for group, S in self.quadratic.items()}
        self._choices: dict[tuple[str, int], Choice] = {}

    @classmethod
    def from_joint(cls, criterion: str, linear: Mapping[str, Tensor], joint: Tensor) -> QuadraticRanking:
        """Make a ranking that also knows S between groups.

        Args:
            criterion: name of the criterion that made it.
            linear: u of each group, `[channels]`.
            joint: S over the channels of all groups, in the order of `linear`, symmetric and positive semidefinite.

        Raises:
            RankingError: as for the class.
        """
        ends = list(accumulate((len(u) for u in linear.values()), initial=0))
        if joint.shape != (ends[-1], ends[-1]):
            raise RankingError(f"{criterion}: expected S over all {ends[-1]} channels, got {list(joint.shape)}")
        blocks = {name: joint[i:j, i:j] for name, (i, j) in zip(linear, pairwise(ends), strict=True)}
        ranking = cls(criterion, linear, blocks)
        ranking.joint = _finite(joint, "all together", criterion)
        if not torch.equal(ranking.joint, ranking.joint.T):
            raise RankingError(f"{criterion}: expected S over all channels symmetric")
        return ranking

    def keep(self, group: str, width: int) -> tuple[int, ...]:
        """Return the `width` channels of `group` to keep, ascending: the others together cost the least loss found."""
        return tuple(np.flatnonzero(~self._removed(group, width).chosen).tolist())

    def gap(self, group: str, width: int) -> float:
        """Return how much less loss another set of `width` channels can cost at most, in the unit of the loss, ≥ 0.

        0 is proof that no set is better, by this quadratic loss.
        """
        return self._removed(group, width).gap

    def _removed(self, group: str, width: int) -> Choice:
        check_width(self.criterion, self.linear, group, width)
        if (group, width) not in self._choices:
            S, u = self.quadratic[group].numpy(), self.linear[group].numpy()
            self._choices[group, width] = choose(S, u, len(u) - width)
        return self._choices[group, width]

    def save(self, path: Path) -> None:
        """Write u and S as safetensors."""
        if self.joint is None:
            parts, extra = {"linear": self.linear, "quadratic": self.quadratic}, None
        else:  # it has the groups' S in it; the file forgets their order
            parts, extra = {"linear": self.linear, "joint": {"all": self.joint}}, {"groups": list(self.linear)}
        write_ranking(path, "quadratic", self.criterion, parts, extra)

    @classmethod
    def load(cls, path: Path) -> QuadraticRanking:
        """Read what `save` wrote.

        Raises:
            RankingError: missing, damaged or another format.
        """
        ranking = load_ranking(path)
        if not isinstance(ranking, cls):
            raise RankingError(f"ranking {path}: expected u and S, got a {type(ranking).__name__}")
        return ranking


def load_ranking(path: Path) -> Ranking:
    """Read a ranking of any kind.

    Raises:
        RankingError: missing, damaged or another format.
    """
    about, parts = _read(path)
    kind = about.get("kind", "nested")
    if kind not in sorted(_KINDS):
        raise RankingError(f"ranking {path}: expected one of {', '.join(sorted(_KINDS))}, got '{kind}'")
    try:
        return _KINDS[kind](about["criterion"], parts, about.get("extra", {}))
    except (*MALFORMED, RuntimeError) as error:  # another version's, or damaged
        raise RankingError(f"ranking {path}: expected the tensors of a {kind} one, got others: {error}") from error


Load = Callable[[str, Mapping[str, dict[str, Tensor]], Mapping[str, Any]], Ranking]
"""From a criterion's name, tensors by part and group, and what else was written, a ranking."""

_KINDS: dict[str, Load] = {
    "nested": lambda criterion, parts, _: NestedRanking(criterion, parts["order"], parts["score"]),
    "quadratic": lambda criterion, parts, extra: _quadratic(criterion, parts, extra),
}


def _quadratic(criterion: str, parts: Mapping[str, dict[str, Tensor]], extra: Mapping[str, Any]) -> QuadraticRanking:
    linear = parts["linear"]
    if "groups" not in extra:
        return QuadraticRanking(criterion, linear, parts["quadratic"])
    return QuadraticRanking.from_joint(
        criterion, {name: linear[name] for name in extra["groups"]}, parts["joint"]["all"]
    )


def register_kind(kind: str) -> Callable[[Load], Load]:
    """Return a decorator for what reads rankings of one more kind."""

    def decorate(load: Load) -> Load:
        _KINDS[kind] = load
        return load

    return decorate


def check_width(criterion: str, groups: Mapping[str, Sized], group: str, width: int) -> None:
    """Refuse what a ranking cannot keep.

    Args:
        criterion: of the ranking, for messages.
        groups: those that were ranked, each as long as it is wide.
        group: whose channels are asked for.
        width: how many.

    Raises:
        RankingError: a group that was not ranked, or a width it does not have.
    """
    if group not in groups:
        raise RankingError(f"ranking '{criterion}': no group '{group}'{suggest(group, groups)}")
    if not 1 <= width <= len(groups[group]):
        raise RankingError(f"ranking '{criterion}', group '{group}': expected 1 to {len(groups[group])}, got {width}")


def write_ranking(
    path: Path,
    kind: str,
    criterion: str,
    parts: Mapping[str, Mapping[str, Tensor]],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a ranking of a kind that `load_ranking` knows: tensors by part and name, and what JSON has besides."""
    tensors = {
        f"{part}/{group}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for part, of_groups in parts.items()
        for group, tensor in of_groups.items()
    }
    about = {
        "criterion": criterion,
        **({} if kind == "nested" else {"kind": kind}),
        **({"extra": extra} if extra else {}),
    }
    save_file(tensors, path, metadata={"format": FORMAT, "ranking": json.dumps(about)})


def _read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Return what a ranking says about itself, and its tensors by part and group."""
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        check_claims("tensors", tensors, path.stat().st_size)
    except (OSError, SafetensorError, CheckpointError, *MALFORMED, RuntimeError) as error:
        raise RankingError(f"ranking {path}: {error}") from None
    if metadata.get("format") != FORMAT:
        raise RankingError(f"ranking {path}: expected format {FORMAT}, got {metadata.get('format')}")
    for name, tensor in tensors.items():
        part, _, group = name.partition("/")
        parts[part][group] = tensor
    try:
        about = parse_json(metadata.get("ranking", ""))
    except ValueError as error:
        raise RankingError(f"ranking {path}: expected JSON about it, got: {error}") from None
    if not isinstance(about, dict):
        raise RankingError(f"ranking {path}: expected keys and values about it, got {type(about).__name__}")
    return about, parts


def _finite(score: Tensor, group: str, criterion: str) -> Tensor:
    score = score.detach().double().cpu()
    bad = (~score.isfinite()).nonzero()[:, 0].unique().tolist()
    if bad:
        raise RankingError(f"criterion '{criterion}', group '{group}': channels {bad} have no finite score")
    return score + 0.0  # −0.0 and 0.0 tie
