"""MLflow's server for clusters: Compose takes the file, MLflow its flags, and no password is written anywhere."""

import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml
from cluster_files import changed, documents_of, text_of
from jsonschema import Draft202012Validator
from mlflow.server.security_utils import is_allowed_host_header

COMPOSE = Draft202012Validator(yaml.safe_load(Path(__file__).with_name("compose.yaml").read_text(encoding="utf-8")))
VARIABLE = re.compile(r"\$\{(\w+)(?::([?-])([^}]*))?\}")
PASSWORDS = {"POSTGRES_PASSWORD", "STORE_PASSWORD", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_SECRET_KEY"}


class UnsetError(Exception):
    """Compose refuses to start: a variable is not set."""


def substituted(text, given):
    """The text as Compose reads it: `${A:-default}` and `${A:?message}` by what is set; other forms are not used."""

    def value(match):
        name, form, other = match.groups()
        if given.get(name):
            return given[name]
        if form == "-":
            return other
        raise UnsetError(f"{name}: {other}")

    return VARIABLE.sub(value, text)


def composed(**given):
    """The compose file with passwords, and what else is set."""
    passwords = dict.fromkeys(PASSWORDS, "0123456789abcdef")
    return yaml.safe_load(substituted(text_of("mlflow/compose.yaml"), passwords | given))


@pytest.fixture
def compose():
    return composed()


@pytest.fixture(scope="module")
def help_text():
    """What the installed `mlflow server --help` says."""
    command = [Path(sys.executable).parent / "mlflow", "server", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compose_faults(document):
    return [error.message for error in COMPOSE.iter_errors(document)]


def server_command(document):
    """The flags of `mlflow server` in a compose file or a manifest, by name."""
    services = document.get("services")
    command = (services["mlflow"] if services else document["spec"]["template"]["spec"]["containers"][0])["command"]
    assert command[:2] == ["mlflow", "server"]
    return dict(re.fullmatch(r"(--[a-z-]+)=(.+)", word).groups() for word in command[2:])


def unknown_flags(flags, help_text):
    """Flags that MLflow does not have, and choices that it does not offer."""
    option = re.compile(r"^  (?:-\w, )?(--[a-z-]+)(?: / --[a-z-]+)? *(?:\[([\w|-]+)\])?", re.MULTILINE)
    choices = {flag: told.split("|") if told else None for flag, told in option.findall(help_text)}
    return [flag for flag, value in flags.items() if flag not in choices or value not in (choices[flag] or [value])]


# ── Compose ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_compose_takes_the_file(compose):
    assert not compose_faults(compose)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("services.mlflow.port", ["5000:5000"]),
        ("services.mlflow.ports", ["5000:5000"]),
        ("services.mlflow.depends_on.database.condition", "service_ready"),
        ("services.database.healthcheck.retries", "12"),
        ("services.database.healthcheck.test", ["pg_isready"]),
        ("services.store.restart", False),
        ("services.store.environment.AWS_ACCESS_KEY_ID", None),
        ("volume", {}),
    ],
)
def test_a_broken_compose_file_is_refused(compose, path, value):
    assert compose_faults(changed(compose, path, value))


@pytest.mark.parametrize("name", sorted(PASSWORDS))
def test_nothing_starts_without_a_password(name):
    with pytest.raises(UnsetError, match=rf"{name}: set it in clusters/mlflow/\.env"):
        composed(**{name: ""})


def test_no_password_has_a_default_and_none_is_written():
    text = text_of("mlflow/compose.yaml")
    defaults = {name for name, form, _ in VARIABLE.findall(text) if form == "-"}
    assert defaults == {"MLFLOW_BIND", "MLFLOW_ALLOWED_HOSTS"}
    for service in yaml.safe_load(text)["services"].values():
        for name, value in service["environment"].items():
            assert VARIABLE.fullmatch(value) or not re.search("PASS|SECRET", name), name
    auth = ConfigParser()
    auth.read_string(text_of("mlflow/auth.ini"))
    assert "admin_password" not in auth["mlflow"]
    assert "@" not in auth["mlflow"]["database_uri"]


def test_only_this_machine_reaches_it_unless_told():
    doors = [port for service in composed()["services"].values() for port in service.get("ports", ())]
    assert doors == ["127.0.0.1:5000:5000"]
    assert composed(MLFLOW_BIND="10.0.0.4")["services"]["mlflow"]["ports"] == ["10.0.0.4:5000:5000"]


def test_services_wait_for_each_other_and_keep_their_data(compose):
    services = compose["services"]
    for service in services.values():
        for name, how in service.get("depends_on", {}).items():
            assert name in services
            assert how["condition"] != "service_healthy" or "healthcheck" in services[name]
    kept = {volume.partition(":")[0] for service in services.values() for volume in service.get("volumes", ())}
    assert kept == set(compose["volumes"]) == {"database", "store"}
    for name in ("mlflow", "database", "store"):
        assert services[name]["restart"] == "unless-stopped"
        assert "healthcheck" in services[name]


def test_the_names_that_the_services_tell_each_other_agree(compose):
    services = compose["services"]
    server, database, store = (services[name]["environment"] for name in ("mlflow", "database", "store"))
    assert server["PGHOST"] == "database"
    assert (server["PGUSER"], server["PGDATABASE"]) == (database["POSTGRES_USER"], database["POSTGRES_DB"])
    assert server["PGPASSWORD"] == database["POSTGRES_PASSWORD"]
    assert {key: server[key] for key in store} == store
    assert server["MLFLOW_S3_ENDPOINT_URL"] == "http://store:8333"
    assert server_command(compose)["--artifacts-destination"] == f"s3://{server['MLFLOW_BUCKET']}"
    assert services["bucket"]["environment"] == server


# ── MLflow ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["compose", "kubernetes"])
def document(request):
    return composed() if request.param == "compose" else documents_of("mlflow/kubernetes.yaml")[0]


def test_mlflow_has_every_flag(document, help_text):
    flags = server_command(document)
    assert {"--app-name", "--allowed-hosts", "--backend-store-uri", "--artifacts-destination"} <= set(flags)
    assert not unknown_flags(flags, help_text)


@pytest.mark.parametrize(("flag", "value"), [("--allowed-host", "x"), ("--app-name", "basic_auth")])
def test_a_flag_that_mlflow_does_not_have_is_found(help_text, flag, value):
    assert unknown_flags({flag: value}, help_text) == [flag]


def test_the_server_asks_for_a_password_and_keeps_its_users_with_its_runs(document):
    flags = server_command(document)
    auth = ConfigParser()
    auth.read_string(text_of("mlflow/auth.ini"))
    assert flags["--app-name"] == "basic-auth"
    assert flags["--backend-store-uri"] == auth["mlflow"]["database_uri"]
    assert "--disable-security-middleware" not in flags


@pytest.mark.parametrize(
    ("host", "in_compose", "in_kubernetes"),
    [
        ("localhost:5000", True, True),
        ("127.0.0.1:5000", True, True),
        ("mlflow:5000", False, True),
        ("mlflow.ml.svc.cluster.local:5000", False, True),
        ("mlflow.example.org:5000", False, False),
    ],
)
def test_the_server_answers_to_these_names(host, in_compose, in_kubernetes):
    told = {"compose": composed(), "kubernetes": documents_of("mlflow/kubernetes.yaml")[0]}
    for kind, expected in (("compose", in_compose), ("kubernetes", in_kubernetes)):
        allowed = server_command(told[kind])["--allowed-hosts"].split(",")
        assert is_allowed_host_header(allowed, host) is expected, kind


def test_other_names_can_be_told():
    flags = server_command(composed(MLFLOW_ALLOWED_HOSTS="mlflow.example.org:5000"))
    assert flags["--allowed-hosts"] == "mlflow.example.org:5000"
