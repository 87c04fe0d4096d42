"""A fold: train a model on its train slides, test it on its test slides, write its folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from hist_cache import runs as files
from hist_cache.cached_slide import CachedSlide
from hist_cache.disk_room import check_room
from hist_cache.errors import HistError, one_line
from hist_cache.files import remove_partial_files, write_error, write_json
from hist_cache.h5ad import write_h5ad
from hist_cache.runs import Fold
from train import distributed
from train.data import Batch, SpotData
from train.depth import depth_warnings
from train.experiments.cautions import ridge_warnings, selection_warnings
from train.experiments.claims import claim_fold
from train.experiments.controls import Controls, control_metrics
from train.experiments.fold_figures import plot_geometry, plot_training
from train.experiments.fold_files import read_metrics
from train.experiments.fold_maps import plot_maps
from train.experiments.jobs import Job
from train.experiments.members import Trained, train_members, train_one
from train.experiments.memory_limits import (
    OUT_OF_MEMORY,
    OUT_OF_MEMORY_ENCODER,
    check_model_fits,
    is_out_of_memory,
    release_memory,
)
from train.experiments.outputs import (
    fold_bytes,
    fold_cost,
    make_member,
    prediction_table,
    save_model,
    save_recipe,
    write_history,
    write_start,
)
from train.finetune.encoder import Finetuner
from train.fit.batches import encode_rows, make_batch
from train.fit.config import EncodingConfig
from train.fit.loop import LOWER_LR, add_offset, predict_embedded
from train.metrics import NON_FINITE, divergence, test_metrics
from train.models.base import Model
from train.models.baselines import TUNED_COMPONENTS, permuted
from train.models.projection import TangentProjection
from train.recipes.config import DEFAULT_RECIPE, RecipeConfig
from train.recipes.fitted import FittedRecipe, fit_recipe


@dataclass
class FoldRunner:
    """What folds that are run in one process share.

    Attributes:
        slides: By id, for tables and maps.
        device: To train on.
        finetuner: Fine-tunes the encoder, for settings that ask for it.
        controls: Of all folds.
    """

    slides: dict[str, CachedSlide]
    device: torch.device
    finetuner: Finetuner | None = None
    controls: Controls = field(default_factory=Controls)

    def run(
        self, job: Job, data: SpotData, on_epoch: Callable[[dict[str, float]], None] = lambda row: None
    ) -> dict[str, Any]:
        """Train and test one fold and write its folder. The same call gives the same numbers.

        Interrupted, it leaves the best weights and a checkpoint, or of an ensemble only the checkpoints of its members.
        Of several processes on one batch the first one writes and tests.

        Args:
            job: The fold.
            data: All spots, as `job.data` describes them.
            on_epoch: Called with each row of the history.

        Returns:
            The fold's metrics; {} in all processes but the first.

        Raises:
            HistError: Training diverged, memory did not suffice, or the checkpoint cannot be used.
            WriteError: There is no room for the fold's files.
        """
        try:
            job.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(error, job.folder) from error
        leads = distributed.rank() == 0
        with claim_fold(job.folder) if leads else nullcontext():
            if distributed.world_size() == 1 and Fold(job.folder).finished:  # by another command, since this one began
                return read_metrics(job.folder)
            try:
                return self._run(job, data, on_epoch, leads)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                release_memory(error, self.device)
                advice = OUT_OF_MEMORY_ENCODER if job.setting.finetuning else OUT_OF_MEMORY
                raise HistError(f"{job.folder}: {advice}") from error

    def _run(
        self, job: Job, data: SpotData, on_epoch: Callable[[dict[str, float]], None], leads: bool
    ) -> dict[str, Any]:
        setting, folder = job.setting, job.folder
        check_model_fits(setting, self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)  # of the fold before
        recipe = self._fit_recipe(job, data)
        torch.manual_seed(setting.fit.seed)
        model = make_member(setting).to(self.device)
        finetuner = None
        if setting.finetuning is not None:
            if self.finetuner is None:
                raise HistError(f"{folder}: nothing here can fine-tune the encoder")
            finetuner = self.finetuner
            finetuner.start(setting.finetuning)
        if leads:
            check_room(folder, fold_bytes(model, setting.recipe.ensemble), "its weights and a checkpoint")
            write_start(folder, setting, data.panel, self.slides, job.split, self.device, job.adapter_record)
        else:
            torch.manual_seed(setting.fit.seed + distributed.rank())  # the same weights, other dropout
        try:
            if setting.recipe.ensemble > 1:
                trained = train_members(job, model, recipe.data, on_epoch)
            else:
                trained = Trained(model, (train_one(job, model, recipe.data, on_epoch, self._encoding(job)),))
        except KeyboardInterrupt:
            if leads and setting.recipe.ensemble == 1:
                self._save(job, model, finetuner)
            raise
        if not leads:
            return {}
        digest = self._save(job, trained.model, finetuner)
        save_recipe(folder, recipe)
        return self._test(job, trained, data, recipe, digest)

    def _fit_recipe(self, job: Job, data: SpotData) -> FittedRecipe:
        """What the setting's recipe makes of the data."""
        setting, split = job.setting, job.split
        config, rule = setting.recipe, setting.fit.select_by
        is_compared = replace(config, name=DEFAULT_RECIPE) != RecipeConfig() or rule != "mse"
        return fit_recipe(
            *(config, data, data.rows(split.train), data.rows(split.val), rule),
            lambda cached: self.controls.components(cached, job.data, split),
            lambda seen: self.controls.components(seen, job.data, split, TUNED_COMPONENTS, config),
            compared=data.rows(split.test) if is_compared else None,
        )

    def _encoding(self, job: Job) -> EncodingConfig | None:
        """How the encoder is fed, where this job fine-tunes it."""
        return self.finetuner.encoding if self.finetuner is not None and job.setting.finetuning is not None else None

    def _save(self, job: Job, model: Model, finetuner: Finetuner | None) -> str:
        """Write the weights; returns the digest of the model's file."""
        if finetuner is not None:
            finetuner.save(job.folder, job.adapter)
        return save_model(job.folder / files.MODEL, model)

    def _test(self, job: Job, trained: Trained, data: SpotData, recipe: FittedRecipe, digest: str) -> dict[str, Any]:
        """Predict the test spots and write all that a finished fold has, metrics.json last.

        Args:
            job: The fold.
            trained: The model.
            data: All spots.
            recipe: Fitted on the train spots.
            digest: Of the file with its weights.
        """
        folder, setting, test, model = job.folder, job.setting, data.rows(job.split.test), trained.model
        encoding = self._encoding(job)
        started = time.monotonic()
        images = encode_rows(recipe.data, test, encoding.micro_batch if encoding else None)
        expression = add_offset(recipe.data, test, predict_embedded(model, images, test))
        predicted = recipe.complete(expression, test).cpu().numpy()
        if not np.isfinite(predicted).all():
            raise HistError(f"{folder}: training diverged: not all predictions of test spots are finite; {LOWER_LR}")
        write_json(folder / files.COST, fold_cost(trained.history, time.monotonic() - started, model, test.device))
        projection, problems = self._project(model, make_batch(recipe.data, test, images))
        table = prediction_table(predicted, data, test, self.slides, projection)
        write_h5ad(folder / files.PREDICTIONS, table)

        truth, slide = np.asarray(table.layers["truth"]), table.obs["slide"].to_numpy()
        metrics = test_metrics(predicted, truth, slide, table.obs["complete_niche"].to_numpy())
        metrics |= self.controls.metrics(data, job.data, job.split)
        metrics["controls"] = {"permuted": permuted(predicted, truth, setting.fit.seed)} | metrics["controls"]
        if recipe.ridge is not None:  # on the model's inputs and targets, smoothed as the model is
            tuned_ridge = recipe.complete(recipe.ridge[test], test).cpu().numpy()
            for entry, controls in control_metrics({"ridge_tuned": tuned_ridge}, truth, slide).items():
                metrics[entry] = metrics[entry] | controls
        tested = setting.protocol.tested
        metrics |= training_metrics(trained, tested)
        metrics["warnings"] += selection_warnings(
            trained.members, setting.fit, job.split.val, tested, setting.is_within
        )
        if not setting.is_within:  # whatever the depth of a slide is, a part of it was trained on
            metrics["warnings"] += depth_warnings(data.depths(), job.split)
        metrics["warnings"] += ridge_warnings(metrics["pooled"], metrics["controls"])
        metrics["warnings"] += [*([f"LEAK: this fold {job.leak}"] if job.leak else []), *problems]
        errors = metrics["pooled"]["mse"], metrics["controls"]["train_mean"]["mse"], float(np.square(truth).mean())
        metrics["diverged"] += divergence(*errors)
        metrics["model_digest"] = digest
        if trained.history:
            write_history(folder / files.HISTORY, trained.history)
            first = trained.members[0]
            plot_training(folder / files.TRAINING, pd.DataFrame(first.history), first.best_epoch)
        plot_maps(folder / files.MAPS, table)
        if projection is not None:
            plot_geometry(folder / files.GEOMETRY, table)
        write_json(folder / files.METRICS, metrics)  # last: from here on the fold is finished
        for file in files.checkpoint_files(folder):
            file.unlink(missing_ok=True)
        remove_partial_files(folder / files.CHECKPOINT)  # there may have been no time for another one
        return metrics

    @torch.no_grad()
    def _project(self, model: Model, batch: Batch) -> tuple[TangentProjection | None, list[str]]:
        """The model's geometry for the figures, or why there is none: numbers do not wait for a picture."""
        try:
            with model.autocast(batch.spot.device):
                return model.project(batch), []
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            return None, [f"geometry: the axes of its figure cannot be computed ({one_line(error)})"]


def training_metrics(trained: Trained, tested: str) -> dict[str, Any]:
    """How training went: its epochs, warnings about the epoch that is tested, and whether it diverged there.

    Of an ensemble the best epoch is the first member's, and the epochs are those of all members.
    """
    if not trained.history:
        return {"best_epoch": None, "epochs": 0, "warnings": [], "diverged": []}
    rows = [p.history[p.best_epoch if tested == "best" else p.epoch - 1] for p in trained.members]
    skipped = sum(row["skipped"] for row in rows)
    warnings = dict.fromkeys(text for row in rows for text in trained.first.warnings(row))
    return {
        "best_epoch": trained.members[0].best_epoch,
        "epochs": trained.epochs,
        "warnings": list(warnings),
        "diverged": [f"{skipped:.0f} steps of the {tested} epoch {NON_FINITE}"] if skipped else [],
    }
