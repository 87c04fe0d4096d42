"""Where training stands, and its checkpoint on disk: from it training goes on as if it had never stopped."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hist_cache.errors import HistError, InputError, one_line
from hist_cache.files import atomic_file
from train import distributed
from train.data import Inputs
from train.fit.adamw import AdamW
from train.fit.average import WeightAverage
from train.models.base import Model

log = logging.getLogger(__name__)

HEAD = b"hist-cache checkpoint 1\n"
ZIP_HEAD = b"PK\x03\x04"  # of a checkpoint of version 0.1
STATE_AT = len(HEAD) + 64 + 1  # where that begins which the check sum is of
ENCODER = "encoder.module."  # before the names of an encoder's adapters, among a model's weights
SEEDS_APART = 1_000_003  # between seeds of an epoch and of the next one; of two processes they are 1 apart
STORED_NAMES = {"best_watched": "best_mse"}  # names in a checkpoint that are not those of the fields


@dataclass
class Progress:
    """Where training stands.

    Attributes:
        epoch: Epochs that were run.
        best_epoch: The epoch with the best validation score, from 0; -1 before the first.
        best_watched: That score; the lower, the better.
        best: Its weights.
        history: What was logged, a row an epoch.
    """

    epoch: int = 0
    best_epoch: int = -1
    best_watched: float = float("inf")
    best: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    def finished(self, epochs: int, patience: int) -> bool:
        """Whether all epochs were run, or the validation error has not improved for `patience` of them."""
        return self.epoch >= epochs or (self.best_epoch >= 0 and self.epoch - 1 - self.best_epoch >= patience)


def trained_state(model: Model, inputs: Inputs) -> dict[str, Tensor]:
    """All weights of the model, and the adapters of an encoder, whose frozen weights are known from its file."""
    weights = inputs.encoder.named_parameters() if inputs.encoder is not None else ()
    return model.state_dict() | {ENCODER + name: p.detach() for name, p in weights if p.requires_grad}


def load_trained_state(model: Model, inputs: Inputs, state: dict[str, Tensor]) -> None:
    """Load what `trained_state` gave; RuntimeError where a weight is missing, unknown or of another shape."""
    if set(state) != set(trained_state(model, inputs)):
        raise RuntimeError("its weights are not those of this model")
    model.load_state_dict({name: value for name, value in state.items() if not name.startswith(ENCODER)})
    adapters = {name.removeprefix(ENCODER): value for name, value in state.items() if name.startswith(ENCODER)}
    if inputs.encoder is not None and adapters:
        inputs.encoder.load_state_dict(adapters, strict=False)


@dataclass(frozen=True)
class Checkpoint:
    """The file that a stopped run goes on from.

    Its first line says what the file is, the second is the SHA-256 of all that follows: a line of JSON with what the
    run was made for, and the state as torch writes it. Version 0.1 wrote the state alone.

    Attributes:
        path: The file.
        made_for: All that decides the run: its setting, split, panel and the digests of its slides. Another run does
            not go on from the file. Plain values, as JSON reads them back.
        kept: Whether it is written when training ends, too.
    """

    path: Path
    made_for: dict[str, Any] = field(default_factory=dict)
    kept: bool = False

    def save(
        self,
        progress: Progress,
        model: Model,
        inputs: Inputs,
        optimizer: AdamW,
        order: torch.Generator,
        average: WeightAverage,
    ) -> None:
        """Write everything that decides the epochs to come; every process's random state, written by the first."""
        states = distributed.all_gather_states(torch.get_rng_state())
        on_gpu = inputs.device.type == "cuda"
        cuda_states = distributed.all_gather_states(torch.cuda.get_rng_state(inputs.device)) if on_gpu else []
        if distributed.rank() > 0:
            return
        state = {
            "progress": {STORED_NAMES.get(name, name): value for name, value in vars(progress).items()},
            "model": trained_state(model, inputs),
            "optimizer": optimizer.state_dict(),
            "order": order.get_state(),
            "average": average.state(),
            "rng": states,
            "cuda_rng": cuda_states,
        }
        made_for = json.dumps(self.made_for).encode() + b"\n"
        content = io.BytesIO()
        torch.save(state, content)
        with atomic_file(self.path) as file:
            for part in (_head_of(made_for, content.getbuffer()), made_for, content.getbuffer()):
                file.write(part)

    def load(
        self,
        model: Model,
        inputs: Inputs,
        optimizer: AdamW,
        order: torch.Generator,
        average: WeightAverage,
    ) -> Progress | None:
        """Load what `save` wrote.

        Returns:
            Where training stands; None where there is no file.

        Raises:
            HistError: The file is damaged, of another run or of another model, or processes on one batch see different
                files.
        """
        self._check_same()
        if (stored := self.read(inputs.device)) is None:
            return None
        made_for, state = stored
        if changes := differing(made_for, self.made_for):
            raise self._error(f"was made for another run: {'; '.join(changes)}")
        try:
            load_trained_state(model, inputs, state["model"])
            optimizer.load_state_dict(state["optimizer"])
            order.set_state(state["order"].cpu())
            average.load(state.get("average", {}))
            stored = state["progress"]
            progress = Progress(**{f.name: stored[STORED_NAMES.get(f.name, f.name)] for f in fields(Progress)})
            self._load_random_states(state, inputs.device, progress.epoch)
            return progress
        except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise self._error(f"cannot be continued ({one_line(error)})") from error

    def _check_same(self) -> None:
        """`HistError`, in all processes on one batch, where one of them has another file here, or none.

        They may be on different machines. From different epochs on, each would train with gradients of the other's.
        """
        if distributed.world_size() == 1:
            return
        digest = hashlib.sha256(self.path.read_bytes()).hexdigest() if self.path.is_file() else None
        if (other := distributed.differing_rank(digest)) is not None:
            raise HistError(
                f"{self.path}: is not the same for process {other} as for process 0; "
                "all machines must see the same folder of runs"
            )

    def _load_random_states(self, state: dict[str, Any], device: torch.device, epoch: int) -> None:
        """Load what differs between processes: the states of torch's generators, which dropout draws from.

        Those of another number of processes serve none of these, which are seeded anew: not as at the start, or the
        first epochs' draws would come again.
        """
        writers, n = len(state["rng"]), distributed.world_size()
        if writers != n:
            log.info(f"{self.path}: by another number of processes ({writers}, now {n}): dropout is seeded anew")
            torch.manual_seed((torch.initial_seed() + SEEDS_APART * epoch) % 2**63)
            return
        torch.set_rng_state(state["rng"][distributed.rank()].cpu())
        if state["cuda_rng"] and device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"][distributed.rank()].cpu(), device)

    def check(self) -> bool:
        """Whether the file says what it was made for, which is then this run; a damaged file is left to `load`.

        Of a file for this run no more than that is read.

        Raises:
            InputError: It was made for another run.
        """
        try:
            with self.path.open("rb") as file:
                head = file.read(STATE_AT)
                if head.startswith(ZIP_HEAD):
                    return False
                if changes := differing(json.loads(file.readline()), self.made_for):
                    self._content()  # a damaged file may name other values than were written
                    raise InputError(str(self._error(f"was made for another run: {'; '.join(changes)}")))
        except FileNotFoundError:
            return False
        except InputError:
            raise
        except (HistError, ValueError, TypeError, AttributeError, RecursionError):
            return True
        return True

    def read(self, device: torch.device) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """What the file was made for ({} by version 0.1), and its state; None where there is no file.

        Raises:
            HistError: The file is damaged.
        """
        if (content := self._content()) is None:
            return None
        try:
            state = torch.load(io.BytesIO(content[1]), map_location=device, weights_only=True)
        except Exception as error:  # torch raises errors of many kinds; which ones, it does not say
            raise self._error(f"cannot be read ({one_line(error)})") from error
        return content[0] or {}, state

    def _content(self) -> tuple[dict[str, Any] | None, bytes] | None:
        """What the file was made for, None by version 0.1, and the bytes of its state; None where there is no file."""
        try:
            with self.path.open("rb") as file:
                head = file.read(STATE_AT)
                if head.startswith(ZIP_HEAD):
                    return None, self._checked_zip(head + file.read())
                made_for, state = file.readline(), file.read()
        except FileNotFoundError:
            return None
        if head != _head_of(made_for, state):
            raise self._error("is damaged")
        return json.loads(made_for), state

    def _checked_zip(self, content: bytes) -> bytes:
        """A state of version 0.1, which is a ZIP archive and has the check sums of one."""
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                damaged = archive.testzip()
        except Exception:  # of many kinds, on damaged archives
            damaged = "it"
        if damaged is not None:
            raise self._error("is damaged")
        return content

    def _error(self, problem: str) -> HistError:
        return HistError(f"{self.path}: {problem}; delete it to start over, or give another --runs folder")


def _head_of(*parts: bytes | memoryview) -> bytes:
    """The first two lines of a checkpoint whose other parts are these."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return HEAD + digest.hexdigest().encode() + b"\n"


def differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Name each entry that is not the same, with both values where they are short: `setting.loop.lr 0.1 -> 0.2`.

    Args:
        old: Nested plain values; {} is not compared.
        new: The same of another run.
        prefix: Before the names.
    """
    changes = []
    for key in dict.fromkeys([*old, *new]) if old else ():
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping) and before and after:
            changes += differing(before, after, f"{prefix}{key}.")
        elif before != after:
            texts = [" ".join(map(str, v)) if isinstance(v, list) else str(v) for v in (before, after)]
            changes.append(f"{prefix}{key} " + (" -> ".join(texts) if max(map(len, texts)) <= 80 else "differs"))
    return changes
