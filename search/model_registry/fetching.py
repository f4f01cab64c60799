"""Get a registered network back, and prove that it is the one that was registered."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from pruning import PRUNED_FILES, PrunedNetwork, PruningError, compare_outputs
from search.errors import RegistryError, SearchError
from search.inputs import Say, silent
from search.model_registry.checksums import check_sums
from search.model_registry.registering import DIGEST, PRUNED
from search.model_registry.store import Reference, Store
from search.pruned import read_pruned
from search.reading import well_formed
from search.tracking.place import reason_of

_PICKLES = "MLFLOW_ALLOW_PICKLE_DESERIALIZATION"


@dataclass(frozen=True)
class Fetched:
    """A network that came back: which version it is, and what its tags say of it."""

    name: str
    version: int
    facts: dict[str, str]
    folder: Path


def fetch(reference: str, output: Path, store: Store, *, trusted: Collection[str] = (), say: Say = silent) -> Fetched:
    """Download a registered network into a new folder, which `load_pruned` reads.

    Every file is compared with the hash that it was registered with; the network is built again from policy, kept
    channels and weights, and has to give what the logged program gives on its example. No pickle is read, and no
    code that comes with the network runs. The folder appears at once and whole; on any failure nothing is left.

    Args:
        reference: `name@alias`, or `name/3`.
        output: the new folder.
        store: where.
        trusted: names of networks, `module:function`, whose code of this machine may run, beside the store's.
        say: told of every step.

    Raises:
        SearchError: the folder exists, there is no such network, its files are not those that were registered, or the
            store is away or refuses.
        PruningError: a policy whose network does not exist here, or is not trusted.
    """
    wanted = Reference.parse(reference)
    if output.exists():
        raise SearchError(f"{output}: exists; name another folder with --output")
    store.check_exists()
    with _scratch(output) as scratch:
        say(f"fetching {wanted} from {store}")
        with store.connected() as client:
            from mlflow.artifacts import download_artifacts

            found = wanted.find(client)
            if DIGEST not in found.tags:
                raise RegistryError(f"{wanted}: expected a network that `prunesearch register` logged, got another")
            place = client.get_model_version_download_uri(found.name, found.version)
            model = Path(download_artifacts(artifact_uri=place, dst_path=str(scratch)))
        check_sums(model, found.tags[DIGEST], str(wanted))
        _check_files(model, wanted)
        _check_program(model, read_pruned(model / PRUNED, (*store.trusted, *trusted)), wanted)
        output.parent.mkdir(parents=True, exist_ok=True)
        (model / PRUNED).rename(output)
    return Fetched(found.name, int(found.version), dict(found.tags), output)


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """Yield a folder on the output's file system, so that a rename does; it is gone at the end."""
    ancestor = next(place for place in output.resolve().parents if place.is_dir())
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=ancestor))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_files(model: Path, wanted: Reference) -> None:
    """Refuse what `register` does not write: MLflow would import code that a version brings along."""
    from mlflow.models import Model

    with well_formed(f"{wanted}: MLmodel", RegistryError):
        about = Model.load(str(model)).flavors["pytorch"]
        if about.get("code") or about["model_data"] != "data":
            raise RegistryError(
                f"{wanted}: expected a network without code, got one with some; not what was registered"
            )
    for folder, expected in (("data", {"model.pt2"}), (PRUNED, set(PRUNED_FILES))):
        if (found := {path.name for path in (model / folder).iterdir()}) != expected:
            odd = ", ".join(sorted(found ^ expected))
            raise RegistryError(f"{wanted}: expected {', '.join(sorted(expected))} in {folder}, got others: {odd}")


def _check_program(model: Path, pruned: PrunedNetwork, wanted: Reference) -> None:
    """Refuse a network that does not give what the logged program gives on the logged example."""
    import mlflow.pytorch
    from mlflow.exceptions import MlflowException
    from mlflow.models import Model

    try:
        with _without_pickles():
            program = mlflow.pytorch.load_model(str(model))
        with well_formed(f"{wanted}: its example", RegistryError):
            example = Model.load(str(model)).load_input_example(str(model))
            images = torch.from_numpy(example)
    except MlflowException as error:
        raise RegistryError(f"{wanted}: {reason_of(error)}") from error
    try:
        compare_outputs(pruned.model, {"the logged program": program}, [images])
    except PruningError as error:
        raise RegistryError(f"{wanted}: {error}") from None


@contextmanager
def _without_pickles() -> Iterator[None]:
    """Let MLflow refuse pickles for the while, whatever it may read elsewhere."""
    before = os.environ.get(_PICKLES)
    os.environ[_PICKLES] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PICKLES]
        else:
            os.environ[_PICKLES] = before
