"""Artifacts in an S3-compatible store behind MLflow's server: they arrive whole, and its keys are written nowhere."""

import logging
import urllib.request
from pathlib import Path

import boto3
import pytest
import tiny
from moto.server import ThreadedMotoServer
from servers import MLflow, free_port
from test_secrets import holding

from search.driver import run_sweep
from search.errors import SweepError
from search.tracking import sync
from search.tracking.place import set_environment

set_environment()
from mlflow import MlflowClient  # noqa: E402

from search.tracking.runs import TRIAL_TAG  # noqa: E402

REGION, BUCKET = "us-east-1", "kept"
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@pytest.fixture
def store():
    """A store without buckets that knows one user: what the environment has to say of it, the user's keys too."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=free_port())
    server.start()
    address = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    anybody = {"aws_access_key_id": "x", "aws_secret_access_key": "x", "region_name": REGION, "endpoint_url": address}
    iam = boto3.client("iam", **anybody)
    iam.create_user(UserName="mlflow")
    everything = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'
    iam.put_user_policy(UserName="mlflow", PolicyName="store", PolicyDocument=everything)
    key = iam.create_access_key(UserName="mlflow")["AccessKey"]
    let_in(address, "0")
    yield {
        **dict(zip(KEYS, (key["AccessKeyId"], key["SecretAccessKey"]), strict=True)),
        "AWS_DEFAULT_REGION": REGION,
        "MLFLOW_S3_ENDPOINT_URL": address,
    }
    server.stop()


def let_in(address, requests):
    """Have the store let so many requests in whoever asks; later ones need a key."""
    headers = {"Content-Type": "text/plain"}
    asked = urllib.request.Request(f"{address}/moto-api/reset-auth", requests.encode(), headers, method="POST")
    urllib.request.urlopen(asked).close()


@pytest.mark.usefixtures("local_ray")
def test_artifacts_arrive_once_the_store_lets_the_server_in_and_its_keys_are_written_nowhere(
    tmp_path, store, monkeypatch, capfd, caplog
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    caplog.set_level("INFO")
    home, port, said = tmp_path / "server", free_port(), []
    home.mkdir()
    place = {"store": f"sqlite:///{home / 'mlflow.db'}", "artifacts": f"s3://{BUCKET}/mlflow", "port": port}
    tracking = {"uri": f"http://127.0.0.1:{port}"}
    asked = tiny.experiment(tmp_path / "sweeps", search={"trials": 3}, tracking=tracking)

    server = MLflow(home, **place, AWS_SECRET_ACCESS_KEY="wrong")
    try:
        sweep = run_sweep(asked, say=said.append, live=False)
    finally:
        server.remove()
    assert len(sweep.records) == 3
    assert [line for line in said if line.startswith("MLflow: ")] == said[-1:]
    assert "entries wait in" in said[-1]

    server = MLflow(home, **place)
    try:
        with pytest.raises(SweepError, match=r"^MLflow at http://127.0.0.1:\d+: .*; \d+ entries wait$"):
            sync(sweep.folder)
        keys = dict(zip(("aws_access_key_id", "aws_secret_access_key"), map(store.get, KEYS), strict=True))
        s3 = boto3.client("s3", endpoint_url=store["MLFLOW_S3_ENDPOINT_URL"], region_name=REGION, **keys)
        s3.create_bucket(Bucket=BUCKET)
        assert sync(sweep.folder) == 0
        let_in(
            store["MLFLOW_S3_ENDPOINT_URL"], "inf"
        )  # MLflow reads by signed addresses, which moto's door does not know
        arrived(sweep, MlflowClient(server.uri), tmp_path / "arrived")
    finally:
        server.remove()
    assert s3.list_objects_v2(Bucket=BUCKET)["KeyCount"] > 0

    told = capfd.readouterr()
    for name in KEYS:
        assert holding(tmp_path, store[name]) == []
        assert store[name] not in "\n".join([*said, told.out, told.err, caplog.text])


def arrived(sweep, client, folder):
    """Compare what MLflow has with what the sweep wrote."""
    folder.mkdir()
    runs = client.search_runs([client.get_experiment_by_name("prunesearch").experiment_id])
    trials = {run.data.tags[TRIAL_TAG]: run.info.run_id for run in runs if TRIAL_TAG in run.data.tags}
    (parent,) = (run.info.run_id for run in runs if TRIAL_TAG not in run.data.tags)
    assert len(runs) == 1 + len(sweep.records)
    for record in sweep.records:
        path = client.download_artifacts(trials[str(record.number)], "policy.json", str(folder))
        assert Path(path).read_text() == record.policy.to_json()
    figures = {Path(item.path).name for item in client.list_artifacts(parent, "figures")}
    assert {"report.html", "front.png", "widths.png"} <= figures
    for path in (sweep.folder / "report.html", sweep.folder / "front.png", *(sweep.folder / "figures").iterdir()):
        kept = Path(client.download_artifacts(parent, f"figures/{path.name}", str(folder)))
        assert kept.read_bytes() == path.read_bytes()
