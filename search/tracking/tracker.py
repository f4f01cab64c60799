"""The side of tracking that a sweep sees: calls that append a line and return, and one thread that does the rest."""

from __future__ import annotations

import platform
import subprocess
import uuid
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout

from search.config import EXPERIMENT, Experiment, load_experiment
from search.errors import SweepError
from search.mirror import pulled
from search.passwords import without_password
from search.results import Metrics, State, TrialRecord
from search.servers import refuse_stranger
from search.study import JOURNAL, load_records
from search.tracking.ledger import record_to_json
from search.tracking.outbox import OUTBOX, Line, Outbox, first_start, read_lines
from search.tracking.place import check_store, complaint, reason_of, set_environment, store_uri
from search.tracking.position import waiting

if TYPE_CHECKING:
    from search.tracking.delivery import Delivery

LOCK = "mlflow-outbox.lock"
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 60.0
GATHER_S = 5.0  # lines that come soon after each other share MLflow's calls
AWAY_PATIENCE_S = 2.0  # for a last attempt where MLflow did not answer before
LOCK_PATIENCE_S = 30.0  # the thread of a sweep that was just left may be in its last call


class Tracker:
    """Tells MLflow about a sweep without ever waiting for it.

    Every method appends one line to `<sweep>/mlflow-outbox.jsonl` and returns; a thread carries the lines on. While
    MLflow is away they stay, and `sync` brings them later. A tracker on the folder of an earlier one goes on with its
    runs. Nothing raises because of MLflow or a full disk: `problem` says what is wrong. With `tracking.enabled: false`
    nothing is written.

    Args:
        folder: the sweep's.
        experiment: names the store and MLflow's experiment.
        uri: the store's address with its password, where the experiment has it without; neither is written down.
        patience_s: how long `close` waits for the lines that are left, as long as MLflow answers.

    Attributes:
        left: lines that MLflow has not got when the tracker was closed.
    """

    def __init__(
        self, folder: Path, experiment: Experiment, *, uri: str | None = None, patience_s: float = 60.0
    ) -> None:
        self._folder, self._experiment, self._patience_s = folder, experiment, patience_s
        self._uri = store_uri(folder, uri or experiment.tracking.uri)
        self._outbox: Outbox | None = None
        self._wake, self._closing, self._abandoned = Event(), Event(), Event()
        self._thread = Thread(target=self._work, name="mlflow-outbox", daemon=True)
        self.left = 0
        self._unwritten: str | None = None
        self._away: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def problem(self) -> str | None:
        """What is wrong, in one line: the disk, else MLflow's last answer; None if nothing is."""
        return self._unwritten or self._away

    def start(
        self,
        baseline: Mapping[str, float],
        widths: Mapping[str, int] | None = None,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """Tell that the sweep begins, or goes on.

        Args:
            baseline: what the uncut network measured.
            widths: channels of every group before any cut.
            facts: about weights and images, by name; they become tags.
        """
        if not self._experiment.tracking.enabled or self._outbox is not None:
            return
        path = self._folder / OUTBOX
        try:
            self._outbox = Outbox(path)
        except OSError as error:
            self._unwritten = f"{path}: {error.strerror}"
            return
        shown = without_secrets(self._experiment)
        self._append(
            "start",
            sweep_id=uuid.uuid4().hex,  # that of the first such line counts
            uri=shown.tracking.uri,
            experiment=shown.model_dump(mode="json"),
            yaml=shown.to_yaml(),
            baseline=dict(baseline),
            widths=dict(widths or {}),
            tags={**(facts or {}), **_circumstances()},
        )
        self._thread.start()

    def trials_ended(self, records: Iterable[TrialRecord]) -> None:
        """Tell of the trials among these that have ended, as far as nobody was told of it."""
        if self._outbox is None:
            return
        for record in _untold(self._folder, records):
            self.trial_ended(record)

    def trial_started(self, record: TrialRecord) -> None:
        """Tell that a trial was launched, for the first time or again."""
        self._append("trial_started", record=record_to_json(record))

    def trial_reported(self, number: int, metrics: Metrics) -> None:
        """Tell what a trial measured."""
        self._append("trial_reported", number=number, metrics=asdict(metrics))

    def trial_ended(self, record: TrialRecord) -> None:
        """Tell how a trial ended; measurements that were not reported come with it. Saying it twice changes nothing."""
        self._append("trial_ended", record=record_to_json(record))

    def sweep_ended(self, summary_markdown: str, artifacts: Mapping[str, Path | str]) -> None:
        """Tell what came out.

        Args:
            summary_markdown: becomes the note of the parent run, with links to the runs of the front.
            artifacts: files, kept under their own names (pictures and pages below `figures/`), which must stay where
                they are until they are sent; or texts by name.
        """
        self._append(
            "sweep_ended",
            summary=summary_markdown,
            artifacts={name: self._content(content) for name, content in artifacts.items()},
        )

    def _content(self, content: Path | str) -> dict[str, str]:
        if isinstance(content, str):
            return {"text": content}
        path, folder = content.resolve(), self._folder.resolve()
        return {"path": str(path.relative_to(folder) if path.is_relative_to(folder) else path)}

    def close(self) -> int:
        """Tell that the driver leaves, wait a while for MLflow, and return how many lines are left."""
        if self._outbox is None:
            return 0
        self._append("closed")
        with suppress(OSError):  # a disk that was full has been told of
            self._outbox.close()
        self._outbox = None
        self._closing.set()
        self._wake.set()
        if self._away:  # one attempt more, which says whether it is back
            self._thread.join(min(AWAY_PATIENCE_S, self._patience_s))
        if not self._away:
            self._thread.join(self._patience_s)
        self._abandoned.set()
        self.left = waiting(self._folder, self._uri)
        return self.left

    def _append(self, kind: str, **content: Any) -> None:
        if self._outbox is None:
            return
        try:
            self._outbox.append(kind, **content)
        except OSError as error:
            self._unwritten = f"{self._folder / OUTBOX}: {error.strerror}; some entries are missing, which a sync adds"
        self._wake.set()

    # ── the thread ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _work(self) -> None:
        delivery, lock, pause = None, FileLock(self._folder / LOCK), FIRST_PAUSE_S
        with ExitStack() as held:
            while not self._abandoned.is_set():
                last = self._closing.is_set()
                self._wake.clear()
                try:
                    if delivery is None:
                        held.enter_context(lock.acquire(timeout=0))
                        delivery = _delivery(self._folder, self._uri)
                    delivery.run(self._goes_on)
                except Exception as error:  # whatever it is, the sweep goes on
                    self._away = reason_of(error)
                    if last:
                        return
                    self._closing.wait(pause)
                    pause = min(2 * pause, LONGEST_PAUSE_S)
                else:
                    self._away, pause = None, FIRST_PAUSE_S
                    if last:
                        return
                    self._wake.wait()
                    self._closing.wait(GATHER_S)

    def _goes_on(self) -> bool:
        """Note that MLflow has answered, and return whether to carry more."""
        self._away = None
        return not self._abandoned.is_set()


def _untold(folder: Path, records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return the trials that have ended and of whose end no line tells: a driver died, or a disk was full."""
    lines = (line for line, _ in read_lines(folder / OUTBOX) if line and line["kind"] == "trial_ended")
    told = {_number(line) for line in lines}
    return [record for record in records if record.state is not State.RUNNING and record.number not in told]


def _number(line: Line) -> Any:
    """Return the number of the trial that a line speaks of; None in a damaged one."""
    record = line.get("record")
    return record.get("number") if isinstance(record, dict) else None


def _delivery(folder: Path, uri: str) -> Delivery:
    """Import MLflow, a second that the sweep does not wait for, and prepare to write to it."""
    check_store(uri)
    set_environment()
    from search.tracking.delivery import Delivery

    return Delivery(folder, uri)


def sync(folder: Path, uri: str | None = None) -> int:
    """Bring to MLflow what an earlier tracker left; doing it again changes nothing.

    Args:
        folder: the sweep's.
        uri: another store than the sweep was told; it gets everything.

    Returns:
        How many lines are left: 0, unless a sweep adds some meanwhile.

    Raises:
        SweepError: nothing was tracked there, a sweep is running there, MLflow is not reachable, or the sweep names a
            server that the user never did, and there is a password that it would see.
    """
    sweep = first_start(pulled(folder) / OUTBOX)
    if sweep is None:
        raise SweepError(f"sweep {folder}: expected {OUTBOX} with a sweep's begin, found none")
    if uri is None:
        refuse_stranger(sweep["uri"], f"sweep {folder}")
    target = store_uri(folder, uri or sweep["uri"])
    try:
        with FileLock(folder / LOCK).acquire(timeout=LOCK_PATIENCE_S):
            _complete(folder)
            _delivery(folder, target).run()
    except Timeout:
        raise SweepError(f"sweep {folder}: is running, or another sync is; it writes to MLflow by itself") from None
    except SweepError:
        raise
    except Exception as error:
        raise SweepError(f"{complaint(target, error)}; {waiting(folder, target)} entries wait") from None
    return waiting(folder, target)


def _complete(folder: Path) -> None:
    """Add to an outbox what the sweep's journal knows of trials that have ended, where lines are missing."""
    if not all((folder / name).exists() for name in (JOURNAL, EXPERIMENT)):
        return
    if missing := _untold(folder, load_records(folder, load_experiment(folder))):
        outbox = Outbox(folder / OUTBOX)
        for record in missing:
            outbox.append("trial_ended", record=record_to_json(record))
        outbox.append("closed")
        outbox.close()


def without_secrets(experiment: Experiment) -> Experiment:
    """Return an experiment as everybody may read it: without the passwords of MLflow's address and the study's."""
    uri, study = (address and without_password(address) for address in (experiment.tracking.uri, experiment.study))
    tracking = experiment.tracking.model_copy(update={"uri": uri})
    return experiment.model_copy(update={"tracking": tracking, "study": study})


def _circumstances() -> dict[str, str]:
    """Return which software runs the sweep, as tags."""
    tags = {"version.python": platform.python_version()}
    for package in ("prunesearch", "torch", "torchvision", "ray", "optuna", "mlflow"):
        with suppress(PackageNotFoundError):
            tags[f"version.{package}"] = version(package)
    with suppress(OSError, subprocess.SubprocessError):
        command = ["git", "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=2, check=True)
        tags["mlflow.source.git.commit"] = found.stdout.strip()
    return tags
