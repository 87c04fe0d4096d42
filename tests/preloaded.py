"""Imported by the server of `tests.commands`: what the processes that it forks need not import again."""

import gc
import importlib
import os

MODULES = (
    *("torch", "timm", "peft", "h5py", "openslide", "tifffile", "imagecodecs", "sklearn.decomposition"),
    *("matplotlib.backends.backend_agg", "optuna.importance", "optuna.visualization.matplotlib"),
    *("extract.cli", "extract.scheduler", "extract.embeddings", "extract.tokens", "extract.encoders.registry"),
    *("train.cli", "train.experiments.runner", "train.report.paper_tables", "train.finetune.encoder"),
    *("sweeps.cli", "sweeps.workers", "sweeps.report", "sweeps.final_test", "sweeps.display"),
)


def preload() -> None:
    """Import the modules, and replace what takes long in all processes to come."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # first: what is imported must see no terminal
    for module in MODULES:
        importlib.import_module(module)
    from matplotlib.figure import Figure

    import sweeps.figures
    import train.experiments.fold
    import train.experiments.precision
    from hist_cache.fingerprint import versions
    from tests.commands import blank_figure, blank_picture, no_speedup

    Figure.savefig = blank_figure  # type: ignore[method-assign]
    for plot in ("plot_geometry", "plot_maps", "plot_training"):
        setattr(train.experiments.fold, plot, blank_picture)
    sweeps.figures.plot_history = sweeps.figures.plot_importance = blank_picture
    sweeps.figures.plot_slices = sweeps.figures.plot_contours = lambda *others: []
    train.experiments.precision.measured_speedup = no_speedup
    versions()  # it keeps what it has read
    gc.collect()
    gc.freeze()  # else the garbage collection of each process copies all of it


preload()
