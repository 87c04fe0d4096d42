"""Which encoder a command runs, as plain data, so that every process that needs it can load it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from extract.encoders.adapters import find_adapter, merge_adapter, read_owner
from extract.encoders.encoder import Encoder, first_blocks_encoder
from extract.encoders.registry import load_encoder
from extract.pipeline import Pipeline, has_fast_bf16, start_pipeline
from hist_cache.devices import choose_device
from hist_cache.engine import Engine, Workers
from hist_cache.errors import HistError
from hist_cache.executor import Events, Report, Worker
from hist_cache.values import Precision

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChosenEncoder:
    """An encoder by name.

    Attributes:
        name: As the user gave it; None for the one that an adapter names, or the dataset's.
        of_dataset: The dataset's own.
        weights: File or folder of its weights; None where they are searched for.
        random_weights: Whether it has seeded random weights.
        lora: A run of hist-train --finetune-lora, of a fold or of an adapter, whose adapter it has.
    """

    name: str | None
    of_dataset: str
    weights: str | None
    random_weights: bool
    lora: str | None

    def load(self) -> Encoder:
        """Load it, with its adapter merged into the weights."""
        weights = Path(self.weights) if self.weights else None
        if self.lora is None:
            return load_encoder(self.name or self.of_dataset, weights, self.random_weights)
        folder = find_adapter(Path(self.lora))
        owner = read_owner(folder)
        random = self.random_weights or (self.name is None and weights is None and not owner.pretrained)
        encoder = merge_adapter(load_encoder(self.name or owner.encoder, weights, random), folder)
        log.info(f"encoder {encoder.name} with the adapter {folder} (digest {str(encoder.lora)[:12]}) merged into it")
        if encoder.adapter_slides is None:
            log.warning(
                f"{folder} does not say which slides it was trained on: hist-train refuses its cache without "
                "--allow-leak (give the run's own folder, or train the adapter again)"
            )
        return encoder


@dataclass(frozen=True)
class EncoderPlace:
    """Where and how the encoder runs, decided once for all processes.

    Attributes:
        device: The value of `--device`.
        precision: Of weights and inputs.
        fast_only: Whether a device that does not compute this precision in hardware is refused.
    """

    device: str
    precision: Precision
    fast_only: bool

    def in_precision(self, precision: Precision) -> EncoderPlace:
        """The same place in a precision that others have decided on; devices that compute it slowly are taken too."""
        return self if precision == self.precision else EncoderPlace(self.device, precision, fast_only=False)

    def start(self, encoder: Encoder, first_blocks: int | None = None) -> Pipeline:
        """Put the encoder on the device.

        Args:
            encoder: The whole encoder.
            first_blocks: Run only so many of its blocks, for the tokens after them.

        Raises:
            HistError: The device does not compute the precision in hardware.
        """
        device = choose_device(self.device)
        if self.fast_only and self.precision == "bf16" and not has_fast_bf16(device):
            raise HistError(f"{device} does not compute bf16 in hardware, as others do; give --precision fp32 for all")
        if self.precision == "bf16" and not has_fast_bf16(device):
            log.warning(f"{device} does not compute bf16 in hardware: it will take long")
        if first_blocks is not None:
            encoder = first_blocks_encoder(encoder, first_blocks)
        return start_pipeline(encoder, self.precision, device)


def decide_place(asked: str, precision: Precision | None, device: torch.device, engine: Engine) -> EncoderPlace:
    """Decide where the encoder runs, and in which precision, once for all processes.

    Args:
        asked: The value of `--device`.
        precision: The value of `--precision`. Without one, it is bf16 where the workers compute it in hardware; of
            workers on other machines one is asked.
        device: Of this process.
        engine: Where the workers are.

    Raises:
        HistError: No worker could tell.
    """
    if precision is not None:
        return EncoderPlace(asked, precision, fast_only=False)
    fast = has_fast_bf16(device) if engine.shares_files else _ask_worker(asked, device, engine)
    return EncoderPlace(asked, "bf16" if fast else "fp32", fast_only=True)


def _ask_worker(asked: str, device: torch.device, engine: Engine) -> bool:
    """Have a worker say whether its device computes bf16 in hardware."""
    answers: list[bool] = []
    events: Events[str, bool] = Events(on_result=lambda task, answer: answers.append(answer))
    failures = engine.executor(1, device).run([asked], Worker(_nothing, _computes_bf16, None), events)
    for failure in failures:
        raise failure.error
    return answers[0]


def _nothing(setup: None) -> None:
    """Such a worker needs nothing."""


def _computes_bf16(context: None, asked: str, report: Report) -> bool:
    return has_fast_bf16(choose_device(asked))


def log_encoder(encoder: Encoder, place: EncoderPlace, workers: Workers) -> None:
    """Log which encoder runs, how and where."""
    log.info(f"encoder {encoder.name} ({encoder.source}) in {place.precision} on {workers}")
