"""Spots as plain arrays, which the processes of a machine share, and back."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.data import SpotData

_PER_SPOT = ("spot", "niche", "expression", "niche_expression", "slide", "row", "complete")
_OPTIONAL = ("total", "position")  # None where they are not known
_RING = "ring"


def to_arrays(data: SpotData) -> dict[str, np.ndarray]:
    """The spots as arrays by name; without `encoder_inputs` and `targets`, which each fold makes itself."""
    tensors = {name: getattr(data, name) for name in _PER_SPOT}
    tensors |= {name: value for name in _OPTIONAL if (value := getattr(data, name)) is not None}
    tensors |= {f"{_RING}{i:02d}": ring for i, ring in enumerate(data.rings)}
    texts = {"slides": data.slides, "panel": data.panel, "transform": [data.transform]}
    if data.whole_slides is not None:
        texts["whole_slides"] = data.whole_slides
    arrays = {name: value.cpu().numpy() for name, value in tensors.items()}
    return arrays | {name: np.array(values, dtype=str) for name, values in texts.items()}


def from_arrays(arrays: dict[str, np.ndarray], device: torch.device) -> SpotData:
    """The spots of such arrays. On the CPU the tensors are the arrays' own memory, which must not be written to."""

    def tensor(name: str) -> Tensor:
        with warnings.catch_warnings():  # arrays that Ray shares cannot be written to
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(arrays[name]).to(device)

    values: dict[str, Any] = {name: tensor(name) for name in _PER_SPOT}
    values |= {name: tensor(name) for name in _OPTIONAL if name in arrays}
    values |= {name: [str(text) for text in arrays[name]] for name in ("slides", "panel")}
    whole = [str(text) for text in arrays["whole_slides"]] if "whole_slides" in arrays else None
    return SpotData(
        **values,
        transform=str(arrays["transform"][0]),  # type: ignore[arg-type]
        rings=tuple(tensor(name) for name in sorted(arrays) if name.startswith(_RING)),
        whole_slides=whole,
    )
