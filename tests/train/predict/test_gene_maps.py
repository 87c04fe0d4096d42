"""The figure of chosen genes: what it draws, read from the figure before it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import EllipseCollection

from hist_cache.errors import InputError
from tests.train.predict.predicted_tables import DOWNSAMPLE, UM_PER_PX, predicted_table
from train.figures import round_length
from train.metrics import gene_pcc
from train.predict import gene_maps
from train.predict.gene_maps import write_gene_maps


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that were to be written."""
    figures: list[Any] = []
    monkeypatch.setattr(gene_maps, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def maps(figure: Any) -> list[Any]:
    return [ax for ax in figure.axes if ax.images]


def discs(ax: Any) -> EllipseCollection:
    (found,) = [artist for artist in ax.collections if isinstance(artist, EllipseCollection)]
    return found


def test_measured_and_predicted_share_their_colours(drawn: list[Any], tmp_path: Path) -> None:
    table = predicted_table(truth=True)
    write_gene_maps(tmp_path / "a.png", table, ["GENE2", "GENE0"])
    titled = {ax.get_title(): ax for ax in maps(drawn[0]) if ax.get_title()}
    assert set(titled) == {"SLIDE1, H&E", "GENE2", "GENE0"}
    assert titled["GENE2"].title.get_fontstyle() == "italic"
    assert titled["SLIDE1, H&E"].title.get_fontstyle() == "normal"
    for gene, column in (("GENE2", 2), ("GENE0", 0)):
        measured = titled[gene]
        (predicted,) = [
            ax
            for ax in maps(drawn[0])
            if ax.get_subplotspec().colspan == measured.get_subplotspec().colspan and ax is not measured
        ]
        truth, values = table.layers["truth"][:, column], np.asarray(table.X)[:, column]
        np.testing.assert_array_equal(discs(measured).get_array(), truth)
        np.testing.assert_array_equal(discs(predicted).get_array(), values)
        common = np.percentile(np.concatenate([truth, values]), [2, 98])
        np.testing.assert_allclose([discs(ax).get_clim() for ax in (measured, predicted)], [common, common])
        pcc = gene_pcc(values[:, None], truth[:, None])[0]
        assert (measured.get_xlabel(), predicted.get_xlabel()) == ("measured", f"predicted, PCC {pcc:.2f}")
    assert [ax.get_ylabel() for ax in drawn[0].axes if ax.get_ylabel()] == ["log2(1 + count)"] * 2


def test_the_scale_bar(drawn: list[Any], tmp_path: Path) -> None:
    write_gene_maps(tmp_path / "a.png", predicted_table(), ["GENE0"])
    (tissue,) = [ax for ax in maps(drawn[0]) if ax.get_title().endswith("H&E")]
    (bar,), (label,) = tissue.lines, tissue.texts
    length, unit = label.get_text().split()
    assert unit == "µm"
    assert np.ptp(bar.get_xdata()) * DOWNSAMPLE * UM_PER_PX == pytest.approx(float(length))


@pytest.mark.parametrize(("most", "expected"), [(1, 1), (0.99, 0.5), (19, 10), (20, 20), (4999, 2000), (5000, 5000)])
def test_round_length(most: float, expected: float) -> None:
    assert round_length(most) == pytest.approx(expected)


def test_many_genes_go_on_below_and_names_are_no_formulas(drawn: list[Any], tmp_path: Path) -> None:
    table = predicted_table(3, 3, genes=["$x", "a_b$", *(f"G{i}" for i in range(3))], slide="$\\frac$")
    table.X[:, 2] = 1
    table.X[0, 3] = np.nan
    write_gene_maps(tmp_path / "a.png", table, list(table.var_names))
    assert [ax.get_title() for ax in maps(drawn[0])] == ["$\\frac$, H&E", *table.var_names]
    assert {ax.get_subplotspec().rowspan.start for ax in maps(drawn[0])} == {0, 1}
    drawn[0].canvas.draw()


@pytest.mark.unpatched
def test_the_file(tmp_path: Path) -> None:
    file = write_gene_maps(tmp_path / "maps.png", predicted_table(4, 4), ["GENE1"])
    assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match="TP53 is not among its 5 predicted genes"):
        write_gene_maps(tmp_path / "b.png", predicted_table(2, 2), ["TP53"])
