"""Operations of a PostgreSQL database that are tried again while it does not answer, and URLs without passwords.

The server may be restarted, or away for a while. So each operation that meets a lost connection is tried again, for a
minute, and a trial that is running meanwhile goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import URL
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from hist_cache.errors import InputError
from hist_cache.extras import require
from hist_cache.passwords import MASK, mask_passwords, names_secret
from sweeps.waiting import StorageLost

log = logging.getLogger(__name__)
_T = TypeVar("_T")

AWAY_S, RETRY_S = 60.0, 1.0  # how long an operation is tried again, and how often
CONNECTION: dict[str, Any] = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10}  # in seconds
# Operations of Optuna's storage: each is one transaction, or can be done twice.
OPERATIONS = (
    *("create_new_study", "set_study_user_attr", "set_study_system_attr", "get_study_id_from_name"),
    *("get_study_name_from_id", "get_study_directions", "get_study_user_attrs", "get_study_system_attrs"),
    *("get_all_studies", "_create_new_trial", "_set_trial_param", "get_trial_id_from_study_id_trial_number"),
    *("_get_best_trial_id", "set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr"),
    *("get_trial", "_get_trials", "record_heartbeat", "_get_stale_trial_ids"),
)


class DatabaseAway(Exception):
    """The database does not answer just now."""


class Retrying:
    """Tries operations again while the database does not answer.

    Args:
        title: The database's URL, without its password.
        command: The command that goes on with the study.
    """

    def __init__(self, title: str, command: str) -> None:
        self._title, self._command = title, command
        self._away_since: float | None = None
        self._lost = False

    def call(self, operation: Callable[[], _T]) -> _T:
        """Do an operation, as often as it takes.

        Raises:
            StorageLost: The database has not answered for `AWAY_S` seconds. From then on nothing is waited for.
        """
        began = time.monotonic()
        while True:
            try:
                result = operation()
            except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
                self._note(error, began)
                time.sleep(RETRY_S)
            else:
                self._note_answer()
                return result

    def once(self, operation: Callable[[], _T]) -> _T:
        """Do an operation if the database answers.

        Raises:
            DatabaseAway: It does not.
            StorageLost: It has not for `AWAY_S` seconds.
        """
        try:
            result = operation()
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            self._note(error, self._away_since or time.monotonic())
            raise DatabaseAway from None
        self._note_answer()
        return result

    def _note(self, error: Exception, since: float) -> None:
        """Say that the database is away, or raise an error where that is not so or lasts too long."""
        cause = error if isinstance(error, SQLAlchemyError) else error.__cause__
        if not isinstance(cause, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError):
            raise StorageLost(f"--storage {self._title}: cannot be used ({brief(error)})") from error
        if self._lost or time.monotonic() - since > AWAY_S:
            self._lost = True
            raise StorageLost(
                f"--storage {self._title}: has not answered for {AWAY_S:.0f} s ({brief(error)}); what is stored "
                f"is kept and trials that were running are tried again, go on with: {self._command}"
            ) from None
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning(f"--storage {self._title}: does not answer, trying again for {AWAY_S:.0f} s ({brief(error)})")

    def _note_answer(self) -> None:
        if self._away_since is not None:
            log.warning(f"--storage {self._title}: answers again after {time.monotonic() - self._away_since:.0f} s")
        self._away_since, self._lost = None, False


class RetryingStorage(RDBStorage):
    """Optuna's storage, whose operations are tried again while the database does not answer."""

    def __init__(self, retrying: Retrying, *args: Any, **kwargs: Any) -> None:
        self._retrying = retrying
        super().__init__(*args, **kwargs)

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        """Set the state of a trial."""
        tries = 0

        def once() -> bool:
            nonlocal tries
            tries += 1
            try:
                return RDBStorage.set_trial_state_values(self, trial_id, state, values)
            except optuna.exceptions.UpdateFinishedTrialError:
                if tries == 1:
                    raise
                return True  # the connection was lost after the first time had arrived

        return self._retrying.call(once)


def _retried(name: str) -> Callable[..., Any]:
    operation = getattr(RDBStorage, name)

    @wraps(operation)
    def call(self: RetryingStorage, *args: Any, **kwargs: Any) -> Any:
        return self._retrying.call(lambda: operation(self, *args, **kwargs))

    return call


for _name in OPERATIONS:
    setattr(RetryingStorage, _name, _retried(_name))  # a name that a later version changes is an error here


def read_url(text: str) -> tuple[URL, dict[str, str]]:
    """Read the URL of a database.

    Returns:
        The URL without any password, so that nothing made from it shows one; and the passwords, as arguments of a
        connection. Where there is none, PostgreSQL's own library looks into PGPASSWORD and ~/.pgpass.

    Raises:
        InputError: It is no such URL. What is wrong with it is said without a part of it, which may be of a password.
            Or the package that talks to PostgreSQL is not installed.
    """
    require("psycopg", "sweeps-postgres", "--storage")
    try:
        # The driver is named because versions of SQLAlchemy choose different ones for plain postgresql://.
        url = sqlalchemy.make_url(text).set(drivername="postgresql+psycopg")
    except (ArgumentError, ValueError):
        raise InputError(
            "--storage: not a database's URL; give postgresql://USER@HOST:PORT/DATABASE with a number as port"
        ) from None
    if "@" in (url.host or "") or any(c.isspace() for c in text):
        raise InputError("--storage: write @ in a password as %40, a space as %20, or give it in PGPASSWORD")
    if unknown := sorted(set(url.query) - known_parameters()):  # such as passwd, whose value nobody would mask
        raise InputError(f"--storage: {unknown[0][:20]!r} is no parameter of a connection; see PostgreSQL's manual")
    if any("password" in str(part).lower() for part in (url.host, url.database, *url.query.values())):
        raise InputError("--storage: give a password as ?password=... or &password=..., or in PGPASSWORD")
    secrets = {name: str(value) for name, value in url.query.items() if names_secret(name)}
    if url.password is not None:
        secrets["password"] = url.password
    if MASK in secrets.values():
        raise InputError(f"--storage: {MASK} stands for the password; give the password, or set PGPASSWORD")
    query = {name: value for name, value in url.query.items() if name not in secrets}
    return URL.create(url.drivername, url.username, None, url.host, url.port, url.database, query), secrets


def make_engine(url: URL, secrets: Mapping[str, str]) -> sqlalchemy.Engine:
    """Return an engine that waits for a connection, or for a server that has gone, as long as `CONNECTION` says."""
    return sqlalchemy.create_engine(url, connect_args=CONNECTION | dict(secrets), pool_pre_ping=True)


def title_of(url: URL) -> str:
    """Return a database's URL as messages name it."""
    return url.set(drivername="postgresql").render_as_string(hide_password=True)


def known_parameters() -> set[str]:
    """Names of the parameters that PostgreSQL's own library knows."""
    from psycopg.pq import Conninfo

    return {option.keyword.decode() for option in Conninfo.get_defaults()}


def check_connection(engine: sqlalchemy.Engine, title: str) -> None:
    """Connect once.

    Raises:
        InputError: The database cannot be reached.
    """
    try:
        engine.connect().close()
    except SQLAlchemyError as error:
        raise InputError(f"--storage {title}: cannot be reached ({brief(error)})") from None


def brief(error: BaseException) -> str:
    """Return the first line of a database's error message."""
    cause = error if isinstance(error, SQLAlchemyError) else error.__cause__ or error
    lines = str(getattr(cause, "orig", None) or cause).strip().splitlines()
    return mask_passwords(lines[0]) if lines else type(cause).__name__
