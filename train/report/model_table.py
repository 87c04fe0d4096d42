"""The models of a report: where each was published, and with what encoder, which numbers on a cache do not have."""

from __future__ import annotations

from collections.abc import Sequence

from train.models.registry import DEFAULT_MODEL, get_model
from train.report.results import RunResult
from train.report.table import Cell, Column, Row, Table

MODEL_COLUMNS = ("what it is", "published", "its encoder there", "here")
MODEL_NOTES = (
    "here all models read embeddings of one encoder, which is frozen unless it says LoRA: a difference between rows is "
    "one of models, and none of them is as strong as with an encoder of its own that is trained",
    "what is faithful and what differs is said at the head of each model's file in train/models",
)


def model_table(runs: Sequence[RunResult]) -> Table | None:
    """The models of the runs; None where all are HiST."""
    if all(run.model == DEFAULT_MODEL for run in runs):
        return None
    rows = {}
    for run in runs:
        entry = get_model(run.model)
        tuned = f", {run.setting.finetuning.lora.layers} blocks by LoRA" if run.setting.finetuning else ", frozen"
        here = f"{run.setting.cache.get('encoder', 'unknown')}{tuned}"
        texts = (entry.title, entry.reference or "–", entry.encoder or "–", here)
        rows[entry.name, texts] = Row(entry.name, "run", tuple(map(Cell, texts)))
    return Table("models", "Models", tuple(map(Column, MODEL_COLUMNS)), tuple(rows.values()), MODEL_NOTES, "model")
