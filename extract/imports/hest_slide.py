"""A slide that lies in a HEST folder already (`st/ID.h5ad` beside `wsis/`): its fine bins pooled into pseudo-spots."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from extract.imports.options import ImportOptions
from extract.imports.pseudo_spots import pool_sample
from extract.imports.sample import Sample
from hist_cache.errors import SlideError
from hist_cache.metadata import estimated_pixel_size, missing_file, read_metadata, read_patient
from hist_cache.slides import IMAGE_ENDINGS, TABLE_FOLDERS, SlideFiles, find_slide, image_of
from hist_cache.spots import read_places, read_spots


class HestSlideReader:
    """Reads table, image and metadata of a slide; with `--pseudo-spots`, whatever its metadata say of its spots."""

    name = "HEST"
    expected = "st/ID.h5ad of a HEST folder"
    uses: tuple[str, ...] = ()

    def recognises(self, source: Path) -> bool:
        """Tell whether it is an h5ad in st/ or adata/ of a folder with wsis/."""
        place = source.absolute()
        is_table = place.suffix == ".h5ad" and place.parent.name in TABLE_FOLDERS
        return is_table and (place.parent.parent / "wsis").is_dir() and place.is_file()

    def read(self, source: Path, options: ImportOptions) -> Sample:
        """Read the slide; see `SampleReader`."""
        root, slide = source.absolute().parent.parent, source.stem
        if options.pseudo_spots is None:
            files = find_slide(root, slide, options.any_scale)
            return _sample(files, options.any_scale)
        files = _without_spot_sizes(root, slide, source)
        bins = _sample(files, any_scale=True)
        return pool_sample(bins, options.pseudo_spots, options.um_per_source_px or files.um_per_px)


def _without_spot_sizes(root: Path, slide: str, table: Path) -> SlideFiles:
    """Find a slide whose metadata may say anything of its spots: these are as large as they are apart."""
    image = image_of(root, slide)
    if image is None:
        raise missing_file(slide, root / "wsis" / f"{slide}{IMAGE_ENDINGS[0]}", "no image")
    file, metadata = read_metadata(root, slide)
    um_per_px = estimated_pixel_size(slide, file, metadata)
    if um_per_px is None:
        raise SlideError(slide, file, "no pixel size", "set pixel_size_um_estimated (um per level-0 pixel) in it")
    gap_um = _gap_px(slide, table) * um_per_px
    patient = read_patient(slide, file, metadata)
    return SlideFiles(slide, image, table, metadata, um_per_px, gap_um, gap_um, patient)


def _gap_px(slide: str, table: Path) -> float:
    """Return the typical distance from a spot to the nearest other one."""
    from scipy.spatial import cKDTree

    coords = read_places(slide, table)[1]
    gap = float(np.median(cKDTree(coords).query(coords, k=2)[0][:, 1])) if len(coords) > 1 else 0.0
    if not 0 < gap < np.inf:
        raise SlideError(slide, table, "its spots lie on one another, or there is only one", "nothing can be pooled")
    return gap


def _sample(files: SlideFiles, any_scale: bool) -> Sample:
    spots = read_spots(files, any_scale)
    return Sample(
        name=files.id,
        counts=spots.counts,
        barcodes=spots.barcodes,
        genes=spots.genes,
        gene_ids=None,
        coords=spots.coords,
        array=spots.array,
        technology=str(files.metadata.get("st_technology") or "unknown"),
        pitch_um=files.pitch_um,
        spot_um=files.spot_um,
        um_per_px=files.um_per_px,
        um_per_px_source="pixel_size_um_estimated of its metadata",
        image=files.image,
        patient=files.patient,
    )
