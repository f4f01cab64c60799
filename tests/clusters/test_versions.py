"""Ray, torch, Python and MLflow are the same in all files: those of constraints.txt and pyproject.toml."""

import re
import tomllib

import pytest
from cluster_files import FILES, ROOT, text_of
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
PINS = re.findall(r"^([\w.-]+)==(\S+)$", CONSTRAINTS, re.MULTILINE)
PINNED = {canonicalize_name(name): version for name, version in PINS}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [name for name in FILES if name.endswith("requirements.txt")]

# How files name a version, and whose it is.
FORMS = {
    "ray": r"rayVersion: \"?([\d.]+)|rayproject/ray:([\d.]+)|\bRay ([\d]+\.[\d.]+\d)",
    "torch": r"\b(?:torch==|torch |pytorch:)([\d]+\.[\d.]+\d)",
    "mlflow": r"\b(?:mlflow==|mlflow:v|MLflow )([\d]+\.[\d.]+\d)",
}
PYTHON = re.compile(r"\bpython:(\d+\.\d+)|\bPython ≥? ?(\d+\.\d+)|\bpy(3\d+)\b")


def disagreeing(text):
    """Versions in a text that are not those of constraints.txt; `3.17` agrees with `3.17.2`."""
    found = [(name, match) for name, form in FORMS.items() for match in re.finditer(form, text)]
    told = [(name, next(filter(None, match.groups()))) for name, match in found]
    return [(name, version) for name, version in told if not f"{PINNED[name]}.".startswith(f"{version}.")]


def requirements_of(name):
    lines = (line.partition("#")[0].strip() for line in text_of(name).splitlines())
    return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize("name", FILES)
def test_versions_agree_with_the_constraints(name):
    assert not disagreeing(text_of(name))


@pytest.mark.parametrize("text", ['rayVersion: "2.59.0"', "FROM rayproject/ray:2.6", "torch==2.12.0", "mlflow:v3.18.0"])
def test_a_version_that_disagrees_is_found(text):
    assert disagreeing(text)


@pytest.mark.parametrize("name", ["kubernetes/raycluster.yaml", "kubernetes/rayjob.yaml"])
def test_kuberay_is_told_rays_version(name):
    assert f'rayVersion: "{PINNED["ray"]}"' in text_of(name)


@pytest.mark.parametrize("name", FILES)
def test_python_is_the_tested_one(name):
    tested = re.search(r"on Python (\d+\.\d+)", CONSTRAINTS)[1]
    told = {next(filter(None, found.groups())) for found in PYTHON.finditer(text_of(name))}
    assert told <= {tested, tested.replace(".", "")}
    assert tested in SpecifierSet(PROJECT["requires-python"])


@pytest.mark.parametrize("name", ["Dockerfile", "mlflow/Dockerfile"])
def test_images_start_from_a_python(name):
    assert PYTHON.search(text_of(name))


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_requirements_pin_what_the_constraints_do_not(name):
    """So the two together leave no version open, and cannot disagree."""
    for each in requirements_of(name):
        pins = [canonicalize_name(each.name) in PINNED, bool(re.fullmatch(r"==[\d.]+(b\d+)?", str(each.specifier)))]
        assert sorted(pins) == [False, True], str(each)


def test_the_constraints_are_within_what_the_project_asks_for():
    for text in PROJECT["dependencies"]:
        asked = Requirement(text)
        assert PINNED[canonicalize_name(asked.name)] in asked.specifier
