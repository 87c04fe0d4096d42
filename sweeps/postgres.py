"""A study in a PostgreSQL database, which workers on many machines share."""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from hist_cache.errors import InputError
from sweeps.database import (
    CONNECTION,
    RETRY_S,
    DatabaseAway,
    Retrying,
    RetryingStorage,
    brief,
    check_connection,
    make_engine,
    read_url,
    title_of,
)
from sweeps.storage import StudyStorage
from sweeps.study import StudyPlan
from sweeps.waiting import LOCK_S, LockLost, StorageLost

log = logging.getLogger(__name__)

# PostgreSQL cannot see whether a worker on another machine still runs. So each worker writes a time to the database
# every HEARTBEAT_S seconds, and counts as lost when it has not done so for GRACE_S seconds, which is longer than a
# worker waits for the database.
HEARTBEAT_S, GRACE_S = 10, 90
OPENINGS = 5  # how often a study is opened where the connection is lost meanwhile
LOCK_TIMEOUT_S = 10
LOCK_NOT_AVAILABLE = "55P03"


@contextmanager
def read_database(plan: StudyPlan) -> Iterator[tuple[str, BaseStorage | None]]:
    """Name of the study's database, and its studies, to be read only; None where there are none.

    Raises:
        InputError: The database cannot be reached or used.
    """
    url, secrets = read_url(str(plan.options.storage))
    title, engine = title_of(url), make_engine(url, secrets)
    check_connection(engine, title)
    try:
        if sqlalchemy.inspect(engine).has_table("studies"):  # else Optuna would make its tables
            arguments = {"connect_args": CONNECTION | secrets}
            yield title, RDBStorage(url.render_as_string(), arguments, skip_table_creation=True)
        else:
            yield title, None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise InputError(f"--storage {title}: cannot be used ({brief(error)})") from None
    finally:
        engine.dispose()


class PostgresStudy(StudyStorage):
    """A study in a PostgreSQL database."""

    def __init__(self, plan: StudyPlan, must_exist: bool = False, joins: bool = False) -> None:
        """Open or create the study, as `StudyStorage` does.

        Args:
            plan: The study.
            must_exist: Raise an error where there is no such study.
            joins: The command has reached the database before, so wait for it where it is away.

        Raises:
            InputError: Also where the URL is wrong, or the database cannot be reached or used.
        """
        self.url, secrets = read_url(str(plan.options.storage))
        self.title = title_of(self.url)
        self._connect_args = CONNECTION | secrets
        self.engine = make_engine(self.url, secrets)
        self.retrying = Retrying(self.title, plan.options.command)
        try:
            if not joins:
                check_connection(self.engine, self.title)
            self._open_under_lock(plan, must_exist)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise InputError(f"--storage {self.title}: cannot be used ({brief(error)})") from None

    def _open_under_lock(self, plan: StudyPlan, must_exist: bool) -> None:
        for _ in range(OPENINGS):
            with suppress(LockLost):
                super().__init__(plan, must_exist)
                return
        raise StorageLost(f"--storage {self.title}: the connection is lost again and again; the same command goes on")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold an advisory lock of the database, which it releases when the connection ends."""
        connection = self._locked()
        try:
            yield
        except BaseException:
            with suppress(SQLAlchemyError):
                connection.close()
            raise
        try:
            connection.commit()
        except SQLAlchemyError:
            raise LockLost from None
        finally:
            with suppress(SQLAlchemyError):
                connection.close()

    def _locked(self) -> sqlalchemy.Connection:
        """Return a connection that holds the lock until its transaction ends.

        Raises:
            StorageLost: Another worker does not release it.
        """
        key = {"key": zlib.crc32(b"hist-sweep " + self.plan.name.encode())}

        def try_to_lock() -> sqlalchemy.Connection | None:
            connection = self.engine.connect()
            try:
                # The server itself ends the transaction of a worker that has stopped while it holds the lock.
                connection.execute(sqlalchemy.text(f"SET LOCAL idle_in_transaction_session_timeout = '{LOCK_S:.0f}s'"))
                connection.execute(sqlalchemy.text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'"))
                connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), key)
            except BaseException as error:
                with suppress(SQLAlchemyError):
                    connection.close()
                if isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", None) == LOCK_NOT_AVAILABLE:
                    return None
                raise
            return connection

        deadline = time.monotonic() + LOCK_S + 2 * LOCK_TIMEOUT_S
        while (connection := self.retrying.call(try_to_lock)) is None:
            log.warning(f"waiting for the study in {self.title}, where another worker asks for a trial")
            if time.monotonic() > deadline:
                raise StorageLost(f"--storage {self.title}: another worker does not release the study; is it stopped?")
        return connection

    def _open(self) -> BaseStorage:
        return self.retrying.call(
            lambda: RetryingStorage(
                self.retrying,
                self.url.render_as_string(),
                engine_kwargs={"connect_args": self._connect_args, "pool_pre_ping": True},
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
            )
        )

    def fail_lost_trials(self) -> None:
        """Mark the trials as failed whose workers stopped writing their heartbeat.

        After the server was away, its workers first get time to write one.
        """
        uptime = sqlalchemy.text("SELECT extract(epoch FROM now() - pg_postmaster_start_time())")

        def seconds() -> float:
            with self.engine.connect() as connection:
                return float(connection.execute(uptime).scalar_one())

        if self.retrying.call(seconds) > 2 * HEARTBEAT_S:
            self._stale = set(self.optuna_storage._get_stale_trial_ids(self.study._study_id))  # type: ignore[attr-defined]
            super().fail_lost_trials()

    def _is_worker_alive(self, trial: FrozenTrial) -> bool:
        return trial._trial_id not in self._stale

    def _beat(self, trial: optuna.Trial) -> None:
        """Write a heartbeat."""
        self.optuna_storage.record_heartbeat(trial._trial_id)  # type: ignore[attr-defined]

    @contextmanager
    def _heartbeat(self, trial: optuna.Trial) -> Iterator[None]:
        """Write a heartbeat every `HEARTBEAT_S` seconds."""
        ended = threading.Event()

        def beat() -> None:
            with suppress(StorageLost):  # the trial's own thread meets it too
                while not ended.wait(HEARTBEAT_S):
                    self._beat(trial)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=2 * RETRY_S)

    def peek(self) -> list[FrozenTrial] | None:
        """Return the trials as they are now; None while the database does not answer."""
        with suppress(DatabaseAway):
            return self._peeked()
        return None

    def _peeked(self) -> list[FrozenTrial]:
        check = sqlalchemy.text("SELECT 1")

        def ask() -> None:
            with self.engine.connect() as connection:
                connection.execute(check)

        self.retrying.once(ask)
        return self.study.get_trials(deepcopy=False)

    def close(self) -> None:
        """Close the connections to the database."""
        self.engine.dispose()
