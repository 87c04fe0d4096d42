"""hist-import: bring measured slides of Space Ranger and other programs into the layout that hist-extract reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from extract.imports.options import ImportOptions
from hist_cache.console import say, warn
from hist_cache.errors import HistError, InputError, WriteError
from hist_cache.options import folder_option, parse, run

if TYPE_CHECKING:
    from extract.imports.work import Imported

DESCRIPTION = """Bring measured slides into the layout that hist-extract reads: Space Ranger's outs/, legacy Spatial
Transcriptomics, h5ad. Checks that the spots lie on the tissue of the image, and draws them on it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run hist-import with these arguments (by default the process's own); returns the exit code."""
    options = parse(ImportOptions, "hist-import", DESCRIPTION, argv)
    return run(import_all, options, options.debug)


def import_all(options: ImportOptions) -> int:
    """Run the command.

    Returns:
        The exit code: 0 if all sources were imported, 1 if some failed.

    Raises:
        InputError: Options are missing or contradict each other, or there is one source and it is none.
        SlideError: There is one source, and it cannot be used.
    """
    from extract.imports.dataset_entry import add_to_dataset, check_new_name
    from extract.imports.work import import_slide

    several = len(options.source) > 1
    if several and options.id is not None:
        raise InputError("--id names one slide; give one SOURCE, or leave it out")
    if several and options.image is not None and not Path(options.image).is_dir():
        raise InputError(f"--image {options.image}: for several sources give a folder of images, named as the slides")
    if options.name is not None:
        check_new_name(options.name)
    root = folder_option(options.data_root, "HIST_DATA", "data")
    ids, failed = [], 0
    for source in options.source:
        try:
            imported = import_slide(Path(source), options, root)
        except WriteError:
            raise
        except HistError as error:
            if not several:
                raise
            failed += 1
            warn(str(error))
            continue
        describe_import(imported, options.dry_run)
        ids.append(imported.target.id)
    if ids and not options.dry_run:
        if options.name is not None:
            say(f"dataset {options.name}: {add_to_dataset(root, options.name, ids)}")
        chosen = f"--dataset {options.name}" if options.name else f"--ids {','.join(ids)}"
        say(f"next: hist-extract {chosen} --data-root {root}")
    return int(failed > 0)


def describe_import(imported: Imported, dry_run: bool) -> None:
    """Print what was read of a slide, what may be wrong with it, and where it is now."""
    sample, placed, target = imported.sample, imported.placed, imported.target
    say(
        f"{target.id}: {imported.reader}, {len(sample.barcodes):,} spots of {sample.spot_um:g} um, {sample.pitch_um:g} "
        f"um apart, {len(sample.genes):,} genes; a pixel has {placed.um_per_px:.4g} um by {placed.um_per_px_source}; "
        f"{imported.fit.on_tissue:.0%} of the spots lie on tissue"
    )
    for note in sample.notes:
        say(f"  {note}")
    for finding in imported.findings:
        warn(f"{target.id}: {finding}")
    if not dry_run:
        say(f"  {target.table} ({imported.state}); look at {target.overlay}")
