"""All slides through the encoders and the models of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from extract.virtual_slides import VirtualSlides
from hist_cache.cache import Cache
from hist_cache.console import say, warn
from hist_cache.errors import HistError, WriteError, slide_failure
from hist_cache.files import write_error
from train.predict.embedding import Embedder, encodings
from train.predict.extras import Extras, write_extras
from train.predict.folds import TrainedFold, training_cache
from train.predict.models import Ensemble
from train.predict.reference import Reference, missing_reference, reference_of
from train.predict.slides import PredictedSlide, Predictor


class Prediction:
    """Predicts slides, each as soon as its embeddings are there.

    Args:
        run: Folder of the run.
        folds: Of the run.
        slides: The slides.
        truths: Measured counts, by the names of slides.
        out: Folder of the predictions.
        cache_root: Folder of all caches.
        device: Of encoders and models.
        extras: What is written beside the predictions.

    Attributes:
        predicted: What is said of the slides that are done, by name.
    """

    def __init__(
        self,
        run: Path,
        folds: Sequence[TrainedFold],
        slides: VirtualSlides,
        truths: dict[str, Path],
        out: Path,
        cache_root: Path,
        device: torch.device,
        extras: Extras,
    ) -> None:
        self.folder, self.folds, self.slides, self.truths = run, list(folds), slides, truths
        self.out, self.cache_root, self.device, self.extras = out, cache_root, device, extras
        self.predicted: dict[str, PredictedSlide] = {}
        self._failed: list[HistError] = []
        self._tried: set[str] = set()

    @property
    def names(self) -> list[str]:
        """Names of the slides."""
        return [image.name for image in self.slides.ids.values()]

    def run(self, weights: Path | None) -> list[HistError]:
        """Embed and predict; returns the errors of slides that failed.

        Args:
            weights: File of the encoder's weights, where they are not found by themselves.
        """
        caches: dict[str, Cache] = {}
        todo = encodings(self.folds)
        reference = self._reference()
        names = list(self.slides.ids)
        predictor: Predictor | None = None

        def ready(cached: str) -> None:
            if predictor is not None:
                self._predict(predictor, cached)

        make_folder(self.out)
        ensemble = Ensemble.load(self.folds, self.device)  # before hours of work: a file may be damaged
        for encoding in todo:
            embedder = Embedder(encoding, self.slides, self.cache_root, weights, self.device)
            caches |= {str(fold.folder): embedder.cache for fold in encoding.folds}
            if encoding is todo[-1]:
                predictor = Predictor(self.folder, ensemble, reference, caches, self.out, self.slides.check_focus)
            try:
                failed, names = embedder.run(names, ready)
                self._failed += failed
            finally:
                embedder.close()
        for name in names:  # of which another process has made the last embeddings
            ready(name)
        return self._failed

    def check(self, weights: Path | None) -> list[HistError]:
        """Open everything that `run` would; returns the errors of slides that would fail."""
        Ensemble.load(self.folds, self.device)
        failed: list[HistError] = []
        for encoding in encodings(self.folds):
            embedder = Embedder(encoding, self.slides, self.cache_root, weights, self.device)
            try:
                failed = embedder.check(list(self.slides.ids))
            finally:
                embedder.close()
        return failed

    def _reference(self) -> Reference | None:
        """What distances are measured from; None where it cannot be known, which is said."""
        fold = self.folds[0]
        cache = training_cache(fold, self.cache_root)
        reference = reference_of(fold, cache)
        if reference is None:
            warn(f"{fold.folder}: no distances to its training data: {missing_reference(fold, cache)}")
        return reference

    def _predict(self, predictor: Predictor, cached: str) -> None:
        """Predict one slide; its error is kept, and the others go on."""
        image = self.slides.ids[cached]
        if image.name in self._tried:
            return
        self._tried.add(image.name)
        try:
            done = predictor.predict(image.name, cached, self.truths.get(image.name))
            beside = write_extras(self.extras, done.path, image.name, image.image)
        except WriteError:
            raise
        except Exception as error:  # of whatever type: it is one slide's
            self._failed.append(slide_failure(image.name, image.image, error))
            return
        self.predicted[image.name] = done
        if "seen" in done.record:
            warn(f"{image.name}: LEAK: {done.record['seen']}; give a fold that has not seen it (--run RUN/fold<i>)")
        if done.is_new or beside:
            more = "".join(f", {file.suffix}" for file in beside)
            say(f"{done.path}{more}: {done.record['spots']:,} spots")


def make_folder(path: Path) -> None:
    """Make the folder of the predictions; `WriteError` where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(error, path) from error
