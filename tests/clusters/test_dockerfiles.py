"""The images: hadolint finds nothing, what they copy is there, and nobody is root in them."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cluster_files import ROOT, text_of

FILES = ("Dockerfile", "mlflow/Dockerfile")


def faults(dockerfile):
    """What hadolint says of a Dockerfile."""
    command = [Path(sys.executable).parent / "hadolint", "--no-color", "-"]
    run = subprocess.run(command, input=dockerfile, capture_output=True, text=True, check=False)
    assert not run.stderr, run.stderr
    return run.stdout


def instructions(name):
    """The instructions of a Dockerfile: name and words, continued lines joined, comments left out."""
    lines = [line for line in text_of(name).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split()[0], shlex.split(line)[1:]) for line in joined]


@pytest.mark.parametrize("name", FILES)
def test_hadolint_finds_nothing(name):
    assert not faults(text_of(name))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("there", "instead", "fault"),
    [
        (r"^FROM (\S+?):\S+", r"FROM \1", "DL3006"),
        (r" --no-cache-dir", "", "DL3042"),
        (r"^USER .*", "USER root", "DL3002"),
        (r"^WORKDIR /", "WORKDIR ", "DL3000"),
        (r"^RUN ", "RUNS ", "missing whitespace"),
    ],
    ids=["no version", "a cache in the image", "root", "relative folder", "unknown instruction"],
)
def test_hadolint_finds_what_is_broken(name, there, instead, fault):
    text = re.sub(there, instead, text_of(name), flags=re.MULTILINE)
    assert text != text_of(name)
    assert fault in faults(text)


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_is_there(name):
    for source in [word for kind, words in instructions(name) if kind == "COPY" for word in words[:-1]]:
        assert (ROOT / source).exists(), source


@pytest.mark.parametrize("name", FILES)
def test_everything_is_installed_by_the_constraints(name):
    commands = [part for kind, words in instructions(name) if kind == "RUN" for part in " ".join(words).split("&&")]
    installs = [command for command in commands if "pip install" in command]
    assert installs
    assert all("--constraint constraints.txt" in command for command in installs)


@pytest.mark.parametrize("name", FILES)
def test_the_last_user_is_number_1000(name):
    told = instructions(name)
    user = [words[0] for kind, words in told if kind == "USER"][-1]
    assert {"${UID}": "1000"}.get(user, user) == "1000"
    assert ("ARG", ["UID=1000"]) in told or user == "1000"
    assert not [words for kind, words in told if kind == "ENV" and re.search("PASS|SECRET|TOKEN", " ".join(words))]


def test_the_home_folder_is_where_ray_up_looks_for_it():
    """It reads HOME from the image's variables and takes /root where there is none."""
    variables = [word for kind, words in instructions("Dockerfile") if kind == "ENV" for word in words]
    assert "HOME=/home/prunesearch" in variables
    assert "RAY_AUTH_MODE=token" in variables
