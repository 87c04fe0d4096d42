"""Runs that differ in more than what is compared: every table with a comparison says so, or compares nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_rel

from tests.train.report.fake_runs import GENES, RIDGE, write_run
from train.report.alike import comparison_label, fold_pairs, same_tests, setting_differences
from train.report.cli import ReportOptions, report_request, terminal_tables
from train.report.reading import read_results
from train.report.results import Results
from train.report.sections import summary_text
from train.report.significance import references
from train.report.table import Table, to_csv

FULL, OTHER = (0.7, 0.72, 0.74, 0.69), (0.68, 0.71, 0.7, 0.66)
NO_HEA = {"variant.name": "no_hea"}
LITERAL = {
    **{"protocol.name": "literal", "protocol.niche_profile": "mean_of_logs", "loop.select_by": "loss"},
    **{"loop.clip_norm": 0.0, "model.decoder_space": "points", "model.image_network": "none"},
    **{"model.gene_network": "shared", "model.map_scale": "one", "model.limits": "none"},
}
TUNING = {"lora": {"layers": 7, "rank": 4, "alpha": 8, "dropout": 0.1}, "start": "tokens", "augment": False}


def tables(results: Results, number: int | None, **more: Any) -> list[Table]:
    """What hist-report prints."""
    return terminal_tables(results, report_request(ReportOptions(table=number, **more)))


def mixed(root: Path, change: dict[str, Any]) -> Results:
    write_run(root, FULL)
    write_run(root, OTHER, change=NO_HEA | change)
    return read_results([root])


@pytest.mark.parametrize(
    ("change", "name", "says"),
    [
        ({"loop.epochs": 50}, "epochs", "epochs 50, not epochs 4"),
        ({"loop.seed": 1}, "seed", "seed 1, not seed 42"),
        ({"loop.clip_norm": 0.0}, "clip norm", "clip norm 0.0, not clip norm 5.0"),
        ({"loop.precision": "bf16"}, "precision", "precision bf16, not precision fp32"),
        ({"model.alpha": 0.3}, "alpha", "alpha 0.3, not alpha 0.2"),
        ({"model.width": 8}, "width", "width 8, not width 16"),
        ({"cache.weights": "1" * 64}, "cache", "not cache"),
        ({"cache.encoder": "phikon-v2"}, "encoder", "phikon-v2, not uni"),
        ({"split_kind": "mine.json"}, "split", "mine.json split, not default split"),
        ({"neighbors": 18}, "neighbors", "18 neighbours, not 6 neighbours"),
        ({"protocol.tested": "last"}, "tested", "last epoch tested, not best epoch tested"),
        ({"slides": ["S0", "S1", "S9"]}, "slides", "other slides"),
        ({"tuning": TUNING | {"precision": "fp32"}}, "lora layers", "LoRA 7, not LoRA 0"),
    ],
)
def test_a_second_difference_is_said(tmp_path: Path, change: dict[str, Any], name: str, says: str) -> None:
    results = mixed(tmp_path, change)
    no_hea, full = (next(r for r in results.runs if r.method == m) for m in ("no_hea", "full"))
    differs = f"{full.label} (differs in {name})"
    assert comparison_label(no_hea, full) == differs
    for number in (None, 4):
        [table, *_] = tables(results, number)
        assert differs in to_csv(table).replace('"', ""), number
        assert any(says in note and "in more than the method" in note for note in table.notes), number


def test_one_difference_is_what_is_compared(tmp_path: Path) -> None:
    """Another method, or another value of one setting, as in tables 3 and 10; what follows from it is no other."""
    for change in ({}, NO_HEA, {"neighbors": 18}, RIDGE):
        write_run(tmp_path, FULL, change=change)
    results = read_results([tmp_path])
    assert len(results.runs) == 4
    [table, *_] = tables(results, None)
    labels = [row.label for row in table.rows if row.kind == "p"]
    assert labels == ["p against full, 6 neighbours"] * 3
    assert not any("differs" in note or "compared;" in note for note in table.notes)
    write_run(tmp_path / "b", FULL)
    hvg = {"genes": "hvg", "n_genes": 50, "model.n_genes": 50, "panel": "b" * 64}
    write_run(tmp_path / "b", FULL, change=hvg)
    hmhvg, other = read_results([tmp_path / "b"]).runs
    assert setting_differences(hmhvg, other) == ["genes"]
    assert comparison_label(hmhvg, other) == other.label


def test_a_protocol_is_one_difference_with_all_that_it_decides(tmp_path: Path) -> None:
    """Its switches follow from it where they are as it has them; of several runs the usual one is the reference."""
    for change in ({}, LITERAL, {"loop.clip_norm": 1.0}, {"model.decoder_space": "hyperbolic"}):
        write_run(tmp_path, FULL, change=change)
    write_run(tmp_path, OTHER, change=LITERAL | {"loop.clip_norm": 2.0, "loop.epochs": 9})
    results = read_results([tmp_path])
    runs = {(r.setting.protocol.name, r.setting.fit.clip_norm, r.settings["decoder_space"]): r for r in results.runs}
    usual = runs["paper", 5.0, "tangent"]
    chosen = references(results)
    assert usual.label not in chosen
    assert {run.label for run in chosen.values()} == {usual.label}
    assert setting_differences(runs["literal", 0.0, "points"], usual) == ["protocol"]
    assert comparison_label(runs["literal", 0.0, "points"], usual) == usual.label
    assert setting_differences(runs["literal", 2.0, "points"], usual) == ["protocol", "epochs", "clip_norm"]
    assert setting_differences(runs["paper", 1.0, "tangent"], usual) == ["clip_norm"]


STRONG: dict[str, Any] = {
    "recipe": {
        **{"name": "strong", "standardize": "slide", "targets": "centered", "level": "ridge", "ridge": "skip"},
        **{"smooth": 0.5, "ensemble": 3},
    },
    **{"loop.select_by": "centered_mse", "loop.patience_steps": 60, "loop.epochs": 600, "loop.lr": 3e-4},
}
PAPER = {"loop.epochs": 200, "loop.lr": 1e-4}  # the defaults, which runs written by hand do not have
DEMO = {"dataset": "demo", "loop.epochs": 60, "loop.lr": 1e-3}  # the defaults of the dataset demo


@pytest.mark.parametrize(
    ("paper", "other", "expected"),
    [
        (PAPER, STRONG, ["recipe"]),
        (DEMO, STRONG | {"dataset": "demo"}, ["recipe"]),
        (PAPER | {"loop.lr": 1e-2}, STRONG, ["recipe", "lr"]),
        (PAPER, STRONG | {"loop.lr": 1e-3}, ["recipe", "lr"]),
        (PAPER | {"loop.lr": 1e-2}, STRONG | {"loop.weight_decay": 1.0}, ["recipe", "lr", "weight_decay"]),
        (PAPER, STRONG | {"recipe": STRONG["recipe"] | {"smooth": 0.3}}, ["recipe", "smooth"]),
        (PAPER, {**PAPER, "recipe": {"name": "mine", "smooth": 0.3}}, ["recipe", "smooth"]),
        (PAPER | LITERAL, STRONG, ["protocol", "recipe"]),
    ],
)
def test_a_recipe_is_one_difference_with_all_that_its_row_decides(
    tmp_path: Path, paper: dict[str, Any], other: dict[str, Any], expected: list[str]
) -> None:
    """A switch follows from it where each of the runs has the value of its own row."""
    one, another = (read_results([write_run(tmp_path, FULL, change=change)]).runs[0] for change in (paper, other))
    for first, second in ((one, another), (another, one)):
        assert setting_differences(first, second) == expected


DIGESTS = {slide: {"counts": "c" * 64, "embeddings": "e" * 64} for slide in ("S0", "S1", "S2")}


def test_runs_of_version_0_1_are_compared_with_new_ones(tmp_path: Path) -> None:
    """They recorded no contents of slides, which may be the same; two that recorded different ones are not compared."""
    other_counts = DIGESTS | {"S0": {"counts": "0" * 64, "embeddings": "e" * 64}}
    write_run(tmp_path, FULL)
    write_run(tmp_path, OTHER, change=NO_HEA | {"digests": DIGESTS})
    results = read_results([tmp_path])
    full, no_hea = results.runs
    assert same_tests(results.runs)
    assert setting_differences(full, no_hea) == []
    for number in (None, 4):
        [table, *_] = tables(results, number)
        p = next(row for row in table.rows if row.kind == "p").cells[0].value
        assert p == pytest.approx(ttest_rel(OTHER, FULL).pvalue)
        assert sum("contents of its slides were not recorded" in note for note in table.notes) == 1
        assert not any("no best is marked" in note for note in table.notes)
    write_run(tmp_path, OTHER, change={"variant.name": "clip", "digests": other_counts})
    assert not same_tests(read_results([tmp_path]).runs)


def test_a_leak_is_the_reason_for_no_p(tmp_path: Path) -> None:
    tuned = {"cache.lora": "a" * 64}
    write_run(tmp_path, FULL, change=tuned | {"leak": ""})
    write_run(tmp_path, OTHER, change=NO_HEA | tuned | {"leak": "tests S1, which the adapter was trained on"})
    write_run(tmp_path, OTHER, change={"variant.name": "clip"})
    printed = tables(read_results([tmp_path]), None)
    reasons = sorted({note for table in printed for note in table.notes if ": no p against" in note})
    assert len(reasons) == 2
    assert any("LEAK" in reason and reason.endswith("has seen test slides") for reason in reasons)
    assert any("clip" in reason and reason.endswith("has embeddings of a tuned encoder") for reason in reasons)


def test_two_settings_of_one_method(tmp_path: Path) -> None:
    write_run(tmp_path, FULL)
    write_run(tmp_path, OTHER, change={"model.alpha": 0.3, "loop.epochs": 50, "loop.lr": 0.1, "loop.patience": 3})
    results = read_results([tmp_path])
    [table, *_] = tables(results, None)
    [row] = [row for row in table.rows if row.kind == "p"]
    assert row.label == "p against full, alpha 0.2 (differs in alpha, epochs, 2 more settings)"
    assert any("more than one setting" in n and "lr 0.1, not lr 0.001" in n for n in table.notes)


def test_the_nearest_reference_has_the_p_value(tmp_path: Path) -> None:
    """Of two runs of the reference the one with the same settings: like is compared with like where there is like."""
    write_run(tmp_path, FULL)
    write_run(tmp_path, (0.1, 0.2, 0.4, 0.3), change={"loop.epochs": 50})
    write_run(tmp_path, OTHER, change=NO_HEA | {"loop.epochs": 50})
    [table, *_] = tables(read_results([tmp_path]), 3)
    rows = [row for row in table.rows if row.kind == "p" and row.label == "p against full, epochs 50"]
    expected = ttest_rel(OTHER, (0.1, 0.2, 0.4, 0.3)).pvalue
    assert [row.cells[0].value for row in rows] == [pytest.approx(expected)]


def change_folds(run: Path, folds: list[int], **split: list[str]) -> None:
    for i in folds:
        file = run / f"fold{i}/config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps(config | {"split": config["split"] | split}))


@pytest.mark.parametrize("what", ["train", "val", "panel", "n_spots"])
def test_folds_that_only_look_alike_are_no_pairs(tmp_path: Path, what: str) -> None:
    """The split has the same name, but other slides, genes (chosen on each split's train slides) or spots."""
    write_run(tmp_path, FULL, change={"panel": "", "protocol.panel_from": "train"})
    run = write_run(tmp_path, OTHER, change=NO_HEA | {"panel": "", "protocol.panel_from": "train"})
    for i in (0, 1):
        if what == "panel":
            (run / f"fold{i}/panel.txt").write_text("\n".join([*GENES[:-1], "OTHER"]))
        elif what == "n_spots":
            file = run / f"fold{i}/metrics.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"n_spots": 39}))
        else:
            change_folds(run, [i], **{what: ["T9"]})
    results = read_results([tmp_path])
    full, no_hea = results.runs
    assert fold_pairs(no_hea, full) == {2: 2, 3: 3}
    for number in (None, 4):
        [table, *_] = tables(results, number)
        p = next(row for row in table.rows if row.kind == "p").cells[0].value
        assert p == pytest.approx(ttest_rel(OTHER[2:], FULL[2:]).pvalue)
        assert any("no_hea against full: 2 of 4 splits compared" in note for note in table.notes)
    alike = what in ("train", "val")  # tested on the same
    assert same_tests(results.runs) == alike
    [table, *_] = tables(results, None)
    assert any(cell.best for row in table.rows for cell in row.cells) == alike
    assert any("no best is marked" in note for note in table.notes) != alike
    assert ("none of them is called the best" in summary_text(results, list(results.runs), "pcc@50")) != alike


def test_without_a_common_split_there_is_no_p(tmp_path: Path) -> None:
    write_run(tmp_path, FULL)
    change_folds(write_run(tmp_path, OTHER, change=NO_HEA), [0, 1, 2, 3], train=["T9"])
    [table] = tables(read_results([tmp_path]), 3)
    assert [cell.text for row in table.rows if row.kind == "p" for cell in row.cells] == ["–"] * 4
    assert any("no_hea against full: 0 of 4 splits compared" in note for note in table.notes)
    assert "p against full (0 of 4 splits)" in to_csv(table)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"genes": "hvg", "n_genes": 50, "panel": "b" * 64}, "what is predicted differs in genes, n genes, panel"),
        ({"protocol.edge_spots": "drop"}, "what is predicted differs in edge spots"),
    ],
)
def test_a_run_without_a_p_value_says_why(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    write_run(tmp_path, FULL)
    for variant in ("no_hea", "clip"):
        write_run(tmp_path, OTHER, change={"variant.name": variant} | (change if variant == "clip" else {}))
    [table, *_] = tables(read_results([tmp_path]), None)
    assert sum(row.kind == "p" for row in table.rows) == 1
    assert any(note.startswith("clip, ") and note.endswith(f": {says}") for note in table.notes)


@pytest.mark.parametrize(("number", "title"), [(11, "Genes that full"), (12, "full, epochs 4 over the others")])
def test_tables_of_genes_and_regions_say_it_too(tmp_path: Path, number: int, title: str) -> None:
    write_run(tmp_path, FULL[:2], predictions=True)
    write_run(tmp_path, OTHER[:2], change=NO_HEA | {"loop.epochs": 5}, predictions=True)
    results = read_results([tmp_path])
    found = tables(results, number, region="region")
    text = "\n".join(to_csv(table) + table.title + str(table.notes) for table in found)
    assert title in text
    assert "(differs in epochs)" in text
    assert "epochs 4, not epochs 5" in text
    if number == 11:
        assert {table.title.rsplit(", ", 1)[1] for table in found} == {"region stroma", "region tumor"}


def test_regions_stand_below_every_other_table(tmp_path: Path) -> None:
    for change in ({}, NO_HEA):
        write_run(tmp_path, FULL[:1], change=change, predictions=True)
    results = read_results([tmp_path])
    for number in (None, 3, 4, 5):
        names = [table.name for table in tables(results, number, region="region")]
        assert names[-2:] == ["region-gains-region", "regions-region"], number
        assert len(names) > 2
