"""What is said of all predicted slides together: a table, and the mean expression of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from hist_cache.files import atomic_write
from train.predict.outputs import mean_of_spots
from train.predict.slides import PredictedSlide
from train.report.classify_data import PSEUDOBULK_FILE
from train.report.table import HIGHER, LOWER, Cell, Column, Row, Table, number_cell


def write_pseudobulk(folder: Path, slides: Sequence[PredictedSlide]) -> Path:
    """Write slides x genes: the mean over each slide's spots of predicted expression, in its own unit.

    Rows of further slides that are there stay, if their predictions are still in the folder.
    """
    means = {name: row for name, row in earlier_rows(folder / PSEUDOBULK_FILE) if (folder / f"{name}.h5ad").is_file()}
    for slide in slides:
        genes, values = mean_of_spots(slide.path)
        means[slide.name] = pd.Series(values, index=genes)
    path = folder / PSEUDOBULK_FILE
    with atomic_write(path) as aside:
        pd.DataFrame(means).T.sort_index().rename_axis("slide").to_csv(aside)
    return path


def earlier_rows(path: Path) -> list[tuple[str, pd.Series]]:
    """The rows of a pseudobulk.csv by slide; [] where there is none, or it cannot be read."""
    try:
        table = pd.read_csv(path, index_col="slide", dtype={"slide": str})
    except (OSError, ValueError):  # which pandas' own errors are too
        return []
    return [(str(name), row) for name, row in table.iterrows()]


def predicted_table(slides: Sequence[PredictedSlide]) -> Table:
    """A row a slide: spots, the share beyond the limit of the distance, disagreement of folds, and metrics."""
    known = {metric for slide in slides for metric in slide.metrics.get("pooled", {})}
    metrics = [metric for metric in ("pcc@10", "pcc@50", "pcc@200", "mse") if metric in known]
    columns = [Column("spots"), Column("far from training"), Column("folds differ by")]
    columns += [Column(m.upper(), LOWER if m == "mse" else HIGHER) for m in metrics]
    rows = []
    for slide in slides:
        beyond, spread = (slide.record.get(name) for name in ("beyond", "disagreement"))
        cells = [Cell(f"{slide.record['spots']:,}", float(slide.record["spots"]))]
        cells += [Cell("–") if beyond is None else Cell(f"{beyond:.1%}", beyond), number_cell(spread)]
        cells += [number_cell(slide.metrics.get("pooled", {}).get(m)) for m in metrics]
        rows.append(Row(slide.name, "run", tuple(cells)))
    notes = ["far from training: spots farther from the train spots' embeddings than 99 % of the validation slides'"]
    if any("disagreement" in slide.record for slide in slides):
        notes.append("folds differ by: standard deviation between the folds' predictions, mean over spots and genes")
    return Table("predicted", "Predicted slides", tuple(columns), tuple(rows), tuple(notes), "slide")
