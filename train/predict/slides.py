"""One slide: from its embeddings in the cache to its predictions, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hist_cache.cache import Cache
from hist_cache.errors import SlideError
from hist_cache.files import write_json
from hist_cache.fingerprint import file_digest, short_hash
from hist_cache.runs import read_object
from hist_cache.slide_blocks import read_slide_without_embeddings
from train.expression import UNITS
from train.predict.folds import TrainedFold, run_name
from train.predict.models import Ensemble
from train.predict.outputs import SlideTable, TableWriter, beside, read_record, remove, write_table
from train.predict.predicted import DISAGREEMENT, MEASURED
from train.predict.reference import Reference
from train.predict.slide_data import SlideFile
from train.predict.truth import measured_expression, slide_metrics

SEEN = {"train": "trained on", "val": "validated on", "adapter": "its encoder's adapter was trained on"}


@dataclass(frozen=True)
class PredictedSlide:
    """What is said of a slide.

    Attributes:
        name: Of the slide.
        path: Its h5ad.
        record: What its predictions were made from: `spots`, how many; `beyond`, the share of them beyond the limit of
            the distance; `disagreement`, the mean over spots and genes of the standard deviation between folds; `seen`,
            what the folds have seen of it; the last three only where there is something to say.
        metrics: Against measured expression; {} without it.
        is_new: Whether it was predicted now.
    """

    name: str
    path: Path
    record: dict[str, Any]
    metrics: dict[str, Any]
    is_new: bool


@dataclass(frozen=True)
class OpenedSlide:
    """A slide to predict.

    Attributes:
        name: Of the slide.
        files: Folder of a fold -> the slide, embedded by the fold's encoder.
        first: That of the first fold.
        kept: Rows of the spots that are predicted.
        truth: Its measured counts.
    """

    name: str
    files: dict[str, SlideFile]
    first: SlideFile
    kept: NDArray[np.int64]
    truth: Path | None


@dataclass(frozen=True)
class Predictor:
    """Predicts slides.

    Attributes:
        run: Folder of the run.
        ensemble: The models.
        reference: Of the first fold, in whose embeddings distances are measured; None where it is not known.
        caches: Folder of a fold -> the cache with its embeddings.
        out: Folder of the predictions.
        check: Given a slide's name in the cache and its focus, raises an error for one that is blurred.
    """

    run: Path
    ensemble: Ensemble
    reference: Reference | None
    caches: Mapping[str, Cache]
    out: Path
    check: Callable[[str, Any], None]

    @property
    def folds(self) -> list[TrainedFold]:
        """Those that predict."""
        return [loaded.fold for loaded in self.ensemble.folds]

    def predict(self, name: str, cached: str, truth: Path | None) -> PredictedSlide:
        """Predict a slide, unless the same predictions are there.

        Args:
            name: Of the slide.
            cached: Its name in the cache.
            truth: Its measured counts, an h5ad.

        Raises:
            HistError: A file cannot be read or written, or predictions are not finite.
        """
        opened = self._open(name, cached, truth)
        path = self.out / f"{name}.h5ad"
        metrics_path = self.out / f"{name}.metrics.json"
        made_from = self._made_from(opened)
        record = read_record(path)
        is_new = record.get("made_from") != made_from or (truth is not None and not metrics_path.is_file())
        if is_new:
            for earlier in (metrics_path, *beside(path)):  # of other predictions
                remove(earlier)
            record = self._facts(opened) | {"made_from": made_from}
            metrics = self._write(opened, path, record)
            if metrics:
                write_json(metrics_path, metrics | ({"seen": record["seen"]} if "seen" in record else {}))
        return PredictedSlide(name, path, record, read_object(metrics_path) if truth is not None else {}, is_new)

    def _open(self, name: str, cached: str, truth: Path | None) -> OpenedSlide:
        size = self.folds[0].setting.neighbors
        paths = {str(fold.folder): self.caches[str(fold.folder)].path(cached) for fold in self.folds}
        files = {path: SlideFile(path, read_slide_without_embeddings(path, size), size) for path in {*paths.values()}}
        first = files[paths[str(self.folds[0].folder)]]
        self.check(cached, first.slide.attributes.get("focus"))
        only_complete = truth is not None and self.folds[0].drops_edges
        kept = np.flatnonzero(first.complete()) if only_complete else np.arange(len(first.slide))
        if not len(kept):
            raise SlideError(name, truth, "no spot has all its neighbours, and the run was tested on such spots alone")
        return OpenedSlide(name, {fold: files[path] for fold, path in paths.items()}, first, kept, truth)

    def _made_from(self, opened: OpenedSlide) -> str:
        """A digest of all that decides what is written."""
        models = [(str(fold.folder), fold.digest, fold.panel) for fold in self.folds]
        embedded = [sorted(opened.files[str(fold.folder)].slide.digests.items()) for fold in self.folds]
        limit = None if self.reference is None else self.reference.limit
        truth = None if opened.truth is None else file_digest(opened.truth)
        return short_hash({"models": models, "embedded": embedded, "limit": limit, "truth": truth, "n": opened.name})

    def _facts(self, opened: OpenedSlide) -> dict[str, Any]:
        """What is known before anything is predicted."""
        attributes, setting = opened.first.slide.attributes, self.folds[0].setting
        seen = seen_by(opened.name, opened.first.slide.image, self.folds)
        return {
            "run": run_name(self.run),
            "folds": ", ".join(fold.folder.name for fold in self.folds),
            "method": setting.method,
            "dataset": setting.dataset,
            "encoder": str(setting.cache["encoder"]),
            "spots": len(opened.kept),
            **{name: float(attributes[name]) for name in ("um_per_px", "pitch_um", "spot_um")},
            **{name: str(attributes[name]) for name in ("lattice", "um_per_px_from") if name in attributes},
            **({"seen": seen} if seen else {}),
        }

    def _write(self, opened: OpenedSlide, path: Path, record: dict[str, Any]) -> dict[str, Any]:
        """Predict and write the h5ad; completes the record and returns the metrics, {} without measured expression."""
        genes, setting, slide = self.ensemble.genes, self.folds[0].setting, opened.first.slide
        table = SlideTable(opened.name, slide, opened.kept, genes, UNITS[setting.transform])
        measured = None
        if opened.truth is not None:
            how = slide, setting.neighbors, genes, setting.transform
            measured = measured_expression(opened.name, opened.truth, *how)[opened.kept]
        layers = ([DISAGREEMENT] if len(self.folds) > 1 else []) + ([MEASURED] if measured is not None else [])
        with write_table(path, table, layers) as writer:
            if measured is not None:
                writer.put(0, **{MEASURED: measured})
            columns = self._predict_parts(opened, writer)
            if self.reference is not None:
                beyond = columns["out_of_distribution"] = columns["distance"] > self.reference.limit
                record |= {"beyond": float(beyond.mean()), "limit": self.reference.limit}
            if "disagreement" in columns:
                record["disagreement"] = float(columns["disagreement"].mean())
            predicted = writer.read_all() if measured is not None else None
            writer.finish(columns, record)
        if measured is None or predicted is None:
            return {}
        return slide_metrics(opened.name, predicted, measured, opened.first.complete()[opened.kept])

    def _predict_parts(self, opened: OpenedSlide, writer: TableWriter) -> dict[str, NDArray[Any]]:
        """Write the predictions part by part; returns the columns of `obs`."""
        columns: dict[str, list[NDArray[Any]]] = {}
        for part in self.ensemble.predict(opened.files, opened.kept):
            writer.put(part.start, X=part.mean)
            if part.spread is not None:
                writer.put(part.start, **{DISAGREEMENT: part.spread})
                columns.setdefault("disagreement", []).append(np.nanmean(part.spread, axis=1))
            if self.reference is not None:
                columns.setdefault("distance", []).append(self.reference.distance(part.embeddings))
        return {name: np.concatenate(values) for name, values in columns.items()}


def seen_by(name: str, image: str, folds: Sequence[TrainedFold]) -> str:
    """What folds have seen of a slide in training, as a text; "" where it is new to all of them.

    Args:
        name: Of the slide.
        image: SHA-256 of its image.
        folds: That predict.
    """
    parts: dict[str, list[str]] = {}
    for fold in folds:
        if (part := fold.seen(name, image)) in SEEN:
            parts.setdefault(SEEN[part], []).append(fold.folder.name)
    return "; ".join(f"{what} it: {', '.join(names)}" for what, names in parts.items())
