"""From a sweep to its runs in MLflow, from there to a network, into the registry and back: every number stays."""

from pathlib import Path

import pytest
import tiny
import torch
from mlflow import MlflowClient

from pruning import evaluate, hash_weights, load_policy
from search.driver import run_sweep
from search.prepare import prepare
from search.tracking import store_uri
from search.trial import run_trial
from search.units import percent

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    return run_sweep(tiny.experiment(tmp_path_factory.mktemp("sweeps"), tracking={"enabled": True}), live=False)


@pytest.fixture
def client(sweep):
    return MlflowClient(store_uri(sweep.folder, None))


@pytest.fixture
def run(client):
    """The most accurate run of a trial, as the README finds it."""
    place = [client.get_experiment_by_name("prunesearch").experiment_id]
    cut = "tags.state = 'finished' and metrics.macs_share < 1"
    return client.search_runs(place, cut, order_by=["metrics.accuracy DESC"])[0]


def test_a_policy_from_mlflow_gives_the_network_of_its_trial_and_the_registry_keeps_it(
    sweep, client, run, call, tmp_path
):
    path = Path(client.download_artifacts(run.info.run_id, "policy.json", str(tmp_path)))
    code, said, _ = call("apply", path, sweep.folder, "-o", tmp_path / "pruned")
    assert code == 0

    inputs, applied = prepare(sweep.experiment), tiny.load_cut(tmp_path / "pruned").model
    trial = run_trial(load_policy(path), inputs, lambda *_: None).network
    assert evaluate(applied, inputs.data.val).accuracy == run.data.metrics["accuracy"]
    assert hash_weights(applied.state_dict()) == hash_weights(trial.state_dict())
    tested = evaluate(applied, inputs.data.test).accuracy
    assert tested == evaluate(trial, inputs.data.test).accuracy
    assert percent(tested, 2) in said

    store = ["--uri", store_uri(sweep.folder, None)]
    assert call("register", tmp_path / "pruned", "net", "--alias", "champion", *store, *tiny.TRUST)[0] == 0
    assert client.get_model_version_by_alias("net", "champion").run_id == run.info.run_id
    assert call("fetch", "net@champion", "-o", tmp_path / "again", *store, *tiny.TRUST)[0] == 0
    images = torch.randn(7, *tiny.IMAGE_SHAPE)
    with torch.no_grad():
        assert torch.equal(tiny.load_cut(tmp_path / "again").model(images), applied(images))
