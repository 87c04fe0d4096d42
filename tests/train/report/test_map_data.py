"""The maps of a page: what is stored of each run, fold and gene, and what is left out where not all of it fits."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hist_cache.errors import InputError
from tests.train.report.fake_runs import GENES, write_run
from train.report.analysis import summarize_run
from train.report.map_codes import to_codes
from train.report.map_data import MapPicker, map_picker
from train.report.reading import read_results
from train.report.results import Results
from train.report.sections import ReportRequest, check_gene_names, group_sections


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("runs")
    for i, variant in enumerate(("full", "clip")):
        tests = [["S0", "S1"], ["S2"]]
        write_run(root, (0.7, 0.5), change={"variant.name": variant}, predictions=True, tests=tests, seed=i * 10)
    return read_results([root])


def picker(results: Results, max_bytes: float, named: tuple[str, ...] = ()) -> MapPicker | None:
    main = results.runs[0]
    return map_picker(results.runs, main, summarize_run(main).correlations, named, max_bytes)


def array(text: str, kind: str = "<f4") -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=kind)


def decoded(stored: dict[str, Any], n_genes: int) -> np.ndarray:
    """(genes, spots)."""
    low, high = array(stored["low"])[:, None], array(stored["high"])[:, None]
    return low + array(stored["codes"], "u1").reshape(n_genes, -1) / 254 * (high - low)


def test_codes_against_numpy() -> None:
    values = np.random.default_rng(0).normal(size=(50, 4))
    values[:, 1] = 3.5
    values[:7, 2] = np.nan
    values[:, 3] = np.inf
    for bits, missing in ((8, 255), (16, 65535)):
        low, high, codes = to_codes(values, bits)
        assert codes.shape == (4, 50)
        assert (codes == missing).T.tolist() == (~np.isfinite(values)).tolist()
        back = low[:, None] + codes / (missing - 1) * (high - low)[:, None]
        there = np.isfinite(values[:, :3])
        step = np.ptp(values[:, 0]) / (missing - 1)
        assert np.abs(back[:3].T - values[:, :3])[there].max() <= max(step, 0.02 if bits == 8 else 1e-4)
        assert (low[1], high[1], low[3], high[3]) == (3.5, 3.5, 0, 0)


def test_the_values_of_every_run_fold_and_slide(results: Results) -> None:
    maps = picker(results, 1e7)
    assert maps is not None
    assert maps.note.startswith("All 60 genes of all folds.")
    assert maps.unit == "log2(1 + count)"
    data = json.loads(maps.data)
    assert [run["label"] for run in data["runs"]] == ["full", "clip"]
    assert set(data["pictures"]) == {"S0", "S1", "S2"}
    assert data["pictures"]["S0"]["width"] == pytest.approx(1200)
    for run, stored in zip(results.runs, data["runs"], strict=True):
        for fold, stored_fold in zip(run.folds, stored["folds"], strict=True):
            table = fold.fold.predictions
            for part in stored_fold["slides"]:
                own = table[(table.obs["slide"] == part["slide"]).to_numpy(), data["genes"]]
                spots, truth = data["spots"][part["spots"]], own.layers["truth"]
                for coded, values in ((part, own.X), (spots, truth)):
                    assert np.abs(decoded(coded, 60) - values.T).max() <= np.ptp(values, axis=0).max() / 254
                np.testing.assert_allclose(array(spots["x"]), own.obsm["spatial"][:, 0])
                pcc = [np.corrcoef(own.X[:, g], truth[:, g])[0, 1] for g in range(60)]
                np.testing.assert_allclose(array(part["pcc"]), pcc, atol=1e-5)
                np.testing.assert_allclose(array(spots["to"]), np.quantile(truth, 0.99, axis=0), rtol=1e-5)


def test_what_was_measured_is_stored_once(tmp_path: Path) -> None:
    for variant in ("full", "clip"):
        write_run(tmp_path, (0.7,), change={"variant.name": variant}, predictions=True)
    maps = picker(read_results([tmp_path]), 1e7)
    assert maps is not None
    assert len(json.loads(maps.data)["spots"]) == 1


def test_genes_are_left_out_where_not_all_fit(results: Results) -> None:
    correlations = summarize_run(results.runs[0]).correlations.sort_values(ascending=False)
    whole = picker(results, 1e7)
    assert whole is not None
    limit = len(whole.data) // 2
    maps = picker(results, limit, named=("GENE7",))
    assert maps is not None
    assert len(maps.data) < limit
    genes = json.loads(maps.data)["genes"]
    assert genes[0] == json.loads(maps.data)["first"] == "GENE7"
    assert 10 < len(genes) < len(GENES)
    others = [gene for gene in correlations.index if gene != "GENE7"]
    best, worst = len(genes) // 2, (len(genes) - 1) // 2
    assert set(genes[1:]) == {*others[:best], *others[-worst:]}
    assert maps.note.startswith(f"Of 60 genes, the 1 that were named and the {len(genes) - 1} that full predicts best")


def test_folds_are_left_out_before_genes_are_few(results: Results) -> None:
    maps = picker(results, 3500)
    assert maps is not None
    data = json.loads(maps.data)
    assert [[fold["number"] for fold in run["folds"]] for run in data["runs"]] == [[0], [0]]
    assert "of fold 0 alone" in maps.note
    assert {picture["uri"] for picture in data["pictures"].values()} == {None}  # not even the smallest fits
    assert picker(results, 100) is None


def test_a_fold_of_other_genes_is_left_out(results: Results) -> None:
    """The script has nothing to choose there."""
    main = results.runs[0]
    maps = map_picker(results.runs, main, pd.Series([0.5], index=["GENE3"]), (), 1e7)
    assert maps is not None
    assert [run["label"] for run in json.loads(maps.data)["runs"]] == ["full", "clip"]
    assert maps.note.endswith("Other runs are shown on the genes that full has too.")
    alone = map_picker(results.runs, main, pd.Series([0.5], index=["ALIEN"]), (), 1e7)
    assert alone is None


@pytest.mark.usefixtures("quick")
def test_maps_can_be_chosen_where_the_main_run_does_not_test_the_slide_of_the_figures(
    results: Results, tmp_path: Path
) -> None:
    summaries = {run.label: summarize_run(run) for run in results.runs}
    sections = group_sections(results, list(results.runs), summaries, tmp_path, ReportRequest(slide="S9"))
    [maps] = [section for section in sections if section.title == "Maps"]
    assert not maps.pictures


def test_genes_are_those_of_the_fold_that_is_drawn(tmp_path: Path) -> None:
    folder = write_run(tmp_path, (0.7, 0.6))
    (folder / "fold1/panel.txt").write_text("".join(f"OTHER{i}\n" for i in range(60)))
    results = read_results([folder])
    check_gene_names(results, ReportRequest(genes=("GENE3",)))
    with pytest.raises(InputError, match="GENE3: not in the gene panel of full, fold 1"):
        check_gene_names(results, ReportRequest(genes=("GENE3",), slide="S1"))


def test_no_name_ends_the_element_that_holds_the_data(results: Results) -> None:
    main = results.runs[0]
    every = pd.Series(range(60), index=GENES).rename({"GENE3": "</script><b>"})
    maps = map_picker(results.runs, main, every, (), 1e7)
    assert maps is not None
    assert "<" not in maps.data
