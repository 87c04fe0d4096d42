"""TRIPLEX (Chung et al., CVPR 2024) on cached embeddings: a spot is read with its neighbours and its whole slide.

Faithful: three streams of tokens (the spot, the spots around it, all spots of the slide), blocks with LayerNorm before
each part, a bias of attention for each neighbour's place, positions from a depthwise convolution between the first and
the second global block, fusion that asks spot and neighbours by one set of weights with the spot's global token, and a
head on each stream, with the loss 0.7 MSE to expression + 0.3 MSE to the fused prediction for each of the three.
Learning rate 1e-4, batches of 128, no weight decay, patience 20.

The cache changes this: the local ResNet-18 on 49 tokens, which the original trains, is the spot's one embedding;
neighbours are the spots of rings 1 and 2, not the 25 contiguous crops around it, so that they sample the tissue; and
positions are convolved over the neighbours on the true lattice, not over a grid of pixels. On slides without a lattice
a place is the rank of a neighbour's distance. Further different: the linear heads begin at the train mean, the learning
rate has no steps, labels are not smoothed, weights of attention have no dropout, and epochs are chosen on validation
slides, not on test slides. All batches are of one slide, which shares its global pass, and a slide is encoded once for
all its predictions. Of other spots the model reads embeddings, never expression.

14.6 M parameters at D = 1024, d = 512 and G = 200. A prediction costs 0.25 GFLOP a spot on a hexagonal lattice, and
4 N d FLOP more for each global layer on a slide of N spots: 0.1 GFLOP at N = 50,000. That slide takes less than 2.5 GB.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.data import Batch, Images, SpotData, Surroundings
from train.models.attention_blocks import CrossAttentionBlock, PositionGenerator, SelfAttentionBlock
from train.models.base import Log, Model
from train.models.configs import TriplexConfig
from train.models.slide_spots import OneSlide, SlideSpots

RING_PLACES = (8, 16)
"""Places of rings 1 and 2, at most: those of a square lattice. A hexagonal one has 6 and 12."""
PREDICTED_AT_ONCE = 512
"""Spots whose neighbours are read together when predicting: they are 19 or 25 times as many."""
TO_EXPRESSION, TO_FUSED = 0.7, 0.3
"""Weights of a stream's error, against expression and against the fused prediction."""


class NeighborEncoder(nn.Module):
    """Blocks of attention among a spot and its neighbours, with a bias for the place of the one that is looked at."""

    def __init__(self, config: TriplexConfig) -> None:
        super().__init__()
        depth, places = config.neighbor_depth, sum(RING_PLACES) + 1
        self.blocks = _self_attention(config, depth)
        self.place_bias = nn.Parameter(torch.zeros(depth, config.heads, places))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, places: Tensor, hidden: Tensor) -> Tensor:
        """Tokens `(B, K, d)` to the same shape.

        Args:
            x: `(B, K, d)`; what is in a token that is hidden changes no other.
            places: `(K,)` int64, the place of each, which its bias is of.
            hidden: `(B, 1, 1, K)` float32, -inf for a spot that is not there, else 0.
        """
        for block, bias in zip(self.blocks, self.place_bias[:, :, places].unbind(), strict=True):
            x = block(x, hidden + bias.unsqueeze(1))
        return self.norm(x)


class GlobalEncoder(nn.Module):
    """A block of attention among all spots of a slide, their positions, further blocks."""

    def __init__(self, config: TriplexConfig) -> None:
        super().__init__()
        self.blocks = _self_attention(config, config.global_depth)
        self.positions = PositionGenerator(RING_PLACES[0], config.width)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, ring: Tensor) -> Tensor:
        """Tokens `(n, d)` of a slide to the same shape; `ring` is that of `OneSlide`."""
        for i, block in enumerate(self.blocks):
            x = block(x.unsqueeze(0)).squeeze(0)
            if i == 0:
                x = self.positions(x, ring)
        return self.norm(x)


class StreamFeatures(NamedTuple):
    """What the heads read, `(B, d)` each: of all streams together, and the mean token of each."""

    fused: Tensor
    target: Tensor
    neighbor: Tensor
    slide: Tensor


class TriplexModel(Model):
    """Expression from a spot, its neighbours and its slide."""

    config: TriplexConfig

    def __init__(self, config: TriplexConfig) -> None:
        super().__init__(config)
        d = config.width
        self.enter_target, self.enter_neighbor, self.enter_slide = (
            nn.Linear(config.embedding_width, d) for _ in range(3)
        )
        self.neighbor_encoder = NeighborEncoder(config)
        self.global_encoder = GlobalEncoder(config)
        self.fusion = nn.ModuleList(
            CrossAttentionBlock(d, config.heads, config.hidden_ratio, config.dropout)
            for _ in range(config.fusion_depth)
        )
        self.norm = nn.LayerNorm(d)
        self.to_genes, self.target_to_genes, self.neighbor_to_genes, self.slide_to_genes = (
            nn.Linear(d, config.n_genes) for _ in range(4)
        )
        self._spots: SlideSpots | None = None
        self._around = self._places = torch.empty(0, dtype=torch.int64)
        self._drawn: deque[int] = deque()
        self._tokens: dict[int, Tensor] = {}
        self._tokens_of: list[tuple[int, int]] = []

    @property
    def spots(self) -> SlideSpots:
        """All spots by slide."""
        if self._spots is None:
            raise RuntimeError("TRIPLEX reads the spots around those that it predicts: call look_around first")
        return self._spots

    def look_around(self, spots: Surroundings) -> None:
        """Take all spots, with their slides and two rings; see `Model.look_around`."""
        if len(spots.rings) < len(RING_PLACES):
            raise ValueError(f"TRIPLEX reads {len(RING_PLACES)} rings, and {len(spots.rings)} are known")
        self._spots = SlideSpots(spots)
        rings = spots.rings[: len(RING_PLACES)]
        own = torch.arange(len(spots.slide), device=spots.slide.device).unsqueeze(1)
        self._around = torch.cat([*rings, own], dim=1)
        first, second = (torch.arange(ring.shape[1]) for ring in rings)
        last = torch.tensor([sum(RING_PLACES)])  # the spot itself
        self._places = torch.cat([first, RING_PLACES[0] + second, last]).to(own.device)
        self._drawn.clear()
        self._tokens = {}

    def batches(self, rows: Tensor, batch_size: int, order: torch.Generator) -> list[Tensor]:
        """Batches of one slide each; see `SlideSpots.batches`.

        Their slides are kept for the steps to come, which take them in turn: to read a slide from the rows of a batch
        would be to wait for the device.
        """
        drawn = self.spots.batches(rows, batch_size, order)
        self._drawn = deque(slide for slide, _ in drawn)
        return [part for _, part in drawn]

    def train(self, mode: bool = True) -> Self:
        """Enter training or evaluation mode, and forget the tokens of slides; see `slide_tokens`."""
        self._tokens = {}
        return super().train(mode)

    @torch.no_grad()
    def prepare(self, data: SpotData, train: Tensor, val: Tensor, seed: int) -> None:
        """Begin all heads at the train mean of what is learnt; see `Model.prepare`."""
        for head in (self.to_genes, self.target_to_genes, self.neighbor_to_genes, self.slide_to_genes):
            head.bias.copy_(data.target[train].mean(0))

    @torch.no_grad()
    def start_at_zero(self) -> None:
        """See `Model.start_at_zero`: it begins at the train mean of what is learnt, which then is near 0."""
        self.to_genes.weight.zero_()
        self.to_genes.bias.zero_()

    def encode_slide(self, slide: OneSlide) -> Tensor:
        """Global tokens `(n, d)` float32 of all spots of a slide."""
        return self.global_encoder(self.enter_slide(self.spots.embeddings[slide.rows].float()).float(), slide.ring)

    @torch.no_grad()
    def slide_tokens(self, numbers: list[int]) -> dict[int, Tensor]:
        """Global tokens `(n, d)` float32 of some slides, in evaluation mode; those of the last call are kept.

        They never outlive the weights that they were computed with. Whoever trains enters training mode before and
        evaluation mode after, which forgets them, as the fused optimizer leaves no trace in its parameters. All other
        changes (an average of weights, weights that are loaded) are counted by torch in each tensor.
        """
        weights = [(id(p), p._version) for p in self.parameters()]
        kept = self._tokens if weights == self._tokens_of else {}
        self._tokens, self._tokens_of = {}, weights
        tokens = {i: kept[i] if i in kept else self.encode_slide(self.spots.slides[i]) for i in numbers}
        self._tokens = tokens
        return tokens

    def global_tokens(self, rows: Tensor, drawn: int | None = None) -> Tensor:
        """Global tokens `(B, d)` float32 of rows `(B,)`; `drawn` is their slide, where that is known."""
        spots, places = self.spots, self.spots.place[rows]
        if drawn is not None:
            tokens = F.embedding(places, self.encode_slide(spots.slides[drawn]))
            other = (spots.slide[rows] != drawn).unsqueeze(1)
            return tokens.masked_fill(other, torch.nan)  # of a batch in another order; its step would be skipped
        numbers = spots.slides_of(rows)
        if self.training or torch.is_grad_enabled():
            of_slide = {i: self.encode_slide(spots.slides[i]) for i in numbers}
        else:
            of_slide = self.slide_tokens(numbers)
        if len(numbers) == 1:
            return of_slide[numbers[0]][places]
        tokens = torch.empty(len(rows), self.config.width, device=rows.device)
        for number, encoded in of_slide.items():
            own = (spots.slide[rows] == number).nonzero().squeeze(1)
            tokens = tokens.index_copy(0, own, encoded[places[own]])
        return tokens

    def features(self, images: Images, drawn: int | None = None) -> StreamFeatures:
        """What the heads read of B spots; `drawn` is their slide, where that is known."""
        tokens = self.global_tokens(images.rows, drawn)
        target = self.enter_target(images.spot).float()
        around = self._around[images.rows]
        there = around >= 0
        seen = self.spots.embeddings[around].float().masked_fill(~there.unsqueeze(2), 0)
        hidden = torch.zeros(there.shape, device=there.device).masked_fill(~there, -torch.inf)[:, None, None]
        neighbors = self.neighbor_encoder(self.enter_neighbor(seen).float(), self._places, hidden)
        of_target = of_neighbors = tokens.unsqueeze(1)
        for block in self.fusion:  # the same weights twice
            of_target = block(of_target, target.unsqueeze(1))
            of_neighbors = block(of_neighbors, neighbors, hidden)
        fused = self.norm((of_target + of_neighbors).squeeze(1))
        weight = there.unsqueeze(2).float()
        return StreamFeatures(fused, target, (neighbors * weight).sum(1) / weight.sum(1), tokens)

    def predict(self, images: Images) -> Tensor:
        """Predicted expression `(B, G)`, float32."""
        parts = zip(*(x.split(PREDICTED_AT_ONCE) for x in (images.spot, images.niche, images.rows)), strict=True)
        fused = torch.cat([self.features(Images(*part)).fused for part in parts])
        with torch.autocast(fused.device.type, enabled=False):  # bf16 would round expression to two or three digits
            return self.to_genes(fused.float())

    def loss(self, batch: Batch) -> tuple[Tensor, Log]:
        """The error of the fused prediction, and those of the three streams."""
        if batch.rows.is_cuda and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("TRIPLEX encodes another slide in each step")
        drawn = self._drawn.popleft() if self.training and self._drawn else None
        of_streams = self.features(batch, drawn)
        with torch.autocast(batch.spot.device.type, enabled=False):
            fused, target, neighbor, slide = (
                head(x.float())
                for head, x in zip(
                    (self.to_genes, self.target_to_genes, self.neighbor_to_genes, self.slide_to_genes),
                    of_streams,
                    strict=True,
                )
            )
            loss, mse = self.prediction_loss(fused, batch.target)
            log = {"mse": mse.detach()}
            for name, own in (("target", target), ("neighbor", neighbor), ("slide", slide)):
                error = F.mse_loss(own, batch.target)
                loss = loss + TO_EXPRESSION * error + TO_FUSED * F.mse_loss(fused, own)
                log[f"{name}_mse"] = error.detach()
        return loss, {"loss": loss.detach()} | log


def _self_attention(config: TriplexConfig, depth: int) -> nn.ModuleList:
    return nn.ModuleList(
        SelfAttentionBlock(config.width, config.heads, config.hidden_ratio, config.dropout) for _ in range(depth)
    )
