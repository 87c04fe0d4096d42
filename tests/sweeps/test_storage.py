"""Studies in their storage, those of older versions too."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import TrialState

from sweeps.file_study import JOURNAL
from sweeps.sampling import set_up_optuna
from sweeps.storage import FINISHED, queue_again
from tests.conftest import REPOSITORY

STUDY_0_1 = "runs/tiny/sweep-tiny"


@pytest.fixture
def old_study(tmp_path: Path) -> Path:
    """Folder of a study that version 0.1 made."""
    with tarfile.open(REPOSITORY / "tests/data/version_0_1.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / STUDY_0_1


def test_the_journal_of_version_0_1_can_be_read(old_study: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(old_study / JOURNAL)))
    description = json.loads((old_study / "study.json").read_text())
    study = optuna.load_study(study_name=description["study"], storage=storage)
    finished = study.get_trials(states=FINISHED)
    assert len(finished) == 3
    assert finished[0].user_attrs["default"]
    assert {name: finished[0].params[name] for name in description["defaults"]} == description["defaults"]
    assert study.user_attrs["settings"] == description["settings"]


def test_a_trial_that_is_queued_again_keeps_its_values_and_loses_its_worker() -> None:
    set_up_optuna()
    study = optuna.create_study()
    trial = study.ask()
    x = trial.suggest_float("x", 0, 1)
    trial.set_user_attr("worker", "gone")
    trial.set_user_attr("default", True)
    study.tell(trial, state=TrialState.FAIL)
    queue_again(study, study.trials[0], max_retries=1)
    [retry] = study.get_trials(states=(TrialState.WAITING,))
    assert retry.user_attrs == {"default": True}
    again = study.ask()
    assert again.suggest_float("x", 0, 1) == x
    study.tell(again, state=TrialState.FAIL)
    queue_again(study, study.trials[1], max_retries=1)
    assert len(study.trials) == 2
