"""The mean of the predictions of several runs."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr

from hist_cache.errors import InputError
from hist_cache.runs import Fold
from tests.train.report.fake_runs import write_run
from train.report.ensemble_tables import ensemble_tables, mean_metrics
from train.report.reading import read_results


def test_metrics_are_those_of_the_mean_of_the_predictions(tmp_path: Path) -> None:
    for i, skills in enumerate(([0.8, 0.6], [0.5, 0.7], [0.3, 0.9, 0.4])):
        write_run(tmp_path, skills, change={"loop.seed": i}, predictions=True)
    results = read_results([tmp_path])
    (table,) = ensemble_tables(results)
    assert [row.label for row in table.rows][-1] == "mean of these 3"
    assert len(table.rows) == 4
    expected = []
    for fold in range(2):  # the third fold is of one run alone
        tables = [run.folds[fold].fold.predictions for run in results.runs]
        truth = np.asarray(tables[0].layers["truth"], dtype=np.float64)
        mean = sum(np.asarray(t.X, dtype=np.float64) for t in tables) / 3
        pcc = sorted((pearsonr(p, t)[0] for p, t in zip(mean.T, truth.T, strict=True)), reverse=True)
        expected.append((np.mean(pcc[:50]), ((mean - truth) ** 2).mean()))
    cells = dict(zip([column.title for column in table.columns], table.rows[-1].cells, strict=True))
    pcc_50, mse = (next(cell for title, cell in cells.items() if title.startswith(name)) for name in ("PCC@50", "MSE"))
    assert (pcc_50.value, mse.value) == pytest.approx(np.mean(expected, axis=0), rel=1e-6)
    assert pcc_50.spread == pytest.approx(np.std([e[0] for e in expected], ddof=1), rel=1e-6)


def test_the_mean_of_a_leaking_run_says_so_and_is_never_the_best(tmp_path: Path) -> None:
    tuned = {"cache.lora": "a" * 64, "leak": ""}
    leaking = tuned | {"leak": "tests S1, which the adapter was trained on"}
    for i, (skill, change) in enumerate(((0.9, leaking), (0.5, tuned), (0.4, tuned))):
        write_run(tmp_path, [skill] * 2, change=change | {"loop.seed": i}, predictions=True)
    (table,) = ensemble_tables(read_results([tmp_path]))
    assert table.rows[-1].label == "mean of these 3, LEAK"
    best = {row.label for row in table.rows for cell in row.cells if cell.best}
    assert best
    assert not [label for label in best if "LEAK" in label]
    assert [note for note in table.notes if note.startswith("LEAK: ") and "tests S1" in note]


def test_runs_without_a_common_fold_have_no_mean(tmp_path: Path) -> None:
    write_run(tmp_path, [0.8], predictions=True)
    with pytest.raises(InputError, match="--ensemble: no two of the runs"):
        ensemble_tables(read_results([tmp_path]))


def test_other_spots_are_refused(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a", [0.8], predictions=True)
    other = write_run(tmp_path / "b", [0.8], tests=[["S0", "S1"]], predictions=True)
    with pytest.raises(InputError, match="predicts other spots or genes"):
        mean_metrics([Fold(one / "fold0"), Fold(other / "fold0")])
