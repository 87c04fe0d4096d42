"""The figures of a report: drawn into its folder or taken from the runs' folds, then embedded into the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from hist_cache.runs import GEOMETRY, TRAINING, readable_file
from train.report.against_ridge import AgainstRidge
from train.report.alike import truth_differences
from train.report.fold_result import FoldResult
from train.report.forest import plot_forest
from train.report.plots import plot_ablation, plot_gene, plot_gene_distributions, plot_gene_panel
from train.report.results import Results, RunResult
from train.report.significance import REFERENCE
from train.report.table import Table, slug

if TYPE_CHECKING:
    import anndata
    import pandas as pd

MAX_PNG_BYTES = 120_000  # a larger PNG is embedded as WebP
MAX_WIDTH = 1500  # px
MAX_HEIGHT = 12_000  # px; WebP has 16,383 at most
WEBP_QUALITY = 82
MAX_RUNS_DRAWN = 11  # on the tissue, beside the H&E and what was measured
N_GENES_DRAWN = 2  # the best predicted, where none are named
BAR_METRICS = ("pcc@10", "pcc@50", "pcc@200", "mse", "mae")
GEOMETRY_PAIR = (REFERENCE, "no_hea")  # with and without entailment
GEOMETRY_TEXT = "the test spots' four embeddings"
TRAINING_TEXT = "losses and geometry over epochs"


@dataclass(frozen=True)
class Picture:
    """A figure that is embedded into the page."""

    name: str
    """Of the file when downloaded, without its ending."""
    title: str
    caption: str
    alt: str
    uri: str
    width: int
    height: int
    ending: str


CollapsedPictures = list[tuple[str, Sequence[Picture]]]
"""Pictures that the page shows on a click, by the line that is clicked; empty where there are none."""


def picture(file: Path, title: str, caption: str, alt: str, name: str = "") -> Picture:
    """Embed a figure: as the PNG that it is where that is small, else as WebP of `MAX_WIDTH` and `MAX_HEIGHT` at most.

    Args:
        file: the PNG.
        title: above the caption.
        caption: below the figure.
        alt: what the figure shows, for readers who do not see it.
        name: of the file when downloaded (default: the PNG's).
    """
    from PIL import Image

    with readable_file(file), Image.open(file, formats=["PNG"]) as image:
        width, height = image.size
        data, kind = file.read_bytes(), "png"
        if len(data) > MAX_PNG_BYTES:
            share = min(1, MAX_WIDTH / width, MAX_HEIGHT / height)
            width, height = max(1, round(width * share)), max(1, round(height * share))
            small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            small.save(buffer, "WEBP", quality=WEBP_QUALITY, method=3)
            data, kind = buffer.getvalue(), "webp"
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Picture(name or file.stem, title, caption, alt, uri, width, height, kind)


class ReportFigures:
    """The figures for the runs of one group."""

    def __init__(self, results: Results, runs: Sequence[RunResult], folder: Path, prefix: str) -> None:
        """Draw into `folder`, with names of files that begin with `prefix`."""
        self.results, self.runs, self.folder, self.prefix = results, runs, folder, prefix

    def ablation(self, table: Table) -> list[Picture]:
        """Bars of all runs; none for a single run.

        Args:
            table: `metrics_table` of the runs, whose numbers the alternative text has.
        """
        metrics = [m for m in BAR_METRICS if all(m in f.metrics["pooled"] for run in self.runs for f in run.folds)]
        if len(self.runs) < 2 or not metrics:
            return []
        file = self._file("ablation")
        plot_ablation(file, self.results, self.runs, metrics)
        metric = metrics[min(1, len(metrics) - 1)].upper()
        column = [c.title for c in table.columns].index(metric)
        values = ", ".join(f"{r.label} {r.cells[column].text}" for r in table.rows if r.kind == "run")
        caption = (
            "Mean over folds, whiskers of one standard deviation, the folds as points. All bars start at 0, and "
            "the axes of the correlations are the same. Orange: ridge on the same embeddings."
        )
        methods = "Variants" if all(run.variant for run in self.runs) else "Methods"
        alt = f"Bars of each metric by run. {metric}: {values}."
        return [picture(file, f"{methods} side by side", caption, alt)]

    def forest(self, found: Sequence[AgainstRidge]) -> list[Picture]:
        """Differences to ridge with their intervals; none where nothing is compared.

        Args:
            found: `against_ridge` of the runs.
        """
        if not found:
            return []
        file = self._file("against-ridge")
        plot_forest(file, found)
        caption = (
            "Mean over folds of the difference to ridge, with a 95 % interval. An interval that crosses the line shows "
            "no clear difference. A single fold has none, and a narrow one lies behind its dot."
        )
        alt = f"Differences to ridge by run: {'; '.join(one.sentence for one in found)}."
        return [picture(file, "Against ridge", caption, alt)]

    def genes(
        self, main: RunResult, names: Sequence[str], correlations: Mapping[str, pd.Series], slide: str | None = None
    ) -> list[Picture]:
        """Maps of single genes on a test slide, as all runs of that fold predict them.

        Args:
            main: the run whose first test slide is drawn, and whose best genes are.
            names: genes to draw instead.
            correlations: label of a run -> PCC by gene.
            slide: to draw instead; where no fold of the run tests it, nothing is drawn.
        """
        fold = next((f for f in main.folds if slide in (None, *f.pictured)), None)
        if fold is None:
            return []
        tables, n_alike = self._comparable_predictions(main, fold)
        panel = set(tables[main.label].var_names)
        best = [g for g in correlations[main.label].sort_values(ascending=False).index if g in panel]
        slide = slide or str(tables[main.label].obs["slide"].iloc[0])
        pictures = []
        for gene in names or best[:N_GENES_DRAWN]:
            file = self._file(f"gene-{slug(gene)}")
            plot_gene(file, tables, gene, slide)
            who = "each run" if len(tables) == n_alike else f"the first {len(tables)} of {n_alike} runs"
            caption = (
                f"Measured, and predicted by {who}, on test slide {slide} of fold {fold.number}. All maps share one "
                "scale; PCC is over this slide's spots."
            )
            alt = f"Maps of {gene} on {slide}: the H&E, measured expression, predictions of {', '.join(tables)}."
            pictures.append(picture(file, f"{gene} on the tissue", caption, alt))
        return pictures

    def _comparable_predictions(self, main: RunResult, fold: FoldResult) -> tuple[dict[str, anndata.AnnData], int]:
        """Of a fold of `main`, which comes first, and of folds of others with the same genes and test slides.

        Returns:
            The predictions by label of the run, of `MAX_RUNS_DRAWN` runs at most, and of how many runs there are some.
        """
        alike = {main.label: fold}
        for run in self.runs:
            same = (f for f in run.folds if f.test_slides == fold.test_slides and f.fold.panel == fold.fold.panel)
            if run is not main and not truth_differences(run, main) and (own := next(same, None)):
                alike[run.label] = own
        return {label: f.fold.predictions for label, f in islice(alike.items(), MAX_RUNS_DRAWN)}, len(alike)

    def geometry_pair(self) -> list[Picture]:
        """The geometry of `full` above `no_hea` where they are there, else that of the first run that has one."""
        return [p for run in self._geometry_runs for p in self._of_run(run, GEOMETRY, GEOMETRY_TEXT)]

    def other_geometry(self) -> CollapsedPictures:
        """The geometry of the runs that are not in `geometry_pair`."""
        others = [run for run in self.runs if run not in self._geometry_runs]
        return self._of_runs(others, GEOMETRY, "Geometry of the other runs", GEOMETRY_TEXT)

    @cached_property
    def _geometry_runs(self) -> list[RunResult]:
        with_geometry = [run for run in self.runs if _figure_of(run, GEOMETRY).exists()]
        pair = [next((r for r in with_geometry if r.method == name), None) for name in GEOMETRY_PAIR]
        return [r for r in pair if r is not None] or with_geometry[:1]

    def training(self, main: RunResult) -> list[Picture]:
        """The training curves of one run."""
        return self._of_run(main, TRAINING, TRAINING_TEXT)

    def other_training(self, main: RunResult) -> CollapsedPictures:
        """The training curves of the other runs."""
        others = [run for run in self.runs if run is not main]
        return self._of_runs(others, TRAINING, "Training of the other runs", TRAINING_TEXT)

    def distributions(self, correlations: Mapping[str, pd.Series]) -> list[Picture]:
        """Densities of PCC over genes (label of a run -> PCC by gene)."""
        file = self._file("pcc-over-genes")
        plot_gene_distributions(file, correlations)
        medians = ", ".join(f"{label} {series.median():.3f}" for label, series in correlations.items())
        caption = "How many genes a run predicts how well: a high PCC@50 may hide a long tail."
        return [picture(file, "PCC over genes", caption, f"Densities of PCC over genes by run. Medians: {medians}.")]

    def panel(self, main: RunResult) -> list[Picture]:
        """The gene panel of the run's first fold."""
        table, number = main.folds[0].fold.predictions, main.folds[0].number
        file = self._file("gene-panel")
        plot_gene_panel(file, table, f"The {table.n_vars} genes of the panel, {main.label}, fold {number}")
        caption = f"Mean and variance over the test spots of fold {number}; the best predicted have names."
        alt = f"{table.n_vars} genes by mean and variance, coloured by PCC."
        return [picture(file, "The gene panel", caption, alt)]

    def _of_runs(self, runs: Sequence[RunResult], file: str, title: str, text: str) -> CollapsedPictures:
        pictures = [p for run in runs for p in self._of_run(run, file, text)]
        return [(title, pictures)] if pictures else []

    def _of_run(self, run: RunResult, file: str, text: str) -> list[Picture]:
        """A figure of the run's first fold, if that has it; the caption says where those of other folds are."""
        path, number = _figure_of(run, file), run.folds[0].number
        if not path.exists():
            return []
        other_folds = f"; other folds: {run.folder}/fold*/{file}" if len(run.folds) > 1 else ""
        stem = path.stem
        caption = f"{text[0].upper()}{text[1:]}, fold {number}{other_folds}"
        name = slug(f"{self.prefix} {run.label} {stem}")
        alt = f"{run.label}, fold {number}: {text}."
        return [picture(path, f"{run.label}: {stem}", caption, alt, name)]

    def _file(self, name: str) -> Path:
        return self.folder / f"{self.prefix}-{name}.png"


def _figure_of(run: RunResult, file: str) -> Path:
    return run.folds[0].fold.folder / file
