"""What a logger must be able to do: keep the epochs, test metrics and figures of one fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

PROJECT = "hist-cache"


@dataclass(frozen=True)
class LoggedFold:
    """The fold that a log is of.

    Attributes:
        key: 8 hex digits, drawn once for the fold's folder, by which a logger finds its log again.
        begun: Whether this logger has begun a log of it before.
        run: Name of the run.
        number: Of the fold.
        dataset: Whose folds are trained.
        folder: Of the fold.
        settings: Options and what else decides its numbers, by dotted names.
    """

    key: str
    begun: bool
    run: str
    number: int
    dataset: str
    folder: Path
    settings: Mapping[str, str | float | bool]

    @property
    def title(self) -> str:
        """The run's name and the fold's number."""
        return f"{self.run} fold {self.number}"


class FoldLog(Protocol):
    """The log of one fold. Whatever its methods raise ends the logging, and never the training."""

    place: str
    """Where it can be looked at, in a few words."""

    def write(self, epoch: int, row: Mapping[str, float]) -> None:
        """Add the values of an epoch, counted from 0. An epoch that the log has already is not added again."""

    def finish(self, metrics: Mapping[str, float], figures: Sequence[Path]) -> None:
        """Add the test metrics and figures of the finished fold, and close the log."""

    def stop(self) -> None:
        """Close the log of a fold that is not finished; it is opened again where the fold goes on."""
