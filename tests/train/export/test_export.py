"""hist-export: a folder that predicts the same elsewhere, and knows no training data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest

import train.predict.cli
from hist_cache.files import write_json
from hist_cache.runs import read_object
from tests.small import IDS
from tests.train.predict.test_predict import argv_of, run_of, work
from train.export.cli import main
from train.export.names import has_name, nameless_metrics, renamed, slide_aliases

Run = Callable[..., tuple[int, str]]
__all__ = ["work"]


def test_an_export_predicts_the_same_without_the_run_and_its_cache(
    work: Path, run_command: Run, tmp_path: Path
) -> None:
    run, out = run_of(work, "full", "strong"), tmp_path / "exported"
    code, text = run_command(main, run, "--out", out, "--cache", work / "cache")
    assert code == 0, text
    tables = []
    for source, cache in ((run, work / "cache"), (out, tmp_path / "other-cache")):
        code, text = run_command(train.predict.cli.main, *argv_of(work, source, "TINY2", tmp_path / source.name, cache))
        assert code == 0, text
        tables.append(anndata.read_h5ad(tmp_path / source.name / "TINY2.h5ad"))
    np.testing.assert_allclose(tables[1].X, tables[0].X, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(tables[1].obs["distance"], tables[0].obs["distance"], rtol=1e-3)
    code, text = run_command(
        train.predict.cli.main, *argv_of(work, out, "TINY3", tmp_path / "leak", tmp_path / "other-cache")
    )
    assert "TINY3: LEAK: validated on it: fold1" in text  # by its image: the export has no names


def test_no_names_of_slides_or_patients_are_in_an_export(work: Path, run_command: Run, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    code, text = run_command(main, run_of(work, "full"), "--out", out, "--cache", work / "cache")
    assert code == 0, text
    files = [file for file in out.rglob("*") if file.is_file()]
    assert {file.name for file in files} == {
        *("README.md", "config.json", "metrics.json", "model.safetensors", "panel.txt", "reference.safetensors")
    }
    for file in files:
        content = file.read_bytes()
        for name in (*IDS, "Patient", str(work)):
            assert name.encode() not in content, file
    card = (out / "README.md").read_text()
    assert card.startswith("---\n")
    assert "not in this folder" in card
    assert "| train mean |" in card
    code, text = run_command(main, run_of(work, "full"), "--out", out, "--cache", work / "cache")
    assert code == 2
    assert "is there already" in text


def test_a_model_that_is_its_training_data_is_not_exported(work: Path, run_command: Run, tmp_path: Path) -> None:
    code, text = run_command(main, run_of(work, "bleep"), "--out", tmp_path / "out", "--cache", work / "cache")
    assert code == 2
    assert "expression of its train spots" in text
    assert not (tmp_path / "out").exists()


def test_an_export_that_does_not_know_its_spots_is_refused(work: Path, run_command: Run, tmp_path: Path) -> None:
    run = Path(shutil.copytree(run_of(work, "full"), tmp_path / "run"))
    for file in run.glob("fold*/config.json"):
        config = read_object(file)
        del config["scale"], config["images"]
        write_json(file, config)
    code, text = run_command(main, run, "--out", tmp_path / "out", "--cache", tmp_path / "nothing")
    assert code == 2
    assert "--cache" in text
    code, text = run_command(main, run, "--out", tmp_path / "out", "--cache", work / "cache")
    assert code == 0, text  # of version 0.1: the cache knows


def test_names_are_replaced_where_they_stand_and_nowhere_else() -> None:
    """Patients called 10, A and full change no metric, no sentence without them and no variant."""
    aliases = slide_aliases(["A1", "A10"], {"A1": "f" * 64})
    assert aliases == {"A1": f"slide-{'f' * 12}", "A10": "slide-1"}
    assert [renamed(name, aliases) for name in ("A1", "A10", "A10@train0", "other")] == [
        *(aliases["A1"], "slide-1", "slide-1@train0", "slide")
    ]
    metrics = {
        "pooled": {"pcc@10": 0.5},
        "slides": {"A1": {"pcc@10": 0.5}},
        "spots": {"A1": 3},
        "warnings": ["far below ridge", "test slide A10 is deep", "LEAK: this fold shares A, which is a patient"],
    }
    found = nameless_metrics(metrics, aliases, {"10", "A", "full"})
    assert found["pooled"] == metrics["pooled"]
    assert found["slides"] == {aliases["A1"]: {"pcc@10": 0.5}}
    assert found["warnings"][0] == "far below ridge"
    assert len(found["warnings"]) == 2
    assert found["warnings"][1].startswith("LEAK")
    assert not has_name(str(found["warnings"][1]), {"A", "A10"})


@pytest.mark.parametrize("argv", [(), ("a", "b")])
def test_one_run_at_a_time(run_command: Run, argv: tuple[str, ...]) -> None:
    code, text = run_command(main, *argv)
    assert code == 2, text
