"""Rankings and auxiliary heads by key: from memory, from the cache folder, or made now while others wait for them."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock
from torch import Tensor, nn

from pruning import (
    ALLOCATIONS,
    CRITERIA,
    AuxiliaryLosses,
    AuxiliaryPlacement,
    CheckpointError,
    CriterionSpec,
    Ranking,
    RankingError,
    Selector,
    StreamingCriterion,
    fine_tune,
    hash_weights,
    is_out_of_memory,
    load_ranking,
    load_weights,
    rank_together,
    save_weights,
    stagewise_schedule,
    told_briefly,
    train_heads,
)
from search.inputs import Inputs, Say, ranking_key, seen_placement, silent

T = TypeVar("T")

BATCH = 128
"""Images that a criterion sees at a time; DCP makes a step on each batch."""


def rank_all(inputs: Inputs, say: Say = silent) -> dict[str, Ranking]:
    """Return the rankings that trials can ask for, by key, as far as they are needed before the trials are.

    A ranking that depends on auxiliary losses is made when the first trial asks for it, where and while others run;
    unless a rule for the widths looks at it, which is asked before. A rule that looks at a criterion of its own has it
    ranked like the others. Those by feature maps share one pass.
    """
    asked = inputs.experiment.search
    rules = [ALLOCATIONS.build(rule.name, **rule.options) for rule in asked.allocation if rule.name != "searched"]
    looking = any(rule.looks_at_ranking and rule.ranked_by is None for rule in rules)
    criteria = [(criterion, looking) for criterion in asked.criterion]
    criteria += [(rule.ranked_by, True) for rule in rules if rule.ranked_by is not None]
    some = AuxiliaryPlacement(positions=1)
    blind = [one for one, _ in criteria if seen_placement(inputs.experiment, one, some) is None]
    rank_ahead(inputs, blind, None, say)
    rankings: dict[str, Ranking] = {}
    for criterion, early in criteria:
        for placement in [None] if criterion in blind else asked.auxiliary.known(len(inputs.blocks)):
            seen = seen_placement(inputs.experiment, criterion, placement)
            key = ranking_key(criterion, seen)
            if key not in rankings and (early or seen is None):
                rankings[key] = ranking_for(inputs, criterion, seen, say)
    return rankings


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
    path = _ranking_path(inputs, criterion, placement)

    def make() -> Ranking:
        behind = "" if placement is None else f", auxiliary losses at {placement}"
        say(f"ranking channels by {criterion.name}{behind}")
        with _memory_told(criterion.name):
            ranking = _rank(inputs, criterion, placement, say)
        if hasattr(ranking, "save"):
            _write(path, ranking.save)
        return ranking

    return _once(path, load_ranking, make)


def is_ranked(inputs: Inputs, criterion: CriterionSpec, placement: AuxiliaryPlacement | None) -> bool:
    """Return whether `ranking_for` has the ranking already, and only reads it."""
    placement = seen_placement(inputs.experiment, criterion, placement)
    known = ranking_key(criterion, placement) in inputs.rankings
    return known or _stored(_ranking_path(inputs, criterion, placement), load_ranking) is not None


def rank_ahead(
    inputs: Inputs, criteria: Iterable[CriterionSpec], placement: AuxiliaryPlacement | None, say: Say = silent
) -> tuple[CriterionSpec, ...]:
    """Make what is missing of the rankings by feature maps, all in one pass, for `ranking_for` to find in the cache.

    Returns:
        The criteria whose rankings were made; none where fewer than two are missing.

    Raises:
        PruningError: as for `ranking_for`; nothing of the pass is kept.
    """
    seen = placement if inputs.experiment.auxiliary.schedule == "joint" else None  # no such criterion sees the losses
    built = {_ranking_path(inputs, spec, seen): (spec, CRITERIA.build(spec.name, **spec.options)) for spec in criteria}
    paths = sorted(path for path, (_, criterion) in built.items() if isinstance(criterion, StreamingCriterion))
    with ExitStack() as locks:
        for path in paths:  # always in the same order: no two processes wait for each other
            locks.enter_context(_locked(path))
        missing = {path.stem: path for path in paths if _stored(path, load_ranking) is None}
        if len(missing) < 2:
            return ()
        specs = tuple(built[path][0] for path in missing.values())
        say(f"ranking channels by {', '.join(spec.name for spec in specs)} in one pass")
        network, auxiliary = _subject(inputs, seen, say)
        streaming = {name: built[path][1] for name, path in missing.items()}
        with _memory_told(", ".join(spec.name for spec in specs)):
            rankings = rank_together(streaming, network, inputs.searched, _batches(inputs), auxiliary)
        for name, ranking in rankings.items():
            if hasattr(ranking, "save"):
                _write(missing[name], ranking.save)
    return specs


def ranked_network(inputs: Inputs, criterion: CriterionSpec, placement: AuxiliaryPlacement | None) -> nn.Module:
    """Return the network that is ranked, on the CPU: the baseline; after schedule `joint` the fine-tuned one."""
    placement = seen_placement(inputs.experiment, criterion, placement)
    if placement is None or inputs.experiment.auxiliary.schedule != "joint":
        return inputs.network()
    return with_heads(inputs, placement)[0]


def with_heads(inputs: Inputs, placement: AuxiliaryPlacement, say: Say = silent) -> tuple[nn.Module, AuxiliaryLosses]:
    """Return the baseline with trained heads, both on the CPU; after schedule `joint` the fine-tuned baseline.

    Heads are trained once for each placement; whoever asks for some that are being trained waits for them.

    Raises:
        PruningError: auxiliary losses that do not fit the network.
    """
    spec, network = inputs.experiment.auxiliary, inputs.network()
    auxiliary = AuxiliaryLosses(
        network, placement, inputs.model.num_classes, inputs.example, seed=inputs.experiment.search.seed
    )
    trained: nn.Module = auxiliary.heads
    if spec.schedule == "joint":
        trained = nn.ModuleDict({"network": network, "heads": auxiliary.heads})
    path = _cache(inputs, "auxiliary") / f"{_heads_hash(inputs, placement)}.safetensors"

    def read(path: Path) -> nn.Module:
        load_weights(trained, path)
        return trained

    def make() -> nn.Module:
        say(f"training auxiliary heads at {placement} on the frozen network")
        where: dict[str, Any] = {"device": inputs.device, "seed": inputs.experiment.search.seed}
        for epoch in train_heads(network, auxiliary, inputs.data.train, spec.heads, **where):
            say(f"  epoch {epoch.epoch}/{spec.heads.epochs}: loss {epoch.loss:.3f}")
        if spec.schedule == "joint":
            say("fine-tuning the network with its auxiliary losses")
            for epoch in fine_tune(network, inputs.data.train, spec.fine_tuning, auxiliary=auxiliary, **where):
                say(f"  epoch {epoch.epoch}/{spec.fine_tuning.epochs}: loss {epoch.loss:.3f}")
        trained.cpu()
        _write(path, lambda draft: save_weights(trained, draft))
        return trained

    _once(path, read, make)
    return network.cpu().eval(), auxiliary


def _rank(inputs: Inputs, spec: CriterionSpec, placement: AuxiliaryPlacement | None, say: Say) -> Ranking:
    """Rank the searched groups by one criterion, on training images where it needs any."""
    criterion, asked = CRITERIA.build(spec.name, **spec.options), inputs.experiment
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


def _batches(inputs: Inputs) -> list[tuple[Tensor, Tensor]]:
    """Return the training images that criteria look at."""
    train, asked = inputs.data.train, inputs.experiment.search
    split = train.subset(min(asked.ranking_images, len(train)), asked.seed)
    return list(split.batches(BATCH, device=inputs.device))


# ── one file a key ───────────────────────────────────────────────────────────────────────────────────────────────────


def _once(path: Path, read: Callable[[Path], T], make: Callable[[], T]) -> T:
    """Return what lies at `path`, or make it; only one process makes it, the others wait and read."""
    with _locked(path):
        stored = _stored(path, read)
        return make() if stored is None else stored


def _locked(path: Path) -> FileLock:
    path.parent.mkdir(parents=True, exist_ok=True)
    locks = path.parent.parent / "locks"
    locks.mkdir(exist_ok=True)
    return FileLock(locks / f"{path.name}.lock")


def _stored(path: Path, read: Callable[[Path], T]) -> T | None:
    """Return what lies at `path`; None for what was torn by a crash or is another version's: it is made again."""
    try:
        return read(path) if path.exists() else None
    except (RankingError, CheckpointError):
        return None


def _write(path: Path, save: Callable[[Path], None]) -> None:
    draft = path.with_name(f"{path.stem}.{uuid.uuid4().hex}.draft")
    save(draft)
    draft.replace(path)


def _cache(inputs: Inputs, kind: str) -> Path:
    return inputs.experiment.storage / "cache" / kind


def _ranking_path(inputs: Inputs, spec: CriterionSpec, placement: AuxiliaryPlacement | None) -> Path:
    return _cache(inputs, "rankings") / f"{spec.name}-{_ranking_hash(inputs, spec, placement)}.safetensors"


def cache_path(
    inputs: Inputs, spec: CriterionSpec, placement: AuxiliaryPlacement | None, kind: str, parts: list[Any]
) -> Path:
    """Return where something lies that was computed from a ranking and from `parts`, without suffix."""
    placement = seen_placement(inputs.experiment, spec, placement)
    return _cache(inputs, kind) / f"{spec.name}-{_hash([_ranking_hash(inputs, spec, placement), *parts])}"


def _ranking_hash(inputs: Inputs, spec: CriterionSpec, placement: AuxiliaryPlacement | None) -> str:
    experiment, searched = inputs.experiment, inputs.searched
    parts: list[Any] = [ranking_key(spec), hash_weights(inputs.weights), inputs.groups.signature, sorted(searched)]
    if CRITERIA.build(spec.name, **spec.options).needs_data:
        parts += [inputs.data.fingerprint, experiment.search.ranking_images, experiment.search.seed]
    if placement is not None:
        parts += [placement.weight, _heads_hash(inputs, placement), experiment.auxiliary.model_dump(mode="json")]
    return _hash(parts)


def _heads_hash(inputs: Inputs, placement: AuxiliaryPlacement) -> str:
    """Return the key of trained heads; without fine-tuning their weight in the loss plays no part."""
    spec, experiment = inputs.experiment.auxiliary, inputs.experiment
    parts = [hash_weights(inputs.weights), inputs.model.model_dump(), inputs.data.fingerprint, experiment.search.seed]
    parts += [placement.model_dump(mode="json", exclude={"weight"}), spec.heads.model_dump(mode="json")]
    if spec.schedule == "joint":
        parts += [placement.weight, spec.fine_tuning.model_dump(mode="json")]
    return _hash(parts)


def _hash(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
