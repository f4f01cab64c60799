"""What does stopping trials early save, and what does it lose? Replays sweeps from the learning curves of a table.

A replay draws an order of the trials and runs them four at a time under one of these rules:

    accuracy     on from a rung are the first ⌈n/η⌉ by accuracy (ASHA without waiting)
    share        the first ⌈n/η⌉ by front and distance
    grace        as share, and the first η that arrive in any case
    waiting      as share, but trials wait at a rung until they are among the first ⌊n/η⌋ (ASHA with pauses)
    pareto_asha  as share, and what none dominates: `search.scheduler`
"""

from __future__ import annotations

import heapq

import moocore
import numpy as np
from learning_curves import EPOCHS, TABLE, Curves, read

from search.rungs import Rungs, crowding_distance

WORKERS, ORDERS = 4, 100
FLOOR = 0.1
"""The accuracy of guessing."""

# ── the rules ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Share:
    """On from a rung are the first ⌈n/η⌉ by front and distance, and those that arrive first if there is a grace."""

    by_front, grace = True, 0

    def __init__(self, curves: Curves, factor: int, rungs: list[int]) -> None:
        self.curves, self.factor, self.rungs = curves, factor, rungs
        self.reached: dict[int, list[int]] = {epoch: [] for epoch in rungs}

    def goes_on(self, trial: int, epoch: int) -> bool:
        if epoch not in self.rungs:
            return True
        self.reached[epoch].append(trial)
        return self.judge(trial, epoch)

    def judge(self, trial: int, epoch: int) -> bool:
        there = len(self.reached[epoch])
        return there <= self.grace or trial in self.best(epoch)[: -(-there // self.factor)]

    def promoted(self) -> tuple[int, int] | None:
        """Return a trial that waited and may go on, and its next epoch."""
        return None

    def best(self, epoch: int) -> list[int]:
        """Return the trials at a rung, best first."""
        trials = np.array(sorted(self.reached[epoch]))
        points = np.stack([-self.curves.accuracy[trials, epoch], self.curves.macs[trials]], axis=1)
        if not self.by_front:
            return [int(trial) for trial in trials[np.argsort(points[:, 0], kind="stable")]]
        rank, distance = moocore.pareto_rank(points), np.zeros(len(points))
        for level in range(rank.max() + 1):
            distance[rank == level] = crowding_distance(points[rank == level])
        return [int(trial) for trial in trials[np.lexsort((trials, -distance, rank))]]


class Accuracy(Share):
    by_front = False


class Grace(Share):
    @property
    def grace(self) -> int:
        return self.factor


class Waiting(Share):
    def __init__(self, curves: Curves, factor: int, rungs: list[int]) -> None:
        super().__init__(curves, factor, rungs)
        self.waiting = {epoch: set[int]() for epoch in rungs}

    def judge(self, trial: int, epoch: int) -> bool:
        self.waiting[epoch].add(trial)
        return False

    def promoted(self) -> tuple[int, int] | None:
        for epoch in reversed(self.rungs):
            for trial in self.best(epoch)[: len(self.reached[epoch]) // self.factor] if self.waiting[epoch] else []:
                if trial in self.waiting[epoch]:
                    self.waiting[epoch].remove(trial)
                    return trial, epoch + 1
        return None


class ParetoASHA(Share):
    def __init__(self, curves: Curves, factor: int, rungs: list[int]) -> None:
        super().__init__(curves, factor, rungs)
        self.entered = Rungs(factor)

    def judge(self, trial: int, epoch: int) -> bool:
        self.entered.enter(trial, epoch, (-self.curves.accuracy[trial, epoch], self.curves.macs[trial]))
        return self.entered.goes_on(trial, epoch)


RULES = {"accuracy": Accuracy, "share": Share, "grace": Grace, "waiting": Waiting, "pareto_asha": ParetoASHA}

# ── the replay ───────────────────────────────────────────────────────────────────────────────────────────────────────


def replay(curves: Curves, rule: Share) -> tuple[list[int], float]:
    """Run trials in their order, several at a time; return those that finish and the seconds that all took."""
    proposed, seconds, finished, running = iter(range(len(curves))), 0.0, list[int](), list[tuple[float, int, int]]()

    def start(now: float) -> bool:
        upcoming = rule.promoted() or next(((trial, 0) for trial in proposed), None)
        if upcoming:
            heapq.heappush(running, (now + curves.seconds[upcoming], *upcoming))
        return upcoming is not None

    while len(running) < WORKERS and start(0.0):
        pass
    while running:
        now, trial, epoch = heapq.heappop(running)
        seconds += curves.seconds[trial, epoch]
        if epoch == EPOCHS:
            finished.append(trial)
        elif rule.goes_on(trial, epoch):
            heapq.heappush(running, (now + curves.seconds[trial, epoch + 1], trial, epoch + 1))
        while len(running) < WORKERS and start(now):
            pass
    return finished, seconds


def volume(curves: Curves, trials: list[int], full: float) -> float:
    """Return what the trained trials dominate: MACs from none to the baseline's, accuracy from FLOOR to 1."""
    points = np.stack([(1 - curves.accuracy[trials, -1]) / (1 - FLOOR), curves.macs[trials] / full], axis=1)
    return float(moocore.hypervolume(points, ref=1.0)) if trials else 0.0


def replays(curves: Curves, full: float, count: int, factor: int, first: int) -> None:
    """Print, for sweeps of so many trials, what each rule saves and loses; means over orders of the table."""
    rungs = Rungs(factor, first).epochs(EPOCHS)
    orders = [np.random.default_rng(seed).permutation(len(curves))[:count] for seed in range(ORDERS)]
    samples = [curves.taken(order) for order in orders]
    whole = [(volume(sample, list(range(count)), full), sample.seconds.sum()) for sample in samples]
    print(f"{count} trials, factor {factor}, rungs {rungs}: {np.mean([value for value, _ in whole]):.4f} if all finish")
    for name, make in RULES.items():
        rows = list[tuple[float, ...]]()
        for sample, (best, longest) in zip(samples, whole, strict=True):
            finished, seconds = replay(sample, make(sample, factor, rungs))
            fewer = list(range(max(1, round(count * seconds / longest))))
            cheapest = sample.macs[finished].min(initial=full) / full
            rows.append(
                (
                    volume(sample, finished, full) / best,
                    seconds / longest,
                    len(finished),
                    cheapest,
                    volume(sample, fewer, full) / best,
                )
            )
        value, part, ended, cheapest, fewer_value = np.mean(rows, axis=0)
        print(
            f"  {name:12} {value:6.1%} of the volume in {part:4.0%} of the time (as many seconds of whole trials: "
            f"{fewer_value:6.1%}); {ended:5.1f} finish, the cheapest at {cheapest:3.0%} of the MACs"
        )


def main() -> None:
    curves, full = read(TABLE)
    for factor, first in ((2, 0), (3, 0), (3, 1)):
        for count in (24, len(curves)):
            replays(curves, full, count, factor, first)


if __name__ == "__main__":
    main()
