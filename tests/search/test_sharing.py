"""What trials share is put into the object store once, ranked in tasks, and read once by each worker."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest
import ray
import tiny
import torch
from ray import cloudpickle, tune

from pruning import CRITERIA, CriterionSpec, Policy, PruningError, Recipe, hash_weights, save_weights
from search import rankings, sharing
from search.counts import Counts, counting, read_events
from search.driver import resume_sweep, run_sweep
from search.errors import ExperimentError, SweepError
from search.inputs import Inputs, ranking_key
from search.prepare import build_subject, prepare, prepare_ahead, prepare_unranked
from search.rankings import rank_all
from search.sharing import _preparing, prepare_in_task, rank_in_tasks, received, share
from search.trial import run_trial

pytestmark = pytest.mark.usefixtures("local_ray")

DCP = {"name": "dcp", "options": {"mode": "fast"}}
LATE = {
    "groups": "inner",
    "criterion": ["l1", "apoz", "hrank", "taylor", "ccp", DCP],
    "allocation": ["searched", "hsic_lasso"],
    "auxiliary": {"count": [0, 1], "placement": "free"},
    "ranking_images": 40,
}


def experiment(folder, **sections):
    sections = {"baseline": {"epochs": 1}, "recipe": {"epochs": 1}, "auxiliary": {"heads": {"epochs": 1}}} | sections
    return tiny.experiment(folder, **sections)


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return tmp_path_factory.mktemp("sweeps")


@pytest.fixture(scope="module")
def baseline(storage):
    """A trained baseline of blocks, beside which every sweep of `storage` finds its own."""
    prepare_unranked(experiment(storage, model="tiny:blocks"))


def in_own_cache(inputs, folder):
    """Return inputs whose rankings have yet to be made."""
    return replace(inputs, experiment=inputs.experiment.model_copy(update={"storage": folder}), rankings={})


def tensors_of(value):
    """Yield every tensor below an object."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for below in value.values():
            yield from tensors_of(below)
    elif isinstance(value, (list, tuple)):
        for below in value:
            yield from tensors_of(below)
    elif hasattr(value, "__dict__"):
        yield from tensors_of({name: below for name, below in vars(value).items() if name != "_moved"})


def hash_of(value):
    return hash_weights({str(index): tensor for index, tensor in enumerate(tensors_of(value))})


# ── rankings in tasks ────────────────────────────────────────────────────────────────────────────────────────────────


def test_tasks_make_the_rankings_that_are_made_here_without_them(baseline, storage, tmp_path):
    inputs = prepare_unranked(experiment(storage, model="tiny:blocks", search=LATE))
    expected = rank_all(in_own_cache(inputs, tmp_path / "here"))
    there, said, counts = in_own_cache(inputs, tmp_path / "there"), [], Counts()
    with counting(counts.events.append):
        found = rank_in_tasks(there, ray.put(there), said.append)
    assert [*found] == [*expected]
    assert {key: hash_of(ranking) for key, ranking in found.items()} == {
        key: hash_of(ranking) for key, ranking in expected.items()
    }
    assert said[0] == "ranking channels in 5 tasks"
    assert [line.split("]")[0] for line in said if "[" in line] == [f"  [{number}/5" for number in range(1, 6)]
    assert "ranking channels by apib, apoz, hrank in one pass" in said
    assert "ranking channels by taylor" in said
    assert (len(counts.made("rankings")), counts.found("rankings")) == (len(expected), [])
    again = Counts()
    with counting(again.events.append):
        assert [*rank_in_tasks(there, None, said.append)] == [*expected]
    assert (again.made("rankings"), len(again.found("rankings"))) == ([], len(expected))


@pytest.mark.parametrize("base", ["l1", "taylor"])
def test_curves_are_measured_in_parts_as_here_in_one_piece(baseline, storage, tmp_path, monkeypatch, base):
    monkeypatch.setattr(rankings, "PART", 1)
    quick = {"criterion": base, "shares": [0.5], "images": 20, "recalibration_images": 10}
    spec = {"name": "sensitivity", "options": quick}
    search = {"groups": "inner", "criterion": [spec], "ranking_images": 30}
    inputs = prepare_unranked(experiment(storage, model="tiny:blocks", search=search))
    parts = [(name,) for name in inputs.searched]
    assert len(parts) > 1
    whole = CRITERIA.build("sensitivity", **quick).rank(inputs.network(), inputs.searched, rankings._batches(inputs))
    there, said, counts = in_own_cache(inputs, tmp_path / "there"), [], Counts()
    with counting(counts.events.append):
        (found,) = rank_in_tasks(there, ray.put(there), said.append).values()
    assert hash_of(found) == hash_of(whole)
    assert said[0] == f"ranking channels in {len(parts)} tasks"
    assert sorted(line for line in said if "cutting" in line) == sorted(f"cutting {name}" for (name,) in parts)
    assert (len(counts.made("curves")), len(set(counts.made("curves")))) == (len(parts), len(parts))
    assert len(counts.made("rankings")) == 2  # the base and its own
    (here,) = rank_all(in_own_cache(inputs, tmp_path / "here")).values()
    assert hash_of(here) == hash_of(whole)


def test_preparing_in_a_task_gives_what_preparing_here_gives_and_says_it_meanwhile(tmp_path):
    folders, said = [tmp_path / "there", tmp_path / "here"], {}
    counts = Counts()
    with counting(counts.events.append):
        there = prepare_in_task(experiment(folders[0]), said.setdefault("there", []).append)
    here = prepare_ahead(experiment(folders[1]), said.setdefault("here", []).append)
    assert said["there"] == said["here"]
    assert there.baseline == here.baseline
    assert hash_weights(there.weights) == hash_weights(here.weights)
    assert [hash_of(found) for found in there.rankings.values()] == [hash_of(found) for found in here.rankings.values()]
    assert len(counts.made("rankings")) == 1


def test_a_machine_that_does_not_see_the_storage_prepares_nothing(tmp_path):
    (refusal,) = _preparing(experiment(tmp_path), tmp_path / "elsewhere" / "token")
    assert "does not see" in str(refusal)
    assert str(tmp_path / "elsewhere") in str(refusal)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_that_shows_in_a_task_is_the_same_line(tmp_path):
    asked = experiment(tmp_path, search={"budget": {"minimum": "0.1%", "maximum": "0.2%"}})
    lines = []
    for prepared in (prepare_ahead, prepare_in_task):
        with pytest.raises(ExperimentError) as refusal:
            prepared(asked)
        lines.append(str(refusal.value))
    assert lines[0] == lines[1]


def test_a_ranking_that_is_missing_alone_is_made_without_a_task(baseline, storage, monkeypatch):
    search = {"groups": "inner", "criterion": ["l1", "taylor"], "ranking_images": 30}
    inputs, said = prepare_ahead(experiment(storage, model="tiny:blocks", search=search)), []
    assert [*inputs.rankings] == [ranking_key(CriterionSpec(name="l1"))]
    assert len(rank_in_tasks(inputs, None, said.append)) == 2
    assert said == ["ranking channels by taylor"]


def test_rankings_behind_heads_that_the_widths_follow_from_share_the_heads(baseline, storage):
    search = {**LATE, "criterion": ["ccp", DCP], "allocation": "global", "auxiliary": [0, 1]}
    inputs, counts = prepare_unranked(experiment(storage, model="tiny:blocks", search=search)), Counts()
    with counting(counts.events.append):
        found = rank_in_tasks(inputs, ray.put(inputs))
    assert len(found) == len(counts.made("rankings")) == 4
    assert len(counts.made("auxiliary")) == 1


def test_a_mistake_in_a_task_is_the_same_line_as_here(storage):
    criteria = [{"name": "sensitivity", "options": {"criterion": "bn_scale"}}, "taylor"]
    inputs = prepare_unranked(experiment(storage, model="tiny:bare", search={"criterion": criteria}))
    with pytest.raises(PruningError) as here:
        rank_all(inputs)
    with pytest.raises(PruningError) as there:
        rank_in_tasks(inputs, ray.put(inputs))
    assert (type(there.value), str(there.value)) == (type(here.value), str(here.value))
    assert "its base is 'bn_scale'" in str(there.value)


def bound(folder, *, sleeps):
    """Return an experiment whose network runs in this process only, and which is ranked by two criteria in tasks."""
    model = {"name": "tiny:bound", "options": {"home": os.getpid(), "sleeps": sleeps}}
    search = {"criterion": ["taylor", "cpgmi"], "ranking_images": 20}
    weights = str(folder / "w.safetensors")
    asked = experiment(
        folder / "sweeps", model=model, weights=weights, search=search, resources={"retries": 0, "cpus": 1}
    )
    save_weights(build_subject(asked).network, asked.weights)
    return asked


def test_a_task_whose_process_dies_is_told_in_one_line(tmp_path):
    with pytest.raises(SweepError, match=r"^ranking by (taylor|cpgmi): .*(crash|died)") as told:
        run_sweep(bound(tmp_path, sleeps=False), live=False)
    assert "\n" not in str(told.value)
    assert not (tmp_path / "sweeps" / "tiny").exists()


def test_ctrl_c_ends_the_tasks(tmp_path):
    def interrupt(line):
        if "tasks" in line:
            signal.setitimer(signal.ITIMER_REAL, 3)

    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_sweep(bound(tmp_path, sleeps=True), say=interrupt, live=False)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    end = time.monotonic() + 30  # the tasks would sleep for a minute and more
    while ray.available_resources().get("CPU") != 2:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert not (tmp_path / "sweeps" / "tiny").exists()


# ── a mistake comes before Ray ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"constraints": {"macs": "1%"}, "search": {"widths": {"minimum": "50%"}}}, "^constraints.macs: expected"),
        (
            {"search": {"allocation": ["global", "uniform"], "groups": "first", "budget": "1%", "criterion": "taylor"}},
            "^search.budget.minimum: expected",
        ),
        ({"model": "tiny:bare", "search": {"criterion": ["taylor", "bn_scale"]}}, "criterion 'bn_scale'"),
    ],
)
def test_what_takes_no_images_is_refused_before_ray_starts(storage, monkeypatch, sections, reason):
    monkeypatch.setattr("search.driver.ray_session", lambda *_: 1 / 0)
    if isinstance(budget := sections["search"].get("budget"), str):
        sections["search"]["budget"] = {"minimum": budget}
    with pytest.raises((ExperimentError, PruningError), match=reason):
        run_sweep(experiment(storage, name="refused", **sections))
    assert not (storage / "refused").exists()


def test_a_budget_that_shows_with_the_rankings_only_is_refused_before_a_folder_is_made(storage):
    rule = {"name": "global", "options": {"minimum_share": 0.9}}
    search = {"allocation": rule, "budget": {"minimum": "40%"}, "criterion": ["taylor", "cpgmi"]}
    with pytest.raises(ExperimentError, match=r"^search.budget.minimum: allocation 'global.*': expected"):
        run_sweep(experiment(storage, name="refused", search={**search, "ranking_images": 30}))
    assert not (storage / "refused").exists()


# ── one sweep and the next ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def puts(monkeypatch):
    """What this process puts into the object store."""
    values, put = [], ray.put

    def noted(value, **options):
        values.append(value)
        return put(value, **options)

    monkeypatch.setattr(ray, "put", noted)
    return values


def shared(folder):
    return json.loads((folder / "shared.json").read_text())


def test_inputs_and_rankings_are_put_once_and_read_once_by_each_worker(storage, puts, tmp_path):
    log = tmp_path / "readers"
    data = {"name": "tiny:noted", "options": {"log": str(log), "size": 8, "channels": 1, "train_images": 300}}
    search = {"trials": 5, "criterion": ["l1", "random"]}
    swept = run_sweep(experiment(storage, name="noted", data=data, search=search, recipe={"epochs": 0}), live=False)
    assert len(swept.records) == 5
    inputs = [value for value in puts if isinstance(value, Inputs)]
    rankings = [value for value in puts if isinstance(value, dict) and set(value) == set(value) & ranking_keys(swept)]
    assert (len(inputs), len(rankings)) == (1, 1)
    assert not inputs[0].rankings
    others = [value for value in puts if value is not inputs[0] and value is not rankings[0]]
    assert max(len(cloudpickle.dumps(value)) for value in others) < 5000
    readers = log.read_text().split()
    assert 1 <= len(readers) == len(set(readers)) <= 2
    assert str(os.getpid()) not in readers


def ranking_keys(swept):
    return {ranking_key(criterion) for criterion in swept.experiment.search.criterion}


def sweep(storage, name):
    """Run a sweep of blocks by criteria of all kinds; return it with what it said."""
    said = []
    asked = experiment(storage, name=name, model="tiny:blocks", search={**LATE, "trials": 4})
    return run_sweep(asked, say=said.append, live=False), said


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return sweep(tmp_path_factory.mktemp("several"), "first")


@pytest.fixture
def second(first, monkeypatch):
    """The same sweep again, with a new worker for each trial."""
    config = tune.TuneConfig
    monkeypatch.setattr(tune, "TuneConfig", lambda **options: config(**options | {"reuse_actors": False}))
    return sweep(first[0].experiment.storage, "second")


def test_each_ranking_is_made_once_in_a_sweep(first):
    swept, said = first
    made = shared(swept.folder)
    for kind in ("rankings", "auxiliary"):
        keys = made[kind]["made"]
        assert len(keys) == len(set(keys)) > 0
        assert made[kind]["found"] == []
        assert {path.stem for path in (swept.experiment.storage / "cache" / kind).iterdir()} == set(keys)
    late = {
        (record.policy.criterion.name, str(record.policy.auxiliary))
        for record in swept.records
        if record.policy.auxiliary is not None and record.policy.criterion.name in ("ccp", "dcp")
    }
    assert late
    assert len(made["rankings"]["made"]) == 7 + len(late)
    assert said[-1] == f"shared work: {7 + len(late)} rankings made; {heads(swept)} trained"


def test_the_next_sweep_makes_nothing_and_measures_the_same_with_new_workers(first, second):
    (swept, _), (again, said) = first, second
    made = shared(swept.folder)
    assert shared(again.folder) == {kind: {"made": [], "found": keys["made"]} for kind, keys in made.items()}
    count = len(made["rankings"]["made"])
    assert said[-1] == f"shared work: {count} rankings found in the cache; {heads(swept)} found in the cache"
    assert [record.policy for record in again.records] == [record.policy for record in swept.records]
    assert measured(again) == measured(swept)


def heads(swept):
    count = len(shared(swept.folder)["auxiliary"]["made"])
    return f"{count} set{'s' if count > 1 else ''} of heads"


def measured(swept):
    return [[replace(metrics, seconds=0.0) for metrics in record.history] for record in swept.records]


def test_what_a_resumed_sweep_finds_of_its_own_it_has_made(first):
    swept, _ = first
    folder = shutil.copytree(swept.folder, swept.folder.with_name("resumed"))
    path = folder / "experiment.yaml"
    path.write_text(path.read_text().replace("trials: 4", "trials: 5"))
    assert len(resume_sweep(folder, live=False).records) == 5
    made = shared(swept.folder)["rankings"]["made"]
    assert shared(folder)["rankings"]["made"][: len(made)] == made
    assert not shared(folder)["rankings"]["found"]
    assert len(read_events(folder / "shared.jsonl")) > len(read_events(swept.folder / "shared.jsonl"))


# ── workers that have run other trials ───────────────────────────────────────────────────────────────────────────────


def state_of_process():
    return {
        "random": torch.get_rng_state().tolist(),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "type": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32),
        "hooks": [len(hooks) for name, hooks in vars(torch.nn.modules.module).items() if name.endswith("_hooks")],
    }


def state_of(inputs):
    """Return hashes of all that trials share, and how the network that they copy stands."""
    template = inputs._template
    modules = [
        (module.training, len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        for module in template.modules()
    ]
    gradients = [(parameter.requires_grad, parameter.grad) for parameter in template.parameters()]
    hashes = [hash_of(part) for part in (inputs.weights, inputs.data, inputs.rankings, inputs.example)]
    return hashes, hash_weights(template.state_dict()), modules, gradients, inputs.groups.widths, inputs.cost.full


def test_a_trial_leaves_what_is_shared_and_its_process_as_found(baseline, storage, recwarn):
    search = {**LATE, "auxiliary": {"count": [0, 1], "placement": "even"}, "allocation": "global"}
    inputs, references = share(prepare_ahead(experiment(storage, model="tiny:blocks", search=search)))
    recwarn.clear()
    torch.set_warn_always(True)
    there = received(references)
    assert received(references) is there
    policies = [policy(there, criterion, placement) for criterion, placement in sharing.wanted_ahead(there).values()]
    policies.append(policies[0].model_copy(update={"widths": {"nowhere": 3}}))
    policies.append(policies[0].model_copy(update={"recipe": Recipe(epochs=1, learning_rate=1e30)}))
    before, process = state_of(there), state_of_process()
    alone = [outcome_of(policy, replace(inputs, rankings=dict(inputs.rankings))) for policy in policies]
    together = [outcome_of(policy, there) for policy in policies]
    backwards = [outcome_of(policy, there) for policy in reversed(policies)]
    torch.set_warn_always(False)
    assert alone == together == backwards[::-1]
    assert sum(isinstance(outcome, str) for outcome in alone) == 2
    assert state_of(there) == before
    assert state_of_process() == process
    assert [str(warning.message) for warning in recwarn.list if "writ" in str(warning.message)] == []
    assert ranking_key(CriterionSpec(name="l1")) in there.rankings


def policy(inputs, criterion, placement):
    return Policy(
        model=inputs.model,
        network=inputs.groups.signature,
        widths={name: max(1, width // 2) for name, width in inputs.searched.widths.items()},
        criterion=criterion,
        auxiliary=placement,
        recipe=Recipe(epochs=1, batch_size=50, distillation=0.3),
    )


def outcome_of(policy, inputs):
    """Return a hash of the network that a trial ends with, or why it failed."""
    try:
        return hash_weights(run_trial(policy, inputs, lambda *_: None).network.state_dict()), None
    except PruningError as error:
        return str(error)


def test_another_sweep_in_the_same_worker_reads_its_own_inputs(storage):
    first, one = share(prepare(experiment(storage, search={"criterion": "l1"})))
    second, other = share(prepare(experiment(storage, search={"criterion": "random"})))
    assert [*received(one).rankings] == [*first.rankings]
    assert [*received(other).rankings] == [*second.rankings] != [*first.rankings]
    assert [*received(one).rankings] == [*first.rankings]
