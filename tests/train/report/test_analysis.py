"""Genes and regions, computed again by hand from the predictions."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, ttest_rel
from sklearn.metrics import mean_absolute_error, mean_squared_error

from hist_cache.errors import InputError, SlideError
from tests.train.report.fake_runs import GENES, write_run
from train.report.alike import fold_pairs
from train.report.analysis import (
    RunSummary,
    improvement,
    region_gains,
    region_metrics,
    regions,
    run_regions,
    summarize_regions,
    summarize_run,
)
from train.report.analysis_tables import gene_table, improvement_table, radius_table, region_gain_table, slide_table
from train.report.context import result_warnings
from train.report.reading import read_results
from train.report.results import Results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("runs")
    write_run(root, (0.7, 0.8, 0.75), predictions=True, tests=[["S0", "S1"], ["S1"], ["S2"]])
    write_run(
        root, (0.5, 0.6, 0.4), change={"variant.name": "no_hea"}, predictions=True, tests=[["S0", "S1"], ["S1"], ["S2"]]
    )
    return read_results([root])


def test_genes_against_scipy(results: Results) -> None:
    run = results.runs[0]
    expected = []
    for fold in run.folds:
        table = anndata.read_h5ad(fold.fold.folder / "predictions.h5ad")
        expected.append([pearsonr(table.X[:, j], table.layers["truth"][:, j]).statistic for j in range(60)])
    summary = summarize_run(run)
    assert list(summary.correlations.index) == GENES
    np.testing.assert_allclose(summary.correlations, np.mean(expected, axis=0), atol=1e-5)
    assert summary.radii.shape == (3, 4)
    means = [f.fold.predictions.obs["radius_gene_niche"].mean() for f in run.folds]
    table = radius_table({"full": summary.radii}, "tiny")
    assert table is not None
    row = table.rows[0]
    assert row.cells[3].value == pytest.approx(np.mean(means))
    assert row.cells[3].spread == pytest.approx(np.std(means, ddof=1))


def test_genes_are_compared_over_the_folds_that_both_runs_have(tmp_path: Path) -> None:
    write_run(tmp_path, (0.7, 0.8, 0.9), predictions=True)
    write_run(tmp_path, (0.5, 0.6), change={"variant.name": "no_hea"}, predictions=True)
    results = read_results([tmp_path])
    full, no_hea = results.runs
    summaries = {run.label: summarize_run(run) for run in results.runs}
    table = improvement_table(full, no_hea, summaries)
    assert table is not None
    first = summaries["full"].fold_correlations[[0, 1]].mean(axis=1)
    gains = first - summaries["no_hea"].correlations
    assert [r.label for r in table.rows] == list(gains.sort_values(ascending=False).index[:15])
    assert table.rows[0].cells[2].value == pytest.approx(gains.max())
    assert "no_hea against full: 2 of 3" not in str(table.notes)
    assert any(note.startswith("full against no_hea: 2 of 3 splits compared") for note in table.notes)


def test_improvement_is_sorted_and_joined_by_name() -> None:
    first = pd.Series({"A": 0.5, "B": 0.9, "C": 0.1})
    second = pd.Series({"C": 0.3, "B": 0.2, "X": 1.0})
    one, two = (RunSummary(series.to_frame(number), pd.DataFrame()) for number, series in ((0, first), (3, second)))
    table = improvement(one, two, {0: 3, 1: 2})
    assert list(table.index) == ["B", "C"]
    assert table["difference"].tolist() == pytest.approx([0.7, -0.2])
    assert improvement(one, two, {}).empty
    genes = gene_table({"one": first, "two": second}, "tiny")
    assert [r.label for r in genes.rows] == ["B", "A", "C", "X"]
    assert [c.text for c in genes.rows[1].cells] == ["0.500", "–"]


def test_regions_against_scikit_learn(results: Results) -> None:
    table = results.runs[0].folds[0].fold.predictions
    region = regions(table, "region", None)
    metrics = region_metrics(table, region, ["GENE7"]).set_index(["gene", "region"])
    rows = (table.obs["region"] == "stroma").to_numpy()
    p, t = table.X[rows].astype(float), table.layers["truth"][rows].astype(float)
    one = metrics.loc[("GENE7", "stroma")]
    assert one["n_spots"] == rows.sum()
    assert one["pcc"] == pytest.approx(pearsonr(p[:, 7], t[:, 7]).statistic)
    assert one["mse"] == pytest.approx(mean_squared_error(t[:, 7], p[:, 7]))
    assert one["mae"] == pytest.approx(mean_absolute_error(t[:, 7], p[:, 7]))
    every = metrics.loc[("all genes", "stroma")]
    assert every["mae"] == pytest.approx(mean_absolute_error(t, p))
    assert every["pcc"] == pytest.approx(np.mean([pearsonr(p[:, j], t[:, j]).statistic for j in range(60)]))


def test_genes_by_region_against_scipy(results: Results) -> None:
    run = results.runs[0]
    summaries = summarize_regions(run, "region", None)
    assert sorted(summaries) == ["stroma", "tumor"]
    expected = []
    for fold in run.folds:
        table = fold.fold.predictions
        spots = (table.obs["region"] == "tumor").to_numpy()
        expected.append(pearsonr(table.X[spots, 5], table.layers["truth"][spots, 5]).statistic)
    assert summaries["tumor"].correlations["GENE5"] == pytest.approx(np.mean(expected), abs=1e-5)


def test_gains_by_region_by_hand(results: Results) -> None:
    frames = {r.label: run_regions(r, "region", ["GENE3"], None) for r in results.runs}
    full, no_hea = results.runs
    [one, every] = region_gains(frames["full"], frames["no_hea"], fold_pairs(full, no_hea))
    assert (one.gene, every.gene, one.n_regions) == ("GENE3", "all genes", 2)
    means = {
        label: frame[frame["gene"] == "GENE3"].groupby("region")[["pcc", "mse", "mae"]].mean()
        for label, frame in frames.items()
    }
    for metric in ("mse", "mae"):
        ours, base = means["full"][metric], means["no_hea"][metric]
        assert one.percent[metric] == pytest.approx(100 * (base.mean() - ours.mean()) / base.mean())
        assert one.p[metric] == pytest.approx(ttest_rel(ours, base).pvalue)
    ours, base = means["full"]["pcc"], means["no_hea"]["pcc"]
    assert one.percent["pcc"] == pytest.approx(100 * (ours.mean() - base.mean()) / base.mean())
    gains = region_gain_table(full, [no_hea], frames, "region")
    assert gains.rows[0].label == "GENE3, over no_hea"
    assert gains.rows[0].cells[1].value == one.percent["mse"]


def test_regions_from_the_slides_joined_by_barcode(results: Results, tmp_path: Path) -> None:
    table = results.runs[0].folds[0].fold.predictions
    (tmp_path / "st").mkdir()
    for slide in ("S0", "S1"):
        barcodes = [f"B{i}" for i in range(19, -1, -1)][:-2]  # in another order, two of them missing
        obs = pd.DataFrame({"layer": pd.Categorical([f"{slide}-{b}"[:4] for b in barcodes])}, index=barcodes)
        anndata.AnnData(X=np.zeros((18, 1), np.float32), obs=obs).write_h5ad(tmp_path / f"st/{slide}.h5ad")
    names = regions(table, "layer", tmp_path)
    where = zip(table.obs["slide"], table.obs["barcode"], strict=True)
    expected = [f"{s}-{b}"[:4] if b not in ("B0", "B1") else None for s, b in where]
    assert names.where(names.notna(), None).tolist() == expected
    with pytest.raises(InputError, match=r"neither in .*slide, barcode.*S0\.h5ad \(layer\)"):
        regions(table, "no_such", tmp_path)
    with pytest.raises(InputError, match="give --data-root"):
        regions(table, "layer", None)
    with pytest.raises(InputError, match=r"S0\.h5ad: not there"):
        regions(table, "layer", tmp_path / "nowhere")
    (tmp_path / "st").rename(tmp_path / "adata")  # as in HEST-bench
    assert regions(table, "layer", tmp_path).equals(names)
    (tmp_path / "adata/S1.h5ad").write_bytes(b"no HDF5")
    with pytest.raises(SlideError, match=r"S1\.h5ad: cannot be read"):
        regions(table, "layer", tmp_path)
    table.obs["radius_more"] = np.arange(len(table)) / 7
    table.obs["many"] = [str(i) for i in range(40)]
    table = anndata.concat([table, table], index_unique="-")
    table.obs["many"] = [str(i) for i in range(80)]
    with pytest.raises(InputError, match="80 different values"):
        regions(table, "many", None)
    with pytest.raises(InputError, match="NOGENE: not in the run's gene panel"):
        region_metrics(table, pd.Series("x", index=table.obs_names), ["NOGENE"])
    too_small = region_metrics(table, pd.Series(table.obs_names, index=table.obs_names), ["GENE7"])
    assert too_small.empty
    assert [kind.kind for kind in too_small.dtypes[2:]] == ["i", "f", "f", "f"], "such frames are joined with others"


def test_slides_are_means_over_the_folds_that_test_them(results: Results) -> None:
    table = slide_table(results, list(results.runs), "pcc@10")
    assert [r.label for r in table.rows] == ["S0", "S1", "S2"]
    assert [c.title for c in table.columns] == ["full", "no_hea"]
    assert table.rows[1].cells[0].value == pytest.approx(np.mean([0.69, 0.8]))  # second of fold 0, first of fold 1
    assert table.rows[2].cells[1].text == "0.400"


def test_what_must_be_known_first(tmp_path: Path) -> None:
    change = {"dataset": "colorectum", "cache.pretrained": False, "protocol.tested": "last"}
    run = write_run(tmp_path, (0.7, 0.8), change=change, n_undefined_genes=3, warnings=["geometry: collapsed"])
    for file in run.glob("fold*/config.json"):
        config = json.loads(file.read_text())
        config["split"] |= {"train": ["ZEN48", "ZEN46"], "val": ["ZEN44"], "test": ["ZEN49"]}
        file.write_text(json.dumps(config))
    text = "\n".join(result_warnings(read_results([tmp_path])))
    assert "encoder uni has random weights" in text
    assert "colorectum, default split, folds 0, 1: Patient 1 in train and test" in text
    assert "full: genes without a PCC (constant in truth or prediction), counted as 0: 3 of 60 in fold 0, 3" in text
    assert "full, folds 0, 1: geometry: collapsed" in text
    assert "last epoch's weights" in text
    assert "patients are not listed" not in text
