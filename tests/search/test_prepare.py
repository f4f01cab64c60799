from importlib.util import find_spec
from pathlib import Path

import pytest
import tiny
import torch

from pruning import (
    CRITERIA,
    DataError,
    NestedRanking,
    PruningError,
    UnknownNameError,
    build_model,
    evaluate,
    hash_weights,
    paper_groups,
    save_weights,
)
from search.errors import ExperimentError
from search.prepare import build_subject, describe_baseline, device_for, load_baseline, prepare


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """A folder with a trained baseline and its ranking by l1."""
    folder = tmp_path_factory.mktemp("sweeps")
    prepare(tiny.experiment(folder))
    return folder


@pytest.fixture
def ranked(monkeypatch):
    """The criteria that were asked to rank, in order."""
    calls = []
    for name in ("l1", "taylor", "random"):
        criterion = CRITERIA.get(name)

        def rank(self, *args, _name=name, _rank=criterion.rank):
            calls.append(_name)
            return _rank(self, *args)

        monkeypatch.setattr(criterion, "rank", rank)
    return calls


@pytest.fixture
def trained(monkeypatch):
    """The baselines that were trained."""
    calls = []

    def train(experiment, *args, _train=prepare.__globals__["train_baseline"]):
        calls.append(experiment.baseline)
        return _train(experiment, *args)

    monkeypatch.setitem(prepare.__globals__, "train_baseline", train)
    return calls


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ── the baseline ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_baseline_is_trained_once(storage, trained):
    one, other = (load_baseline(tiny.experiment(storage, name=name)) for name in ("one", "other"))
    assert trained == []
    assert hash_weights(one.network.state_dict()) == hash_weights(other.network.state_dict())
    assert not any(module.training for module in one.network.modules())
    assert evaluate(one.network, one.data.val).accuracy > 0.5  # a tenth would be chance


@pytest.mark.parametrize(
    "changes",
    [
        {"baseline": {"epochs": 1, "batch_size": 50}},
        {"search": {"seed": 1}},
        {"model": {"name": "tiny:network", "options": {"widths": [8, 12]}}},
        {"data": {"name": "digits", "options": {"size": 8, "channels": 1, "train_images": 200}}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_a_baseline_depends_on_makes_another(storage, trained, changes):
    load_baseline(tiny.experiment(storage, **changes))
    assert len(trained) == 1


def test_equal_seeds_train_equal_baselines_whatever_the_random_state(storage, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = load_baseline(tiny.experiment(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)
    known = load_baseline(tiny.experiment(storage))
    assert hash_weights(again.network.state_dict()) == hash_weights(known.network.state_dict())
    assert evaluate(again.network, again.data.val) == evaluate(known.network, known.data.val)


def test_a_baselines_training_is_told(tmp_path):
    lines = []
    load_baseline(tiny.experiment(tmp_path), lines.append)
    assert lines[0].startswith("digits: 300 training, 270 validation, 270 test images")
    assert lines[1] == "training the baseline for 6 epochs"
    assert [line.split(":")[0] for line in lines[2:]] == [f"  epoch {epoch}/6" for epoch in range(1, 7)]


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_a_networks_name_with_a_slash_makes_no_folder(tmp_path):
    model = {"name": "timm/test_resnet", "options": {"in_channels": 1}}
    experiment = tiny.experiment(tmp_path, model=model, baseline={"epochs": 1, "batch_size": 50})
    load_baseline(experiment)
    (path,) = (tmp_path / "baselines").glob("*.safetensors")
    assert path.name.startswith("timm.test_resnet-")


def test_a_baseline_is_measured_on_validation_images_without_a_cut(storage):
    inputs = prepare(tiny.experiment(storage, objectives=["accuracy", "latency_ms"]))
    subject = load_baseline(tiny.experiment(storage))
    quality = evaluate(subject.network, subject.data.val)
    assert (inputs.baseline.accuracy, inputs.baseline.loss) == (quality.accuracy, quality.loss)
    assert (inputs.baseline.macs, inputs.baseline.params) == (inputs.cost.full.macs, inputs.cost.full.params)
    assert inputs.baseline.latency_ms > 0
    assert " k MACs, 1.44 k parameters, " in describe_baseline(inputs.baseline)
    assert prepare(tiny.experiment(storage)).baseline.latency_ms is None


def test_named_weights_are_loaded_and_nothing_is_trained(storage, trained, tmp_path):
    network = build_model(tiny.experiment(storage).model)
    save_weights(network, tmp_path / "w.safetensors")
    subject = load_baseline(tiny.experiment(storage, weights=str(tmp_path / "w.safetensors")))
    assert trained == []
    assert hash_weights(subject.network.state_dict()) == hash_weights(network.state_dict())


def test_weights_that_do_not_fit_are_refused(tmp_path):
    save_weights(build_model(tiny.experiment(tmp_path).model), tmp_path / "tiny.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"\0" * 8 + b"{")
    torch.save({"model": print}, tmp_path / "code.pth")
    for name, changes, reason in (
        ("missing.pth", {}, "No such file"),
        ("damaged.safetensors", {}, "damaged"),
        ("code.pth", {}, "pickled code"),
        (
            "tiny.safetensors",
            {"model": {"name": "tiny:network", "options": {"widths": [8, 12]}}},
            "does not fit Network",
        ),
    ):
        with pytest.raises(PruningError, match=rf"^checkpoint .*{name}: .*{reason}"):
            load_baseline(tiny.experiment(tmp_path / "sweeps", weights=str(tmp_path / name), **changes))
    assert not (tmp_path / "sweeps").exists()


# ── what does not fit is told before anything is trained ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"model": {"name": "tiny:network", "num_classes": 7}}, DataError, "model.num_classes: expected 10, .* got 7"),
        ({"model": "tiny:netwrk"}, UnknownNameError, "did you mean 'tiny:network'"),
        ({"model": "resnet65"}, UnknownNameError, "unknown model 'resnet65'; did you mean"),
        ({"data": "digitz"}, UnknownNameError, "did you mean 'digits'"),
        ({"data": "digits"}, PruningError, r"Network does not run on \(1, 3, 16, 16\)"),
        ({"search": {"groups": ["first", "thrid"]}}, UnknownNameError, "unknown channel group 'thrid'"),
        (
            {"search": {"groups": "paper"}},
            ExperimentError,
            "search.groups: no paper's rule is known for 'tiny:network'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(tmp_path, trained, changes, error, reason):
    with pytest.raises(error, match=reason):
        prepare(tiny.experiment(tmp_path / "sweeps", **changes))
    assert trained == []
    assert not (tmp_path / "sweeps").exists()


def test_a_callers_check_of_the_groups_comes_before_training(tmp_path, trained):
    def refuse(groups):
        raise ExperimentError(", ".join(groups))

    with pytest.raises(ExperimentError, match="first, second"):
        prepare(tiny.experiment(tmp_path / "sweeps"), check=refuse)
    assert trained == []


def test_a_gpu_that_is_not_there_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    experiment = tiny.experiment(tmp_path, resources={"gpus": 0.5})
    with pytest.raises(ExperimentError, match=r"resources.gpus: expected a CUDA device for 0.5, got none"):
        device_for(experiment)
    assert device_for(tiny.experiment(tmp_path)) == "cpu"


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_the_papers_cut_may_be_searched(tmp_path):
    experiment = tiny.experiment(tmp_path, model="resnet20", data="digits", search={"groups": "paper"})
    save_weights(build_model(experiment.model), tmp_path / "w.safetensors")
    inputs = prepare(experiment.model_copy(update={"weights": tmp_path / "w.safetensors"}))
    (ranking,) = inputs.rankings.values()
    assert set(ranking.orders) == set(inputs.groups.matching(paper_groups(experiment.model))) < set(inputs.groups)


def test_one_group_may_be_searched(storage):
    inputs = prepare(tiny.experiment(storage, search={"groups": "second"}))
    (ranking,) = inputs.rankings.values()
    assert set(ranking.orders) == {"second"}
    assert set(inputs.groups) == {"first", "second"}


# ── rankings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_ranking_is_made_once_and_read_back(tmp_path, ranked):
    experiment = tiny.experiment(tmp_path, search={"criterion": ["l1", "taylor", "random"]})
    one = prepare(experiment)
    assert ranked == ["l1", "taylor", "random"]
    other = prepare(experiment.model_copy(update={"name": "other"}))
    assert ranked == ["l1", "taylor", "random"]
    for key, ranking in one.rankings.items():
        assert ranking.criterion == other.rankings[key].criterion
        for group, width in one.groups.widths.items():
            assert all(ranking.keep(group, n) == other.rankings[key].keep(group, n) for n in range(1, width + 1))
    assert len(files(tmp_path / "cache" / "rankings")) == 3


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"search": {"seed": 0, "trials": 9, "sampler": "tpe"}, "recipe": {"epochs": 9}}, []),
        ({"search": {"ranking_images": 64}}, ["taylor"]),
        ({"search": {"groups": "second"}}, ["l1", "taylor"]),
        ({"weights": "other.safetensors"}, ["l1", "taylor"]),
    ],
    ids=["nothing", "images", "groups", "weights"],
)
def test_what_a_ranking_depends_on_makes_another(tmp_path, ranked, changes, again):
    criteria = {"criterion": ["l1", "taylor"]}
    model = tiny.experiment(tmp_path).model
    for name in ("some.safetensors", "other.safetensors"):
        save_weights(build_model(model), tmp_path / name)

    def experiment(weights="some.safetensors", search=None, **sections):
        search = criteria | (search or {})
        return tiny.experiment(tmp_path / "sweeps", weights=str(tmp_path / weights), search=search, **sections)

    prepare(experiment())
    ranked.clear()
    prepare(experiment(**changes))
    assert ranked == again


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, None], ids=["empty", "zeros", "cut short"])
def test_a_damaged_ranking_is_made_again(tmp_path, ranked, damage):
    experiment = tiny.experiment(tmp_path, baseline={"epochs": 1})
    prepare(experiment)
    ranked.clear()
    (path,) = (tmp_path / "cache" / "rankings").glob("l1-*")
    kept, whole = NestedRanking.load(path).keep("second", 5), path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    prepare(experiment)
    assert ranked == ["l1"]
    assert NestedRanking.load(path).keep("second", 5) == kept
    prepare(experiment)
    assert ranked == ["l1"]
    assert not [name for name in files(tmp_path) if "draft" in name]


def test_criteria_look_at_training_images_only(storage, monkeypatch):
    seen = []

    taylor = CRITERIA.get("taylor")
    original = taylor.rank

    def rank(self, network, groups, batches, auxiliary):
        seen.append(torch.cat([images for images, _ in batches]))
        return original(self, network, groups, batches, auxiliary)

    monkeypatch.setattr(taylor, "rank", rank)
    prepare(tiny.experiment(storage, search={"criterion": "taylor", "ranking_images": 40}))
    (images,) = seen
    train = torch.cat([images for images, _ in build_subject(tiny.experiment(storage)).data.train.batches(512)])
    known = {image.numpy().tobytes() for image in train}
    assert len(images) == 40
    assert all(image.numpy().tobytes() in known for image in images)


def test_nothing_but_baselines_and_rankings_is_written(storage):
    assert {Path(name).parts[0] for name in files(storage)} == {"baselines", "cache"}
