"""Which figures for a paper are drawn of some runs, of which genes and slides, and what their captions say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hist_cache.errors import HistError, InputError
from hist_cache.files import write_text
from hist_cache.metadata import read_metadata, read_scale
from train.figures import SPOT_ENLARGEMENT
from train.metrics import gene_pcc
from train.report.alike import truth_differences
from train.report.analysis import summarize_run
from train.report.fold_result import FoldResult
from train.report.paper_figures.comparison import (
    ABOVE_PANELS,
    BELOW_PANELS,
    LABEL_LINE,
    LEGEND,
    RUN_ROW,
    STRONG_BASELINES,
    compared_in,
    draw_comparison,
)
from train.report.paper_figures.gene_spread import (
    ABOVE,
    BELOW,
    LABEL_CHARACTERS,
    ROW_HEIGHT_OF_GENES,
    draw_gene_spread,
)
from train.report.paper_figures.map_grid import SlideMaps, fitting_parts
from train.report.paper_figures.scatter import MAX_PANELS, draw_scatter
from train.report.paper_figures.style import (
    ONE_COLUMN,
    PAGE_HEIGHT,
    TWO_COLUMNS,
    Format,
    PaperFigure,
    paper_style,
    save_paper_figure,
    wrapped_labels,
)
from train.report.paper_figures.tissue_maps import MAPS_ACROSS, draw_maps
from train.report.paper_tables import group_name, run_groups, unit_of
from train.report.resampling import split_ratio
from train.report.results import Results, RunResult
from train.report.significance import references
from train.report.table import METRIC_TITLES, escape_markdown, slug

if TYPE_CHECKING:
    import anndata
    import pandas as pd

CHOSEN_RANKS = (0.0, 0.25, 0.5, 0.75)  # of the genes drawn where none are named, as shares of the panel; 0 is the best
MAX_MAPPED = 11  # on maps; with the measured map and the H&E they fill two rows
MAX_COMPARED = 40  # runs in the other figures
COMPARED_METRICS = ("pcc@50", "mse")


@dataclass(frozen=True)
class PaperRequest:
    """What figures for a paper are asked for."""

    formats: tuple[Format, ...]
    dpi: int = 300
    """Of PNG, and of the pictures in SVG and PDF."""
    against: str | None = None
    """Method or label of the reference (default: full)."""
    genes: tuple[str, ...] = ()
    """Drawn; where none are named, the best predicted and those at the quartiles of PCC over the panel."""
    slide: str | None = None
    """Test slide of the maps; the first where none is named."""
    data_root: Path | None = None
    """Folder with the slides' metadata, for the scale bar of predictions that do not say it."""


def write_paper_figures(results: Results, folder: Path, request: PaperRequest) -> tuple[list[Path], list[str]]:
    """Draw and write the figures of each group of runs, and their captions as Markdown.

    Args:
        results: the runs.
        folder: to write into.
        request: what is asked for.

    Returns:
        The files, and a sentence for each figure, or part of one, that cannot be drawn.
    """
    paths: list[Path] = []
    remarks: list[str] = []
    for runs in run_groups(results):
        name = slug(group_name(runs[0]))
        captions = [f"# Figures, {escape_markdown(group_name(runs[0]))}", ""]
        group = PaperGroup(results, runs, request, remarks)
        with paper_style():
            for drawn in group.figures():
                stem = f"{name}-{drawn.name}"
                paths += save_paper_figure(drawn.figure, folder, stem, request.formats, request.dpi)
                captions += [f"**{stem}.** {escape_markdown(drawn.caption)}", ""]
        write_text(folder / f"{name}-captions.md", "\n".join(captions))
    return paths, remarks


class PaperGroup:
    """The figures of one group of runs."""

    def __init__(self, results: Results, runs: list[RunResult], request: PaperRequest, remarks: list[str]) -> None:
        """Of what cannot be drawn, a sentence is added to `remarks`."""
        self.results, self.runs, self.request, self.remarks = results, runs, request, remarks
        chosen = references(results, request.against)
        self.reference = next((chosen[run.label] for run in runs if run.label in chosen), None)
        self.main = self.reference or runs[0]
        self.group = group_name(runs[0])

    def figures(self) -> Iterator[PaperFigure]:
        """All figures that can be drawn, one after the other."""
        parts: tuple[Callable[[], Iterator[PaperFigure]], ...] = (self.maps, self.comparison, self.gene_spread)
        for part in parts:
            try:
                yield from part()
            except HistError as error:
                self.remarks.append(f"{self.group}: no figure of {part.__name__.replace('_', ' ')}: {error}")

    def maps(self) -> Iterator[PaperFigure]:
        """The maps of all genes, of each gene alone, and predicted against measured."""
        fold = next((fold for fold in self.main.folds if self.request.slide in (None, *fold.pictured)), None)
        if fold is None:
            raise InputError(f"{self.main.label} has no fold that tests {self.request.slide}")
        table = fold.fold.predictions
        genes = self.request.genes or genes_at_ranks(table)
        maps = self._slide_maps(fold, table, genes)
        where = f"slide {maps.slide} (fold {fold.number}, {len(maps.spots)} spots)"
        text = (
            f"Measured and predicted expression on {where}; H&E in grey below. All maps of a gene share the colour "
            "scale, which covers the 1st to 99th percentile of each of them; pointed ends: values beyond. PCC: over "
            f"the spots of this slide. Spots are drawn {SPOT_ENLARGEMENT:g} times as wide as they are."
        )
        parts = fitting_parts(maps, TWO_COLUMNS, MAPS_ACROSS)
        for i, part in enumerate(parts):
            number = f"-{i + 1}" if len(parts) > 1 else ""
            yield PaperFigure(f"maps{number}-183mm", draw_maps(part, TWO_COLUMNS, MAPS_ACROSS, self.request.dpi), text)
        for k, gene in enumerate(genes):
            alone = maps.some_genes(k, k + 1).some_runs(1)
            drawn = draw_maps(alone, ONE_COLUMN, MAPS_ACROSS // 2, self.request.dpi)
            yield PaperFigure(f"map-{slug(gene)}-89mm", drawn, f"{gene}. {text}")
        yield from self._scatter(fold, table, genes)

    def _scatter(self, fold: FoldResult, table: anndata.AnnData, genes: Sequence[str]) -> Iterator[PaperFigure]:
        measured, predicted = (_columns(values, table, genes) for values in (table.layers["truth"], table.X))
        pcc, unit = gene_pcc(predicted, measured), str(table.uns["expression"])
        slides = ", ".join(fold.pictured)
        caption = (
            f"Expression as {self.main.label} predicts it, against the measured one, at the {table.n_obs} test spots "
            f"of fold {fold.number} (slides: {slides}). Dashed: where both are equal. PCC: over these spots."
        )
        for i, first in enumerate(range(0, len(genes), MAX_PANELS)):
            part = slice(first, first + MAX_PANELS)
            figure = draw_scatter(genes[part], measured[:, part], predicted[:, part], pcc[part], unit)
            number = f"-{i + 1}" if len(genes) > MAX_PANELS else ""
            yield PaperFigure(f"scatter{number}-{round(figure.get_figwidth() * 25.4)}mm", figure, caption)

    def comparison(self) -> Iterator[PaperFigure]:
        """All runs and the baselines; nothing for a single run."""
        pooled = [fold.metrics["pooled"] for run in self.runs for fold in run.folds]
        shared = [m for m in pooled[0] if all(m in values for values in pooled)]
        widest = [m for m in shared if m.startswith("pcc@")][-1:]
        metrics = [m for m in COMPARED_METRICS if m in shared]
        metrics = metrics if COMPARED_METRICS[0] in metrics else [*widest, *metrics]
        if len(self.runs) < 2 or not metrics:
            return
        room = PAGE_HEIGHT - ABOVE_PANELS - BELOW_PANELS - LEGEND - len(STRONG_BASELINES) * RUN_ROW
        runs = self._fitting("compared", LABEL_LINE, RUN_ROW, room)
        reference = self.reference
        by_metric = {metric: compared_in(self.results, runs, reference, metric) for metric in metrics}
        names = " and ".join(METRIC_TITLES.get(metric, metric.upper()) for metric in metrics)
        counts = "or".join(f" {n} " for n in sorted({len(run.folds) for run in runs}))
        caption = (
            f"{names} over the test spots of a fold, mean over{counts}folds, pooled (grey: the folds), in "
            f"{unit_of(self.main)} where it is an error; best first. Lines: 95 % intervals by the t distribution, "
            "whose variance is corrected for the train slides that folds share (Nadeau and Bengio; test/train "
            f"{split_ratio(self.main.folds):.3g}, in slides). Intervals of means hold the differences between folds "
            "too, which paired ones do not."
        )
        caption += f" Differences are to {reference.label}, paired by fold." if reference is not None else ""
        figure = draw_comparison(by_metric, None if reference is None else reference.label)
        yield PaperFigure("comparison-183mm", figure, caption)

    def gene_spread(self) -> Iterator[PaperFigure]:
        """PCC over genes of all runs."""
        runs = self._fitting("drawn by gene", LABEL_CHARACTERS, ROW_HEIGHT_OF_GENES, PAGE_HEIGHT - ABOVE - BELOW)
        correlations: dict[str, pd.Series] = {run.label: summarize_run(run).correlations for run in runs}
        sizes = " or ".join(map(str, sorted({len(series) for series in correlations.values()})))
        caption = (
            f"PCC of each of {sizes} genes over the pooled test spots of a fold, mean over folds; an undefined one "
            "counts as 0. Ticks: genes; bar: quartiles; dot and number: median."
        )
        yield PaperFigure("genes-89mm", draw_gene_spread(correlations), caption)

    def _fitting(self, what: str, characters: int, height: float, room: float) -> list[RunResult]:
        """The main run and the first others, as many as fit on a page; a remark names how many are left out.

        Args:
            what: Is done with them.
            characters: Of a label in one line.
            height: Of a run whose label has one line, in mm.
            room: For all of them, in mm.
        """
        runs = [self.main, *(run for run in self.runs if run is not self.main)][:MAX_COMPARED]
        _, heights = wrapped_labels([run.label for run in runs], characters, height)
        runs = runs[: max(1, int((np.cumsum(heights) <= room).sum()))]
        if left_out := len(self.runs) - len(runs):
            self.remarks.append(f"{self.group}: {left_out} of {len(self.runs)} runs are not {what}")
        return runs

    def _slide_maps(self, fold: FoldResult, table: anndata.AnnData, genes: Sequence[str]) -> SlideMaps:
        """The measured expression of a slide, and its predictions by all runs with a fold like this one."""
        slide = self.request.slide or str(table.obs["slide"].iloc[0])
        rows = (table.obs["slide"] == slide).to_numpy()
        spots = table.obs_names[rows]
        picture = table.uns["spatial"][slide]
        if "lowres" not in picture["images"]:
            raise InputError(f"{fold.fold.folder}: its predictions have no image of {slide}")
        scale = float(picture["scalefactors"]["tissue_lowres_scalef"])
        measured = _columns(table.layers["truth"], table, genes)[rows]
        by_run = {self.main.label: _columns(table.X, table, genes)[rows]}
        for run, own in self._alike(fold):
            other = own.fold.predictions
            by_run[run.label] = _columns(other[spots].X, other, genes)
        um = self.um_per_px(slide, picture["scalefactors"])
        return SlideMaps(
            slide=slide,
            thumbnail=np.asarray(picture["images"]["lowres"]),
            spots=np.asarray(table.obsm["spatial"], dtype=np.float64)[rows] * scale,
            diameter=float(picture["scalefactors"]["spot_diameter_fullres"]) * scale,
            um_per_px=None if um is None else um / scale,
            unit=str(table.uns["expression"]),
            genes=tuple(genes),
            runs=tuple(by_run),
            measured=measured,
            predicted=np.stack(list(by_run.values())),
            pcc=np.stack([gene_pcc(values, measured) for values in by_run.values()]),
        )

    def _alike(self, fold: FoldResult) -> list[tuple[RunResult, FoldResult]]:
        """Other runs with a fold of the same genes and test slides as one of the main run; the first of them."""
        found = []
        for run in self.runs:
            same = (f for f in run.folds if f.tested_on == fold.tested_on)
            if run is not self.main and not truth_differences(run, self.main) and (own := next(same, None)):
                found.append((run, own))
        if len(found) > MAX_MAPPED - 1:
            self.remarks.append(f"{self.group}: {len(found) - MAX_MAPPED + 1} of {len(found) + 1} runs are on no map")
        return found[: MAX_MAPPED - 1]

    def um_per_px(self, slide: str, scale: dict[str, float]) -> float | None:
        """Of the full resolution, from the predictions or from the slide's metadata; None where neither says it."""
        if "microns_per_pixel" in scale:
            return float(scale["microns_per_pixel"])
        if self.request.data_root is not None:
            try:
                return read_scale(slide, *read_metadata(self.request.data_root, slide), any_scale=True).um_per_px
            except HistError as error:
                self.remarks.append(f"{self.group}: no scale bar: {error}")
                return None
        self.remarks.append(
            f"{self.group}: no scale bar: the predictions were made by a version that did not write um per px; give "
            "--data-root or $HIST_DATA, the folder that holds metadata/"
        )
        return None


def _columns(values: np.ndarray, table: anndata.AnnData, genes: Sequence[str]) -> np.ndarray:
    """Expression (spots, genes) of some genes; `InputError` where the panel lacks one."""
    if missing := [gene for gene in genes if gene not in table.var_names]:
        raise InputError(f"{', '.join(missing)}: not in the gene panel of the fold that is drawn")
    return np.asarray(values, dtype=np.float64)[:, [table.var_names.get_loc(gene) for gene in genes]]


def genes_at_ranks(table: anndata.AnnData) -> tuple[str, ...]:
    """The best predicted gene and those at the quartiles of PCC, so that figures do not show the best alone."""
    pcc = np.nan_to_num(gene_pcc(np.asarray(table.X), np.asarray(table.layers["truth"])), nan=-1.0)
    order = np.argsort(-pcc, kind="stable")
    places = dict.fromkeys(int(share * (len(order) - 1)) for share in CHOSEN_RANKS)
    return tuple(str(table.var_names[order[place]]) for place in places)
