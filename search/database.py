"""A study in a database: Optuna's own tables, as one driver keeps them."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from optuna.distributions import BaseDistribution, check_distribution_compatibility, distribution_to_json
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb.models import TrialParamModel
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL, Connection, event, insert, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.orm import scoped_session, sessionmaker

from search.errors import SweepError
from search.passwords import HIDDEN, without_password

PATIENCE_S = 300.0
"""How long a driver waits for a database that went away."""

PAUSE_S = 1.0
_LIMITS = {"connect_timeout": 10, "tcp_user_timeout": 30_000}  # else a host that vanished is waited for for minutes
_BEGINNERS = 10  # how often tables are looked for that others make at the same moment
_FAULTS = (StorageInternalError, SQLAlchemyError)

_log = logging.getLogger(__name__)


class Database(BaseStorage):
    """Optuna's storage in a database, for one study and one driver.

    What one event says is one transaction: it is there whole, or not at all. All trials are read once; after that,
    nothing but those that calls of its own have changed. A database that is away when an event begins is waited for.
    One that goes while an event is written ends the sweep: whether the event is there, the next driver will see.

    Args:
        uri: the database's address; a password that it lacks is the driver's to find, such as in `PGPASSWORD`.
        name: of the study.

    Raises:
        SweepError: the database cannot be used, or has no such study.
    """

    def __init__(self, uri: str, name: str) -> None:
        self._uri, self._name = uri, name
        with open_tables(uri) as self._tables:
            try:
                self._study = self._tables.get_study_id_from_name(name)
            except KeyError:
                raise SweepError(f"study {without_password(uri)}: expected {name}, found none of that name") from None
            self._directions = self._tables.get_study_directions(self._study)
            self._attributes = self._tables.get_study_user_attrs(self._study)
            self._system_attributes = self._tables.get_study_system_attrs(self._study)
            found = self._tables.get_all_trials(self._study, deepcopy=False)
        self._trials = {trial._trial_id: trial for trial in sorted(found, key=lambda trial: trial.number)}
        self._ids = list(self._trials)
        self._distributions = {name: one for trial in found for name, one in trial.distributions.items()}
        self._params: list[dict[str, Any]] = []  # that are not in the database yet
        self._stale: set[int] = set()
        self._changed = set(range(len(self._ids)))
        self._within = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Keep what is said until the outermost block ends, however it ends, as one transaction.

        Raises:
            SweepError: the database stayed away, or went meanwhile.
        """
        if self._within:
            yield
            return
        with told(self._uri), self._connect() as connection, self._through(connection):
            raised = None
            try:
                yield
            except Exception as error:
                raised = error
            if not isinstance(raised, _FAULTS):
                for trial_id in tuple(self._stale):
                    self.get_trial(trial_id)  # so that between events nobody has to ask the database
                connection.commit()
            if raised is not None:
                raise raised

    def take_changed(self) -> set[int]:
        """Return the numbers of the trials that have changed since the last call, at first all."""
        changed, self._changed = self._changed, set()
        return changed

    def _connect(self) -> Connection:
        """Connect; wait for a database that is away."""
        place, began = without_password(self._uri), None
        while True:
            try:
                connection = self._tables.engine.connect()
            except OperationalError as error:
                if began is None:
                    began = time.monotonic()
                    _log.warning("study %s: %s; waiting up to %g s", place, _reason(error), PATIENCE_S)
                if time.monotonic() - began >= PATIENCE_S:
                    raise
                time.sleep(PAUSE_S)
            else:
                if began is not None:
                    _log.warning("study %s: is back after %.0f s", place, time.monotonic() - began)
                return connection

    @contextmanager
    def _through(self, connection: Connection) -> Iterator[None]:
        """Have Optuna's transactions be parts of one."""
        separate = self._tables.scoped_session
        connection.begin()
        parts = sessionmaker(bind=connection, join_transaction_mode="create_savepoint")
        self._tables.scoped_session, self._within = scoped_session(parts), True
        try:
            yield
        finally:
            self._tables.scoped_session, self._within = separate, False

    def _note(self, trial_id: int) -> None:
        self._stale.add(trial_id)
        self._changed.add(self._trials[trial_id].number)

    # ── what Optuna asks ─────────────────────────────────────────────────────────────────────────────────────────────

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """Return a trial; not to be changed."""
        if trial_id in self._stale or trial_id not in self._trials:
            self._write_params()
            self._trials[trial_id] = self._tables.get_trial(trial_id)
            self._stale.discard(trial_id)
        return self._trials[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials in some states, or all, by number."""
        trials = map(self.get_trial, self._ids)
        found = [trial for trial in trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        """Return the id of a trial.

        Raises:
            KeyError: there is no trial of that number.
        """
        if not 0 <= trial_number < len(self._ids):
            raise KeyError(f"no trial {trial_number}")
        return self._ids[trial_number]

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """Add a trial and return its id."""
        trial_id = self._tables.create_new_trial(study_id, template_trial)
        self._trials[trial_id] = self._tables.get_trial(trial_id)
        self._ids.append(trial_id)
        self._note(trial_id)
        return trial_id

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """Keep what a trial chose; what it chooses at once goes to the database together."""
        check_distribution_compatibility(self._distributions.setdefault(param_name, distribution), distribution)
        written = {"param_value": param_value_internal, "distribution_json": distribution_to_json(distribution)}
        self._params.append({"trial_id": trial_id, "param_name": param_name, **written})
        self._note(trial_id)
        if not self._within:
            self._write_params()

    def _write_params(self) -> None:
        rows, self._params = self._params, []
        if rows:
            with self._tables.scoped_session() as session:
                session.execute(insert(TrialParamModel), rows)
                session.commit()

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Keep how a trial stands; return whether that was news."""
        self._note(trial_id)
        return self._tables.set_trial_state_values(trial_id, state, values)

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Keep a value on the way."""
        self._tables.set_trial_intermediate_value(trial_id, step, intermediate_value)
        self._note(trial_id)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep an attribute of a trial."""
        self._tables.set_trial_user_attr(trial_id, key, value)
        self._note(trial_id)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Keep an attribute that Optuna gives a trial."""
        self._tables.set_trial_system_attr(trial_id, key, value)
        self._note(trial_id)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Keep an attribute of the study; `error:7` is about trial 7."""
        self._tables.set_study_user_attr(study_id, key, value)
        self._attributes[key] = value
        if (number := key.rpartition(":")[2]).isdigit():
            self._changed.add(int(number))

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the attributes of the study; not to be changed."""
        return self._attributes

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Keep an attribute that Optuna gives the study."""
        self._tables.set_study_system_attr(study_id, key, value)
        self._system_attributes[key] = value

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """Return the attributes that Optuna gave the study; not to be changed."""
        return self._system_attributes

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """Return which objectives are to rise."""
        return self._directions

    def get_study_id_from_name(self, study_name: str) -> int:
        """Return the id of the study."""
        return self._study

    def get_study_name_from_id(self, study_id: int) -> str:
        """Return the name of the study."""
        return self._name

    def get_all_studies(self) -> list[FrozenStudy]:
        """Return the study, without those that others keep in the database."""
        told = self._attributes, self._system_attributes
        return [FrozenStudy(self._name, None, *told, self._study, directions=self._directions)]

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """Add another study beside this one, and return its id."""
        return self._tables.create_new_study(directions, study_name)

    def delete_study(self, study_id: int) -> None:
        """Remove a study with all its trials; if it is this one, nothing else can be done here any more."""
        self._tables.delete_study(study_id)


# ── the tables ───────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def open_tables(uri: str) -> Iterator[RDBStorage]:
    """Connect to Optuna's tables in a database until the block ends, or longer as they are used; make them if need be.

    Raises:
        SweepError: the database cannot be used.
    """
    url, place = _url(uri), without_password(uri)
    options = {"pool_pre_ping": True, "connect_args": _connect_args(url)}
    with told(uri):
        try:
            tables = _made(url.render_as_string(hide_password=False), options)
        except ImportError as error:
            raise SweepError(f"study {place}: {error.__cause__ or error}") from None
        except RuntimeError as error:  # tables of another version of Optuna
            raise SweepError(f"study {place}: {error}") from None
        if url.get_backend_name() == "sqlite":
            event.listen(tables.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        try:
            yield tables
        finally:
            tables.engine.dispose()


def _made(address: str, options: dict[str, Any]) -> RDBStorage:
    for attempt in range(_BEGINNERS):
        try:
            return RDBStorage(address, engine_kwargs=options)
        except (IntegrityError, ProgrammingError):  # another sweep makes the tables
            if attempt == _BEGINNERS - 1:
                raise
            time.sleep(PAUSE_S / _BEGINNERS)
    raise AssertionError


def _url(uri: str) -> URL:
    """Return the address with its driver, and without a password that is hidden."""
    url = make_url(uri.replace(f":{HIDDEN}@", "@"))
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    return url.difference_update_query([name for name, value in url.query.items() if value == HIDDEN])


def _connect_args(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        return {"isolation_level": None}  # SQLite's module would not let a transaction have parts
    limited = url.drivername in ("postgresql+psycopg", "postgresql+psycopg2")
    return {name: value for name, value in _LIMITS.items() if name not in url.query} if limited else {}


@contextmanager
def told(uri: str) -> Iterator[None]:
    """Tell in one line of a database that fails.

    Raises:
        SweepError: the database failed.
    """
    try:
        yield
    except _FAULTS as error:
        raise SweepError(f"study {without_password(uri)}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    """Return what the database, or whoever connects to it, said first."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
    said = cause.orig if isinstance(cause, DBAPIError) and cause.orig else cause
    first = next(iter(str(said).splitlines()), "") or type(said).__name__
    advice = "; set PGPASSWORD, or write it into ~/.pgpass" if "no password supplied" in first else ""
    return f"{without_password(first)[:200]}{advice}"
