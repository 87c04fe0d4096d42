"""Reading runs, and laying them out: against numbers worked out by hand with pandas."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from rich.console import Console
from scipy import stats

from hist_cache.errors import InputError
from tests.train.report.fake_runs import RIDGE, numbers, write_run
from train.report.context import configuration_table
from train.report.paper_tables import cost_table, results_tables
from train.report.plots import plot_ablation
from train.report.reading import read_results
from train.report.selection import runs_of_table
from train.report.table import Cell, Column, Row, Table, escape_latex, heading, to_csv, to_latex, to_markdown
from train.report.terminal import to_rich

OTHER = ", not comparable"  # the runs here have other widths, epochs and splits than the published ones
FULL, NO_HEA = (0.7, 0.72, 0.74, 0.69, 0.75), (0.68, 0.71, 0.7, 0.69, 0.7)


def two_runs(root: Path) -> None:
    write_run(root, FULL)
    write_run(root, NO_HEA, change={"variant.name": "no_hea"})


def labels(root: Path) -> list[str]:
    return [run.label for run in read_results([root]).runs]


def test_labels_say_the_variant_alone_where_nothing_else_differs(tmp_path: Path) -> None:
    two_runs(tmp_path)
    assert labels(tmp_path) == ["full", "no_hea"]


def test_labels_say_every_setting_that_differs_and_none_that_follows(tmp_path: Path) -> None:
    write_run(tmp_path, FULL)
    write_run(tmp_path, FULL, change={"neighbors": 18})
    write_run(tmp_path, FULL, change={"variant.name": "clip", "neighbors": 18})
    assert labels(tmp_path) == ["full, 6 neighbours", "full, 18 neighbours", "clip, 18 neighbours"]
    write_run(tmp_path / "b", FULL)
    write_run(tmp_path / "b", FULL, change={"genes": "hvg", "n_genes": 300, "model.n_genes": 300, "panel": "b" * 64})
    assert labels(tmp_path / "b") == ["full, hmhvg", "full, hvg"]  # 300 genes and another panel follow from hvg
    write_run(tmp_path / "c", FULL)
    write_run(tmp_path / "c", FULL, change={"model.alpha": 0.3})
    write_run(tmp_path / "c", FULL, change={"protocol.name": "release", "protocol.tested": "last"})
    assert labels(tmp_path / "c") == [
        "full, paper protocol, alpha 0.2", "full, paper protocol, alpha 0.3", "full, release protocol, alpha 0.2",
    ]  # fmt: skip
    write_run(tmp_path / "d", FULL, name="full-11111111")
    write_run(tmp_path / "d", FULL, name="full-22222222")
    assert labels(tmp_path / "d") == ["full, 11111111", "full, 22222222"]


def test_any_folder_above_the_folds_will_do(tmp_path: Path) -> None:
    two_runs(tmp_path)
    run = next((tmp_path / "tiny").glob("full-*"))
    for paths in ([tmp_path], [tmp_path / "tiny"], sorted((tmp_path / "tiny").iterdir()), [tmp_path, run]):
        assert len(read_results(paths).runs) == 2
    assert [r.folder for r in read_results([run]).runs] == [run]


def test_the_tidy_table_holds_every_number(tmp_path: Path) -> None:
    write_run(tmp_path, FULL[:2], tests=[["S0", "S1"], ["S1"]])
    table = read_results([tmp_path]).metrics
    assert set(table["scope"]) == {"pooled", "slide_mean", "complete_niches", "S0", "S1"}
    one = table.query("scope == 'S1' and metric == 'mse' and fold == 0")["value"].item()
    assert one == pytest.approx(numbers(0.7 - 0.01)["mse"])
    assert len(table) == 4 * (5 + 4)
    assert table.query("fold == 0")["split"].unique().tolist() == ["draw-0"]


def test_incomplete_runs_are_named(tmp_path: Path) -> None:
    write_run(tmp_path, FULL)
    short = write_run(tmp_path, NO_HEA[:3], change={"variant.name": "no_hea"})
    (short / "fold3").mkdir()
    (short / "fold3/config.json").write_text("{}")
    results = read_results([tmp_path])
    assert results.incomplete == ["no_hea: 3 of 5 folds (fold3, fold4 missing)"]
    [table] = results_tables(results)
    assert any("3 of 5 folds" in note for note in table.notes)
    assert table.notes[0].startswith("mean ± std over 3 or 5 folds")


def test_nothing_finished_and_files_of_another_version(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no finished run here"):
        read_results([tmp_path])
    run = write_run(tmp_path, FULL[:1])
    config = json.loads((run / "fold0/config.json").read_text())
    (run / "fold0/config.json").write_text(json.dumps(config | {"protocol": "paper"}))
    with pytest.raises(InputError, match="another version"):
        read_results([tmp_path])
    (run / "fold0/config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json"):
        read_results([tmp_path])


def test_the_table_against_pandas(tmp_path: Path) -> None:
    two_runs(tmp_path)
    [table] = results_tables(read_results([tmp_path]))
    assert [c.title for c in table.columns] == ["PCC@10", "PCC@50", "MSE", "MAE"]
    assert [(r.label, r.kind) for r in table.rows] == [
        ("full", "run"), ("no_hea", "run"), ("p against full", "p"),
        ("ridge, PCA-256", "control"), ("train mean", "control"), ("full, permuted", "control"),
    ]  # fmt: skip
    expected = pd.DataFrame([numbers(v) for v in NO_HEA])
    for cell, metric in zip(table.rows[1].cells, ("pcc@10", "pcc@50", "mse", "mae"), strict=True):
        assert cell.value == pytest.approx(expected[metric].mean())
        assert cell.spread == pytest.approx(expected[metric].std())
        assert cell.text == f"{expected[metric].mean():.3f} ± {expected[metric].std():.3f}"
    assert [c.best for c in table.rows[0].cells] == [True] * 4  # higher PCC, lower errors
    assert table.rows[3].cells[0].value == pytest.approx(np.mean([0.4, 0.41, 0.42, 0.43, 0.44]))


def test_the_error_without_levels_where_all_runs_have_it(tmp_path: Path) -> None:
    errors = {"full": (0.5, 0.6, 0.7, 0.55, 0.65), "no_hea": (0.55, 0.62, 0.8, 0.5, 0.7)}
    for (variant, centered), values in zip(errors.items(), (FULL, NO_HEA), strict=True):
        folder = write_run(tmp_path, values, change={"variant.name": variant})
        for i, error in enumerate(centered):
            file = folder / f"fold{i}/metrics.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"centered": {"mse": error, "mae": 0.4}}))
    [table] = results_tables(read_results([tmp_path]))
    assert [c.title for c in table.columns] == ["PCC@10", "PCC@50", "MSE", "MAE", "MSE, centred"]
    full, no_hea, p, ridge = (row.cells[-1] for row in table.rows[:4])
    assert (full.value, full.spread) == pytest.approx((np.mean(errors["full"]), np.std(errors["full"], ddof=1)))
    assert (full.best, no_hea.best) == (True, False)
    assert p.value == pytest.approx(stats.ttest_rel(errors["no_hea"], errors["full"]).pvalue)
    assert ridge.text == "–", "of files from before it was measured"


@pytest.mark.parametrize("known", [3, 2])
def test_the_error_without_levels_of_baselines_where_all_folds_have_it(known: int, tmp_path: Path) -> None:
    folder = write_run(tmp_path, FULL[:3], centered={"mse": 0.5})
    for i in range(known):
        file = folder / f"fold{i}/metrics.json"
        controls = {"ridge": {"mse": 0.6 + i}, "train_mean": {"mse": 0.9}}
        file.write_text(json.dumps(json.loads(file.read_text()) | {"controls_centered": controls}))
    [table] = results_tables(read_results([tmp_path]))
    assert table.columns[-1].title == "MSE, centred"
    found = {row.label: row.cells[-1].value for row in table.rows if row.kind == "control"}
    means = {"ridge, PCA-256": 1.6, "train mean": 0.9} if known == 3 else {}
    assert found == pytest.approx(dict.fromkeys(found) | means)
    assert found["full, permuted"] is None
    assert sum(note.startswith("MSE, centred: ") for note in table.notes) == 1
    by_slide = results_tables(read_results([tmp_path]), scope="slide_mean")[0]
    assert [c.title for c in by_slide.columns] == ["PCC@10", "PCC@50", "MSE", "MAE"]
    write_run(tmp_path, FULL, change={"variant.name": "clip"})
    [table] = results_tables(read_results([tmp_path]))
    assert [c.title for c in table.columns] == ["PCC@10", "PCC@50", "MSE", "MAE"]


def test_baselines_come_once_for_each_data_setting(tmp_path: Path) -> None:
    for neighbors in (6, 18):
        for variant in ("full", "no_hea"):
            write_run(tmp_path, FULL, change={"variant.name": variant, "neighbors": neighbors})
    folds = (tmp_path / "tiny").glob("*/fold*/metrics.json")
    for file in folds:
        metrics = json.loads(file.read_text())
        neighbors = json.loads(file.with_name("config.json").read_text())["neighbors"]
        metrics["controls"]["ridge"] = numbers(0.5 + neighbors / 100)
        file.write_text(json.dumps(metrics))
    [table] = results_tables(read_results([tmp_path]))
    assert [r.label for r in table.rows if r.kind == "control"] == [
        "ridge, PCA-256, 6 neighbours",
        "ridge, PCA-256, 18 neighbours",
        "train mean",
        "full, 6 neighbours, permuted",
    ]


def test_baselines_on_other_data_have_other_labels(tmp_path: Path) -> None:
    """Where labels name the protocol, the edge spots that it drops follow; the baselines differ all the same."""
    write_run(tmp_path, FULL)
    run = write_run(tmp_path, FULL, change={"protocol.name": "release", "protocol.edge_spots": "drop"})
    for file in run.glob("fold*/metrics.json"):
        metrics = json.loads(file.read_text())
        metrics["controls"]["ridge"] = numbers(0.6)
        file.write_text(json.dumps(metrics))
    [table] = results_tables(read_results([tmp_path]))
    found = [r.label for r in table.rows if r.label.startswith("ridge")]
    assert found == ["ridge, PCA-256", "ridge, PCA-256, data of full, release protocol"]


def test_labels_of_ridge_on_the_same_inputs(tmp_path: Path) -> None:
    """A run without that ridge takes no label from one that has it; recipes are named where they differ."""

    def tuned_ridge(change: dict[str, object], value: float) -> None:
        for file in write_run(tmp_path, FULL, change=change).glob("fold*/metrics.json"):
            metrics = json.loads(file.read_text())
            metrics["controls"]["ridge_tuned"] = numbers(value)
            file.write_text(json.dumps(metrics))

    def found() -> list[str]:
        [table] = results_tables(read_results([tmp_path]))
        return [row.label for row in table.rows if row.label.startswith("ridge")]

    write_run(tmp_path, FULL)
    assert found() == ["ridge, PCA-256"]
    tuned_ridge({"loop.select_by": "centered_mse"}, 0.6)
    assert found() == ["ridge, PCA-256", "ridge, same inputs"]
    tuned_ridge({"recipe": {"name": "strong", "standardize": "slide"}}, 0.65)
    assert found() == ["ridge, PCA-256", "ridge, same inputs, paper recipe", "ridge, same inputs, strong recipe"]


def test_a_seed_that_changes_no_ridge_is_not_in_its_label(tmp_path: Path) -> None:
    for seed in (1, 2):
        strong = {"recipe": {"name": "strong", "standardize": "slide"}, "loop.seed": seed}
        for change in (strong, {"loop.seed": seed}):
            for file in write_run(tmp_path, FULL, change=change).glob("fold*/metrics.json"):
                metrics = json.loads(file.read_text())
                metrics["controls"] |= {"ridge_tuned": numbers(0.6)} if change is strong else {}
                file.write_text(json.dumps(metrics))
    [table] = results_tables(read_results([tmp_path]))
    ridges = [row.label for row in table.rows if row.label.startswith("ridge")]
    assert ridges == ["ridge, PCA-256", "ridge, same inputs, strong recipe"]


def test_nothing_is_bold_across_panels_and_datasets_stand_apart(tmp_path: Path) -> None:
    write_run(tmp_path, FULL)
    write_run(tmp_path, NO_HEA, change={"n_genes": 1000, "panel": "b" * 64})
    [table] = results_tables(read_results([tmp_path]))
    assert not any(c.best for row in table.rows for c in row.cells)
    assert not any(row.kind == "p" for row in table.rows)  # another panel is another truth
    write_run(tmp_path, FULL, change={"dataset": "other"})
    assert [t.title for t in results_tables(read_results([tmp_path]))] == ["Metrics, other", "Metrics, tiny"]


def test_published_numbers_stand_under_the_run(tmp_path: Path) -> None:
    for variant in ("full", "no_hea"):
        write_run(tmp_path, FULL, change={"dataset": "kidney", "variant.name": variant, "n_genes": 200})
    [table] = results_tables(read_results([tmp_path]), table=13)
    assert table.title == "Table 13: Strategies of alignment, kidney"
    rows = [(r.label, [c.text for c in r.cells]) for r in table.rows]
    assert [label for label, _ in rows[:5]] == [
        "full", f"published, LoRA 0{OTHER}", f"published, LoRA 11{OTHER}", "no_hea", "p against full",
    ]  # fmt: skip
    assert rows[2][1] == ["0.617 ± 0.094", "0.526 ± 0.088", "1.077 ± 0.155", "0.817 ± 0.058"]
    assert rows[1][1][0] == "0.587 ± 0.099"
    assert rows[5][1][0] == "0.607 ± 0.092"


def test_tuned_encoders_are_told_apart(tmp_path: Path) -> None:
    lora = {"lora": {"layers": 7, "rank": 4, "alpha": 8, "dropout": 0.1}, "start": "tokens", "augment": False}
    lora |= {"precision": "bf16"}
    for tuning in (lora, None):
        write_run(tmp_path, FULL, change={"dataset": "skin", "n_genes": 200, "tuning": tuning})
    results = read_results([tmp_path])
    assert [run.label for run in results.runs] == ["full, LoRA 0", "full, LoRA 7"]
    [table] = results_tables(results)
    published = {r.label: r.cells[0].text for r in table.rows if r.kind == "published"}
    assert published == {
        f"published, LoRA 0{OTHER}": "0.831 ± 0.088",
        f"published, LoRA 7{OTHER}": "0.838 ± 0.083",
        f"published, LoRA 11{OTHER}": "0.839 ± 0.086",
    }
    assert [run.label for run in runs_of_table(results, 14).runs] == ["full, LoRA 0", "full, LoRA 7"]


def test_other_models_stand_beside_the_variants(tmp_path: Path) -> None:
    knn = RIDGE | {"model_name": "knn", "model": {"embedding_width": 64, "n_genes": 60, "nearest": 50}}
    for change in (knn, RIDGE):
        write_run(tmp_path, NO_HEA, change=change)
    two_runs(tmp_path)
    runs = read_results([tmp_path]).runs
    assert [(r.label, r.model, r.variant) for r in runs] == [
        ("full", "hist", "full"), ("no_hea", "hist", "no_hea"), ("ridge", "ridge", None), ("knn", "knn", None),
    ]  # fmt: skip
    write_run(tmp_path, FULL, change={"model.alpha": 0.3})
    write_run(tmp_path, FULL, change=knn | {"model.nearest": 5})
    assert labels(tmp_path) == [
        "full, alpha 0.2", "no_hea, alpha 0.2", "full, alpha 0.3", "ridge", "knn, nearest 5", "knn, nearest 50",
    ]  # fmt: skip


def test_settings_that_all_models_have_tell_their_runs_apart(tmp_path: Path) -> None:
    write_run(tmp_path, FULL)
    write_run(tmp_path, FULL, change=RIDGE | {"neighbors": 18})
    assert labels(tmp_path) == ["full, 6 neighbours", "ridge, 18 neighbours"]


def test_tables_with_a_model_that_does_not_learn(tmp_path: Path) -> None:
    for change in ({}, RIDGE):
        write_run(tmp_path, FULL, change={**change, "dataset": "kidney", "n_genes": 200})
    results = read_results([tmp_path])
    [table] = results_tables(results)
    assert [(r.label, r.kind) for r in table.rows] == [
        ("full", "run"), (f"published, LoRA 0{OTHER}", "published"), (f"published, LoRA 11{OTHER}", "published"),
        ("ridge", "run"), ("p against full", "p"),
        ("ridge, PCA-256", "control"), ("train mean", "control"), ("full, permuted", "control"),
        *((f"{method}, published", "method") for method in ("TRIPLEX", "ST-Net", "BLEEP", "Stem")),
    ]  # fmt: skip
    assert [c.text for c in cost_table(results).rows[-1].cells] == [
        "2.000 ± 0.000",
        "–",
        "0.500 ± 0.000",
        "1.500 ± 0.000",
    ]
    assert [run.label for run in runs_of_table(results, 1).runs] == ["full", "ridge"]
    assert [run.label for run in runs_of_table(results, 13).runs] == ["full"], "a table of variants"
    settings = configuration_table(results)
    assert [c.title for c in settings.columns] == ["full", "ridge"]
    texts = {row.label: [c.text for c in row.cells] for row in settings.rows}
    assert (texts["width"], texts["epochs"], texts["seed"]) == (["16", "–"], ["4", "–"], ["42", "42"])


def test_cost_and_the_tables_that_have_it(tmp_path: Path) -> None:
    write_run(tmp_path, FULL[:3], change={"dataset": "colorectum", "n_genes": 200})
    results = read_results([tmp_path])
    table = cost_table(results)
    assert [c.value for c in table.rows[0].cells] == pytest.approx([2.0, 2.0, 0.5, 1.5])
    assert table.rows[0].cells[1].spread == pytest.approx(np.std([1, 2, 3], ddof=1))
    assert [c.text for c in table.rows[1].cells] == ["18.390", "74.000", "3.000", "–"]
    assert [t.name for t in results_tables(results, table=5)] == ["cost"]
    assert [t.name for t in results_tables(results, table=9)] == ["metrics-pooled-colorectum", "cost"]
    with pytest.raises(InputError, match="--table 99"):
        results_tables(results, table=99)


def test_csv_parsed_back(tmp_path: Path) -> None:
    two_runs(tmp_path)
    [table] = results_tables(read_results([tmp_path]))
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    assert [r["run"] for r in rows[:3]] == ["full", "no_hea", "no_hea"]
    assert rows[2]["row"] == "p against full"
    for row, cells in zip(rows, table.rows, strict=True):
        assert float(row["MSE"]) == cells.cells[2].value
    assert float(rows[0]["PCC@10 std"]) == pytest.approx(np.std(FULL, ddof=1))


def test_latex_parsed_back(tmp_path: Path) -> None:
    two_runs(tmp_path)
    [table] = results_tables(read_results([tmp_path]))
    text = to_latex(table)
    body = text.split(r"\midrule", 1)[1].split(r"\bottomrule")[0]
    lines = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(lines) == len(table.rows)
    first = [re.sub(r"\\textbf\{(.*)\}", r"\1", c.strip()) for c in lines[0].removesuffix(r"\\").split("&")]
    assert first[0] == "full"
    mean, std = (float(v) for v in first[1].split(r"$\pm$"))
    assert (mean, std) == (0.72, round(float(np.std(FULL, ddof=1)), 3))
    assert lines[1].startswith(r"no\_hea &")
    assert text.count("{") == text.count("}")
    assert not re.search(r"(?<!\\)[%#_]", text.replace(r"\label{tab:", ""))


def test_latex_escapes_everything() -> None:
    assert escape_latex(r"a_b & 50% $x$ #1 {c} ~ ^ \ <0.001") == (
        r"a\_b \& 50\% \$x\$ \#1 \{c\} \textasciitilde{} \textasciicircum{} \textbackslash{} $<$0.001"
    )
    assert escape_latex("a | b") == r"a \textbar{} b"
    rows = tuple(Row(label, "run", (Cell("[0, 1]"),)) for label in ("[a]", "*b"))
    text = to_latex(Table("t", "t", (Column("c"),), rows))
    assert not re.search(r"\\\\\s*[\[*]", text)  # where TeX would take it for an argument of the line break


def test_markdown_parsed_back(tmp_path: Path) -> None:
    two_runs(tmp_path)
    [table] = results_tables(read_results([tmp_path]))
    odd = Row(r"a|b *c* _d_ `e` <i> [x](y) \ ~f~ $g$ &amp;", "run", tuple(Cell("1|2") for _ in table.columns))
    table = replace(table, rows=(*table.rows, odd), notes=("one | two", "# three"))
    tokens = MarkdownIt("commonmark").enable("table").parse(to_markdown(table))
    texts = [_plain(token) for token in tokens if token.type == "inline"]
    width = 1 + len(table.columns)
    assert texts[0] == table.title
    cells = [texts[1 + i * width : 1 + (i + 1) * width] for i in range(1 + len(table.rows))]
    assert cells[0] == ["run", *(heading(column) for column in table.columns)]
    for row, read in zip(table.rows, cells[1:], strict=True):
        assert [text.strip("\xa0") for text in read] == [row.label, *(cell.text for cell in row.cells)]
    assert texts[1 + (1 + len(table.rows)) * width :] == ["one | two.", "# three."]
    assert sum(token.type == "strong_open" for inline in tokens for token in inline.children or ()) == sum(
        cell.best for row in table.rows for cell in row.cells
    )


def _plain(inline: Token) -> str:
    assert {token.type for token in inline.children or ()} <= {"text", "strong_open", "strong_close", "text_special"}
    return "".join(token.content for token in inline.children or ())


def test_the_terminals_table_says_the_same(tmp_path: Path) -> None:
    two_runs(tmp_path)
    [table] = results_tables(read_results([tmp_path]))
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(to_rich(table))
    text = console.export_text()
    for row in table.rows:
        [line] = [line for line in text.splitlines() if f"│ {row.label} " in line or f"│   {row.label} " in line][:1]
        assert all(cell.text in line for cell in row.cells)


def test_the_runs_of_a_table(tmp_path: Path) -> None:
    for neighbors in (6, 18, 36):
        write_run(tmp_path, FULL, change={"neighbors": neighbors})
    write_run(tmp_path, FULL, change={"variant.name": "clip"})
    write_run(tmp_path, FULL, change={"variant.name": "spot_only"})
    results = read_results([tmp_path])
    assert [r.label for r in runs_of_table(results, 10).runs] == [
        "full, 6 neighbours", "full, 18 neighbours", "full, 36 neighbours",
    ]  # fmt: skip
    assert [r.label for r in runs_of_table(results, 3).runs] == ["full", "clip"]
    assert [r.label for r in runs_of_table(results, 15).runs] == ["full", "spot_only"]
    with pytest.raises(InputError, match="run hist-train --table 8"):
        runs_of_table(results, 8)


def test_a_baseline_above_all_runs_is_the_best(tmp_path: Path) -> None:
    write_run(tmp_path, (0.3, 0.3))
    [table] = results_tables(read_results([tmp_path]))
    best = {
        (row.label, column.title)
        for row in table.rows
        for column, c in zip(table.columns, row.cells, strict=True)
        if c.best
    }
    assert best == {("ridge, PCA-256", title) for title in ("PCC@10", "PCC@50", "MSE", "MAE")}


def test_bars_start_at_0_and_correlations_share_an_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variant, value in (("full", 0.7), ("clip", 0.71)):  # so close that a cut axis would show a large difference
        write_run(tmp_path, (value, value + 0.01), change={"variant.name": variant})
    drawn: list[Any] = []
    monkeypatch.setattr("train.report.plots.save_figure", lambda figure, path: drawn.append(figure))
    results = read_results([tmp_path])
    plot_ablation(tmp_path / "a.png", results, results.runs, ["pcc@10", "pcc@50", "mse"])
    limits = [ax.get_xlim() for ax in drawn[0].axes]
    assert [low for low, _ in limits] == [0, 0, 0]
    assert limits[0] == limits[1]
    assert 0.72 < limits[0][1] < 0.8
    assert drawn[0].axes[0].get_xlabel() == f"0 to {limits[0][1]:.2g}"
