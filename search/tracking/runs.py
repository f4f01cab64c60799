"""The runs of one sweep in MLflow, found by their tags: writing something twice leaves it there once."""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Experiment, LifecycleStage, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from search.errors import SweepError
from search.passwords import without_password
from search.tracking.place import artifact_folder

SWEEP_TAG, TRIAL_TAG = "prunesearch.sweep_id", "prunesearch.trial"
PARENT = "parent"
VIEW = "prunesearch"
"""What MLflow's page of the runs is asked for to show the columns that matter."""

LONGEST_PARAM = 500
WORKFLOW = "workflowType=machine_learning"
"""In addresses: else MLflow's pages speak of prompts and traces."""

_VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
_COLUMNS = ["metrics.`accuracy`", "metrics.`macs_share`", "metrics.`hypervolume`", "params.`criterion`"]
_COLUMNS += ["tags.`state`", "tags.`front`"]
_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}


def is_refusal(error: Exception) -> bool:
    """Whether MLflow understood and said no, e.g. because somebody deleted the run: trying again would not help."""
    return isinstance(error, MlflowException) and error.error_code in _REFUSALS


def connect(uri: str) -> MlflowClient:
    """Return a connection to a store; the first one to a new SQLite file makes its tables, about a second.

    Raises:
        Exception: the store is not reachable.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if artifact_folder(uri):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(uri)


def experiment_named(client: MlflowClient, uri: str, name: str) -> str:
    """Return the id of MLflow's experiment, made if there is none.

    Raises:
        SweepError: it was deleted in MLflow.
    """
    view = json.dumps({"orderByKey": "attributes.start_time", "orderByAsc": False, "selectedColumns": _COLUMNS})
    known = client.get_experiment_by_name(name)
    if known is None:
        tags = {"mlflow.experimentKind": "custom_model_development", _VIEW_TAG: view}
        try:
            return client.create_experiment(name, artifact_location=artifact_folder(uri), tags=tags)
        except MlflowException as error:
            known = client.get_experiment_by_name(name)
            if known is None or error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise  # else another sweep has made it meanwhile
    if known.lifecycle_stage == LifecycleStage.DELETED:
        raise SweepError(f"MLflow's experiment '{name}' is deleted; restore it or remove it for good")
    if _VIEW_TAG not in known.tags:
        client.set_experiment_tag(known.experiment_id, _VIEW_TAG, view)
    return known.experiment_id


def runs_page(experiment: Experiment) -> str:
    """Return the place of an experiment's runs in MLflow's pages."""
    view = f"&viewStateShareKey={VIEW}" if _VIEW_TAG in experiment.tags else ""
    return f"/#/experiments/{experiment.experiment_id}/runs?{WORKFLOW}{view}"


class Runs:
    """The runs of a sweep in a store; see `connect`.

    Args:
        uri: MLflow's tracking address.
        experiment: MLflow's experiment, made if there is none.
        sweep_id: what tells this sweep's runs from all others.

    Raises:
        SweepError: the experiment was deleted in MLflow.
        Exception: the store is not reachable.
    """

    def __init__(self, uri: str, experiment: str, sweep_id: str) -> None:
        self._client = connect(uri)
        self._address = without_password(uri).rstrip("/") if uri.startswith("http") else ""
        self._sweep_id = sweep_id
        self.experiment_id = experiment_named(self._client, uri, experiment)
        self._ids: dict[str, str] = {}
        for run in self._found():
            self._ids.setdefault(run.data.tags.get(TRIAL_TAG, PARENT), run.info.run_id)

    def tagged(self, name: str, value: str) -> set[str]:
        """Return the runs of this sweep that have a tag."""
        return {run.info.run_id for run in self._found(f" and tags.`{name}` = '{value}'")}

    def _found(self, more: str = "") -> Iterable[Run]:
        """Yield this sweep's runs, oldest first."""
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id],
                f"tags.`{SWEEP_TAG}` = '{self._sweep_id}'{more}",
                ViewType.ACTIVE_ONLY,
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            yield from page
            token = page.token
            if not token:
                return

    def ensure(self, trial: int | None, name: str, start: int, tags: Mapping[str, str]) -> str:
        """Return the run of a trial, or the parent's for None; make it if there is none. `start` in milliseconds."""
        key = PARENT if trial is None else str(trial)
        if key not in self._ids:
            own = {SWEEP_TAG: self._sweep_id}
            if trial is not None:
                own |= {TRIAL_TAG: key, "mlflow.parentRunId": self._ids[PARENT]}
            run = self._client.create_run(self.experiment_id, start_time=start, tags={**tags, **own}, run_name=name)
            self._ids[key] = run.info.run_id
        return self._ids[key]

    def log(
        self,
        run_id: str,
        *,
        metrics: Sequence[tuple[str, float, int, int]] = (),
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        """Write metrics (name, value, milliseconds, step), params and tags in as few calls as MLflow allows."""
        points = [Metric(_key(name), float(value), time, step) for name, value, time, step in metrics]
        values = [Param(_key(name), _short(value)) for name, value in (params or {}).items()]
        labels = [RunTag(_key(name), str(value)) for name, value in (tags or {}).items()]
        while points or values or labels:
            self._client.log_batch(run_id, points[:800], values[:100], labels[:100], synchronous=True)
            points, values, labels = points[800:], values[100:], labels[100:]

    def text(self, run_id: str, text: str, path: str) -> None:
        """Write a text as an artifact; it replaces one of that name."""
        self._client.log_text(run_id, text, path)

    def file(self, run_id: str, source: Path, path: str) -> None:
        """Copy a file to an artifact; it replaces one of that name."""
        folder, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as draft:
            copy = shutil.copy(source, Path(draft) / name)
            self._client.log_artifact(run_id, copy, folder or None)

    def rename(self, run_id: str, name: str) -> None:
        """Give a run another name."""
        self._client.update_run(run_id, name=name)

    def revive(self, run_id: str) -> None:
        """Mark a run as running."""
        self._client.update_run(run_id, status="RUNNING")

    def end(self, run_id: str, status: str, time: int) -> None:
        """Mark a run as FINISHED, FAILED or KILLED at `time`, in milliseconds."""
        self._client.set_terminated(run_id, status, time)

    def link(self, run_id: str, artifact: str = "") -> str:
        """Return the address of a run, or of one of its artifacts, in MLflow's pages."""
        place = f"/#/experiments/{self.experiment_id}/runs/{run_id}{'/artifacts/' if artifact else ''}{artifact}"
        return f"{self._address}{place}?{WORKFLOW}".removeprefix("/")

    def compare_link(self, run_ids: Sequence[str]) -> str:
        """Return the address of the page that compares runs."""
        runs = ",".join(f"%22{run_id}%22" for run_id in run_ids)
        place = f"/#/compare-runs?runs=%5B{runs}%5D&experiments=%5B%22{self.experiment_id}%22%5D&{WORKFLOW}"
        return f"{self._address}{place}".removeprefix("/")


def _key(name: str) -> str:
    """Return a name with what MLflow allows in one: `layer1#2` becomes `layer1:2`."""
    return re.sub(r"[^\w.\-: /]", "_", name.replace("#", ":"), flags=re.ASCII)[:250]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST_PARAM else text[: LONGEST_PARAM - 1] + "…"
