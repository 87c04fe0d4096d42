"""hist-report --classify: its files, how slides find their labels, and what is said of files that cannot be used."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.train.report.classified_cohorts import planted, write_csv, write_pseudobulk
from train.report.classify import ClassifySettings
from train.report.classify_data import method_names, read_cohort
from train.report.classify_labels import match_slides
from train.report.cli import main

Run = Callable[..., tuple[int, str]]
FEW = functools.partial(ClassifySettings, repeats=2, trees=8, permutations=3, control_trees=4, draws=50)
LABELS, VALUES = planted(30, genes=4)
SLIDES = [f"S{i}" for i in range(30)]
NAMES = ["MSI-H" if label else "MSS" for label in LABELS]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("train.report.classify.ClassifySettings", FEW)
    write_pseudobulk(tmp_path / "hist", SLIDES, VALUES)
    write_pseudobulk(tmp_path / "bleep", SLIDES, np.random.default_rng(1).normal(size=VALUES.shape))
    write_csv(tmp_path / "labels.csv", [["slide", "label", "patient"], *zip(SLIDES, NAMES, SLIDES, strict=True)])
    return tmp_path


def test_the_command(files: Path, run_command: Run) -> None:
    code, text = run_command(main, "--classify", "labels.csv", "hist", "bleep/pseudobulk.csv")
    assert code == 0, text
    assert "HiST, published" in text
    assert "TCGA-COADREAD" in text
    assert "minus hist" in text
    folder = files / "hist/classify"
    with (folder / "auroc.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["class"]) for row in rows] == [(r, c) for r in ("hist", "bleep") for c in ("MSI-H", "MSS")]
    assert float(rows[0]["auroc"]) > 0.8
    assert float(rows[0]["low"]) <= float(rows[0]["auroc"]) <= float(rows[0]["high"])
    assert rows[2]["against"] == "hist"
    with (folder / "scores.csv").open(newline="") as file:
        scores = list(csv.DictReader(file))
    assert [row["label"] for row in scores[:30]] == NAMES
    assert all(0 <= float(row["probability MSI-H"]) <= 1 for row in scores)
    with (folder / "importance.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 8
    about = json.loads((folder / "classify.json").read_text())
    assert about["settings"]["seed"] == 42
    assert about["classes"] == {"MSI-H": 10, "MSS": 20}
    assert "scikit-learn" in about["provenance"]["versions"]
    assert (folder / "roc.png").stat().st_size > 0
    page = (folder / "classify.html").read_text()
    assert "ROC curves" in page
    assert "style=" not in page


@pytest.mark.usefixtures("quick")
def test_csv_alone_on_standard_output(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    argv = ["--classify", "labels.csv", "hist", "--format", "csv", "--out", "there", "--seed", "7"]
    assert main(argv) == 0
    printed = capsys.readouterr()
    assert next(csv.reader(printed.out.splitlines()))[:3] == ["run", "row", "MSI-H, AUROC"]
    assert "classify.html" in printed.err
    assert json.loads((files / "there/classify.json").read_text())["settings"]["seed"] == 7


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--table", "2"], "--table: not with --classify"),
        (["--against", "full", "--ensemble"], "--against, --ensemble: not with --classify"),
        (["nowhere"], "nowhere: no such file"),
        (["hist/pseudobulk.csv"], "is given twice"),
    ],
)
def test_options_that_make_no_sense(files: Path, run_command: Run, argv: list[str], says: str) -> None:
    code, text = run_command(main, "--classify", "labels.csv", "hist", *argv)
    assert code == 2, text
    assert says in text


def test_seed_is_of_classify(run_command: Run) -> None:
    code, text = run_command(main, "runs", "--seed", 3)
    assert code == 2
    assert "--seed 3: is of --classify" in text


def changed(files: Path, name: str, change: Callable[[list[list[str]]], object]) -> None:
    with (files / name).open(newline="") as file:
        rows = list(csv.reader(file))
    change(rows)
    write_csv(files / name, rows)


HIST = "hist/pseudobulk.csv"


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("labels.csv", lambda rows: rows[0].__setitem__(1, "status"), "no column label; it has slide, status, patient"),
        ("labels.csv", lambda rows: [r.__setitem__(1, "MSS") for r in rows[1:]], "all 30 slides are MSS"),
        ("labels.csv", lambda rows: rows.append(rows[4]), "slide S3 is there twice"),
        ("labels.csv", lambda rows: rows[3].__setitem__(2, ""), "the patient of 1 slides is missing (S2)"),
        ("labels.csv", lambda rows: [r.__setitem__(0, f"X{r[0]}") for r in rows[1:]], "labels none of the 30 slides"),
        ("labels.csv", lambda rows: rows[1].__setitem__(1, "MSI-L"), "too few patients for 5 folds: MSI-L 1"),
        (HIST, lambda rows: rows[0].__setitem__(0, "name"), "its first column is 'name'"),
        (HIST, lambda rows: rows[0].__setitem__(1, "GENE2"), "gene GENE2 is there twice"),
        (HIST, lambda rows: rows.append(rows[4]), "slide S3 is there twice"),
        (HIST, lambda rows: rows[2].__setitem__(1, "nan"), "slide S1, GENE0: nan is no number"),
        (HIST, lambda rows: rows[2].__setitem__(1, "1e39"), "slide S1, GENE0: 1e39 is no number"),
        (HIST, lambda rows: [r.__setitem__(2, "high") for r in rows[1:]], "high is no number that can be used (30"),
        (HIST, lambda rows: [r.pop() for r in rows[1:]], "slide S0, GENE3: nothing is no number"),
        (HIST, lambda rows: rows.__delitem__(slice(1, None)), "it has no slides"),
        (HIST, lambda rows: [r.__delitem__(slice(1, None)) for r in rows], "it has no genes"),
        (HIST, lambda rows: rows.clear(), "it is empty"),
        ("bleep/pseudobulk.csv", lambda rows: rows[0].__setitem__(1, "TP53"), "other genes, 2 genes are in one of"),
    ],
)
def test_files_that_cannot_be_used(
    files: Path, run_command: Run, name: str, change: Callable[[list[list[str]]], object], says: str
) -> None:
    changed(files, name, change)
    code, text = run_command(main, "--classify", "labels.csv", "hist", "bleep")
    assert code == 2, text
    assert says in text
    assert len(text.strip().splitlines()) == 1


def test_what_is_left_out_is_named(files: Path) -> None:
    changed(files, "labels.csv", lambda rows: rows[3].__setitem__(1, "NA"))
    changed(files, "labels.csv", lambda rows: rows.append(["S99", "MSS", "P"]))
    changed(files, "bleep/pseudobulk.csv", lambda rows: rows.__delitem__(1))
    cohort = read_cohort(files / "labels.csv", [files / "hist", files / "bleep"], 5)
    assert len(cohort.slides) == 28
    assert cohort.left_out == {
        "slides that are not in all files": ("S0",),
        "slides without a label": ("S2",),
        "labels without a slide": ("S0", "S99"),
    }
    assert "left out: 1 slides without a label: S2" in cohort.remarks
    i = cohort.slides.index("S9")
    np.testing.assert_allclose(cohort.values["hist"][i], VALUES[9].round(4), rtol=1e-6)
    assert cohort.classes[cohort.labels[i]] == NAMES[9]


def test_genes_in_another_order_are_the_same_genes(files: Path) -> None:
    write_csv(files / "bleep/pseudobulk.csv", [
        ["slide", "GENE3", "GENE2", "GENE1", "GENE0"],
        *([slide, *map(float, row[::-1].round(4))] for slide, row in zip(SLIDES[::-1], VALUES[::-1], strict=True)),
    ])  # fmt: skip
    cohort = read_cohort(files / "labels.csv", [files / "hist", files / "bleep"], 5)
    assert np.array_equal(cohort.values["hist"], cohort.values["bleep"])


def test_one_slide_under_two_names(files: Path) -> None:
    changed(files, HIST, lambda rows: rows[1].__setitem__(slice(1, None), rows[2][1:]))
    cohort = read_cohort(files / "labels.csv", [files / "hist"], 5)
    assert cohort.warnings == (
        "S0, S1 have the same expression: one slide under several names? (of 2 patients: train and test share it)",
    )


def test_patients_of_barcodes(files: Path) -> None:
    names = [f"TCGA-AA-{3000 + i // 2}-01Z-00-DX{i % 2 + 1}.5A{i}" for i in range(30)]
    write_pseudobulk(files / "hist", names, VALUES)
    labels = ["MSI-H" if i % 6 < 2 else "MSS" for i in range(30)]
    write_csv(files / "labels.csv", [["slide", "label"], *zip([n[:23] for n in names], labels, strict=True)])
    cohort = read_cohort(files / "labels.csv", [files / "hist"], 5)
    assert cohort.patient_names == tuple(f"TCGA-AA-{3000 + i}" for i in range(15))
    assert "30 labels found by the beginning of a TCGA barcode" in cohort.remarks[0]
    assert "first 12 characters of 30 TCGA names" in cohort.remarks[1]
    write_csv(files / "labels.csv", [["slide", "label"], *zip(names, NAMES, strict=True)])
    mixed = read_cohort(files / "labels.csv", [files / "hist"], 5)
    assert any("have slides of several classes" in warning for warning in mixed.warnings)


def test_without_patients(files: Path) -> None:
    write_csv(files / "labels.csv", [["slide", "label"], *zip(SLIDES, NAMES, strict=True)])
    cohort = read_cohort(files / "labels.csv", [files / "hist"], 5)
    assert len(cohort.patient_names) == 30
    assert "30 slides are taken to be of a patient each" in cohort.remarks[0]


def test_barcodes_fit_only_without_doubt() -> None:
    slide, other = "TCGA-AA-3502-01Z-00-DX1.5B", "TCGA-AA-3502-01Z-00-DX2.5C"
    assert match_slides([slide], ["TCGA-AA-3502"]) == ({slide: "TCGA-AA-3502"}, [])
    assert match_slides([slide, other], ["TCGA-AA-3502"]) == ({}, ["TCGA-AA-3502"])
    assert match_slides([slide], ["TCGA-AA-3502", "TCGA-AA-3502-01Z"]) == ({}, ["TCGA-AA-3502", "TCGA-AA-3502-01Z"])
    assert match_slides([slide], ["TCGA-AA-3502", slide]) == ({slide: slide}, [])
    assert match_slides(["TCGA-AA-3502-01Z-00-DX10"], ["TCGA-AA-3502-01Z-00-DX1"]) == ({}, [])
    assert match_slides(["S10"], ["S1"]) == ({}, [])


@given(st.lists(st.sampled_from(["A-1", "A-10", "B", "TCGA-AA-0001", "TCGA-AA-0001-01", "TCGA-AA-0002-01"])),
       st.lists(st.sampled_from(["A-1", "B", "TCGA-AA-0001", "TCGA-AA-0001-01-2", "TCGA-AA-0002"])))  # fmt: skip
def test_no_label_is_used_twice(slides: list[str], names: list[str]) -> None:
    slides, names = list(dict.fromkeys(slides)), list(dict.fromkeys(names))
    matches, doubtful = match_slides(slides, names)
    assert len(set(matches.values())) == len(matches)
    assert all(matches[slide] == slide for slide in set(slides) & set(names))
    assert not set(doubtful) & set(matches.values())


def test_methods_are_named_by_their_folders() -> None:
    assert method_names([Path("/a/hist/pseudobulk.csv"), Path("/a/bleep/pseudobulk.csv")]) == ["hist", "bleep"]
    assert method_names([Path("/a/one.csv"), Path("/a/two.csv")]) == ["one", "two"]
    assert method_names([Path("/a/x/pseudobulk.csv"), Path("/b/x/pseudobulk.csv")]) == ["a/x", "b/x"]
