"""One source into a slide of a HEST folder: read, placed on its image, checked, drawn and written."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from extract.imports.checks import Finding, PlacedImage, check_sample
from extract.imports.given_image import find_given_image
from extract.imports.layout import (
    Target,
    check_image_place,
    check_readable,
    check_replaced,
    make_metadata,
    make_table,
    make_target,
    write_files,
)
from extract.imports.options import ImportOptions
from extract.imports.overlay import write_overlay
from extract.imports.placement import Placement, TissueFit
from extract.imports.pseudo_spots import pool_sample
from extract.imports.readers import find_reader
from extract.imports.sample import Sample
from extract.slides.image import Image
from extract.slides.pixel_size import read_pixel_size
from extract.slides.readers import open_image
from hist_cache.datasets import check_slide_name
from hist_cache.errors import InputError, SlideError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Imported:
    """A slide that was imported, or would be.

    Attributes:
        target: Its files.
        sample: What was read.
        reader: The kind of its source.
        state: `new` or `replaced`.
        placed: Its image.
        fit: How well its spots fit the tissue.
        findings: What may be wrong with it.
    """

    target: Target
    sample: Sample
    reader: str
    state: str
    placed: PlacedImage
    fit: TissueFit
    findings: list[Finding]


def import_slide(source: Path, options: ImportOptions, root: Path) -> Imported:
    """Import one slide.

    Args:
        source: Its folder or file.
        options: The command's options.
        root: The data root.

    Raises:
        InputError: The source is not known, options are missing, or another slide has its ID.
        SlideError: A file is missing or cannot be used, or the spots do not fit the image.
        WriteError: A file cannot be written.
    """
    reader = find_reader(source, options.given)
    sample = pool_if_asked(reader.read(source, options), options)
    slide = check_slide_name(options.id or sample.name)
    sample = replace(sample, name=slide)
    path = find_image(sample, options)
    target = make_target(root, slide, path)
    if target.table.resolve() == source.resolve():
        raise InputError(f"{source}: would be replaced by itself; give --id or another --data-root")
    state = check_replaced(target, source, options.replace)
    check_image_place(target, path, options.replace)
    with closing(open_image(slide, path)) as image:
        placed = place_on(sample, path, image, options)
        findings, fit, mask = check_sample(sample, placed)
        coords = placed.placement.apply(sample.coords, placed.size)
        faults = [finding for finding in findings if finding.refuses]
        refused = bool(faults) and not options.any_place
        if not options.dry_run:
            on_tissue, diameter_px = mask.contains(coords), sample.spot_um / placed.um_per_px
            totals = np.asarray(sample.counts.sum(axis=1), dtype=np.float64).ravel()
            overlay = target.refused_overlay if refused else target.overlay
            write_overlay(overlay, image, coords, diameter_px, on_tissue, totals)
    if refused:
        shown = "" if options.dry_run else f"; {target.refused_overlay} shows it"
        raise SlideError(slide, path, faults[0].problem, f"{faults[0].advice} (or --any-place){shown}")
    table = make_table(sample, coords)
    metadata = make_metadata(target, sample, placed, source, reader.name, options.command)
    check_readable(target, table, metadata, source, options.any_scale)
    if not options.dry_run:
        write_files(target, table, metadata, path, sample.patient)
    return Imported(target, sample, reader.name, state, placed, fit, findings)


def pool_if_asked(sample: Sample, options: ImportOptions) -> Sample:
    """Pool the spots of a sample if that is asked for and its reader has not done it.

    Raises:
        InputError: Nothing says how large its pixels are.
    """
    if options.pseudo_spots is None or options.pseudo_spots == sample.spot_um:
        return sample
    um_per_px = options.um_per_source_px or sample.um_per_px
    if um_per_px is None:
        raise InputError(f"{sample.name}: how large is a pixel? --pseudo-spots needs --um-per-px here")
    return pool_sample(sample, options.pseudo_spots, um_per_px)


def find_image(sample: Sample, options: ImportOptions) -> Path:
    """Return the full-resolution image of a sample.

    Raises:
        InputError: There is none.
    """
    if options.image is None:
        if sample.image is None:
            raise InputError(
                f"{sample.name}: which image? give --image F, the image at full resolution that the positions are of"
            )
        return sample.image
    return find_given_image(Path(options.image), sample.name)


def place_on(sample: Sample, path: Path, image: Image, options: ImportOptions) -> PlacedImage:
    """Decide how the positions of a sample are placed on its image, and how large the image's pixels are.

    Raises:
        InputError: Nothing says how large the pixels are.
    """
    placement = Placement(options.swap_xy, options.scale, options.flip)
    own = None if options.um_per_px is not None else read_pixel_size(sample.name, path)
    if options.um_per_px is not None:
        size, source = options.um_per_px, "--um-per-px"
    elif sample.um_per_px is not None:
        size, source = sample.um_per_px / placement.scale, sample.um_per_px_source
    elif own is not None:
        size, source = own.um_per_px, own.source
    else:
        raise InputError(f"{path}: neither the spots nor the image say how large a pixel is; give --um-per-px")
    return PlacedImage(path, image, own, placement, size, source)
