"""hist-predict: a trained run applied to slides without expression."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hist_cache.console import out, say, warn
from hist_cache.devices import choose_device
from hist_cache.errors import InputError, keeping
from hist_cache.options import folder_option, parse, run
from train.predict.options import PredictOptions

if TYPE_CHECKING:
    from train.predict.work import Prediction

DESCRIPTION = """Predict expression on slides that have none: tissue is found, spots are placed on it as on the
run's slides, their crops are embedded once and kept in the cache, every fold of the run predicts, and the mean is
written as <slide>.h5ad. Stop it anywhere; the same command goes on from there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run hist-predict; returns the exit code."""
    options = parse(PredictOptions, "hist-predict", DESCRIPTION, argv)
    return run(predict_slides, options, options.debug)


def predict_slides(options: PredictOptions) -> int:
    """Run the command; returns the exit code: 1 if some slides failed."""
    from extract.virtual_slides import VirtualSlides
    from train.predict.extras import Extras
    from train.predict.folds import read_folds, run_name
    from train.predict.inputs import images_to_predict, spot_rule
    from train.predict.work import Prediction

    if options.run is None or options.wsi is None:
        raise InputError("which run and which slides? give --run RUN and --wsi FILE or FOLDER")
    device = choose_device(options.device)
    run_folder = Path(options.run)
    cache_root = folder_option(options.cache, "HIST_CACHE", "cache")
    folds = read_folds(run_folder, Path(options.lora) if options.lora else None, cache_root)
    images, truths = images_to_predict(options)
    rule = spot_rule(options, folds)
    slides = VirtualSlides(Path(options.wsi), images, rule)
    extras = Extras.of(options, [gene for fold in folds for gene in fold.panel])
    where = (
        "spots as given" if options.coords or truths else f"spots on a {rule.lattice} lattice of {rule.pitch_um:g} um"
    )
    say(
        f"{run_folder}: {folds[0].setting.method}, {len(folds)} folds, {len(folds[0].panel)} genes; {len(images)} "
        f"slides, {where}, crops of spots of {rule.trained.spot_um:g} um, {rule.trained.pitch_um:g} um apart"
    )
    folder = Path(options.out) if options.out else Path("predicted") / run_name(run_folder)
    work = Prediction(run_folder, folds, slides, truths, folder, cache_root, device, extras)
    weights = Path(options.weights) if options.weights else None
    if options.dry_run:
        failed = work.check(weights)
        say(f"would write {len(images) - len(failed)} of {len(images)} slides to {folder}")
    else:
        with keeping(lambda: f"{len(work.predicted)} of {len(images)} slides"):
            failed = work.run(weights)
            show_predictions(options, work)
    for error in failed:
        if options.debug:
            traceback.print_exception(error)
        warn(f"failed: {error}")
    return int(bool(failed))


def show_predictions(options: PredictOptions, work: Prediction) -> None:
    """Print what is said of each slide, and write what was asked for besides the predictions."""
    from train.predict.summary import predicted_table, write_pseudobulk
    from train.report.terminal import to_rich

    done = [work.predicted[name] for name in work.names if name in work.predicted]
    if not done:
        return
    out.print(to_rich(predicted_table(done)))
    if options.pseudobulk:
        say(f"{write_pseudobulk(work.out, done)}: the mean over each slide's spots")
    say(f"{work.out}: {len(done)} slides")
