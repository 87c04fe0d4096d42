"""A saved LoRA adapter: a standard peft folder, tied to the encoder it was trained on; written, read, found, merged.

`adapter_config.json` and `adapter_model.safetensors` are as peft writes and reads them. Beside them `encoder.json` says
which encoder, with which weights, the adapter belongs to; on any other it is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from extract.encoders.encoder import Encoder, count_blocks
from extract.encoders.lora import Adapted, check_targets, checked, target_names
from extract.encoders.weights import State, digest_state, first_line, read_state
from hist_cache.console import warn
from hist_cache.errors import HistError, InputError
from hist_cache.files import atomic_write, write_json
from hist_cache.runs import METRICS

ADAPTER = "adapter"  # folder of a fold
SETTINGS = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
OWNER = "encoder.json"
# What peft records in SETTINGS that changes nothing in what the adapter computes.
RECORDED = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type")


@dataclass(frozen=True)
class Owner:
    """The encoder that an adapter belongs to."""

    encoder: str
    weights: str
    """Digest of the encoder's tensors, without the adapter."""
    pretrained: bool


def save_adapter(adapted: Adapted, folder: Path) -> None:
    """Write the adapter as a standard peft folder, each file aside and renamed, with `encoder.json` beside."""
    if adapted.model is None:
        raise HistError(f"{folder}: no layer is adapted, so there is no adapter to save")
    encoder = adapted.encoder
    with TemporaryDirectory() as scratch:
        adapted.model.save_pretrained(scratch, save_embedding_layers=False)
        for name in (TENSORS, SETTINGS):
            with atomic_write(folder / name) as aside:
                shutil.copyfile(Path(scratch) / name, aside)
    write_json(folder / OWNER, asdict(Owner(encoder.name, encoder.digest, encoder.pretrained)))


def load_adapter(encoder: Encoder, folder: Path, trainable: bool = False) -> Adapted:
    """Put a saved adapter on the encoder it was made for, frozen or to be trained on.

    Raises
    ------
    InputError
        The folder is incomplete or damaged, or the adapter is another encoder's.
    """
    import peft

    owner = read_owner(folder)
    if (owner.encoder, owner.weights) != (encoder.name, encoder.digest):
        raise InputError(
            f"{folder}: this adapter belongs to encoder {owner.encoder} with weights {owner.weights[:12]}, not to "
            f"{encoder.name} with weights {encoder.digest[:12]}; give that encoder and its weights"
        )
    blocks = count_blocks(encoder)
    _, tensors = _read(folder)
    layers = len({int(i) for key in tensors for i in re.findall(r"\.blocks\.(\d+)\.", key)})
    names = target_names(blocks, min(layers, blocks))
    expected = {f"base_model.model.{name}.lora_{side}.weight" for name in names for side in "AB"}
    if odd := sorted(expected ^ tensors.keys()):
        raise InputError(
            f"{folder / TENSORS}: not LoRA on the attention of the last blocks of {encoder.name} (first odd: {odd[0]})"
        )
    check_targets(encoder, names)
    try:
        device = str(next(encoder.module.parameters()).device)
        model = peft.PeftModel.from_pretrained(encoder.module, folder, is_trainable=trainable, torch_device=device)
    except Exception as error:  # settings of another kind of adapter, or of a newer peft
        raise InputError(f"{folder}: peft cannot load this adapter ({first_line(error)})") from error
    return checked(Adapted(encoder, model, names))


def merge_adapter(encoder: Encoder, folder: Path) -> Encoder:
    """The encoder with a saved adapter added into its weights: as fast as without, its `lora` the adapter's digest.

    Works on the encoder's own module; the encoder that was given is not to be used any more.
    """
    adapted = load_adapter(encoder, folder)
    module = adapted.model.merge_and_unload(safe_merge=True).eval().requires_grad_(False)
    return replace(encoder, module=module, lora=adapter_digest(folder))


def adapter_digest(folder: Path) -> str:
    """SHA-256, as hex, of what an adapter computes: its tensors, and its settings but for peft's own records."""
    settings, tensors = _read(folder)
    kept = {key: value for key, value in settings.items() if key not in RECORDED}
    text = json.dumps(kept, sort_keys=True) + digest_state(tensors)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(folder: Path) -> tuple[dict[str, Any], State]:
    """An adapter's settings and tensors."""
    for name in (SETTINGS, TENSORS):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name}, so this is no whole adapter; train it again or copy it whole")
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{folder / SETTINGS}: not readable ({first_line(error)}); copy the adapter again") from None
    return settings, read_state(folder / TENSORS)


def read_owner(folder: Path) -> Owner:
    """Which encoder a saved adapter belongs to; `InputError` where that is not recorded."""
    path = folder / OWNER
    try:
        return Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: cannot be read ({first_line(error)}), so it is unknown which encoder this adapter belongs to; "
            "give the folder of a run of hist-train --finetune-lora"
        ) from None


def find_adapter(path: Path) -> Path:
    """The adapter of a run: `path` is the adapter's folder, a fold that has one, or a run with one such fold.

    Raises
    ------
    InputError
        There is none, or several folds have one (they are named).
    """
    if (path / SETTINGS).is_file():
        return path
    folds = [found.parents[1] for found in sorted(path.glob(f"fold*/{ADAPTER}/{SETTINGS}"))]
    if (path / ADAPTER / SETTINGS).is_file():
        folds = [path]
    if not folds:
        raise InputError(f"{path}: no adapter here (looked for {ADAPTER}/{SETTINGS}); give a run of --finetune-lora")
    if len(folds) > 1:
        names = ", ".join(str(fold) for fold in folds)
        raise InputError(f"{path}: {len(folds)} folds have an adapter; give one of {names}")
    if not (folds[0] / METRICS).is_file():
        warn(f"{folds[0]}: this fold is not finished; its adapter is the best so far")
    return folds[0] / ADAPTER
