"""Bring a pruned network into the registry."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pruning import PRUNED_FILES, Policy, PrunedNetwork, build_model, count_cost, export_network, hash_weights
from search.inputs import Say, silent
from search.model_registry.checksums import write_sums
from search.model_registry.store import Store, check_name
from search.pruned import read_pruned
from search.units import percent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

PRUNED = "pruned"
"""The folder in a registered version that `load_pruned` reads."""

DIGEST = "prunesearch.sha256"
"""The tag of a version that holds the hash of its list of hashes."""


@dataclass(frozen=True)
class Registered:
    """A version in the registry.

    Attributes:
        facts: what is known of the network, by name; also in the version's tags.
        run_id: the sweep's run that tried the policy, where there is one.
    """

    name: str
    version: int
    alias: str | None
    facts: dict[str, str]
    run_id: str | None


def register(
    folder: Path,
    name: str,
    store: Store,
    *,
    alias: str | None = None,
    trusted: Collection[str] = (),
    say: Say = silent,
) -> Registered:
    """Log a pruned network, make it the next version of a registered network, and point an alias to it.

    Args:
        folder: what `apply_policy` wrote.
        name: of the registered network, made if there is none.
        store: where.
        alias: moved from another version, if it has one.
        trusted: names of networks whose code may run, beside the store's; see `load_pruned`.
        say: told of every step.

    Raises:
        SearchError: no pruned network, a name that cannot be, or a store that is away or refuses.
        PruningError: a folder that is damaged, or a network that torch.export cannot follow.
    """
    check_name(name, alias)
    pruned = read_pruned(folder, (*store.trusted, *trusted))
    with store.connected() as client:
        run = _run_of(client, pruned.policy)
        say(f"registering {name} at {store}" + ("" if run is None else f", as of run '{run.info.run_name}'"))
        registration = _Registration(client, store, name, pruned, folder, run)
        number = registration.add_version(registration.log())
        if alias is not None:
            client.set_registered_model_alias(name, alias, str(number))
    return Registered(name, number, alias, registration.facts, registration.run_id)


def _run_of(client: MlflowClient, policy: Policy) -> Run | None:
    """Return the newest run of a sweep that tried the policy to its end."""
    experiments = [found.experiment_id for found in client.search_experiments()]
    asked = f"tags.policy = '{policy.fingerprint}' and attributes.status = 'FINISHED'"
    runs = client.search_runs(experiments, asked, max_results=1, order_by=["attributes.start_time DESC"])
    return next(iter(runs), None)


class _Registration:
    """The steps from a folder to a version.

    Args:
        run: of the sweep that tried the policy.

    Attributes:
        facts: what is known of the network, as tags.
    """

    def __init__(
        self, client: MlflowClient, store: Store, name: str, pruned: PrunedNetwork, folder: Path, run: Run | None
    ) -> None:
        self._client, self._store, self._name, self._run = client, store, name, run
        self._pruned, self._folder = pruned, folder
        self._image = torch.zeros(1, *pruned.image_shape)
        self.facts = self._known()

    @property
    def run_id(self) -> str | None:
        return None if self._run is None else self._run.info.run_id

    def _known(self) -> dict[str, str]:
        policy, cost = self._pruned.policy, count_cost(self._pruned.model, self._image)
        weights = hash_weights(self._pruned.model.state_dict())
        facts = {"model": policy.model.name, "policy": policy.fingerprint, "weights": weights}
        facts |= {"macs": str(cost.macs), "params": str(cost.params)}
        accuracy = None if self._run is None else self._run.data.metrics.get("accuracy")
        return facts if accuracy is None else {**facts, "validation_accuracy": f"{accuracy:.4f}"}

    def log(self) -> LoggedModel:
        """Log the network with its files and their hashes; where that fails nothing stays."""
        client = self._client
        with TemporaryDirectory() as scratch:
            # MLflow's own export takes a batch size that got fixed, and has torch's words for what it cannot do.
            export_network(self._pruned.model, scratch, ["pt2"], image_shape=self._pruned.image_shape)
            logged = client.create_logged_model(self._experiment_id(), self._name, self.run_id, tags=self.facts)
            try:
                draft = Path(scratch) / "model"
                self._write(draft, logged)
                self.facts[DIGEST] = write_sums(draft)
                client.log_model_artifacts(logged.model_id, str(draft))
                return client.finalize_logged_model(logged.model_id, "READY")
            except BaseException:
                with suppress(Exception):  # the store may be away
                    client.delete_logged_model(logged.model_id)
                raise

    def _experiment_id(self) -> str:
        if self._run is not None:
            return str(self._run.info.experiment_id)
        from search.tracking.runs import experiment_named

        return experiment_named(self._client, self._store.uri, self._store.experiment)

    def _write(self, draft: Path, logged: LoggedModel) -> None:
        """Write what MLflow wants of a network, and the folder that makes it again."""
        import mlflow.pytorch
        from mlflow.models import Model, infer_signature

        network, images = self._pruned.model, _example(self._pruned.image_shape)
        with torch.no_grad():
            logits = network(images)
        place, model_id = logged.artifact_location, logged.model_id
        mlflow.pytorch.save_model(
            network,
            str(draft),
            mlflow_model=Model(artifact_path=place, run_id=self.run_id, model_uuid=model_id, model_id=model_id),
            signature=infer_signature(images.numpy(), logits.numpy()),
            input_example=images.numpy(),
            serialization_format="pt2",
            pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in ("torch", "numpy")],
            metadata=dict(self.facts),
        )
        (draft / PRUNED).mkdir()
        for file in PRUNED_FILES:
            shutil.copy(self._folder / file, draft / PRUNED / file)

    def add_version(self, logged: LoggedModel) -> int:
        """Make a logged network the next version; return its number."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(self._name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = self._client.create_model_version(
            self._name,
            f"models:/{logged.model_id}",
            run_id=self.run_id,
            tags=self.facts,
            description=self._description(),
            model_id=logged.model_id,
        )
        if self.run_id is not None:
            self._client.log_outputs(self.run_id, [LoggedModelOutput(logged.model_id, step=0)])
        return int(made.version)

    def _description(self) -> str:
        policy = self._pruned.policy
        with torch.random.fork_rng([]):
            full = count_cost(build_model(policy.model), self._image).macs
        criteria = ", ".join(criterion.name for criterion in policy.every_criterion)
        return f"{policy.model.name} cut to {percent(int(self.facts['macs']) / full)} of its MACs by {criteria}"


def _example(image_shape: tuple[int, ...]) -> Tensor:
    """Return two images of noise; sixteenths are exact, and short, in the JSON that MLflow makes of them."""
    noise = torch.randn(2, *image_shape, generator=torch.Generator().manual_seed(0))
    return (16 * noise).round() / 16
