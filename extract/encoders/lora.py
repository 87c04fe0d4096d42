"""LoRA by peft on the attention of an encoder's last blocks; saving and loading is in `extract.encoders.adapters`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from extract.encoders.encoder import Encoder, count_blocks
from hist_cache.errors import HistError, InputError

PARTS = ("qkv", "proj")  # of a block's attention


@dataclass(frozen=True)
class LoraConfig:
    """How an encoder is adapted: the paper's rank and layers; where it is silent, what the public release has (a scale
    alpha / rank of 2, dropout 0.1).
    """

    layers: int = 11
    """The last blocks that are adapted; 0: none."""
    rank: int = 4
    alpha: float = 8
    """The update is scaled by alpha / rank."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.layers < 0 or self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise InputError(
                f"LoRA with {self.layers} layers, rank {self.rank}, alpha {self.alpha:g}, dropout {self.dropout:g}: "
                "layers must be 0 or more, rank 1 or more, alpha above 0, dropout from 0 to below 1"
            )


@dataclass(frozen=True)
class Adapted:
    """An encoder with adapters on it. They sit in `encoder.module` itself, so whatever runs it runs them too."""

    encoder: Encoder
    model: Any
    """peft's PeftModel around `encoder.module`; None where no layer is adapted."""
    modules: tuple[str, ...]
    """Names of the adapted modules within `encoder.module`."""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained: the adapters and nothing else."""
        return [p for p in self.encoder.module.parameters() if p.requires_grad]

    @property
    def summary(self) -> str:
        """One line: what is adapted, how, and how much of it is trained."""
        blocks = count_blocks(self.encoder)
        if self.model is None:
            return f"LoRA: no layer adapted; all {blocks} blocks of {self.encoder.name} frozen"
        lora = self.model.peft_config["default"]
        count = sum(p.numel() for p in self.parameters)
        return (
            f"LoRA: rank {lora.r}, alpha {lora.lora_alpha:g}, dropout {lora.lora_dropout:g} on attn.qkv and attn.proj "
            f"of blocks {blocks - len(self.modules) // 2}-{blocks - 1} of {self.encoder.name}: "
            f"{len(self.modules)} modules, {count:,} trainable parameters"
        )


def target_names(blocks: int, layers: int) -> tuple[str, ...]:
    """Modules of a `PooledEncoder` with that many blocks which an adapter of its last `layers` sits on."""
    return tuple(f"backbone.blocks.{i}.attn.{part}" for i in range(blocks - layers, blocks) for part in PARTS)


def adapted_names(module: nn.Module) -> tuple[str, ...]:
    """Modules that do carry an adapter, in the order of the model."""
    from peft.tuners.lora import LoraLayer

    return tuple(name for name, part in module.named_modules() if isinstance(part, LoraLayer))


def adapt(encoder: Encoder, config: LoraConfig) -> Adapted:
    """Put fresh adapters on an encoder and freeze all else; its output is unchanged until they are trained.

    Draws from torch's global random state. The module stays in evaluation mode: `train()` it for the dropout.

    Raises
    ------
    InputError
        The encoder is no vision transformer, or has fewer blocks than `config.layers`.
    """
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
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft says int and takes any number
        lora_dropout=config.dropout,
        bias="none",
        # The whole path: "proj" alone would also adapt the convolution patch_embed.proj.
        target_modules=rf"^backbone\.blocks\.({numbers})\.attn\.({'|'.join(PARTS)})$",
    )
    return checked(Adapted(encoder, peft.get_peft_model(encoder.module, settings), names))


def hasten(adapted: Adapted) -> None:
    """Spell out the attention of the adapted blocks on a CPU, where the gradient of a fused one takes twice as long.

    The same numbers but for rounding; `remove` undoes it.
    """
    if next(adapted.encoder.module.parameters()).device.type == "cpu":
        _fuse_attention(adapted, False)


def _fuse_attention(adapted: Adapted, fused: bool) -> None:
    blocks = adapted.encoder.module.backbone.blocks
    for block in blocks[len(blocks) - len(adapted.modules) // len(PARTS) :]:
        block.attn.fused_attn = fused


def check_targets(encoder: Encoder, names: tuple[str, ...]) -> None:
    """Each target is there, a plain linear layer, and not adapted yet."""
    if already := adapted_names(encoder.module):
        raise HistError(f"encoder {encoder.name} carries an adapter already ({already[0]}, ...); remove it first")
    modules = dict(encoder.module.named_modules())
    for name in names:
        if not isinstance(modules.get(name), nn.Linear):
            raise InputError(
                f"encoder {encoder.name} has no linear layer {name}, so LoRA cannot adapt it; choose a ViT"
            )


def checked(adapted: Adapted) -> Adapted:
    """Hold peft to the list: these modules carry adapters, no other, and only adapters are trained.

    Then evaluation mode, in which peft does not put the dropout that it adds.
    """
    found = adapted_names(adapted.encoder.module)
    if found != adapted.modules:
        odd = sorted(set(found) ^ set(adapted.modules))
        raise HistError(f"peft adapted {len(found)} modules instead of {len(adapted.modules)}; first odd: {odd[0]}")
    trained = [name for name, p in adapted.encoder.module.named_parameters() if p.requires_grad]
    if odd := [name for name in trained if ".lora_" not in name]:
        raise HistError(f"peft left {odd[0]} trainable, which is no adapter")
    adapted.model.eval()
    return adapted


def remove(adapted: Adapted) -> None:
    """Take the adapters off; the encoder is as it was before `adapt`."""
    if adapted.model is not None:
        adapted.model.unload()
        _fuse_attention(adapted, True)
