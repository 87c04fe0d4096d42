"""ST-Net (He et al., Nature Biomedical Engineering 2020) on cached embeddings: expression is linear in the spot's crop.

Faithful: the last layer begins with zero weights and the train mean as bias, and the loss is the squared error. The
original tunes a DenseNet-121 end to end by SGD on turned crops; here the encoder is frozen, or fine-tuned by LoRA, the
optimizer is AdamW, and each spot has one crop. On a frozen encoder it is a linear probe that is stopped early: expect
it near ridge on the spot alone. `stnet_mlp` has a hidden layer.

D x G weights: 0.2 M at D = 1024 and G = 200, 0.4 MFLOP a spot.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.data import Batch, Images, SpotData
from train.models.base import Log, Model
from train.models.configs import ModelConfig, StNetMlpConfig


class StNetModel(Model):
    """Expression from the spot's embedding alone."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        hidden = config.embedding_width
        self.body: nn.Module = nn.Identity()
        if isinstance(config, StNetMlpConfig):
            hidden = config.width
            self.body = nn.Sequential(nn.Linear(config.embedding_width, hidden), nn.GELU())
        self.to_genes = nn.Linear(hidden, config.n_genes)
        nn.init.zeros_(self.to_genes.weight)

    @torch.no_grad()
    def prepare(self, data: SpotData, train: Tensor, val: Tensor, seed: int) -> None:
        """Begin at the train mean of what is learnt; see `Model.prepare`."""
        self.to_genes.bias.copy_(data.target[train].mean(0))

    def predict(self, images: Images) -> Tensor:
        """Predicted expression `(B, G)`, float32."""
        hidden = self.body(images.spot)
        with torch.autocast(hidden.device.type, enabled=False):  # bf16 would round expression to two or three digits
            return self.to_genes(hidden.float())

    def loss(self, batch: Batch) -> tuple[Tensor, Log]:
        """The error of the prediction."""
        loss, mse = self.prediction_loss(self.predict(batch), batch.target)
        return loss, {"loss": loss.detach(), "mse": mse.detach()}
