"""A store of MLflow, and its answers in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pruning import UnknownNameError
from search.config import Experiment, Tracking, load_experiment
from search.errors import RegistryError
from search.passwords import without_password
from search.servers import refuse_stranger
from search.tracking.place import default_uri, reason_of, set_environment, store_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_NAME = r"[^/:@'\"\s]+"
_ALIAS = r"(?!v\d+$)(?!latest$)[A-Za-z0-9_-]+"


@dataclass(frozen=True)
class Store:
    """Where networks are registered.

    Attributes:
        uri: MLflow's tracking address.
        experiment: MLflow's experiment, for networks that no sweep's run knows.
        trusted: names of networks whose code may run, as an experiment names them.
    """

    uri: str
    experiment: str = Tracking().experiment
    trusted: tuple[str, ...] = ()

    @classmethod
    def find(cls, experiment: Path | None = None, uri: str | None = None) -> Self:
        """Return the store that an experiment or a sweep writes to, or the one at `uri`, or that of `sweeps`.

        Raises:
            ExperimentError: not an experiment.
            SweepError: a sweep names a server that the user never did, and there is a password that it would see.
        """
        if experiment is None:
            return cls(uri or default_uri(Experiment.model_fields["storage"].default))
        asked = load_experiment(experiment)
        if uri is None and experiment.is_dir():
            refuse_stranger(asked.tracking.uri, f"sweep {experiment}")
        return cls(uri or store_uri(asked.folder, asked.tracking.uri), asked.tracking.experiment, (asked.model.name,))

    def __str__(self) -> str:
        return without_password(self.uri)

    def check_exists(self) -> None:
        """Refuse a SQLite file that is not there: MLflow would make it.

        Raises:
            RegistryError: it is not there.
        """
        path = Path(self.uri.removeprefix("sqlite:///"))
        if self.uri.startswith("sqlite:///") and not path.is_file():
            raise RegistryError(f"MLflow at {path}: no such file; name the store with --uri or --experiment")

    @contextmanager
    def connected(self) -> Iterator[MlflowClient]:
        """Connect; the store is MLflow's global one for the while, since parts of MLflow know no other.

        Raises:
            RegistryError: what MLflow raises, in one line.
        """
        set_environment()
        import mlflow
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        before: Any = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None  # type: ignore[no-untyped-call]
        mlflow.set_tracking_uri(self.uri)
        try:
            from search.tracking.runs import connect

            yield connect(self.uri)
        except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # of a driver, the last
            raise RegistryError(f"MLflow at {self}: {_with_advice(reason_of(error))}") from error
        finally:
            mlflow.set_tracking_uri(before)


def _with_advice(reason: str) -> str:
    advice = {
        "401": "name user and password in the address, or in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        "403": "may the user do this, and does the server's --allowed-hosts have the name in the address?",
    }
    code = re.search(r"error code (\d+)", reason)
    return f"{reason}; {advice[code[1]]}" if code and code[1] in advice else reason


@dataclass(frozen=True)
class Reference:
    """A version of a registered network: `name@alias`, or `name/3`."""

    name: str
    alias: str | None = None
    version: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a reference.

        Raises:
            RegistryError: of another form.
        """
        match = re.fullmatch(rf"({_NAME})(?:@([\w-]+)|/(\d+))", text)
        if match is None:
            raise RegistryError(f"network: expected NAME@ALIAS or NAME/VERSION, such as digits/3, got '{text}'")
        return cls(match[1], match[2], int(match[3]) if match[3] else None)

    def __str__(self) -> str:
        return f"{self.name}@{self.alias}" if self.alias else f"{self.name}/{self.version}"

    def find(self, client: MlflowClient) -> ModelVersion:
        """Return the version.

        Raises:
            UnknownNameError: nothing of this name, with the nearest that there is.
            RegistryError: no such alias or version, with those that there are.
        """
        from mlflow.exceptions import MlflowException

        try:
            registered = client.get_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            names = [model.name for model in client.search_registered_models()]
            raise UnknownNameError("registered network", self.name, names) from None
        if self.alias is not None:
            aliases = {name: int(version) for name, version in registered.aliases.items()}
            if self.alias not in aliases:
                listed = ", ".join(f"{name} (version {version})" for name, version in sorted(aliases.items()))
                raise RegistryError(f"{self.name}: no alias '{self.alias}'; there are: {listed or 'none'}")
            return client.get_model_version(self.name, str(aliases[self.alias]))
        versions = {int(found.version): found for found in client.search_model_versions(f"name='{self.name}'")}
        if self.version not in versions:
            listed = ", ".join(map(str, sorted(versions)))
            raise RegistryError(f"{self.name}: no version {self.version}; there are: {listed or 'none'}")
        return versions[self.version]


def check_name(name: str, alias: str | None) -> None:
    """Refuse names that a reference could not have, or that MLflow keeps for itself.

    Raises:
        RegistryError: such a name or alias.
    """
    if not re.fullmatch(_NAME, name):
        raise RegistryError(f"name: expected one without / : @, quotes and blanks, got '{name}'")
    if alias is not None and not re.fullmatch(_ALIAS, alias, re.IGNORECASE):
        raise RegistryError(f"--alias: expected letters, digits, - and _, but neither 'latest' nor 'v1', got '{alias}'")
