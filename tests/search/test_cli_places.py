"""Commands whose files, images and sweeps lie at addresses."""

import json

import pytest
import tiny
from mlflow import MlflowClient
from PIL import Image
from test_cli import make_sweep

from pruning import load_data, load_policy
from search.config import load_experiment
from search.mirror import kept
from search.places import path_of
from search.prepare import prepare, space_of
from search.starts import make_starts
from search.sweep import Sweep
from search.tracking import Tracker, default_uri

BUCKET = "memory://bucket"
QUICK = {"baseline": {"epochs": 2, "learning_rate": 0.2, "batch_size": 15}, "recipe": {"epochs": 1, "batch_size": 50}}


@pytest.fixture
def images(tmp_path):
    """A tree of images of ten classes on this machine."""
    data = load_data("digits", size=8, channels=1, train_images=200)
    pixels, labels = next(data.train.batches(200))
    for number, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        folder = tmp_path / "images/train" / f"digit {label}"
        folder.mkdir(parents=True, exist_ok=True)
        shades = 255 * (image[0] - image.min()) / (image.max() - image.min())
        Image.fromarray(shades.byte().numpy(), "L").save(folder / f"{number}.png")
    return tmp_path / "images"


def asked(images, storage):
    data = {"name": "image_folder", "options": {"root": str(images), "channels": 1}}
    return tiny.experiment(storage, data=data, **QUICK)


def test_an_experiment_may_lie_at_an_address_with_all_that_it_names(there, machine, images, call, tmp_path):
    (tmp_path / "tiny.yaml").write_text(asked(images, tmp_path / "sweeps").to_yaml())
    code, on_disk, _ = call("baseline", tmp_path / "tiny.yaml")
    assert code == 0
    there.put(str(images), "/bucket/data", recursive=True)
    there.pipe("/bucket/tiny.yaml", asked(f"{BUCKET}/data", f"{BUCKET}/sweeps").to_yaml().encode())

    def measured(*settings):
        code, out, complaint = call("baseline", f"{BUCKET}/tiny.yaml", *settings)
        assert (code, complaint) == (0, "")
        first, *lines = out.splitlines()
        assert first == f"fetching what is new at {BUCKET}/data"
        return lines

    assert measured() == on_disk.splitlines()
    (trained,) = there.find("/bucket/sweeps")
    there.mv(trained, "/bucket/weights/w.safetensors")
    of_weights = [line for line in on_disk.splitlines() if "epoch" not in line and not line.startswith("training")]
    machine("two")
    assert measured("--set", f"weights={BUCKET}/weights/w.safetensors") == of_weights
    machine("three")
    text = there.cat("/bucket/tiny.yaml").replace(b"weights: null", b"weights: weights/w.safetensors")
    there.pipe("/bucket/tiny.yaml", text)
    assert measured() == of_weights
    assert there.find("/bucket/sweeps") == []


def test_a_policy_may_lie_at_an_address(there, machine, call, tmp_path):
    folder = make_sweep(tmp_path)
    there.put(str(folder), "/bucket/sweeps/tiny", recursive=True)
    policy = Sweep.load(folder).records[0].policy
    (tmp_path / "policy.json").write_text(policy.to_json())
    there.put(str(tmp_path / "policy.json"), "/bucket/policy.json")

    experiment = load_experiment(folder, [f"search.start=[{BUCKET}/policy.json]"])
    inputs = prepare(experiment)
    start = make_starts(experiment, space_of(inputs))[0]
    assert (start.widths, start.source) == (policy.widths, "policy of policy.json")

    code, told, _ = call("describe", f"{BUCKET}/policy.json", f"{BUCKET}/sweeps/tiny")
    assert (code, told) == call("describe", tmp_path / "policy.json", folder)[:2]
    code, _, _ = call("best", f"{BUCKET}/sweeps/tiny", "--trial", 0, "--output", tmp_path / "p.json")
    assert (code, load_policy(tmp_path / "p.json")) == (0, policy)
    code, told, _ = call("apply", f"{BUCKET}/policy.json", f"{BUCKET}/sweeps/tiny", "--output", tmp_path / "pruned")
    assert (code, "tested once" in told) == (0, True)
    assert json.loads((tmp_path / "pruned/policy.json").read_text())["widths"] == policy.widths
    assert "memory://bucket/nowhere.json: No such file" in call("describe", f"{BUCKET}/nowhere.json")[2]


def test_what_mlflow_was_told_on_one_machine_is_told_on_another(there, machine, call, tmp_path):
    here = make_sweep(tmp_path)
    there.put(str(here), "/bucket/sweep", recursive=True)
    folder, sweep = machine("one"), Sweep.load(here)
    with kept(folder, print), Tracker(folder, load_experiment(here, ["tracking.enabled=true"])) as tracker:
        tracker.start(sweep.baseline, sweep.widths)
        for record in sweep.records:
            tracker.trial_started(record)
            for metrics in record.history:
                tracker.trial_reported(record.number, metrics)
            tracker.trial_ended(record)
        tracker.sweep_ended("Three trials.", {})

    def runs():
        client = MlflowClient(default_uri(machine(name).parent))
        (experiment,) = (found for found in client.search_experiments() if found.name != "Default")
        found = client.search_runs([experiment.experiment_id])
        return sorted((run.info.run_name, run.info.status, sorted(run.data.metrics.items())) for run in found)

    name = "one"
    known = runs()
    assert len(known) == 4
    name = "two"
    machine(name)
    assert call("sync", f"{BUCKET}/sweep")[:2] == (0, "0 entries still wait\n")
    assert runs() == known
    assert path_of(f"{BUCKET}/mlflow.db").exists()
    assert not there.exists("/bucket/mlflow.db")
