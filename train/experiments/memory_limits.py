"""Whether a model fits into memory, known before anything is allocated, and what to say where it did not."""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from hist_cache.errors import HistError
from hist_cache.memory import free_memory
from train.experiments.outputs import make_member
from train.experiments.setting import Setting

OUT_OF_MEMORY = "out of memory; give a smaller model (such as --width) or --batch-size"
OUT_OF_MEMORY_ENCODER = (
    "out of memory while fine-tuning the encoder: give --micro-batch N to encode N spots at once (the loss stays that "
    "of the whole batch), or --grad-checkpoint"
)
COPIES = 4  # of all weights: themselves, their gradients, and two moments of AdamW


def check_model_fits(setting: Setting, device: torch.device) -> None:
    """`HistError` where the weights of a setting's model, and what training keeps beside them, exceed the memory.

    Of an ensemble one member is trained at a time; of those before it only the weights are kept.
    """
    copies = COPIES + setting.recipe.ensemble - 1
    try:
        with torch.device("meta"), _NoNumbers():  # nothing is allocated
            needed = copies * sum(p.numel() * p.element_size() for p in make_member(setting).parameters())
    except Exception:  # a user's model may need values to be made, such as weights from a file: then nothing is known
        return
    is_gpu = device.type == "cuda"
    there = torch.cuda.get_device_properties(device).total_memory if is_gpu else free_memory()
    if needed > there:
        raise HistError(
            f"{setting.name}: its weights, gradients and optimizer need {needed / 1e9:,.0f} GB of memory, of "
            f"{there / 1e9:,.0f} that are free; give a smaller model (such as --width)"
            f"{' or a smaller --ensemble' * (setting.recipe.ensemble > 1)}"
        )


class _NoNumbers(TorchFunctionMode):
    """In it weights are not initialised: on the device meta that has no effect, but imports sympy, which takes long."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), more: dict[str, Any] | None = None
    ) -> Any:
        """The tensor, where it would be initialised."""
        named = more or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return args[0] if args else named["tensor"]
        return function(*args, **named)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice; some kinds torch reports by an ordinary RuntimeError."""
    texts = ("DefaultCPUAllocator", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in texts)


def release_memory(error: BaseException, device: torch.device) -> None:
    """Give back the tensors of a fold that failed: its error is kept to the end, and would keep them for its traceback.

    Args:
        error: What ended the fold, as it is handled.
        device: Where it ran.
    """
    traceback.clear_frames(error.__traceback__)
    if device.type == "cuda":
        torch.cuda.empty_cache()
