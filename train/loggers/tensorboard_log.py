"""`--logger tensorboard`: event files in the folder `tensorboard` of each fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from train.loggers.fold_log import LoggedFold

EVENTS_FOLDER = "tensorboard"


class TensorBoardLog:
    """Event files. Those of a fold that goes on say from which epoch on the earlier ones do not count."""

    def __init__(self, fold: LoggedFold) -> None:
        self.place = f"tensorboard --logdir {fold.folder.parents[1]}"
        self._fold = fold
        self._writer: Any = None

    def write(self, epoch: int, row: Mapping[str, float]) -> None:
        """Add the values of an epoch."""
        writer = self._open(epoch)
        for name, value in row.items():
            writer.add_scalar(name, value, epoch)

    def finish(self, metrics: Mapping[str, float], figures: Sequence[Path]) -> None:
        """Add metrics and figures, at epoch 0, and close the files."""
        from PIL import Image

        writer = self._open(None)
        for name, value in metrics.items():
            writer.add_scalar(name, value, 0)
        for path in figures:
            with Image.open(path) as picture:
                writer.add_image(path.stem, np.asarray(picture.convert("RGB")), 0, dataformats="HWC")
        self.stop()

    def stop(self) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, first_epoch: int | None) -> Any:
        """The writer; what earlier ones wrote of `first_epoch` and later is purged, of None nothing."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._fold.folder / EVENTS_FOLDER), purge_step=first_epoch)
            settings = "\n".join(f"    {name}: {value}" for name, value in self._fold.settings.items())
            self._writer.add_text("settings", settings, first_epoch or 0)
        return self._writer
