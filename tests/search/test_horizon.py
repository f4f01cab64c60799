import warnings

import optuna
import pytest
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from search.horizon import Horizon


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def tpe(seed):
    return TPESampler(multivariate=True, group=True, constant_liar=True, n_startup_trials=5, seed=seed)


def proposals(make, wrap, trials):
    """What is proposed, each time by a new sampler, with two trials under way."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    asked = []
    for number in range(trials):
        study.sampler = wrap(make(number), study)
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1)
        y = trial.suggest_int("y", 1, 9) if trial.suggest_categorical("kind", ["a", "b"]) == "a" else 0
        trial.set_constraint("macs", x - 0.8)
        asked.append(trial)
        if len(asked) > 2:
            ended = asked[-3]
            study.tell(ended, [ended.params["x"] ** 0.5, ended.params["x"] + y / 9])
    return study, [trial.params for trial in asked]


def in_sight(sampler, study):
    """A horizon that hides nothing."""

    def shapes():
        first = {}
        for trial in study.get_trials(deepcopy=False):
            if trial.state.is_finished():
                first.setdefault(frozenset(trial.params), trial)
        return list(first.values())

    return Horizon(sampler, lambda: study.get_trials(deepcopy=False), shapes)


@pytest.mark.parametrize(
    ("make", "trials"),
    [
        (tpe, 30),
        (lambda seed: NSGAIISampler(population_size=6, seed=seed), 30),
        (lambda seed: RandomSampler(seed=seed), 10),
        (lambda seed: GPSampler(seed=seed, n_startup_trials=5, warn_independent_sampling=False), 8),
    ],
)
def test_with_everything_in_sight_a_sampler_proposes_what_it_does_by_itself(make, trials):
    _, alone = proposals(make, lambda sampler, study: sampler, trials)
    _, behind = proposals(make, in_sight, trials)
    assert behind == alone
    assert len({str(params) for params in alone}) > trials / 2


def test_what_is_out_of_sight_does_not_matter():
    def near(sampler, study):
        def newest():
            return study.get_trials(deepcopy=False)[-12:]

        return Horizon(sampler, newest, newest)

    study, _ = proposals(tpe, near, 40)
    few = optuna.create_study(directions=["maximize", "minimize"])
    for trial in study.get_trials()[-12:]:
        few.add_trial(trial)
    assert drawn(few, tpe(7)) == drawn(study, near(tpe(7), study)) != drawn(study, tpe(7))


def drawn(study, sampler):
    """What would be proposed for the last trial, were it asked now."""
    trial = study.get_trials()[-1]
    space = sampler.infer_relative_search_space(study, trial)
    return sampler.sample_relative(study, trial, space)


def test_a_sampler_is_shown_a_study_that_is_the_real_one_but_for_its_trials():
    class Curious(BaseSampler):
        def infer_relative_search_space(self, study, trial):
            asked.append([trial.number for trial in study.get_trials()])
            return {}

        def sample_relative(self, study, trial, search_space):
            return {}

        def sample_independent(self, study, trial, name, distribution):
            running = study.get_trials(states=[TrialState.RUNNING])
            seen.append(([trial.number for trial in study.get_trials()], len(running), study.directions))
            assert study._get_trials(deepcopy=False, use_cache=True)[0] is whole.get_trials(deepcopy=False)[1]
            assert study.get_trials()[0] is not whole.get_trials(deepcopy=False)[1]
            return RandomSampler(seed=0).sample_independent(study, trial, name, distribution)

        def before_trial(self, study, trial):
            told.append("begin")

        def after_trial(self, study, trial, state, values):
            told.append(state)

    seen, told, asked = [], [], []
    whole = optuna.create_study(directions=["maximize", "minimize"])
    for _ in range(3):
        whole.tell(whole.ask(), [0.0, 0.0])
    whole.sampler = Horizon(
        Curious(), lambda: whole.get_trials(deepcopy=False)[1:], lambda: whole.get_trials(deepcopy=False)[:1]
    )
    trial = whole.ask()
    trial.suggest_float("x", 0, 1)
    whole.tell(trial, state=TrialState.FAIL)
    assert seen == [([1, 2, 3], 1, whole.directions)]
    assert asked == [[0]]
    assert told == ["begin", TrialState.FAIL]
