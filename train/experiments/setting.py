"""What decides a run's numbers, resolved; its hash names the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hist_cache.fingerprint import short_hash
from train.data import Transform
from train.experiments.protocols import Protocol
from train.fit.loop import FitConfig
from train.models.hist import HistConfig
from train.models.variants import Variant

if TYPE_CHECKING:
    from train.finetune.encoder import Finetuning


@dataclass(frozen=True)
class Setting:
    """One experiment, over all its folds."""

    dataset: str
    test_dataset: str | None
    """Tested on all slides of this dataset instead of the split's own test slides."""
    variant: Variant
    """With the protocol's weights and cones."""
    protocol: Protocol
    cache: dict[str, Any]
    """The common part of the cache's fingerprint."""
    slides: tuple[str, ...]
    neighbors: int
    genes: str
    n_genes: int
    panel: str
    """Digest of the names; "" where each fold chooses its own."""
    split: str
    transform: Transform
    model: HistConfig
    loop: FitConfig
    tuning: Finetuning | None = None
    """How the encoder is tuned with it; None on cached embeddings."""

    @property
    def name(self) -> str:
        """`full-1a2b3c4d`, `full-lora11-1a2b3c4d`: the variant, tuned blocks, and 8 hex digits of everything."""
        tuned = f"-lora{self.tuning.lora.layers}" if self.tuning else ""
        return f"{self.variant.name}{tuned}-{short_hash(self.as_dict())}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as config.json holds them."""
        values = asdict(self) | {"variant": self.variant.as_dict()}
        return values if self.tuning else {k: v for k, v in values.items() if k != "tuning"}
