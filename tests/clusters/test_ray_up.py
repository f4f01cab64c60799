"""Ray takes the files for `ray up`; trials go to the workers, and nothing listens to the world."""

import os
import shlex
import subprocess
import sys

import click
import pytest
from cluster_files import changed, documents_of, without
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import cli

CLOUDS = ("aws.yaml", "gcp.yaml")
FILES = (*CLOUDS, "on-premises.yaml")


def check(config):
    """Raise what `ray up` would raise before it asks a cloud for anything."""
    prepared = prepare_config(config)
    validate_config(prepared)
    return prepared


def started(config, role):
    """The options of `ray start` on the head or the workers, as Ray reads them."""
    command = next(line for line in config[f"{role}_start_ray_commands"] if "ray start" in line)
    start = cli.get_command(click.Context(cli), "start")
    return start.make_context("start", shlex.split(command)[2:]).params


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file(name):
    (config,) = documents_of(name)
    check(config)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda config: config | {"max_worker": 2},
        lambda config: changed(config, "docker.img", "x"),
        lambda config: changed(config, "idle_timeout_minutes", "ten"),
        lambda config: without(config, "provider.type"),
        lambda config: changed(config, "worker_start_ray_commands", "ray start"),
    ],
    ids=["unknown key", "unknown key of docker", "word for a number", "no provider", "text for a list"],
)
def test_ray_refuses_a_broken_file(name, spoil):
    (config,) = documents_of(name)
    with pytest.raises(Exception, match=r"max_worker|img|ten|type|ray start"):
        check(spoil(config))


@pytest.mark.parametrize("name", CLOUDS)
def test_workers_come_from_zero_and_the_head_takes_no_trial(name):
    (config,) = documents_of(name)
    prepared = check(config)
    head, gpu = (prepared["available_node_types"][kind] for kind in ("head", "gpu"))
    assert prepared["head_node_type"] == "head"
    assert head["resources"] == {"CPU": 0}
    assert gpu["min_workers"] == 0 < gpu["max_workers"] <= prepared["max_workers"]
    assert gpu["resources"]["GPU"] == 1
    assert prepared["idle_timeout_minutes"] > 0


def test_workers_in_clouds_are_spot_machines():
    (aws,), (gcp,) = map(documents_of, CLOUDS)
    assert aws["available_node_types"]["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert gcp["available_node_types"]["gpu"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    for cloud in (aws, gcp):
        assert not {"InstanceMarketOptions", "scheduling"} & set(cloud["available_node_types"]["head"]["node_config"])


def test_on_premises_all_machines_stay():
    """Ray cannot start one for a trial: it knows of a machine's GPUs only once it has joined."""
    (config,) = documents_of("on-premises.yaml")
    (kind,) = check(config)["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(config["provider"]["worker_ips"])
    head = started(config, "head")
    assert head["num_cpus"] == head["num_gpus"] == 0


@pytest.mark.parametrize("name", FILES)
def test_the_dashboard_listens_to_the_head_alone_and_the_token_travels(name):
    (config,) = documents_of(name)
    head, worker = started(config, "head"), started(config, "worker")
    assert head["dashboard_host"] == "127.0.0.1"
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


ASKED = "from ray._private.authentication import authentication_token_setup as setup;"
ASKED += "setup.ensure_token_if_auth_enabled(None, create_token_if_missing=False)"  # what `ray start` does first


@pytest.mark.parametrize("there", [False, True])
def test_ray_does_not_start_without_the_token_that_the_image_asks_for(tmp_path, there):
    if there:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray/auth_token").write_text("0123456789abcdef0123456789abcdef")
    told = {**os.environ, "HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}
    done = subprocess.run([sys.executable, "-c", ASKED], env=told, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is there, done.stderr
    assert there or "AuthenticationError" in done.stderr


def test_an_option_that_ray_start_does_not_have_is_refused():
    with pytest.raises(click.NoSuchOption, match="--dashboard-hosts"):
        started({"head_start_ray_commands": ["ray start --head --dashboard-hosts=127.0.0.1"]}, "head")
