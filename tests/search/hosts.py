"""A sweep on hosts of their own: what runs it, and what has come of it."""

import json
import subprocess
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import tiny
import torch
from nodes import RAY, SEARCH, alive_nodes, head_at, start_node, words
from optuna.trial import TrialState
from processes import wait_for

from pruning import build_model, save_weights

EPOCHS, LONG = 20, 0.6
"""Of a trial; and seconds that one rests after each where it has to take longer than a worker takes to start: Tune lets
a trial that waits for a new worker have the first one that is free, and the new one go."""

PATIENT = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "1000"}
"""Ray gives a node up after some seconds, not after a minute: five checks in a row that fail."""

FINISH, ENDS = 6, {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
"""Optuna's code of a line that sets a trial's state, and the states that are an end."""


def run(place, trials, *options, rests_s=0, **sections):
    """Return the command that runs a sweep in a folder."""
    model = {"name": "tiny:signed", "options": {"book": str(place / "book"), "rests_s": rests_s}}
    recipe = {"epochs": EPOCHS, "learning_rate": 0.05, "batch_size": 10}
    search, weights = {"trials": trials, "seed": 3}, str(place / "weights.safetensors")
    experiment = tiny.experiment(place, model=model, weights=weights, recipe=recipe, search=search, **sections)
    torch.manual_seed(0)
    save_weights(build_model(experiment.model), experiment.weights)
    path = place / "tiny.yaml"
    path.write_text(experiment.to_yaml(), encoding="utf-8")
    return words(*SEARCH, "run", path, "--plain", *options)


def signatures(place, host):
    """Return how many epochs of training a host has seen."""
    book = place / "book"
    return book.read_text().splitlines().count(host.name) if book.exists() else 0


class Cluster:
    """A head, and whoever joins it.

    Args:
        net: of the hosts.
        environment: of all processes.
        hidden: a folder in whose place each host sees one of its own.
    """

    def __init__(self, net, environment, *, hidden=None):
        self.net, self.environment, self.hidden, self.head = net, environment, hidden, net.host(hidden=hidden)
        self.address = f"{self.head.address}:6379"
        self.head.start(head_at(self.address), environment)
        self.wait_for(self.head)

    @property
    def alive(self):
        """The names of the nodes by their addresses."""
        return dict(alive_nodes(self.address, self.environment, self.head.within))

    def wait_for(self, *hosts):
        wait_for(lambda: {host.address for host in hosts} == self.alive.keys())

    def join(self, host=None, **options):
        """Start a Ray node on a host, a new one unless told; return the host and the node's process."""
        host = host or self.net.host(**{"hidden": self.hidden, **options})
        return host, host.start(
            start_node("--address", self.address, "--node-ip-address", host.address), self.environment
        )

    def announce_end(self, host, seconds):
        """Tell Ray that a host goes, as machines are told that are lent for less."""
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "lent for less"]
        asked = ["drain-node", "--address", self.address, "--node-id", self.alive[host.address], *reason]
        asked += ["--deadline-remaining-seconds", seconds]
        subprocess.run(words(*self.head.within, RAY, *asked), env=self.environment, check=True, capture_output=True)

    @contextmanager
    def sweeping(self, place, trials, **more):
        """Run the sweep on the head while the block does what it does, and to its end."""
        told = place / "told.txt"
        with told.open("w") as out:
            streams = {"stdout": out, "stderr": subprocess.STDOUT}
            command = run(place, trials, "--address", self.address, **more)
            driver = self.head.start(command, self.environment, **streams)
        yield
        assert driver.wait(300) == 0, told.read_text()


# ── what came out ────────────────────────────────────────────────────────────────────────────────────────────────────


def endings(lines):
    """Return how often the lines of a study's journal say that each trial has ended."""
    said = map(json.loads, lines)
    return Counter(line["trial_id"] for line in said if line["op_code"] == FINISH and TrialState(line["state"]) in ENDS)


def outcome(record):
    """Return what a trial was and measured, without its seconds and the place of its book."""
    policy = record.policy.model_dump(exclude={"model"})
    return record.number, policy, [replace(metrics, seconds=0.0) for metrics in record.history]
