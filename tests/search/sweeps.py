"""Sweeps that nobody ran: records of any number of trials, as pictures need them."""

import numpy as np

from pruning import CriterionSpec, ModelSpec, Policy, Recipe
from search.figures import Subject
from search.results import Metrics, State, TrialRecord

WIDTHS = {"stem": 16} | {f"layer{s}.{b}.conv1": 16 * 2 ** (s - 1) for s in (1, 2, 3) for b in range(3)}
BASELINE = {"accuracy": 0.93, "loss": 0.3, "macs": 40_000_000, "params": 270_000, "latency_ms": 10.0}
TWO, THREE = ("accuracy", "macs"), ("accuracy", "macs", "latency_ms")
CRITERIA = ("l1", "fpgm", "taylor")


def policy_of(rng, share, epochs, criterion="l1", learning_rate=0.01):
    widths = {
        n: max(1, int(w * np.clip(share * rng.uniform(0.8, 1.2), 0, 1))) for n, w in WIDTHS.items() if n != "stem"
    }
    return Policy(
        model=ModelSpec(name="resnet56"),
        network="0" * 16,
        widths=widths,
        criterion=CriterionSpec(name=criterion),
        recipe=Recipe(epochs=epochs, learning_rate=learning_rate),
    )


def trial(number, rng, epochs=3, *, latency=False, state=None):
    """A trial whose accuracy grows with its widths; `fpgm` is better, and a learning rate near 0.02."""
    share, criterion = float(rng.uniform(0.2, 0.95)), str(rng.choice(CRITERIA))
    rate = float(10 ** rng.uniform(-3, -1))
    policy = policy_of(rng, share, epochs, criterion, rate)
    kept = np.mean([width / WIDTHS[name] for name, width in policy.widths.items()])
    quality = 0.93 - 0.35 * (1 - kept) ** 2 - 0.1 * (criterion != "fpgm") * (1 - kept)
    quality -= 0.05 * (1 - kept) * abs(np.log10(rate / 0.02)) - 0.01 * rng.normal()
    macs, params = int(kept**1.3 * BASELINE["macs"]), int(kept * BASELINE["params"])
    time = 10.0 * (0.3 + 0.7 * kept) * rng.uniform(0.97, 1.03) if latency else None
    state = state or (State.STOPPED if number % 9 == 4 else State.FAILED if number % 29 == 7 else State.FINISHED)
    last = {State.STOPPED: max(epochs // 3, 0), State.FAILED: -1}.get(state, epochs)
    history = [
        Metrics(e, float(np.clip(quality - 0.3 * (1 - kept) * 0.4**e, 0.1, 1)), 0.4, macs, params, time, 5.0 * e)
        for e in range(last + 1)
    ]
    extra = {"tune_id": f"t{number}"}
    if number % 4:
        guess = float(np.clip(quality + rng.normal(0, 0.02), 0.1, 0.99))
        extra |= {"source": "surrogate", "predicted": {"accuracy": guess, "deviation": 0.02, "trained": number > 6}}
    started = 1000.0 + 7.0 * number
    return TrialRecord(
        number,
        state,
        {"criterion": criterion, "budget": kept**1.3, "allocation": "searched", "recipe.learning_rate": rate},
        policy,
        tuple(history),
        feasible=bool(number % 13 != 5),
        error=f"fine-tuning: loss <nan> after epoch {number % 3}" if state is State.FAILED else None,
        started=started,
        seconds=5.0 * epochs,
        ended=started + 5.0 * epochs + 2,
        extra=extra,
    )


def records(count, seed=0, **options):
    rng = np.random.default_rng(seed)
    return [trial(number, rng, **options) for number in range(count)]


def subject(found, objectives=TWO, **more):
    given = {"baseline": BASELINE, "widths": WIDTHS, "title": "resnet56 <b> & digits", **more}
    return Subject(found, objectives=objectives, logarithmic=frozenset({"recipe.learning_rate"}), **given)
