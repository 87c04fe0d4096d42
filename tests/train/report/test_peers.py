"""Other models in a report: the published rows under them, what they are, and how predictions were drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from hist_cache.errors import InputError
from hist_cache.options import option
from tests.train.models.toy import ToyModel
from tests.train.report.fake_runs import RIDGE, write_run
from train.models import registry
from train.models.configs import ModelConfig
from train.models.registry import ModelEntry, register
from train.report.alike import comparison_notes
from train.report.analysis_tables import significance_table
from train.report.model_table import model_table
from train.report.paper_tables import metrics_table
from train.report.published import published_improvements
from train.report.reading import read_results
from train.report.results import Results
from train.report.sections import ReportRequest, check_gene_names

FULL = (0.70, 0.72, 0.74)
KIDNEY = {"dataset": "kidney", "n_genes": 200, "genes": "hmhvg"}
LOOP = {"epochs": 200, "patience": 10, "batch_size": 128, "lr": 1e-4, "weight_decay": 0.01, "seed": 42}
HIST = KIDNEY | {"loop": LOOP}
BLEEP = RIDGE | KIDNEY | {"model_name": "bleep", "loop": LOOP | {"lr": 1e-3, "weight_decay": 1e-3, "batch_size": 256}}


@pytest.fixture
def kidney(tmp_path: Path) -> Results:
    write_run(tmp_path, FULL, change=HIST)
    write_run(tmp_path, (0.60, 0.61, 0.65), change=BLEEP)
    return read_results([tmp_path])


def test_improvements_typed_from_the_paper() -> None:
    """Tables 4 and 12 have 27 rows."""
    assert published_improvements(4, "colorectum", "triplex")[""]["pcc@10"] == "+2.83 % (0.119)"
    assert published_improvements(4, "kidney", "stem")[""]["mae"] == "+10.31 % (<0.001)"
    by_gene = published_improvements(12, "colorectum", "istar")
    assert by_gene["ACTA2"] == {"mae": "+43.89 % (0.0016)", "mse": "+108.59 % (0.0105)", "pcc": "+24.04 %"}
    assert list(by_gene) == ["KRT18", "ACTA2", "IGKC"]
    methods = {4: ("triplex", "stnet", "bleep", "stem"), 12: ("bleep", "istar", "stem", "stnet", "triplex")}
    datasets = ("colorectum", "skin", "kidney")
    counts = [len(published_improvements(t, d, m)) for t, names in methods.items() for m in names for d in datasets]
    assert sum(counts) == 27
    assert published_improvements(4, "her2st", "stem") == {}


def test_their_labels_are_their_names(kidney: Results) -> None:
    assert [run.label for run in kidney.runs] == ["full", "bleep"]


def test_a_method_s_published_row_stands_under_its_run_and_not_below(kidney: Results) -> None:
    labels = [row.label for row in metrics_table(kidney, kidney.runs).rows]
    under = labels.index("published, encoder trained, not comparable")
    assert labels[under - 2 : under] == ["bleep", "p against full"]
    assert "BLEEP, published" not in labels
    assert {"TRIPLEX, published", "ST-Net, published", "Stem, published"} <= set(labels)


def test_published_improvements_stand_beside_p_values(kidney: Results) -> None:
    table = significance_table(kidney, kidney.runs)
    assert table is not None
    [row] = [row for row in table.rows if row.kind == "published"]
    texts = dict(zip((c.title for c in table.columns), (c.text for c in row.cells), strict=True))
    assert texts["PCC@50"] == "+21.16 % (<0.01)"


def test_other_data_have_no_published_improvements(tmp_path: Path) -> None:
    for change in (HIST, BLEEP):
        write_run(tmp_path, FULL, change=change | {"genes": "hvg", "n_genes": 300})
    results = read_results([tmp_path])
    table = significance_table(results, results.runs)
    assert table is not None
    assert not [row for row in table.rows if row.kind == "published"]


def test_what_the_models_are(kidney: Results) -> None:
    table = model_table(kidney.runs)
    assert table is not None
    assert [row.label for row in table.rows] == ["hist", "bleep"]
    texts = [cell.text for cell in table.rows[1].cells]
    assert texts[1:3] == ["Xie et al., NeurIPS 2023", "ResNet-50, all of it trained"]
    assert texts[3].endswith(", frozen")
    assert model_table([run for run in kidney.runs if run.model == "hist"]) is None


@dataclass(frozen=True)
class DrawnConfig(ModelConfig):
    """Of a model that draws its predictions."""

    draws: int = option(20, "draws of a prediction", "N")

    @property
    def sampling(self) -> str:
        return f"mean of {self.draws} draws"


def test_how_predictions_were_drawn_stands_below_every_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    register(ModelEntry("drawn", "draws", ToyModel, DrawnConfig))
    write_run(tmp_path, FULL, change=RIDGE | {"model_name": "drawn", "model": {"embedding_width": 64, "n_genes": 60}})
    results = read_results([tmp_path])
    assert "drawn: mean of 20 draws" in metrics_table(results, results.runs).notes


def test_a_slide_that_no_run_tests(kidney: Results) -> None:
    check_gene_names(kidney, ReportRequest(slide="S1"))
    with pytest.raises(InputError, match="--slide S9: no run tests it; they test S0, S1, S2"):
        check_gene_names(kidney, ReportRequest(slide="S9"))


def test_training_options_of_a_model_s_own_are_no_further_difference(tmp_path: Path) -> None:
    write_run(tmp_path, FULL, change=HIST)
    write_run(tmp_path, FULL, change=BLEEP)
    write_run(tmp_path, FULL, change=BLEEP | {"loop": BLEEP["loop"] | {"lr": 0.5}})
    runs = {run.setting.fit.lr: run for run in read_results([tmp_path]).runs}
    full, own, by_hand = (runs[lr] for lr in (1e-4, 1e-3, 0.5))
    assert comparison_notes(own, full) == []
    [note] = comparison_notes(by_hand, full)
    assert "lr 0.5, not" in note
