"""Opening a study in its storage: a journal file in the study's folder, or PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hist_cache.errors import InputError
from hist_cache.passwords import clean_files, holds_password
from hist_cache.runs import CONFIG
from sweeps.file_study import JournalStudy, copy_journal
from sweeps.storage import StudyStorage, check_stored, read_study
from sweeps.study import StudyPlan

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


def open_study(plan: StudyPlan, must_exist: bool = False, joins: bool = False) -> StudyStorage:
    """Open the study in its storage, or create it there.

    Args:
        plan: The study; its option --storage decides between a database and a journal file.
        must_exist: Raise an error where there is no such study, instead of creating it.
        joins: The command has opened it before, and this is one of its workers.

    Raises:
        InputError: Where the storage cannot be used, or has the study with other settings.
    """
    if not joins:
        clean_study(plan)
    if not in_database(plan):
        return JournalStudy(plan, must_exist)
    from sweeps.postgres import PostgresStudy

    return PostgresStudy(plan, must_exist, joins)


def check_storage(plan: StudyPlan) -> None:
    """Check what `open_study` would, and write nothing.

    Raises:
        InputError: Where the storage cannot be used or has the study with other settings, or `--resume` finds none.
    """
    with _reading(plan) as (title, storage):
        check_stored(plan, title, storage)


def stored_settings(plan: StudyPlan) -> dict[str, Any] | None:
    """The settings that the study was made with; None where there is none of its name. Nothing is written.

    Raises:
        InputError: The storage cannot be used.
    """
    with _reading(plan) as (_, storage):
        return (read_study(plan, storage) or {}).get("settings")


@contextmanager
def _reading(plan: StudyPlan) -> Iterator[tuple[str, BaseStorage | None]]:
    if in_database(plan):
        from sweeps.postgres import read_database

        with read_database(plan) as found:
            yield found
    else:
        yield copy_journal(plan)


def in_database(plan: StudyPlan) -> bool:
    """Tell whether a study is kept in a database.

    Raises:
        InputError: Where --storage is no URL of one.
    """
    url = plan.options.storage
    if url is None:
        return False
    if url.split(":")[0].split("+")[0] not in ("postgresql", "postgres"):
        raise InputError(  # without its value, where a password may stand anywhere
            "--storage: not the URL of a PostgreSQL database; give postgresql://USER@HOST/DATABASE with the password "
            "in PGPASSWORD or ~/.pgpass, or leave it out for a file in the study's folder"
        )
    return True


def clean_study(plan: StudyPlan) -> None:
    """Remove passwords from the files that earlier versions wrote.

    Where the study's own files hold one, its final test and reports wrote it into folders of runs too. Those are
    cleaned first, so that a command that is stopped meanwhile does not leave them behind.
    """
    folder, runs = plan.folder, plan.runs / plan.dataset
    own = [*folder.glob("*.json"), *folder.glob("*.html")]
    if any(map(holds_password, own)):
        clean_files([*runs.glob(f"*/fold*/{CONFIG}"), *runs.glob("*/*.html"), *runs.glob("*.html")])
    clean_files(own)
