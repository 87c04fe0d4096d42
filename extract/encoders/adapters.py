"""Saved LoRA adapters: write, read, find and merge them.

`adapter_config.json` and `adapter_model.safetensors` are as peft writes and reads them. Beside them, `encoder.json`
states the encoder and the weights that the adapter was trained on; on any other encoder it is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from extract.encoders.adapter_slides import AdapterSlides
from extract.encoders.encoder import Encoder, count_blocks
from extract.encoders.lora import Adapted, check_adapted, check_targets, target_names
from extract.encoders.weights import StateDict, digest_state, first_line, read_state
from hist_cache.checked import check_fields
from hist_cache.datasets import patient_names
from hist_cache.errors import HistError, InputError, WriteError
from hist_cache.extras import require
from hist_cache.files import atomic_write, write_json
from hist_cache.runs import CONFIG, METRICS
from hist_cache.texts import read_json

log = logging.getLogger(__name__)

ADAPTER = "adapter"  # subfolder of a fold
SETTINGS = "adapter_config.json"
TENSORS = "adapter_model.safetensors"
OWNER = "encoder.json"
# Entries of SETTINGS that peft writes for its own use; the output of the adapter does not depend on them.
PEFT_RECORDS = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type")


@dataclass(frozen=True)
class Owner:
    """The encoder that an adapter belongs to."""

    encoder: str
    """Its name."""
    weights: str
    """Digest of its tensors, without the adapter."""
    pretrained: bool
    """Whether its weights came from a file; otherwise they are random."""
    slides: dict[str, Any] | None = None
    """`AdapterSlides.as_dict` of the slides that it was trained with; None in files of version 0.1."""


def save_adapter(adapted: Adapted, folder: Path, slides: AdapterSlides | None = None) -> None:
    """Write an adapter as a standard peft folder, with `encoder.json` beside peft's files.

    Each file is complete at any moment: it is written under another name and renamed.

    Args:
        adapted: The encoder with its adapter.
        folder: The adapter's folder.
        slides: The slides that it was trained with.

    Raises:
        HistError: No layer is adapted.
    """
    from safetensors import SafetensorError

    if adapted.model is None:
        raise HistError(f"{folder}: no layer is adapted, so there is no adapter to save")
    encoder = adapted.encoder
    with TemporaryDirectory() as scratch:
        try:
            adapted.model.save_pretrained(scratch, save_embedding_layers=False)
        except SafetensorError as error:
            raise WriteError(scratch, str(error), "make room, or name another folder in TMPDIR") from error
        for name in (TENSORS, SETTINGS):
            with atomic_write(folder / name) as aside:
                shutil.copyfile(Path(scratch) / name, aside)
    recorded = None if slides is None else slides.as_dict()
    write_json(folder / OWNER, asdict(Owner(encoder.name, encoder.digest, encoder.pretrained, recorded)))


def load_adapter(encoder: Encoder, folder: Path, trainable: bool = False) -> Adapted:
    """Put a saved adapter on the encoder that it was trained on.

    Args:
        encoder: The encoder, without an adapter.
        folder: The adapter's folder.
        trainable: Whether the adapter can be trained further; otherwise it is frozen.

    Raises:
        InputError: The folder is incomplete or damaged, or the adapter belongs to another encoder.
    """
    require("peft", "lora", f"{folder}: an adapter")
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
    return check_adapted(Adapted(encoder, model, names))


def merge_adapter(encoder: Encoder, folder: Path) -> Encoder:
    """Add a saved adapter to the encoder's weights, so that it runs as fast as without one.

    Args:
        encoder: The encoder that the adapter was trained on. Its module is changed, so it cannot be used afterwards.
        folder: The adapter's folder.

    Returns:
        The merged encoder; its `lora` is the digest of the adapter, its `adapter_slides` those that are known.

    Raises:
        InputError: As of `load_adapter`, or the merged weights are not finite.
    """
    adapted = load_adapter(encoder, folder)
    try:
        module = adapted.model.merge_and_unload(safe_merge=True).eval().requires_grad_(False)
    except ValueError as error:
        raise InputError(f"{folder}: peft cannot merge this adapter ({first_line(error)}); train it again") from error
    return replace(encoder, module=module, lora=adapter_digest(folder), adapter_slides=read_adapter_slides(folder))


def adapter_digest(folder: Path) -> str:
    """Return the SHA-256, as hex digits, of an adapter's tensors and settings, without what peft only records."""
    settings, tensors = _read(folder)
    relevant = {key: value for key, value in settings.items() if key not in PEFT_RECORDS}
    text = json.dumps(relevant, sort_keys=True) + digest_state(tensors)
    return hashlib.sha256(text.encode()).hexdigest()


def _read(folder: Path) -> tuple[dict[str, Any], StateDict]:
    """Read an adapter's settings and tensors."""
    for name in (SETTINGS, TENSORS):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name}, so this is no whole adapter; train it again or copy it whole")
    try:
        settings = _read_object(folder / SETTINGS)
    except ValueError as error:
        raise InputError(f"{folder / SETTINGS}: not readable ({first_line(error)}); copy the adapter again") from None
    return settings, read_state(folder / TENSORS)


def _read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; `ValueError` where it is something else."""
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"holds no object but {type(values).__name__}")
    return values


def read_owner(folder: Path) -> Owner:
    """Read which encoder a saved adapter belongs to.

    Raises:
        InputError: The folder does not say.
    """
    path = folder / OWNER
    try:
        owner = Owner(**_read_object(path))
        check_fields(replace(owner, slides=None))  # the slides are read, and checked, for themselves
        return owner
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path}: cannot be read ({first_line(error)}), so it is unknown which encoder this adapter belongs to; "
            "give the folder of a run of hist-train --finetune-lora"
        ) from None


def read_adapter_slides(folder: Path) -> AdapterSlides | None:
    """Read which slides an adapter was trained with.

    Version 0.1 did not write them beside the adapter. The config.json of the fold that it lies in has them.

    Returns:
        The slides; None where they are unknown.

    Raises:
        InputError: `encoder.json` is damaged.
    """
    if (recorded := read_owner(folder).slides) is not None:
        try:
            return AdapterSlides.from_dict(recorded)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{folder / OWNER}: its slides cannot be read ({type(error).__name__}: {error}); copy the adapter again"
            ) from None
    if folder.name != ADAPTER:
        return None
    try:
        config = _read_object(folder.parent / CONFIG)
        dataset, patients = config["dataset"], config["patients"]
        named = patient_names(dataset, patients)
        return AdapterSlides.from_dict(config["split"] | {"dataset": dataset, "patients": named, "contents": {}})
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def find_adapter(path: Path) -> Path:
    """Find the adapter of a run.

    Args:
        path: Folder of an adapter, of a fold that has an adapter, or of a run with one such fold.

    Returns:
        The adapter's folder.

    Raises:
        InputError: There is no adapter, or several folds have one; the message names the folds.
    """
    if (path / SETTINGS).is_file():
        return path
    folds = [settings.parents[1] for settings in sorted(path.glob(f"fold*/{ADAPTER}/{SETTINGS}"))]
    if (path / ADAPTER / SETTINGS).is_file():
        folds = [path]
    if not folds:
        raise InputError(f"{path}: no adapter here (looked for {ADAPTER}/{SETTINGS}); give a run of --finetune-lora")
    if len(folds) > 1:
        names = ", ".join(str(fold) for fold in folds)
        raise InputError(
            f"{path}: {len(folds)} folds have an adapter; give one of {names} (hist-train --lora {path} "
            "gives each fold its own adapter)"
        )
    if not (folds[0] / METRICS).is_file():
        log.warning(f"{folds[0]}: this fold is not finished; its adapter is the best so far")
    return folds[0] / ADAPTER
