"""BLEEP (Xie et al., NeurIPS 2023) on cached embeddings: expression is that of the train spots whose genes look alike.

Image and expression are projected into one space by contrast against soft targets; a spot is predicted as the mean
expression of the train spots that are nearest to its image. Faithful: both projection heads, targets
softmax((I I' + E E') / 2 tau), cross-entropy both ways, tau = 1, cosine retrieval, AdamW with learning rate and decay
1e-3, batches of 256. Different: the ResNet-50 is a cached encoder; the targets of the second direction are normalised
over its own axis, so that they are distributions; epochs are chosen by the error of retrieval on validation slides,
not by the loss on spots of train slides; expression is not corrected by Harmony, which would read test slides. The bank
has the train slides alone.

0.45 M parameters at D = 1024 and G = 200; a prediction costs 512 FLOP for each spot of the bank, in chunks, so that
memory does not grow with the slide.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.data import Batch, Images, SpotData
from train.distributed import all_gather
from train.models.base import Log, Model
from train.models.configs import BleepConfig

SPOTS_AT_ONCE = 4096
"""Spots whose similarities to the bank, or whose embeddings, are computed at once."""


class ProjectionHead(nn.Module):
    """A linear map, and a residual layer with LayerNorm after it."""

    def __init__(self, inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(inputs, width)
        self.mix = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings `(B, width)` float32."""
        h = self.project(x)
        return self.norm((self.dropout(self.mix(F.gelu(h))) + h).float())


class BleepModel(Model):
    """Retrieval of expression by the spot's embedding."""

    config: BleepConfig
    bank_genes: Tensor
    bank_target: Tensor

    def __init__(self, config: BleepConfig) -> None:
        super().__init__(config)
        self.image = ProjectionHead(config.embedding_width, config.projection, config.dropout)
        self.gene = ProjectionHead(config.n_genes, config.projection, config.dropout)

    def prepare(self, data: SpotData, train: Tensor, val: Tensor, seed: int) -> None:
        """Keep the expression of the train spots; see `Model.prepare`."""
        genes = data.expression if data.targets is None else data.targets.expression
        self.keep(bank_genes=genes[train], bank_target=data.target[train])

    def embed_genes(self, genes: Tensor) -> Tensor:
        """Unit vectors `(R, d)` float32 of expression profiles `(R, G)`, in chunks."""
        return torch.cat([F.normalize(self.gene(part), dim=1) for part in genes.split(SPOTS_AT_ONCE)])

    def predict(self, images: Images) -> Tensor:
        """Mean `(B, G)` of what is learnt over the `retrieved` spots of the bank with the largest cosine."""
        queries, bank = F.normalize(self.image(images.spot), dim=1), self.embed_genes(self.bank_genes)
        count = min(self.config.retrieved, len(bank))
        with torch.autocast(queries.device.type, enabled=False):
            rows = [(part @ bank.T).topk(count).indices for part in queries.split(SPOTS_AT_ONCE)]
        return torch.cat([mean_of_rows(self.bank_target, part) for part in rows])

    def loss(self, batch: Batch) -> tuple[Tensor, Log]:
        """The contrast, over the rows of all processes."""
        images, genes = all_gather(self.image(batch.spot)), all_gather(self.gene(batch.expression))
        with torch.autocast(images.device.type, enabled=False):
            loss, own = soft_contrast(images, genes, self.config.softness)
        return loss, {"loss": loss.detach(), "objective": loss.detach(), "own_pair": own.detach()}


def soft_contrast(images: Tensor, genes: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the similarities of images and genes against those within images and within genes.

    Args:
        images: `(B, d)` float32 embeddings.
        genes: `(B, d)` of the same spots.
        tau: Temperature.

    Returns:
        The mean of both directions, and the mean weight that a spot's own pair has in the targets: where it is 1 the
        contrast is that of CLIP.
    """
    logits = images @ genes.T / tau
    targets = ((images @ images.T + genes @ genes.T) / (2 * tau)).softmax(1)  # symmetric before the softmax
    loss = (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    return loss, targets.diagonal().mean()


def mean_of_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Mean `(n, G)` over rows `(n, K)` of values `(R, G)`, a column of rows at a time so that memory stays small."""
    total = torch.zeros(len(rows), values.shape[1], device=values.device)
    for column in rows.unbind(1):
        total += values[column]
    return total / rows.shape[1]
