"""The scripts: shellcheck finds nothing, and the commands in them are what Ray and prunesearch take."""

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from cluster_files import filled, text_of
from ray.scripts.scripts import cli

BIN = Path(sys.executable).parent


def faults(script):
    """What shellcheck says of a script."""
    run = subprocess.run(
        [BIN / "shellcheck", "--format=gcc", "-"], input=script, capture_output=True, text=True, check=False
    )
    assert not run.stderr, run.stderr
    return run.stdout


def test_shellcheck_finds_nothing():
    assert not faults(filled(text_of("slurm.sh")))


@pytest.mark.parametrize(
    ("there", "instead", "fault"),
    [
        ('--cpus-per-task="$SLURM_CPUS_PER_TASK" ', "--cpus-per-task=$SLURM_CPUS_PER_TASK ", "SC2086"),
        ("mapfile -t machines", "mapfile -t machine", "SC2154"),
        ("!= 2)); then", "!= 2))", "SC1"),
    ],
)
def test_shellcheck_finds_what_is_broken(there, instead, fault):
    text = filled(text_of("slurm.sh"))
    assert there in text
    assert fault in faults(text.replace(there, instead))


def directives():
    """The options that `sbatch` reads: up to the first command."""
    head = filled(text_of("slurm.sh")).partition("\nset -euo")[0]
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", head, flags=re.MULTILINE))


def test_one_ray_node_on_each_machine_that_is_the_jobs_alone():
    given = directives()
    assert given["ntasks-per-node"] == "1"
    assert {"exclusive", "requeue", "cpus-per-task", "gpus-per-node", "partition"} <= set(given)
    assert text_of("slurm.sh").count("#SBATCH") == len(given)  # none after the first command, where it would do nothing


# Slurm itself is not here: the last `srun` writes down what it was asked to start.
SRUN = """#!/bin/bash
case "$*" in *hostname*) echo 10.0.0.1 10.0.1.1;; *) printf '%s\\n' "$@";; esac
"""


def what_slurm_starts(folder):
    """The words after the last `srun` of the job, run with everything but Slurm."""
    for name, text in {"srun": SRUN, "scontrol": "#!/bin/bash\nprintf 'a1\\na2\\n'\n"}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "slurm.sh").write_text(filled(text_of("slurm.sh")))
    told = {"JOB_ID": 31234, "JOB_NODELIST": "a[1-2]", "JOB_NUM_NODES": 2, "CPUS_PER_TASK": 7}
    slurm = {f"SLURM_{name}": str(value) for name, value in told.items()}
    job = subprocess.run(
        ["bash", folder / "slurm.sh", "mine.yaml", "/shared/sweeps"],
        env={**slurm, "PATH": f"{folder}:{BIN}:/usr/bin:/bin", "HOME": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert job.returncode == 0, job.stderr
    return job.stdout.splitlines()


def test_the_job_starts_ray_on_all_machines_and_the_sweep_on_the_first(tmp_path):
    words = what_slurm_starts(tmp_path)
    ray = words.index("ray")
    assert words[:ray] == ["--nodes=2", "--ntasks=2", "--cpus-per-task=7"]
    assert words[ray + 1] == "symmetric-run"
    options, sweep = words[ray + 2 : words.index("--")], words[words.index("--") + 1 :]
    run, start = (cli.get_command(click.Context(cli), name) for name in ("symmetric-run", "start"))
    given = run.make_context(None, [*options, "--", *sweep]).params
    assert (given["address"], given["min_nodes"]) == ("10.0.0.1:21234", 2)
    assert options == ["--address", given["address"], "--min-nodes", "2", "--num-cpus=7"]
    assert start.make_context("start", options[-1:]).params["num_cpus"] == 7  # the rest is for `ray start`
    asked = ["--set", "storage=/shared/sweeps", "--resume", "--plain", "--address", given["address"]]
    assert sweep == ["prunesearch", "run", "mine.yaml", *asked]


def test_the_job_makes_a_token_that_others_cannot_guess(tmp_path):
    what_slurm_starts(tmp_path)
    first = (tmp_path / ".ray/auth_token").read_text()
    what_slurm_starts(tmp_path)
    assert len(first) >= 32
    assert (tmp_path / ".ray/auth_token").read_text() == first
