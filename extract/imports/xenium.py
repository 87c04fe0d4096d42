"""Xenium: transcripts, or else cells, of an `outs/` folder pooled into pseudo-spots on an aligned H&E image.

Positions are in um of the microscope's (morphology) image, whose pixel size `experiment.xenium` states. An image of
another size needs `--alignment`, the matrix from its pixels to those of the morphology image.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from extract.imports.alignment import read_alignment, scale_of, to_image
from extract.imports.given_image import find_given_image
from extract.imports.options import ImportOptions
from extract.imports.pitch import VISIUM_SPOT_UM
from extract.imports.pseudo_spots import pool
from extract.imports.sample import Sample, sample_name
from extract.imports.xenium_points import CELL_COUNTS, COPY_XENIUM, TRANSCRIPTS, Counted, Genes, cells, transcripts
from extract.slides.readers import open_image
from hist_cache.errors import InputError, SlideError, one_line
from hist_cache.texts import read_json

EXPERIMENT = "experiment.xenium"
MORPHOLOGY = (
    "morphology_focus/morphology_focus_0000.ome.tif",
    "morphology_focus/ch0000_dapi.ome.tif",
    "morphology_focus.ome.tif",
    "morphology_mip.ome.tif",
    "morphology.ome.tif",
)


class XeniumReader:
    """Pools transcripts, or cells where there are none, into pseudo-spots of 55 um unless another size is given."""

    name = "Xenium"
    expected = f"an outs/ folder with {EXPERIMENT}"
    uses: tuple[str, ...] = ("alignment",)

    def recognises(self, source: Path) -> bool:
        """Tell whether the folder, or `outs` in it, has an experiment.xenium."""
        return (_outs(source) / EXPERIMENT).is_file()

    def read(self, source: Path, options: ImportOptions) -> Sample:
        """Read the folder; see `SampleReader`."""
        outs, slide = _outs(source), options.id or sample_name(source)
        morphology_um = _pixel_size(slide, outs / EXPERIMENT)
        matrix, aligned_by = _alignment(slide, outs, options)
        genes, counted = Genes.of_panel(slide, outs / CELL_COUNTS), Counted()
        if (outs / TRANSCRIPTS).is_file():
            points = transcripts(slide, outs / TRANSCRIPTS, genes, counted)
        elif (outs / CELL_COUNTS).is_file():
            points = cells(slide, outs, genes, counted)
        else:
            raise SlideError(slide, outs, f"neither {TRANSCRIPTS} nor {CELL_COUNTS} in it", COPY_XENIUM)
        spots = pool(points, options.pseudo_spots or VISIUM_SPOT_UM)
        spots.counts.resize((len(spots.centers), len(genes.names)))
        return Sample(
            name=slide,
            counts=spots.counts,
            barcodes=spots.names,
            genes=genes.names,
            gene_ids=genes.ids,
            coords=to_image(matrix, spots.centers / morphology_um),
            array=spots.array,
            technology="Xenium",
            pitch_um=spots.pitch_um,
            spot_um=spots.spot_um,
            um_per_px=morphology_um * scale_of(matrix),
            um_per_px_source=f"pixel_size of {EXPERIMENT} and {aligned_by}",
            image=None,
            notes=(*counted.notes, *spots.notes),
        )


def _outs(source: Path) -> Path:
    return source / "outs" if (source / "outs" / EXPERIMENT).is_file() else source


def _pixel_size(slide: str, file: Path) -> float:
    """Return the um per px of the morphology image."""
    try:
        experiment = read_json(file)
    except ValueError as error:
        raise SlideError(slide, file, str(error), COPY_XENIUM) from error
    size = experiment.get("pixel_size") if isinstance(experiment, dict) else None
    if not isinstance(size, int | float) or isinstance(size, bool) or not 0 < size < np.inf:
        raise SlideError(slide, file, f"pixel_size is {size!r:.40}", "it must be a number above 0, in um")
    return float(size)


def _alignment(slide: str, outs: Path, options: ImportOptions) -> tuple[NDArray[np.float64], str]:
    """Return the matrix from px of the H&E image to px of the morphology image, and what it is from.

    Raises:
        InputError: There is none, and the image has another size than the morphology image.
    """
    if options.alignment is not None:
        if len(options.source) > 1:
            raise InputError("--alignment is of one image; import the slides one by one")
        return read_alignment(slide, Path(options.alignment)), "the alignment"
    path = _image(slide, options)
    morphology = next((file for name in MORPHOLOGY if (file := outs / name).is_file()), None)
    needed = "give --alignment F, the matrix that Xenium Explorer exports for the H&E image"
    if morphology is None:
        raise InputError(f"{outs}: no morphology image to compare {path.name} with; {needed}")
    with closing(open_image(slide, path)) as image:
        size = image.width, image.height
    if size != (expected := _size_of(slide, morphology)):
        differ = f"{size[0]} x {size[1]} px, and {morphology.name} {expected[0]} x {expected[1]}"
        raise InputError(f"{path}: has {differ}, so it is not aligned yet; {needed}")
    return np.eye(3), f"an image of the size of {morphology.name}"


def _image(slide: str, options: ImportOptions) -> Path:
    if options.image is None:
        raise InputError(f"{slide}: Xenium has no H&E image of its own; give --image F and --alignment F")
    return find_given_image(Path(options.image), slide)


def _size_of(slide: str, path: Path) -> tuple[int, int]:
    """Return width and height of a microscope's image, whatever its pixels are."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            sizes = dict(zip(series.axes, series.shape, strict=True))
        return sizes["X"], sizes["Y"]
    except Exception as error:
        raise SlideError(slide, path, f"cannot be read ({one_line(error)})", COPY_XENIUM) from error
