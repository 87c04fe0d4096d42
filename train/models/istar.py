"""iSTAR (Zhang et al., Nature Biotechnology 2024) at the level of spots, on cached embeddings.

Faithful: the network (four layers of 256 with LeakyReLU 0.1, ELU above the minimum at the end, no norm, no dropout),
expression scaled to 0..1 per gene, the squared error, Adam without weight decay, and the median of networks that were
drawn differently. Different: the original learns from the superpixels of a spot's disc and predicts each of them on the
slide it was trained on. Here a spot and its niche have one embedding each, so that super-resolution is lost; the scale
of a gene is that of the train slides, from the 0.1 to the 99.9 percentile, as one spot with high counts would squash
all others; expression is what all models here learn, not raw counts; networks learn side by side from the same batches;
and epochs are chosen on validation slides, which the original does not have.

5 networks of 0.8 M parameters at D = 1024 and G = 200, 8 MFLOP a spot.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.data import Batch, Images, SpotData
from train.models.base import Log, Model
from train.models.configs import IstarConfig

LAYERS = 4
LOW, HIGH = 0.001, 0.999
"""Quantiles of the train spots that become 0 and 1."""
ELU_FLOOR = 0.01
MIN_RANGE = 1e-6
"""A gene whose quantiles are nearer is constant: it is shifted, not scaled."""


class ParallelLinear(nn.Module):
    """A linear layer of each of M networks, drawn as `nn.Linear` is."""

    def __init__(self, networks: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(networks, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(networks, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """`(M, B, inputs)` to `(M, B, outputs)`."""
        return torch.baddbmm(self.bias.to(x.dtype), x, self.weight.to(x.dtype))


class IstarModel(Model):
    """The median of small networks on the embeddings of spot and niche, side by side."""

    config: IstarConfig
    low: Tensor
    scale: Tensor

    def __init__(self, config: IstarConfig) -> None:
        super().__init__(config)
        widths = [2 * config.embedding_width, *[config.hidden] * LAYERS]
        self.layers = nn.ModuleList(ParallelLinear(config.networks, *pair) for pair in pairwise(widths))
        self.to_genes = ParallelLinear(config.networks, config.hidden, config.n_genes)
        self.register_buffer("low", torch.zeros(config.n_genes))
        self.register_buffer("scale", torch.ones(config.n_genes))

    def prepare(self, data: SpotData, train: Tensor, val: Tensor, seed: int) -> None:
        """Find the range of each gene on the train rows; see `Model.prepare`."""
        target = data.target[train].double()
        low, high = (torch.stack([gene.quantile(q) for gene in target.T]) for q in (LOW, HIGH))
        scale = torch.where(high - low > MIN_RANGE, high - low, 1.0)
        self.keep(low=low.float(), scale=scale.float())

    def scaled(self, images: Images) -> Tensor:
        """Predictions `(M, B, G)` of each network, where 0 and 1 are the ends of a gene's range."""
        x = torch.cat([images.spot, images.niche], dim=1).expand(self.config.networks, -1, -1)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.1)
        with torch.autocast(x.device.type, enabled=False):  # bf16 would round expression to two or three digits
            return F.elu(self.to_genes(x.float()), ELU_FLOOR) + ELU_FLOOR

    def predict(self, images: Images) -> Tensor:
        """Predicted expression `(B, G)`, float32, the median over the networks."""
        return self.scaled(images).median(0).values * self.scale + self.low

    def loss(self, batch: Batch) -> tuple[Tensor, Log]:
        """The sum over networks of their errors in scaled units; `mse` is that of the median in those of expression."""
        scaled, target = self.scaled(batch), (batch.target - self.low) / self.scale
        loss = torch.stack([self.prediction_loss(own, target)[0] for own in scaled]).sum()
        median = scaled.detach().median(0).values * self.scale + self.low
        return loss, {"loss": loss.detach(), "mse": F.mse_loss(median, batch.target)}
