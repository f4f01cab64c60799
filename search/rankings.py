"""Rankings by key: from memory, from the cache folder, or made now while others wait for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pruning import (
    ALLOCATIONS,
    CRITERIA,
    AuxiliaryLosses,
    AuxiliaryPlacement,
    CriterionSpec,
    Curve,
    MixedRanking,
    Policy,
    Ranking,
    RankingError,
    Selector,
    Sensitivity,
    SensitivityRanking,
    StreamingCriterion,
    is_out_of_memory,
    load_ranking,
    rank_together,
    stagewise_schedule,
    told_briefly,
)
from search.cache import NOT_KEPT, SUFFIX, cache_of, key_of
from search.heads import heads_key, with_heads
from search.inputs import Inputs, Say, ranking_key, seen_placement, silent
from search.rules import prior_criterion, rules_ahead
from search.unwritten import going_without

BATCH = 128
"""Images that a criterion sees at a time; DCP makes a step on each batch."""

PART, PARTS = 3, 16
"""Curves are measured of so many groups together, or of more where that would be more than so many parts."""

Wanted = tuple[CriterionSpec, AuxiliaryPlacement | None]
"""What is ranked by, and the auxiliary losses that it sees."""


def wanted_ahead(inputs: Inputs) -> dict[str, Wanted]:
    """Return what trials can ask for as far as it is needed before the trials are, by key.

    A ranking that depends on auxiliary losses is made when the first trial asks for it, where and while others run;
    unless a rule for the widths looks at it, which is asked before. A rule that looks at a criterion of its own has it
    ranked like the others.
    """
    asked = inputs.experiment.search
    rules = [ALLOCATIONS.build(rule.name, **rule.options) for rule in rules_ahead(inputs.experiment)]
    prior = prior_criterion(inputs.experiment)
    looking = any(rule.looks_at_ranking and rule.ranked_by is None for rule in rules)
    criteria = [(criterion, looking) for criterion in asked.criterion]
    criteria += [(rule.ranked_by, True) for rule in rules if rule.ranked_by is not None]
    criteria += [] if prior is None else [(prior, True)]
    wanted: dict[str, Wanted] = {}
    for criterion, early in criteria:
        blind = seen_placement(inputs.experiment, criterion, AuxiliaryPlacement(positions=1)) is None
        for placement in [None] if blind else asked.auxiliary.known(len(inputs.blocks)):
            seen = seen_placement(inputs.experiment, criterion, placement)
            if early or seen is None:
                wanted.setdefault(ranking_key(criterion, seen), (criterion, seen))
    return wanted


def rank_all(inputs: Inputs, say: Say = silent) -> dict[str, Ranking]:
    """Return the rankings that are needed before the trials, by key; those by feature maps share one pass."""
    wanted = wanted_ahead(inputs)
    rank_ahead(inputs, [criterion for criterion, seen in wanted.values() if seen is None], None, say)
    return {key: ranking_for(inputs, criterion, seen, say) for key, (criterion, seen) in wanted.items()}


def rank_by_weights(inputs: Inputs, say: Say = silent) -> dict[str, Ranking]:
    """Return those of `rank_all` that take neither images nor heads, and so no time."""
    return {
        key: ranking_for(inputs, criterion, None, say)
        for key, (criterion, seen) in wanted_ahead(inputs).items()
        if seen is None and not CRITERIA.build(criterion.name, **criterion.options).needs_data
    }


def ranking_for(
    inputs: Inputs, criterion: CriterionSpec, placement: AuxiliaryPlacement | None, say: Say = silent
) -> Ranking:
    """Return the ranking of the searched groups; whoever asks for one that is being computed waits for it.

    Raises:
        RankingError: a group that the criterion cannot rank.
        PruningError: auxiliary losses that do not fit the network.
    """
    placement = seen_placement(inputs.experiment, criterion, placement)
    known = inputs.rankings.get(ranking_key(criterion, placement))
    if known is not None:
        return known

    def make(draft: Path) -> Ranking:
        behind = "" if placement is None else f", auxiliary losses at {placement}"
        say(f"ranking channels by {criterion.name}{behind}")
        with _memory_told(criterion.name):
            ranking = _rank(inputs, criterion, placement, say)
        _save(ranking, draft)
        return ranking

    return cache_of(inputs.experiment).once(_ranking_path(inputs, criterion, placement), load_ranking, make)


def policy_ranking(inputs: Inputs, policy: Policy) -> Ranking:
    """Return what a policy is cut by: the ranking of its criterion, or of several, each for its own groups.

    Raises:
        PruningError: as for `ranking_for`.
    """
    made = {spec: ranking_for(inputs, spec, policy.auxiliary) for spec in policy.every_criterion}
    if not policy.criteria:
        return made[policy.criterion]
    return MixedRanking({name: made[policy.criterion_of(name)] for name in policy.widths})


def known_ranking(inputs: Inputs, criterion: CriterionSpec, placement: AuxiliaryPlacement | None) -> Ranking | None:
    """Return what `ranking_for` returns if it only has to be read."""
    placement = seen_placement(inputs.experiment, criterion, placement)
    known = inputs.rankings.get(ranking_key(criterion, placement))
    if known is not None:
        return known
    return cache_of(inputs.experiment).find(_ranking_path(inputs, criterion, placement), load_ranking)


def rank_ahead(
    inputs: Inputs, criteria: Iterable[CriterionSpec], placement: AuxiliaryPlacement | None, say: Say = silent
) -> tuple[CriterionSpec, ...]:
    """Make what is missing of the rankings by feature maps, all in one pass, for `ranking_for` to find in the cache.

    Returns:
        The criteria whose rankings were made; none where fewer than two are missing.

    Raises:
        PruningError: as for `ranking_for`; nothing of the pass is kept.
    """
    cache = cache_of(inputs.experiment)
    seen = placement if inputs.experiment.auxiliary.schedule == "joint" else None  # no such criterion sees the losses
    built = {
        _ranking_path(inputs, spec, seen): (spec, CRITERIA.build(spec.name, **spec.options))
        for spec in criteria
        if ranking_key(spec, seen) not in inputs.rankings
    }
    paths = [path for path, (_, criterion) in built.items() if isinstance(criterion, StreamingCriterion)]
    with cache.locked(*paths):
        missing = {path.stem: path for path in sorted(paths) if cache.find(path, load_ranking) is None}
        if len(missing) < 2:
            return ()
        specs = tuple(built[path][0] for path in missing.values())
        say(f"ranking channels by {', '.join(spec.name for spec in specs)} in one pass")
        network, auxiliary = _subject(inputs, seen, say)
        streaming = {name: built[path][1] for name, path in missing.items()}
        with _memory_told(", ".join(spec.name for spec in specs)):
            rankings = rank_together(streaming, network, inputs.searched, _batches(inputs), auxiliary)
        for name, ranking in rankings.items():
            cache.fill(missing[name], partial(_save, ranking))
    return specs


def ranked_network(inputs: Inputs, criterion: CriterionSpec, placement: AuxiliaryPlacement | None) -> nn.Module:
    """Return the network that is ranked, on the CPU: the baseline; after schedule `joint` the fine-tuned one."""
    placement = seen_placement(inputs.experiment, criterion, placement)
    if placement is None or inputs.experiment.auxiliary.schedule != "joint":
        return inputs.network()
    return with_heads(inputs, placement)[0]


def _rank(inputs: Inputs, spec: CriterionSpec, placement: AuxiliaryPlacement | None, say: Say) -> Ranking:
    """Rank the searched groups by one criterion, on training images where it needs any."""
    criterion, asked = CRITERIA.build(spec.name, **spec.options), inputs.experiment
    if isinstance(criterion, Sensitivity):
        base = _base(inputs, criterion, say)
        parts = [curves_of(inputs, spec, names, say) for names in parts_of(inputs, spec)]
        return SensitivityRanking(base, {name: curve for part in parts for name, curve in part.items()})
    network, auxiliary = _subject(inputs, placement, say)
    if not criterion.needs_data:
        return criterion.rank(network, inputs.searched)
    train, batches = inputs.data.train, _batches(inputs)
    images = sum(len(labels) for _, labels in batches)
    if isinstance(criterion, Selector) and images < BATCH:
        say(f"note: {images} images are less than a batch of {BATCH}: {spec.name} fits its picks in one step each")
    if auxiliary is not None and asked.auxiliary.schedule == "stagewise" and isinstance(criterion, Selector):
        return stagewise_schedule(
            network,
            inputs.searched,
            auxiliary,
            train,
            batches,
            criterion,
            recipe=asked.auxiliary.fine_tuning,
            example_input=inputs.example,
            device=inputs.device,
            seed=asked.search.seed,
            say=say,
        )
    return criterion.rank(network, inputs.searched, batches, auxiliary)


def parts_of(inputs: Inputs, spec: CriterionSpec) -> list[tuple[str, ...]]:
    """Return the searched groups in parts whose curves can be measured apart; none unless the criterion has curves."""
    if not isinstance(CRITERIA.build(spec.name, **spec.options), Sensitivity):
        return []
    names = tuple(inputs.searched)
    size = max(PART, -(-len(names) // PARTS))
    return [names[first : first + size] for first in range(0, len(names), size)]


def curves_of(inputs: Inputs, spec: CriterionSpec, names: tuple[str, ...], say: Say = silent) -> dict[str, Curve]:
    """Return the curves of one of `parts_of`; whoever asks for some that are being measured waits for them.

    Raises:
        RankingError: as for `ranking_for`.
    """
    criterion = CRITERIA.build(spec.name, **spec.options)
    assert isinstance(criterion, Sensitivity)

    def make(draft: Path) -> Ranking:
        base = _base(inputs, criterion, say)
        say(f"cutting {names[0]} to {names[-1]} one by one" if len(names) > 1 else f"cutting {names[0]}")
        with _memory_told(spec.name):
            network, _ = _subject(inputs, None, say)
            curves = criterion.curves(network, inputs.searched.only(names), base, _batches(inputs))
        ranking = SensitivityRanking(base, curves)
        _save(ranking, draft)
        return ranking

    path = cache_of(inputs.experiment).path(
        "curves", f"{_ranking_key(inputs, spec, None)}-{key_of(list(names))}", SUFFIX
    )
    found = cache_of(inputs.experiment).once(path, load_ranking, make)
    assert isinstance(found, SensitivityRanking)
    return found.curves


def _base(inputs: Inputs, criterion: Sensitivity, say: Say) -> Ranking:
    with criterion.told_of_base():
        return ranking_for(inputs, CriterionSpec(name=criterion.criterion, options=dict(criterion.options)), None, say)


@contextmanager
def _memory_told(criteria: str) -> Iterator[None]:
    """Say in one line that a ranking ran out of memory.

    Raises:
        RankingError: it did.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fewer = "fewer search.ranking_images, or trials that run at once, need less"
        raise RankingError(f"{criteria}: expected memory to rank, got: {told_briefly(error)}; {fewer}") from None


def _subject(
    inputs: Inputs, placement: AuxiliaryPlacement | None, say: Say
) -> tuple[nn.Module, AuxiliaryLosses | None]:
    """Return the network that is ranked and the heads on it, where they are to run."""
    network, auxiliary = (inputs.network(), None) if placement is None else with_heads(inputs, placement, say)
    if auxiliary is not None:
        auxiliary.heads.to(inputs.device)
    return network.to(inputs.device), auxiliary


def _save(ranking: Ranking, draft: Path) -> None:
    """Write a ranking of a kind that can be."""
    if hasattr(ranking, "save"):
        with going_without(NOT_KEPT, draft):
            ranking.save(draft)


def _batches(inputs: Inputs) -> list[tuple[Tensor, Tensor]]:
    """Return the training images that criteria look at."""
    train, asked = inputs.data.train, inputs.experiment.search
    split = train.subset(min(asked.ranking_images, len(train)), asked.seed)
    return list(split.batches(BATCH, device=inputs.device))


# ── keys ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _ranking_path(inputs: Inputs, spec: CriterionSpec, placement: AuxiliaryPlacement | None) -> Path:
    return cache_of(inputs.experiment).path("rankings", f"{spec.name}-{_ranking_key(inputs, spec, placement)}", SUFFIX)


def derived_key(inputs: Inputs, spec: CriterionSpec, placement: AuxiliaryPlacement | None, parts: list[Any]) -> str:
    """Return the key of something that is computed from a ranking and from `parts`."""
    placement = seen_placement(inputs.experiment, spec, placement)
    return f"{spec.name}-{key_of([_ranking_key(inputs, spec, placement), *parts])}"


def _ranking_key(inputs: Inputs, spec: CriterionSpec, placement: AuxiliaryPlacement | None) -> str:
    experiment, searched = inputs.experiment, inputs.searched
    parts: list[Any] = [ranking_key(spec), inputs.weights_hash, inputs.groups.signature, sorted(searched)]
    if CRITERIA.build(spec.name, **spec.options).needs_data:
        parts += [inputs.data.fingerprint, experiment.search.ranking_images, experiment.search.seed]
    if placement is not None:
        parts += [placement.weight, heads_key(inputs, placement), experiment.auxiliary.model_dump(mode="json")]
    return key_of(parts)
