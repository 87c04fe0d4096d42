"""Encoders: the table in encoders.toml, and from a name to a module that is ready to run."""

from __future__ import annotations

import difflib
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from extract.encoders.encoder import Encoder, Interpolation, PooledEncoder, Pooling
from extract.encoders.weights import LAYOUTS, State, digest, find_weights, first_line, load_strictly, read_state
from hist_cache.console import say, warn
from hist_cache.errors import InputError

DEFAULT_ENCODER = "uni"
SEED = 0  # of random weights


@dataclass(frozen=True)
class Row:
    """One encoder of encoders.toml, whose head explains the fields."""

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

    @property
    def terms(self) -> str:
        """Licence and conditions, for a message."""
        return f"licence: {self.licence}" + ("; access has to be requested there" if self.gated else "")


@cache
def table() -> dict[str, Row]:
    """The rows of encoders.toml by name."""
    rows = tomllib.loads((files("extract") / "encoders/registry.toml").read_text(encoding="utf-8"))
    default = rows.pop("default")
    return {name: Row(**{**default, **row}) for name, row in rows.items()}


def encoder_names() -> list[str]:
    """Names of the table's encoders that can be loaded (besides them: `timm:NAME`)."""
    return [name for name, row in table().items() if not row.unsupported]


def load_encoder(name: str, weights: Path | None = None, random_weights: bool = False) -> Encoder:
    """Load an encoder by name.

    Parameters
    ----------
    name
        One of `encoder_names()`, or `timm:NAME` for any timm model.
    weights
        Its weights, as a file or a folder; otherwise they are found as `extract.encoders.weights` says.
    random_weights
        Draw the weights from a fixed seed instead, which is said aloud.

    Raises
    ------
    InputError
        Unknown name, or weights that are missing, damaged or another model's.
    """
    row = find_row(name)
    if random_weights and weights is not None:
        raise InputError(f"--weights {weights} and --random-weights exclude each other; give one of them")
    if random_weights:
        warn(f"encoder {name}: random weights (seed {SEED}), not pretrained; its embeddings know no tissue")
    elif row.weights == "random" and weights is None:
        say(f"encoder {name}: random weights (seed {SEED}), not pretrained; for trials, not for results")
        random_weights = True

    if random_weights:
        backbone, source = _seeded(row), f"random, seed {SEED}"
    else:
        found = find_weights(name, row.repo, row.files, weights, row.terms)
        state = read_state(found.path)
        backbone, source = _uninitialised(row), found.source
        if row.pooling == "timm":
            state = _without_classifier(state, backbone)
        load_strictly(backbone, LAYOUTS[row.layout](state), found.path, name)
    return _finish(name, row, backbone, pretrained=not random_weights, source=source)


def find_row(name: str) -> Row:
    """The row of an encoder, from the table or, for `timm:NAME`, from timm's own configuration.

    Raises
    ------
    InputError
        There is no such encoder, or it cannot be used.
    """
    if name.startswith("timm:"):
        return _timm_row(name)
    row, names = table().get(name), encoder_names()
    if row is None:
        raise InputError(
            f"unknown encoder {name!r}{_near(name, names)}; "
            f"choose one of {', '.join(names)}, or timm:NAME for a timm model"
        )
    if row.unsupported:
        raise InputError(f"encoder {name} cannot be used: {row.unsupported}; choose one of {', '.join(names)}")
    return row


def _timm_row(name: str) -> Row:
    import timm

    model = name.removeprefix("timm:")
    try:
        config = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    except RuntimeError as error:  # a tag that this model does not have
        near = _near(model, timm.list_pretrained(model.split(".")[0] + ".*"))
        raise InputError(f"unknown encoder {name!r}: {first_line(error)}{near}") from error
    if config is None:
        raise InputError(f"unknown encoder {name!r}: timm has no such model{_near(model, timm.list_models())}")
    channels, height, width = config.input_size
    if channels != 3 or height != width:
        raise InputError(f"encoder {name} takes {config.input_size} inputs; only square RGB crops are made")
    interpolation: Interpolation = "bilinear" if config.interpolation == "bilinear" else "bicubic"
    if config.interpolation != interpolation:
        warn(f"encoder {name}: its own way to resize, {config.interpolation}, is not offered; using bicubic")
    hub_file = config.hf_hub_filename
    return Row(
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


def build(row: Row) -> Any:
    """The timm model of a row, its weights as timm initialises them."""
    import timm
    import timm.layers

    arguments = dict(row.arguments)
    if "mlp_layer" in arguments:
        arguments["mlp_layer"] = getattr(timm.layers, arguments["mlp_layer"])
    if "act_layer" in arguments:
        arguments["act_layer"] = getattr(nn, arguments["act_layer"])
    return timm.create_model(row.architecture, pretrained=False, **arguments)


def _seeded(row: Row) -> Any:
    """Build with the same random numbers each time, leaving the caller's random state as it was."""

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)  # torch.manual_seed would also reseed the GPUs
        return build(row)


def _uninitialised(row: Row) -> Any:
    """Build without drawing the weights that a file then replaces (seconds for a large model)."""

    if row.pooling == "timm":  # may compute buffers that no file holds
        return _seeded(row)
    try:
        with torch.device("meta"):
            return build(row).to_empty(device="cpu")
    except RuntimeError:  # older timm asks for the value of a tensor that has none
        return _seeded(row)


def _without_classifier(state: State, model: Any) -> State:
    """A published classifier's tensors, as timm's model without the classifier names them."""
    classifiers = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ([classifiers] if isinstance(classifiers, str) else classifiers))
    expected = model.state_dict().keys()
    state = {key: value for key, value in state.items() if key in expected or not key.startswith(heads)}
    # The first release of some models names its tensors otherwise; timm keeps the translation with the model.
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return state if translate is None or state.keys() == expected else translate(state, model)


def _finish(name: str, row: Row, backbone: nn.Module, pretrained: bool, source: str) -> Encoder:

    module = PooledEncoder(backbone, row.pooling).eval().requires_grad_(False)
    width = row.width
    if not width:  # timm has no field that gives it for every model
        with torch.inference_mode():
            shape = tuple(module(torch.zeros(1, 3, row.input_size, row.input_size)).shape)
        if len(shape) != 2:
            raise InputError(f"encoder {name} gives {shape} for one crop instead of one vector; choose another")
        width = shape[1]
    return Encoder(
        name=name,
        module=module,
        width=width,
        input_size=row.input_size,
        mean=(row.mean[0], row.mean[1], row.mean[2]),
        std=(row.std[0], row.std[1], row.std[2]),
        interpolation=row.interpolation,
        pretrained=pretrained,
        source=source,
        digest=digest(backbone),
    )


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), names, n=3)
    return f" (did you mean {' or '.join(near)}?)" if near else ""
