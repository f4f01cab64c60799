"""What trials share, in Ray's object store: inputs and rankings once each; rankings that are missing, made in tasks."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import ray
import torch

from pruning import CRITERIA, PruningError, Ranking, StreamingCriterion
from search.config import Experiment, Resources
from search.counts import Event, counting, note
from search.errors import PlaceError, SearchError, SweepError
from search.inputs import Inputs, Say, ranking_key, silent
from search.launching import does_not_see, token_in
from search.places import is_there
from search.prepare import prepare_ahead
from search.rankings import (
    Wanted,
    curves_of,
    known_ranking,
    parts_of,
    rank_ahead,
    rank_all,
    ranking_for,
    wanted_ahead,
)
from search.unwritten import tell, telling
from search.worker import take_share


@dataclass(frozen=True)
class Job:
    """What one task ranks by; several criteria share a pass over the images.

    Attributes:
        wanted: the criteria.
        part: the groups whose curves are measured, of one criterion that has some; else empty, and all are ranked.
    """

    wanted: list[Wanted]
    part: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shared:
    """References to what lies in the object store: inputs without rankings, and rankings by key."""

    unranked: ray.ObjectRef[Any]
    rankings: ray.ObjectRef[Any]

    @property
    def key(self) -> str:
        """Tells it from everything that is shared otherwise; holds nothing in the object store."""
        return self.unranked.hex() + self.rankings.hex()


def share(inputs: Inputs, say: Say = silent) -> tuple[Inputs, Shared]:
    """Rank what has to be ranked before the trials, and put what they share into the object store.

    Returns:
        The inputs with rankings, and where trials find them; see `received`.

    Raises:
        SearchError, PruningError: as for `rank_in_tasks`.
        SweepError: the object store is full, and so is the disk to which it spills.
    """
    unranked = _put(replace(inputs, rankings={}))
    rankings = rank_in_tasks(inputs, unranked, say)
    return replace(inputs, rankings=rankings), Shared(unranked, _put(rankings))


def _put(thing: Any) -> ray.ObjectRef[Any]:
    try:
        return ray.put(thing)
    except ray.exceptions.RayError as error:
        raise SweepError(f"object store: {_first_line(error)}") from None


_last: tuple[str, Inputs] | None = None


def received(shared: Shared) -> Inputs:
    """Return what the driver shared. A worker reads it for its first trial and keeps it for the next ones.

    It lies in memory that other processes see and that cannot be written to, as far as it is images.
    """
    global _last
    if _last is None or _last[0] != shared.key:
        _last = None  # of an earlier sweep
        unranked, rankings = ray.get([shared.unranked, shared.rankings])
        _last = shared.key, replace(unranked, rankings=rankings)
    return _last[1]


# ── inputs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def prepare_in_task(experiment: Experiment, say: Say = silent) -> Inputs:
    """Return what `prepare_ahead` returns, made by a task with a trial's resources: a cluster's head may have no GPU.

    Raises:
        SearchError, PruningError: as for `prepare_ahead`.
        SweepError: the task's process died, or its machine does not see the storage.
    """
    place = _place(experiment.resources)
    task = ray.remote(**place, max_retries=experiment.resources.retries, num_returns="streaming")(_preparing)
    found: Inputs | None = None
    try:
        with token_in(experiment.storage) as token:
            stream: Any = task.remote(experiment, token)
            for reference in stream:
                answer = ray.get(reference)
                if isinstance(answer, str):
                    say(answer)
                elif isinstance(answer, Exception):
                    raise answer
                else:
                    found, events = answer
                    _note(events)
    except ray.exceptions.RayTaskError:  # a bug, with its traceback
        raise
    except ray.exceptions.RayError as error:
        raise SweepError(f"preparing: {_first_line(error)}") from None
    assert found is not None  # the last answer, or an error
    return found


def _preparing(experiment: Experiment, token: Path) -> Iterator[str | Exception | tuple[Inputs, list[Event]]]:
    """Yield the lines that preparing says, when it says them; then what it gives.

    The machine may have joined for this task: it has to see the token that lies in the storage.
    """
    try:
        if not is_there(token):
            node = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
            yield does_not_see(node, token.parent)
            return
    except PlaceError as error:
        yield error
        return
    take_share(experiment.resources)
    lines: SimpleQueue[str | None] = SimpleQueue()
    events = list[Event]()

    def work() -> Inputs:
        with counting(events.append), telling(lambda line: lines.put(f"note: {line}")):
            return prepare_ahead(experiment, lines.put)

    with ThreadPoolExecutor(1) as pool:
        prepared = pool.submit(work)
        prepared.add_done_callback(lambda _: lines.put(None))
        while (line := lines.get()) is not None:
            yield line
        try:
            yield prepared.result(), events
        except (PruningError, SearchError) as error:
            yield error


def _place(resources: Resources) -> dict[str, Any]:
    return {"num_cpus": resources.cpus, "num_gpus": resources.gpus, "memory": resources.memory_bytes}


def _note(events: Iterable[Event]) -> None:
    for kind, key, made in events:
        note(kind, key, made=made)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# ── rankings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Answer:
    """What a task made, by key, what it said, what it made or found of what is shared, and what it went without."""

    rankings: dict[str, Ranking]
    said: list[str]
    events: list[Event]
    missing: list[str]
    seconds: float


def rank_in_tasks(inputs: Inputs, unranked: ray.ObjectRef[Any], say: Say = silent) -> dict[str, Ranking]:
    """Return what `rank_all` returns; what is missing is ranked in tasks, as many at once as there are resources for.

    One that is missing alone is made here, unless it takes a GPU and there is none. A task gets the resources of a
    trial.

    Args:
        inputs: what is ranked, with the rankings that are there already.
        unranked: the same in the object store.
        say: told of every task, when it ends.

    Raises:
        SearchError, PruningError: what a ranking raises; the other tasks are ended.
        SweepError: the processes of a task died.
    """
    wanted = wanted_ahead(inputs)
    known = {key: found for key, one in wanted.items() if (found := known_ranking(inputs, *one)) is not None}
    jobs = _jobs(inputs, {key: one for key, one in wanted.items() if key not in known})
    here = inputs.device == "cpu" or torch.cuda.is_available()
    if len(jobs) < (2 if here else 1):
        return rank_all(replace(inputs, rankings=known), say)
    say(f"ranking channels in {len(jobs)} task{'' if len(jobs) == 1 else 's'}")
    resources = inputs.experiment.resources
    task = ray.remote(**_place(resources), max_retries=resources.retries)(_attempt)
    with _ended_by_error({task.remote(unranked, job): job for job in jobs}) as running:
        for number, answer in enumerate(_answers(running), start=1):
            for line in answer.said:
                say(line)
            say(f"  [{number}/{len(jobs)}] {answer.seconds:.1f} s")
            _note(answer.events)
            for line in answer.missing:
                tell(line)
            known |= answer.rankings
    return {key: known[key] if key in known else ranking_for(inputs, *one, say) for key, one in wanted.items()}


def _jobs(inputs: Inputs, missing: Mapping[str, Wanted]) -> list[Job]:
    """Split what is missing.

    Criteria by feature maps of the same network are one job, curves are one for each part, each other criterion is its
    own.
    """
    passes: dict[str, list[Wanted]] = defaultdict(list)
    curves: list[Job] = []
    for key, (criterion, seen) in missing.items():
        if parts := parts_of(inputs, criterion):
            curves += [Job([(criterion, seen)], part) for part in parts]
            continue
        streams = isinstance(CRITERIA.build(criterion.name, **criterion.options), StreamingCriterion)
        passes[f"pass {seen}" if streams else key].append((criterion, seen))
    return [*map(Job, passes.values()), *curves]


def _attempt(inputs: Inputs, job: Job) -> _Answer | PruningError | SearchError:
    """Rank in a task; a mistake comes back as it is, for Ray would wrap it."""
    take_share(inputs.experiment.resources)
    start, said, events, missing = time.perf_counter(), list[str](), list[Event](), list[str]()
    try:
        with counting(events.append), telling(missing.append):
            rankings = _rank(inputs, job, said.append)
    except (PruningError, SearchError) as error:
        return error
    return _Answer(rankings, said, events, missing, time.perf_counter() - start)


def _rank(inputs: Inputs, job: Job, say: Say) -> dict[str, Ranking]:
    if job.part:
        curves_of(inputs, job.wanted[0][0], job.part, say)
        return {}
    if len(job.wanted) > 1:
        rank_ahead(inputs, [criterion for criterion, _ in job.wanted], job.wanted[0][1], say)
    return {ranking_key(criterion, seen): ranking_for(inputs, criterion, seen, say) for criterion, seen in job.wanted}


def _answers(running: dict[ray.ObjectRef[Any], Job]) -> Iterator[_Answer]:
    """Yield what tasks answer as they end, and forget them."""
    while running:
        (done,), _ = ray.wait(list(running))
        job = running.pop(done)
        try:
            answer = ray.get(done)
        except ray.exceptions.RayTaskError:  # raised in the task: a bug, with its traceback
            raise
        except ray.exceptions.RayError as error:
            names = ", ".join(criterion.name for criterion, _ in job.wanted)
            raise SweepError(f"ranking by {names}: {_first_line(error)}") from None
        if isinstance(answer, Exception):
            raise answer
        yield answer


@contextmanager
def _ended_by_error(running: dict[ray.ObjectRef[Any], Job]) -> Iterator[dict[ray.ObjectRef[Any], Job]]:
    """End the tasks that still run if anything is raised, Ctrl-C included."""
    try:
        yield running
    except BaseException:
        for task in running:
            ray.cancel(task, force=True)
        raise
