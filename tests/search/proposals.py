"""A space of 27 widths and trials that measure at once, in any order: a sweep without workers."""

import random
from types import SimpleNamespace

from pruning import ModelSpec, Policy, Recipe
from search.config import parse_experiment
from search.results import Metrics

BASELINE = {"accuracy": 0.95, "macs": 1000, "params": 500}
GROUPS = 27
EPOCHS = 2


class Widths:
    """So many widths, each 1 to 16."""

    conditional = False

    def __init__(self, groups=GROUPS):
        self.names = [f"layer{number}" for number in range(groups)]

    def suggest(self, trial):
        return Policy(
            model=ModelSpec(name="resnet20"),
            network="f" * 16,
            widths={name: trial.suggest_int(f"width.{name}", 1, 16) for name in self.names},
            recipe=Recipe(epochs=EPOCHS),
        )


def experiment(storage, trials, sampler="random", **sections):
    search = {"trials": trials, "sampler": sampler}
    tree = {"name": "sweep", "model": "resnet20", "tracking": {"enabled": False}, "storage": str(storage)}
    return parse_experiment(tree | {"search": search} | sections)


def measured(number, policy, epoch=EPOCHS, **changes):
    """Width pays, less and less; a few trials have luck."""
    share = sum(policy.widths.values()) / 16 / len(policy.widths)
    accuracy = max(0.0, min(1.0, 0.95 * share**0.3 + random.Random(number).gauss(0, 0.02) - 0.05 * (EPOCHS - epoch)))
    metrics = Metrics(epoch, accuracy, 1 - accuracy, int(1000 * share**2), int(500 * share), seconds=1.0 + epoch)
    return {**metrics.to_dict(), **changes}


class Driver:
    """Calls a searcher and, if there is one, a watcher in Tune's order, with several trials under way."""

    def __init__(self, searcher, watcher=None, jobs=8, seed=0):
        self.searcher, self.watcher, self.jobs = searcher, watcher, jobs
        self.random, self.flying = random.Random(seed), []

    def run(self, trials, first=0):
        for number in range(first, first + trials):
            self.flying.append(self._trial(f"t{number}"))
            next(self.flying[-1])
            while len(self.flying) >= self.jobs:
                self.step()

    def step(self):
        trial = self.random.choice(self.flying)
        if next(trial, "ended") == "ended":
            self.flying.remove(trial)

    def finish(self):
        while self.flying:
            self.step()

    def _trial(self, name):
        config = self.searcher.suggest(name)
        number, policy = config["number"], Policy.from_json(config["policy"])
        trial = SimpleNamespace(trial_id=name, config=config, error_file=None)
        self._tell("on_trial_start", trial)
        yield
        for epoch in range(EPOCHS - number % (EPOCHS + 1), EPOCHS + 1):
            result = measured(number, policy, epoch)
            self.searcher.on_trial_result(name, result)
            self._tell("on_trial_result", trial, result=result)
            yield
        if number % 11 == 10:
            self.searcher.on_trial_complete(name, error=True)
            self._tell("on_trial_error", trial)
        else:
            self.searcher.on_trial_complete(name, measured(number, policy, EPOCHS - (number % 7 == 6)))
            self._tell("on_trial_complete", trial)

    def _tell(self, event, trial, **more):
        if self.watcher is not None:
            getattr(self.watcher, event)(0, [], trial, **more)
