"""What is written beside a slide's h5ad where it was asked for: maps, a page, files for QuPath and napari."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np

from extract.slides.readers import open_image
from hist_cache.errors import InputError
from hist_cache.files import write_json
from hist_cache.texts import first_names
from train.predict.gene_maps import write_gene_maps
from train.predict.geojson import write_geojson, write_spot_table
from train.predict.options import PredictOptions
from train.predict.predicted import SlidePicture, spatial_variance
from train.predict.spatialdata import check_spatialdata, write_spatialdata
from train.predict.viewer import write_viewer

log = logging.getLogger(__name__)

QUPATH_GENES = 50  # without names of genes: 50,000 spots with so many have 65 MB


@dataclass(frozen=True)
class Extras:
    """What is asked for.

    Attributes:
        genes: That are drawn, and written for QuPath; () for all, and no maps.
        viewer: Whether to write a page.
        qupath: Whether to write GeoJSON and CSV.
        spatialdata: Whether to write a SpatialData store.
    """

    genes: tuple[str, ...] = ()
    viewer: bool = False
    qupath: bool = False
    spatialdata: bool = False

    @classmethod
    def of(cls, options: PredictOptions, predicted: Sequence[str]) -> Extras:
        """What options ask for; `InputError` where it cannot be written, before anything is computed."""
        named = (gene.strip() for gene in (options.genes_to_plot or "").split(","))
        genes = tuple(dict.fromkeys(gene for gene in named if gene))
        if options.spatialdata:
            check_spatialdata()
        if unknown := [gene for gene in genes if gene not in set(predicted)]:
            raise InputError(f"--genes-to-plot: the run does not predict {first_names(unknown)}")
        return cls(genes, options.viewer, options.qupath, options.spatialdata)

    def files(self, path: Path) -> dict[Path, Callable[[anndata.AnnData, SlidePicture], object]]:
        """The files beside an h5ad, and what writes each from the predictions and a picture of the slide."""
        writers: dict[Path, Callable[[anndata.AnnData, SlidePicture], object]] = {}

        def beside(suffix: str) -> Path:
            return path.with_name(f"{path.stem}{suffix}")

        chosen = self.genes or None

        def of_qupath(table: anndata.AnnData) -> list[str]:
            if self.genes or table.n_vars <= QUPATH_GENES:
                return list(self.genes or table.var_names)
            most = np.argsort(-spatial_variance(table), kind="stable")[:QUPATH_GENES]
            log.info(f"{path}: {QUPATH_GENES} of {table.n_vars:,} genes for QuPath, those that vary most in space")
            return [str(gene) for gene in table.var_names[most]]

        if self.genes:
            writers[beside(".png")] = lambda table, _: write_gene_maps(beside(".png"), table, self.genes)
        if self.viewer:
            writers[beside(".html")] = lambda table, picture: write_viewer(beside(".html"), table, picture, chosen)
        if self.qupath:
            writers[beside(".geojson")] = lambda table, _: write_geojson(beside(".geojson"), table, of_qupath(table))
            writers[beside(".csv")] = lambda table, _: write_spot_table(beside(".csv"), table, of_qupath(table))
        if self.spatialdata:
            writers[beside(".zarr")] = lambda table, picture: write_spatialdata(beside(".zarr"), table, picture)
        return writers


def write_extras(extras: Extras, path: Path, name: str, image: Path) -> list[Path]:
    """Write what was asked for beside a slide's predictions, unless it is there with the same genes.

    Args:
        extras: What was asked for.
        path: The h5ad; files beside earlier predictions have been removed.
        name: Of the slide.
        image: Its image, of which an overview is drawn.

    Returns:
        The files that were written.
    """
    noted = path.with_name(f"{path.stem}.extras.json")  # with which genes each file was written
    genes = read_noted(noted)
    missing = {
        file: write
        for file, write in extras.files(path).items()
        if not file.exists() or genes.get(file.name) != list(extras.genes)
    }
    if not missing:
        return []
    opened = open_image(name, image)
    try:
        pixels = opened.overview()
        picture = SlidePicture(pixels, opened.width / pixels.shape[1])
    finally:
        opened.close()
    table = anndata.read_h5ad(path, backed="r")
    try:
        for file, write in missing.items():
            write(table, picture)
            genes[file.name] = list(extras.genes)
            write_json(noted, genes)
    finally:
        table.file.close()
    return list(missing)


def read_noted(path: Path) -> dict[str, list[str]]:
    """With which genes files were written, by name; {} where it is not known, so that they are written again."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
