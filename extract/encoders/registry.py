"""Encoders by name: the table in registry.toml and the user's own; and loading an encoder, ready to run."""

from __future__ import annotations

import logging
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from extract.encoders.weights import (
    LAYOUTS,
    StateDict,
    find_weights,
    first_line,
    load_strictly,
    read_state,
    weights_digest,
)
from hist_cache.errors import InputError, one_line
from hist_cache.own_file import check_own_row
from hist_cache.own_tables import add_own_row, own_rows, own_tables
from hist_cache.texts import did_you_mean

if TYPE_CHECKING:  # the table can be read without torch
    from torch import nn

    from extract.encoders.encoder import Encoder, Interpolation, Pooling

log = logging.getLogger(__name__)

SEED = 0  # of random weights
# What decides the embeddings of an encoder of the user's own, whose name alone does not say it.
DECIDING = ("architecture", "arguments", "pooling", "layout", "weights", "input_size", "mean", "std", "interpolation")


@dataclass(frozen=True)
class EncoderEntry:
    """One encoder of registry.toml, which explains the fields in its first lines."""

    repo: str = ""
    files: Sequence[str] = ()
    layout: str = "timm"
    architecture: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)
    pooling: Pooling = "cls"
    width: int = 0
    input_size: int = 0
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    interpolation: Interpolation = "bicubic"
    licence: str = ""
    gated: bool = False
    weights: Literal["pretrained", "random"] = "pretrained"
    unsupported: str = ""
    place: str = ""
    """Where the row stands, if it is the user's own."""

    @property
    def recorded(self) -> dict[str, Any] | None:
        """What a cache records of an encoder of the user's own, so that it can be built without his file."""
        if not self.place:
            return None
        values = {name: getattr(self, name) for name in DECIDING}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def terms(self) -> str:
        """Licence and conditions, for messages."""
        return f"licence: {self.licence}" + ("; access has to be requested there" if self.gated else "")


@cache
def _rows() -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]]
    rows = tomllib.loads((files("extract") / "encoders/registry.toml").read_text(encoding="utf-8"))
    return rows


def encoder_entries() -> dict[str, EncoderEntry]:
    """Return the entries of registry.toml, then the user's own, by name."""
    default = _rows()["default"]
    entries = {name: EncoderEntry(**{**default, **row}) for name, row in _rows().items() if name != "default"}
    for name, row in own_rows("encoders").items():
        entries[name] = EncoderEntry(**{**default, **row}, place=own_tables().place("encoders", name))
    return entries


def use_recorded_encoder(common: Mapping[str, Any]) -> None:
    """Know the encoder of a cache by what its fingerprint records, where it is one of a user's own.

    Args:
        common: The common part of the fingerprint.

    Raises:
        InputError: What it records is no row of a table of encoders.
    """
    if (row := common.get("entry")) is not None:
        source = "the cache's fingerprint"
        check_own_row("encoders", str(common["encoder"]), row, f"{source}: encoder {common['encoder']}")
        add_own_row("encoders", str(common["encoder"]), row, source)


def encoder_names() -> list[str]:
    """Return the names of the table's encoders that can be loaded; `timm:NAME` can be loaded too."""
    return [name for name, entry in encoder_entries().items() if not entry.unsupported]


def load_encoder(name: str, weights: Path | None = None, random_weights: bool = False) -> Encoder:
    """Load an encoder by name.

    Args:
        name: One of `encoder_names()`, or `timm:NAME` for any timm model.
        weights: Its weights, as a file or a folder; otherwise they are found as `extract.encoders.weights` says.
        random_weights: Draw the weights from a fixed seed instead, and log a warning that says so.

    Raises:
        InputError: The name is unknown, or the weights are missing, damaged or those of another model.
    """
    entry = find_entry(name)
    if random_weights and weights is not None:
        raise InputError(f"--weights {weights} and --random-weights exclude each other; give one of them")
    if random_weights:
        log.warning(f"encoder {name}: random weights (seed {SEED}), not pretrained; its embeddings know no tissue")
    elif entry.weights == "random" and weights is None:
        log.info(f"encoder {name}: random weights (seed {SEED}), not pretrained; for trials, not for results")
        random_weights = True

    if random_weights:
        backbone, source = _seeded(entry), f"random, seed {SEED}"
    else:
        names = entry.files or (["model.safetensors", "pytorch_model.bin"] if entry.repo else [])
        file = find_weights(name, entry.repo, names, weights, entry.terms)
        state = read_state(file.path)
        backbone, source = _uninitialised(entry), file.source
        if entry.pooling == "timm":
            state = _without_classifier(state, backbone)
        load_strictly(backbone, LAYOUTS[entry.layout](state), file.path, name)
    return _finish(name, entry, backbone, pretrained=not random_weights, source=source)


def find_entry(name: str) -> EncoderEntry:
    """Find an encoder in the table or, for `timm:NAME`, in timm's own configuration.

    Raises:
        InputError: There is no such encoder, or it cannot be used.
    """
    if name.startswith("timm:"):
        return _timm_entry(name)
    entry, names = encoder_entries().get(name), encoder_names()
    if entry is None:
        raise InputError(
            f"unknown encoder {name!r}{did_you_mean(name, names, 3)}; "
            f"choose one of {', '.join(names)}, or timm:NAME for a timm model"
        )
    if entry.unsupported:
        raise InputError(f"encoder {name} cannot be used: {entry.unsupported}; choose one of {', '.join(names)}")
    return entry


def _timm_entry(name: str) -> EncoderEntry:
    import timm

    model = name.removeprefix("timm:")
    try:
        config = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    except RuntimeError as error:  # a tag that this model does not have
        suggestion = did_you_mean(model, timm.list_pretrained(model.split(".")[0] + ".*"), 3)
        raise InputError(f"unknown encoder {name!r}: {first_line(error)}{suggestion}") from error
    if config is None:
        raise InputError(
            f"unknown encoder {name!r}: timm has no such model{did_you_mean(model, timm.list_models(), 3)}"
        )
    channels, height, width = config.input_size
    if channels != 3 or height != width:
        raise InputError(f"encoder {name} takes {config.input_size} inputs; only square RGB crops are made")
    interpolation: Interpolation = "bilinear" if config.interpolation == "bilinear" else "bicubic"
    if config.interpolation != interpolation:
        log.warning(f"encoder {name}: its own way to resize, {config.interpolation}, is not offered; using bicubic")
    hub_file = config.hf_hub_filename
    return EncoderEntry(
        repo=config.hf_hub_id or "",
        files=[hub_file] if hub_file else ["model.safetensors", "pytorch_model.bin"],
        architecture=model,
        arguments={"num_classes": 0},
        pooling="timm",
        input_size=width,
        mean=config.mean,
        std=config.std,
        interpolation=interpolation,
        licence=config.license or "see there",
    )


def count_blocks_of(name: str) -> int:
    """Count the transformer blocks of an encoder by its name, without its weights.

    Raises:
        InputError: There is no such encoder, or it is no timm vision transformer.
    """
    import torch

    from extract.encoders.encoder import count_vit_blocks

    entry = find_entry(name)
    try:
        with torch.device("meta"):  # tensors without memory, which are built in no time
            backbone = build(entry)
    except Exception:  # some models compute with values while they are built; any other error is raised again below
        backbone = _seeded(entry)
    return count_vit_blocks(backbone, name)


def build(entry: EncoderEntry) -> Any:
    """Build the timm model of an entry, with the weights that timm initialises it with.

    Raises:
        InputError: An entry of the user's own is one that timm cannot build.
    """
    if not entry.place:
        return _build(entry)
    try:
        return _build(entry)
    except Exception as error:  # of any type: timm checks no argument
        raise InputError(f"{entry.place}: timm cannot build it ({one_line(error)})") from error


def _build(entry: EncoderEntry) -> Any:
    import timm
    import timm.layers
    from torch import nn

    arguments = dict(entry.arguments)
    for key, place in (("mlp_layer", timm.layers), ("act_layer", nn)):
        if key in arguments:
            layer = arguments[key] = getattr(place, arguments[key])
            kind = getattr(layer, "func", layer)  # timm has some of them with arguments filled in
            if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
                raise TypeError(f"{key} {entry.arguments[key]} is no layer")
    return timm.create_model(entry.architecture, pretrained=False, **arguments)


def _seeded(entry: EncoderEntry) -> Any:
    """Build with the same random numbers each time; the caller's random state stays as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)  # torch.manual_seed would also seed the GPUs
        return build(entry)


def _uninitialised(entry: EncoderEntry) -> Any:
    """Build without drawing random weights, which takes seconds for a large model; a file then replaces them."""
    import torch

    if entry.pooling == "timm":  # the model may compute buffers that no file contains
        return _seeded(entry)
    try:
        with torch.device("meta"):
            return build(entry).to_empty(device="cpu")
    except (RuntimeError, InputError):  # older timm reads the value of a tensor, which has none on this device
        return _seeded(entry)


def _without_classifier(state: StateDict, model: Any) -> StateDict:
    """Remove the tensors of a published model's classifier; the rest get the names that timm's model has for them.

    Some models were first published with other tensor names (Swin's also name its classifier differently). timm has
    the translation in the model's own module, and reads the whole file with it, so the classifier is removed after it.
    """
    classifiers = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([classifiers] if isinstance(classifiers, str) else classifiers))
    expected = model.state_dict().keys()

    def rest(state: StateDict) -> StateDict:
        return {key: value for key, value in state.items() if key in expected or not key.startswith(heads)}

    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is not None and rest(state).keys() != expected:
        state = translate(state, model)
    return rest(state)


def _finish(name: str, entry: EncoderEntry, backbone: nn.Module, pretrained: bool, source: str) -> Encoder:
    import torch

    from extract.encoders.encoder import Encoder, PooledEncoder

    module = PooledEncoder(backbone, entry.pooling).eval().requires_grad_(False)
    width = entry.width
    if not width or entry.place:  # timm states it for some models only
        with torch.inference_mode():
            shape = tuple(module(torch.zeros(1, 3, entry.input_size, entry.input_size)).shape)
        if len(shape) != 2:
            raise InputError(f"encoder {name} gives {shape} for one crop instead of one vector; choose another")
        if entry.width not in (0, shape[1]):
            raise InputError(f"{entry.place}: width is {entry.width}, and the model gives {shape[1]}")
        width = shape[1]
    return Encoder(
        name=name,
        module=module,
        width=width,
        input_size=entry.input_size,
        mean=(entry.mean[0], entry.mean[1], entry.mean[2]),
        std=(entry.std[0], entry.std[1], entry.std[2]),
        interpolation=entry.interpolation,
        pretrained=pretrained,
        source=source,
        digest=weights_digest(backbone),
        entry=entry.recorded,
    )
