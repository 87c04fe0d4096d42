"""What is written of an imported slide: the table, a link to the image and the metadata, in the layout of HEST-1k.

A slide is found by its table, so that is written last: a stopped import leaves no slide.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from extract.imports.checks import PlacedImage
from extract.imports.sample import Sample
from hist_cache.errors import InputError, SlideError
from hist_cache.files import atomic_write, write_json
from hist_cache.h5ad import write_h5ad
from hist_cache.metadata import read_metadata, read_scale
from hist_cache.scratch import scratch_folder
from hist_cache.slides import IMAGE_SUFFIXES, SlideFiles
from hist_cache.spots import read_spots, unique_names

if TYPE_CHECKING:
    import anndata

log = logging.getLogger(__name__)

PROVENANCE = "hist_import"  # key of the metadata that says where a slide came from
BIG_TIFF = ".btf"  # the ending that 10x Genomics gives images of Visium HD; the link to one ends in .tif
PLOTS = "spatial_plots"  # HEST's folder of such pictures


@dataclass(frozen=True)
class Target:
    """The files of a slide below a data root.

    Attributes:
        root: The data root.
        id: ID of the slide.
        suffix: Ending of the image.
    """

    root: Path
    id: str
    suffix: str

    @property
    def table(self) -> Path:
        """The h5ad file."""
        return self.root / "st" / f"{self.id}.h5ad"

    @property
    def image(self) -> Path:
        """The link to the image."""
        return self.root / "wsis" / f"{self.id}{self.suffix}"

    @property
    def metadata(self) -> Path:
        """The JSON file."""
        return self.root / "metadata" / f"{self.id}.json"

    @property
    def overlay(self) -> Path:
        """The picture of the spots on the slide."""
        return self.root / PLOTS / f"{self.id}_spatial_plots.png"

    @property
    def refused_overlay(self) -> Path:
        """The same picture of a slide that was not imported."""
        return self.root / PLOTS / f"{self.id}_refused.png"


def make_target(root: Path, slide: str, image: Path) -> Target:
    """Return where a slide goes.

    Raises:
        SlideError: Slides with such images are not found in a HEST folder.
    """
    suffix = image.suffix.lower()
    suffix = ".tif" if suffix == BIG_TIFF else suffix
    if suffix not in IMAGE_SUFFIXES:
        problem = f"{suffix or 'no ending'} is no ending of a slide's image"
        raise SlideError(slide, image, problem, f"one of {', '.join(IMAGE_SUFFIXES)} is needed; convert it")
    return Target(root, slide, suffix)


def make_table(sample: Sample, coords: NDArray[np.float64]) -> anndata.AnnData:
    """Make the table of a slide: counts in X, centres in `obsm["spatial"]`, genes by symbol."""
    import anndata
    import pandas as pd
    from scipy.sparse import csr_matrix

    counts = csr_matrix(sample.counts, dtype=np.float32)
    obs = pd.DataFrame({"in_tissue": 1}, index=pd.Index(sample.barcodes, dtype=object))
    if (sample.array >= 0).all():
        obs["array_row"], obs["array_col"] = sample.array.T
    var = pd.DataFrame(index=pd.Index(unique_names(sample.genes), dtype=object))
    if sample.gene_ids is not None:
        var["gene_ids"] = sample.gene_ids
    return anndata.AnnData(X=counts, obs=obs, var=var, obsm={"spatial": coords})


def make_metadata(
    target: Target, sample: Sample, placed: PlacedImage, source: Path, reader: str, command: str
) -> dict[str, Any]:
    """Make the metadata of a slide; docs/data-layout.md explains the keys."""
    totals = np.asarray(sample.counts.sum(axis=1)).ravel()
    return {
        "id": target.id,
        "image_filename": target.image.name,
        "st_technology": sample.technology,
        "pixel_size_um_estimated": placed.um_per_px,
        "pixel_size_um_embedded": placed.own.um_per_px if placed.own else None,
        "inter_spot_dist": sample.pitch_um,
        "spot_diameter": sample.spot_um,
        "fullres_px_width": placed.size[0],
        "fullres_px_height": placed.size[1],
        "spots_under_tissue": int((totals > 0).sum()),
        "nb_genes": len(sample.genes),
        PROVENANCE: {
            "source": _place(source),
            "reader": reader,
            "image": str(placed.path.resolve()),
            "um_per_px_from": placed.um_per_px_source,
            "placement": asdict(placed.placement),
            "notes": list(sample.notes),
            "command": command,
        },
    }


def check_replaced(target: Target, source: Path, replace: bool) -> str:
    """Return how this import is called: `new`, or `replaced` for a slide that came from the same source.

    Raises:
        InputError: There is a slide of that ID from elsewhere, and it must not be replaced.
    """
    if not target.metadata.exists() and not target.table.exists():
        return "new"
    origin = None
    if target.metadata.exists():
        origin = read_metadata(target.root, target.id)[1].get(PROVENANCE)
    stated = origin.get("source") if isinstance(origin, dict) else None
    if stated != _place(source) and not replace:
        whence = f"from {stated}" if stated else "that hist-import did not make"
        raise InputError(f"{target.root}: has a slide {target.id} {whence}; give --id for another ID, or --replace")
    return "replaced"


def check_image_place(target: Target, image: Path, replace: bool) -> None:
    """Check that no image of that ID is lost, and that none is read in place of the new one.

    Raises:
        InputError: There is one that is not a link.
    """
    for suffix in IMAGE_SUFFIXES:
        other = target.image.with_name(f"{target.id}{suffix}")
        if other.is_symlink() or not other.exists() or other.samefile(image):
            continue
        if other != target.image:
            raise InputError(f"{other}: another image of {target.id}; move it away, or give --id for another ID")
        if not target.metadata.exists() and not replace:
            raise InputError(f"{other}: is not {image} and would be replaced; give --id for another ID, or --replace")


def _place(source: Path) -> str:
    """Name a source, the same with and without `outs` at the end."""
    place = source.resolve()
    return str(place.parent if place.name == "outs" else place)


def check_readable(
    target: Target, table: anndata.AnnData, metadata: dict[str, Any], source: Path, any_scale: bool
) -> None:
    """Write the table to a temporary folder and read it with what hist-extract reads slides with.

    Raises:
        SlideError: hist-extract would refuse the slide.
    """
    with scratch_folder("hist-import-") as folder:
        file = folder / f"{target.id}.h5ad"
        write_h5ad(file, table)
        try:
            scale = read_scale(target.id, source, {**metadata, "pixel_size_um_embedded": None}, any_scale)
            sizes = (scale.um_per_px, scale.pitch_um, scale.spot_um)
            read_spots(SlideFiles(target.id, file, file, metadata, *sizes, None), any_scale)
        except SlideError as error:
            raise SlideError(error.slide, source, error.problem, error.advice) from error


def write_files(
    target: Target, table: anndata.AnnData, metadata: dict[str, Any], image: Path, patient: str | None
) -> None:
    """Write a slide's files. Entries of its metadata that users have added stay, the patient too.

    Raises:
        WriteError: A file cannot be written.
    """
    before: dict[str, Any] = {"patient": patient}
    if target.metadata.exists():
        before |= read_metadata(target.root, target.id)[1]
    target.table.unlink(missing_ok=True)
    write_json(target.metadata, before | metadata)
    _link_image(target, image)
    write_h5ad(target.table, table)
    target.refused_overlay.unlink(missing_ok=True)


def _link_image(target: Target, image: Path) -> None:
    """Link a slide's image into the layout, or copy it where links cannot be made; other images of the slide go."""
    origin = image.resolve()
    for suffix in IMAGE_SUFFIXES:
        other = target.image.with_name(f"{target.id}{suffix}")
        if other != target.image and other.is_symlink():
            other.unlink()
    if target.image.exists() and not target.image.is_symlink() and target.image.samefile(origin):
        return
    with atomic_write(target.image) as aside:
        try:
            os.symlink(origin, aside)
        except (OSError, NotImplementedError) as error:
            log.warning(f"{target.id}: no link to {origin} can be made ({error}); it is copied")
            shutil.copyfile(origin, aside)
    if target.suffix == ".mrxs":  # its pixels lie in the folder of its name beside it
        folder, link = origin.with_suffix(""), target.image.with_suffix("")
        if link.is_symlink():
            link.unlink()  # of another image
        if folder.is_dir() and not link.exists():
            os.symlink(folder, link, target_is_directory=True)
