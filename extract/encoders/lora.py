"""LoRA by peft on the attention of an encoder's last blocks; saving and loading is in `extract.encoders.adapters`."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from extract.encoders.encoder import Encoder, count_blocks
from hist_cache.errors import HistError, InputError
from hist_cache.extras import require

ATTENTION_LAYERS = ("qkv", "proj")  # the linear layers of a block's attention, which are adapted


@dataclass(frozen=True)
class LoraConfig:
    """How an encoder is adapted.

    Rank and number of layers are the paper's. The paper does not state the rest, so that is taken from the published
    code: a scale alpha / rank of 2, and dropout 0.1.
    """

    layers: int = 11
    """How many of the last blocks are adapted; 0 adapts none."""
    rank: int = 4
    """Rank of each update."""
    alpha: float = 8
    """Each update is multiplied by alpha / rank."""
    dropout: float = 0.1
    """Dropout on the inputs of the updates, in training."""

    def __post_init__(self) -> None:
        """Check the values; `InputError` where they make no sense."""
        if self.layers < 0 or self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise InputError(
                f"LoRA with {self.layers} layers, rank {self.rank}, alpha {self.alpha:g}, dropout {self.dropout:g}: "
                "layers must be 0 or more, rank 1 or more, alpha above 0, dropout from 0 to below 1"
            )


@dataclass(frozen=True)
class Adapted:
    """An encoder with adapters on it. They are in `encoder.module` itself, so that running the encoder runs them."""

    encoder: Encoder
    """The encoder that was adapted in place."""
    model: Any
    """peft's PeftModel around `encoder.module`; None if no layer is adapted."""
    modules: tuple[str, ...]
    """Names of the adapted modules within `encoder.module`."""
    originals: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)
    """Frozen parameters that were converted, with their former values."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are trained: those of the adapters only."""
        return [p for p in self.encoder.module.parameters() if p.requires_grad]

    @property
    def summary(self) -> str:
        """One line that says what is adapted, how, and how many parameters are trained."""
        blocks = count_blocks(self.encoder)
        if self.model is None:
            return f"LoRA: no layer adapted; all {blocks} blocks of {self.encoder.name} frozen"
        lora = self.model.peft_config["default"]
        count = sum(p.numel() for p in self.parameters)
        first = blocks - len(self.modules) // len(ATTENTION_LAYERS)
        return (
            f"LoRA: rank {lora.r}, alpha {lora.lora_alpha:g}, dropout {lora.lora_dropout:g} on attn.qkv and attn.proj "
            f"of blocks {first}-{blocks - 1} of {self.encoder.name}: "
            f"{len(self.modules)} modules, {count:,} trainable parameters"
        )


def target_names(blocks: int, layers: int) -> tuple[str, ...]:
    """Return the names of the modules that are adapted.

    Args:
        blocks: Number of blocks of a `PooledEncoder`.
        layers: How many of the last blocks are adapted.
    """
    return tuple(
        f"backbone.blocks.{i}.attn.{layer}" for i in range(blocks - layers, blocks) for layer in ATTENTION_LAYERS
    )


def adapted_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that have an adapter, in the order of the model."""
    if find_spec("peft") is None:
        return ()  # adapters are modules of peft
    from peft.tuners.lora import LoraLayer

    return tuple(name for name, part in module.named_modules() if isinstance(part, LoraLayer))


def adapt(encoder: Encoder, config: LoraConfig) -> Adapted:
    """Put new adapters on an encoder and freeze everything else; its output only changes when they are trained.

    The adapters' weights are drawn from torch's global random state. The module stays in evaluation mode; dropout needs
    a call of `train()`.

    Raises:
        InputError: The encoder is no vision transformer, or has fewer blocks than `config.layers`.
        HistError: The encoder has an adapter already.
    """
    require("peft", "lora", "LoRA")
    import peft

    blocks = count_blocks(encoder)
    encoder.module.requires_grad_(False)
    if config.layers > blocks:
        raise InputError(
            f"LoRA on {config.layers} layers: encoder {encoder.name} has {blocks} blocks; adapt {blocks} at most"
        )
    names = target_names(blocks, config.layers)
    check_targets(encoder, names)
    if not names:
        return Adapted(encoder, None, ())
    numbers = "|".join(str(i) for i in range(blocks - config.layers, blocks))
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft declares int but takes any number
        lora_dropout=config.dropout,
        bias="none",
        # The whole path, because "proj" alone would also adapt the convolution patch_embed.proj.
        target_modules=rf"^backbone\.blocks\.({numbers})\.attn\.({'|'.join(ATTENTION_LAYERS)})$",
    )
    return check_adapted(Adapted(encoder, peft.get_peft_model(encoder.module, settings), names))


def freeze_in_bf16(adapted: Adapted) -> None:
    """Convert the frozen linear layers to bf16, which autocast would do again in every step.

    What bf16 autocast computes stays the same, to the last bit. `remove_adapters` puts the former weights back.
    """
    for layer in adapted.encoder.module.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.requires_grad:
            for parameter in layer.parameters():
                adapted.originals.append((parameter, parameter.data))
                parameter.data = parameter.data.to(torch.bfloat16)


def check_targets(encoder: Encoder, names: tuple[str, ...]) -> None:
    """Check that each module to adapt exists and is a plain linear layer.

    Raises:
        InputError: A module is missing, or is no linear layer.
        HistError: The encoder has an adapter already.
    """
    if adapted := adapted_names(encoder.module):
        raise HistError(f"encoder {encoder.name} carries an adapter already ({adapted[0]}, ...); remove it first")
    modules = dict(encoder.module.named_modules())
    for name in names:
        if not isinstance(modules.get(name), nn.Linear):
            raise InputError(
                f"encoder {encoder.name} has no linear layer {name}, so LoRA cannot adapt it; choose a ViT"
            )


def check_adapted(adapted: Adapted) -> Adapted:
    """Check that peft did what it was told: it adapted these modules and no others, and only adapters are trained.

    Returns:
        The argument, in evaluation mode, which peft does not set for the dropout that it adds.

    Raises:
        HistError: Other modules are adapted, or something else is trained too.
    """
    names = adapted_names(adapted.encoder.module)
    if names != adapted.modules:
        odd = sorted(set(names) ^ set(adapted.modules))
        raise HistError(f"peft adapted {len(names)} modules instead of {len(adapted.modules)}; first odd: {odd[0]}")
    trained = [name for name, p in adapted.encoder.module.named_parameters() if p.requires_grad]
    if odd := [name for name in trained if ".lora_" not in name]:
        raise HistError(f"peft left {odd[0]} trainable, which is no adapter")
    adapted.model.eval()
    return adapted


def remove_adapters(adapted: Adapted) -> None:
    """Take the adapters off, after which the encoder is as it was before `adapt`."""
    for parameter, values in adapted.originals:
        parameter.data = values
    adapted.originals.clear()
    if adapted.model is not None:
        adapted.model.unload()
