"""The options of hist-predict. Nothing here imports torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hist_cache.devices import DEVICE_HELP
from hist_cache.options import CommandOptions, option
from hist_cache.values import Interval


@dataclass(frozen=True)
class PredictOptions(CommandOptions):
    """What is predicted, with which run, and what is written."""

    run: str | None = option(
        None, "folder of a run of hist-train, of one of its folds, or made by hist-export", "RUN", group="What"
    )
    wsi: str | None = option(None, "a slide, or a folder of slides", "PATH")
    um_per_px: float | None = option(
        None, "pixel size of level 0, for slides whose files do not state it", "UM", within=Interval(0.05, 10)
    )
    pitch: float | None = option(
        None, "distance between spots, um (default: that of the run's slides)", "UM", within=Interval(5, 1000)
    )
    lattice: Literal["hex", "square"] | None = option(None, "what spots follow (default: as the run's slides)")
    mask: str | None = option(
        None, "where tissue is: GeoJSON or a picture, or a folder with one a slide (default: it is found)", "PATH"
    )
    coords: str | None = option(
        None,
        "spots' positions: CSV, tissue_positions or h5ad, or a folder with one a slide (default: a lattice)",
        "PATH",
    )
    truth: str | None = option(
        None, "measured counts: an h5ad, or a folder with one a slide; their spots are predicted and compared", "PATH"
    )
    any_focus: bool = option(False, "predict blurred slides too")
    out: str | None = option(None, "where to write (default: ./predicted/<run>)", "D", group="Output")
    pseudobulk: bool = option(False, "also pseudobulk.csv: the mean over each slide's spots, a row a slide")
    genes_to_plot: str | None = option(None, "genes for maps: <slide>.png with each, such as COL1A1,FN1", "NAMES")
    viewer: bool = option(False, "also <slide>.html: pan, zoom and choose genes beside the H&E")
    qupath: bool = option(False, "also <slide>.geojson and <slide>.csv, which QuPath reads")
    spatialdata: bool = option(False, "also <slide>.zarr for napari-spatialdata (pip install hist-cache[spatialdata])")
    cache: str | None = option(None, "folder of the cache (default: $HIST_CACHE or ./cache)", "D", group="Encoder")
    weights: str | None = option(None, "file or folder with the encoder's weights", "F")
    lora: str | None = option(None, "the adapter that made the embeddings of the run, or the run it belongs to", "RUN")
    device: str = option("auto", DEVICE_HELP, "DEVICE")
    dry_run: bool = option(False, "show what would be predicted, and exit", group="Other")
    debug: bool = option(False, "show a traceback for every error")
