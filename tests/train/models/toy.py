"""A toy model, registered as a user would: nothing outside of this file knows of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from hist_cache.options import option
from train.data import Batch, Images
from train.models.base import Log, Model
from train.models.configs import ModelConfig
from train.models.registry import ModelEntry, register


@dataclass(frozen=True)
class ToyConfig(ModelConfig):
    """One option of its own, and one whose name other models have too."""

    shrink: float = option(0.5, "what the toy multiplies its input by", "X")
    width: int = option(8, "hidden width", "N")


class ToyModel(Model):
    """One hidden layer on the spot's embedding."""

    config: ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.layers = nn.Sequential(
            nn.Linear(config.embedding_width, config.width), nn.Tanh(), nn.Linear(config.width, config.n_genes)
        )

    def loss(self, batch: Batch) -> tuple[Tensor, Log]:
        """The MSE."""
        loss, mse = self.prediction_loss(self.predict(batch), batch.target)
        return loss, {"loss": loss.detach(), "mse": mse.detach()}

    def predict(self, images: Images) -> Tensor:
        """`(B, G)`."""
        return self.layers(self.config.shrink * images.spot)

    def warnings(self, epoch: object) -> list[str]:
        """Always one, to see that it arrives."""
        return ["this is a toy"]


def register_toy() -> None:
    """Make `--model toy` known in this process."""
    register(ModelEntry("toy", "a toy", ToyModel, ToyConfig))
