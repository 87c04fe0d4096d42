"""The figures of a report: drawn into its folder, or taken from the runs' folds, and made to travel in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hist_cache.runs import GEOMETRY, MAPS, TRAINING
from train.report import plots as study_figures
from train.report.results import Results, RunResult
from train.report.run_settings import TRUTH
from train.report.table import Table, slug

if TYPE_CHECKING:
    import anndata
    import pandas as pd

MAPS_WIDEST = 1100  # px: every run has one
GENES_DRAWN = 2  # where none are named: the best
BARS = ("pcc@10", "pcc@50", "pcc@200", "mse", "mae")
GEOMETRY_PAIR = ("full", "no_hea")

Folded = tuple[str, Sequence[Any]]


class Drawer:
    """Draws for the runs of one dataset into `folder`; names of files begin with `prefix`."""

    def __init__(self, results: Results, runs: Sequence[RunResult], folder: Path, prefix: str) -> None:
        self.results, self.runs, self.folder, self.prefix = results, runs, folder, prefix

    def ablation(self, table: Table) -> list[Picture]:
        """Bars of all runs, where there are several."""
        metrics = [m for m in BARS if all(m in fold.metrics["pooled"] for run in self.runs for fold in run.folds)]
        if len(self.runs) < 2 or not metrics:
            return []
        file = self._file("ablation")
        study_figures.plot_ablation(file, self.results, self.runs, metrics)
        shown = metrics[min(1, len(metrics) - 1)].upper()
        column = [c.title for c in table.columns].index(shown)
        values = ", ".join(f"{r.label} {r.cells[column].text}" for r in table.rows if r.kind == "run")
        caption = (
            "Mean over folds, whiskers of one standard deviation, the folds as points. Axes that do not start at 0 say "
            "so: there the ends of the bars compare, their lengths do not. Orange: ridge on the same embeddings."
        )
        return [picture(file, "Variants side by side", caption, f"Bars of each metric by run. {shown}: {values}.")]

    def genes(self, lead: RunResult, names: Sequence[str], correlations: Mapping[str, pd.Series]) -> list[Picture]:
        """Named genes (default: the best of `lead`) on its first test slide, as all runs of that fold predict them."""
        tables = self._comparable(lead)
        panel = set(tables[lead.label].var_names)
        best = [g for g in correlations[lead.label].sort_values(ascending=False).index if g in panel]
        fold = lead.folds[0]
        slide = str(tables[lead.label].obs["slide"].iloc[0])
        pictures = []
        for gene in names or best[:GENES_DRAWN]:
            file = self._file(f"gene-{slug(gene)}")
            study_figures.plot_gene(file, tables, gene, slide)
            caption = (
                f"Measured, and predicted by each run, on test slide {slide} of fold {fold.number}. All maps share one "
                "scale; PCC is over this slide's spots."
            )
            alt = f"Maps of {gene} on {slide}: the H&E, measured expression, predictions of {', '.join(tables)}."
            pictures.append(picture(file, f"{gene} on the tissue", caption, alt))
        return pictures

    def _comparable(self, lead: RunResult) -> dict[str, anndata.AnnData]:
        """First folds of the runs that predict the same genes of the same slides as `lead`, which comes first."""
        fold = lead.folds[0]

        def predicts_the_same(run: RunResult) -> bool:
            other = run.folds[0]
            return run.shares(lead, TRUTH) and other.tested == fold.tested and other.fold.panel == fold.fold.panel

        alike = [r for r in self.runs if r is not lead and predicts_the_same(r)]
        return {r.label: r.folds[0].fold.predictions for r in (lead, *alike)}

    def maps(self) -> list[Folded]:
        return self._of_runs(
            MAPS, "Maps of each run's best genes", "measured above predicted expression of its best genes"
        )

    def geometry(self) -> list[Folded]:
        rest = [run for run in self.runs if run not in self._pair]
        return self._of_runs(GEOMETRY, "Geometry of the other runs", "the test spots' four embeddings", rest)

    def geometry_pair(self) -> list[Picture]:
        """`full` over `no_hea` where both are there, else the first run."""
        return [p for run in self._pair for p in self._of_run(run, GEOMETRY, "the test spots' four embeddings")]

    @cached_property
    def _pair(self) -> list[RunResult]:
        found = [next((r for r in self.runs if r.variant == name), None) for name in GEOMETRY_PAIR]
        return [r for r in found if r is not None] or [self.runs[0]]

    def training(self, lead: RunResult) -> list[Picture]:
        return self._of_run(lead, TRAINING, "losses and geometry over epochs")

    def training_of_others(self, lead: RunResult) -> list[Folded]:
        rest = [run for run in self.runs if run is not lead]
        return self._of_runs(TRAINING, "Training of the other runs", "losses and geometry over epochs", rest)

    def distributions(self, correlations: Mapping[str, pd.Series]) -> list[Picture]:
        file = self._file("pcc-over-genes")
        study_figures.plot_gene_distributions(file, correlations)
        medians = ", ".join(f"{label} {series.median():.3f}" for label, series in correlations.items())
        caption = "How many genes a run predicts how well: a high PCC@50 may hide a long tail."
        return [picture(file, "PCC over genes", caption, f"Densities of PCC over genes by run. Medians: {medians}.")]

    def panel(self, lead: RunResult) -> list[Picture]:
        table = lead.folds[0].fold.predictions
        file = self._file("gene-panel")
        where = f"{lead.label}, fold {lead.folds[0].number}"
        study_figures.plot_gene_panel(file, table, f"The {table.n_vars} genes of the panel, {where}")
        caption = (
            f"Mean and variance over the test spots of fold {lead.folds[0].number}; the best predicted have names."
        )
        return [
            picture(file, "The gene panel", caption, f"{table.n_vars} genes by mean and variance, coloured by PCC.")
        ]

    def _of_runs(self, file: str, title: str, what: str, runs: Sequence[RunResult] | None = None) -> list[Folded]:
        pictures = [p for run in (self.runs if runs is None else runs) for p in self._of_run(run, file, what)]
        return [(title, pictures)] if pictures else []

    def _of_run(self, run: RunResult, file: str, what: str) -> list[Picture]:
        """A figure of the run's first fold; none where the fold has none. The others are named by their path."""
        path = run.folds[0].fold.folder / file
        if not path.exists():
            return []
        rest = f"; other folds: {run.folder}/fold*/{file}" if len(run.folds) > 1 else ""
        stem = Path(file).stem
        caption = f"{what[0].upper()}{what[1:]}, fold {run.folds[0].number}{rest}"
        name = slug(f"{self.prefix} {run.label} {stem}")
        alt = f"{run.label}, fold {run.folds[0].number}: {what}."
        widest = MAPS_WIDEST if file == MAPS else WIDEST
        return [picture(path, f"{run.label}: {stem}", caption, alt, name, widest)]

    def _file(self, name: str) -> Path:
        return self.folder / f"{self.prefix}-{name}.png"


AS_IT_IS = 120_000  # bytes: a smaller PNG is embedded as it is
WIDEST = 1500  # px
QUALITY = 82


@dataclass(frozen=True)
class Picture:
    name: str
    """Of the file when downloaded, without its ending."""
    title: str
    caption: str
    alt: str
    uri: str
    width: int
    height: int
    ending: str


def picture(file: Path, title: str, caption: str, alt: str, name: str = "", widest: int = WIDEST) -> Picture:
    """The PNG `file` as a data URI: itself where it is small, else WebP of at most `widest` px."""
    from PIL import Image

    with Image.open(file) as image:
        width, height = image.size
        data, kind = file.read_bytes(), "png"
        if len(data) > AS_IT_IS:
            if width > widest:
                width, height = widest, round(height * widest / width)
            text = io.BytesIO()
            image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).save(
                text, "WEBP", quality=QUALITY, method=5
            )
            data, kind = text.getvalue(), "webp"
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Picture(name or file.stem, title, caption, alt, uri, width, height, kind)
