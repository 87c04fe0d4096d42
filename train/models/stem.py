"""Stem (Zhu et al., ICLR 2025) on cached embeddings: expression is drawn by diffusion, given the spot's crop.

A transformer (DiT) with a token a gene predicts the noise in a profile that has some; the embedding of the spot says
which spot it is. A prediction is the mean of profiles that are drawn from noise.

Faithful: the network (12 blocks of 384 with 6 heads, adaLN-zero), 1000 times of noise with a linear schedule, the
squared error of the predicted noise, AdamW at 1e-4 without weight decay, batches of 256, the average of weights with
decay 0.9999, which is validated and tested; 20 samples a spot, whose mean is not clamped; no scaling of genes.
Different: the variance of a step is fixed, where the original learns it by a second output and a likelihood of 8-bit
images, which says nothing of expression; the condition is one embedding of the project's encoder, where the original
has UNI and CONCH side by side; each spot has one crop, not eight that are turned; spots without counts in the panel are
kept; epochs are chosen on validation slides, by one sample of 20 steps, where the original stops after a fixed number.

The sampler is DDIM with 50 steps unless `--sampler ddpm --sampling-steps 1000` asks for the published one. Sampler,
steps and samples are in config.json and in the run's name. More samples make the mean smoother and its MSE lower: only
runs with equally many can be compared. The noise of a spot follows from the run's seed and the spot's row, whatever
other spots are predicted with it.

Log expression spans 0 to 12 and the variances of genes differ, while the schedule is made for a variance of 1: genes
that vary little drown in noise. `--standardize-genes` gives every gene mean 0 and variance 1 over the train spots and
takes that back in predictions. It is off, as in the original. Where targets are small (residuals of ridge) it may help.

34.1 M parameters at D = 1024 and G = 200. A call of the network costs 9.3 GFLOP a sample, which is 9.3 TFLOP a spot
with 50 steps and 20 samples, and 186 TFLOP as published. Attention grows with the square of the genes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.data import Batch, Images, SpotData
from train.models.base import Log, Model
from train.models.configs import StemConfig
from train.models.diffusion import NoiseSchedule, ReverseStep, SpotNoise, noised, take_noise_away

TIME_WAVES = 128
"""Sines and cosines that a time is embedded in."""
LONGEST_WAVE = 10_000.0
QUICK_STEPS = 20
"""DDIM steps of the one sample that an epoch is chosen by."""
TOKENS_AT_ONCE = 2**16
"""Genes of all spots and samples that are in the network at once when expression is drawn."""
MIN_DEVIATION = 1e-6
"""A gene whose standard deviation is smaller is constant: it is shifted, not scaled."""


class GeneBlock(nn.Module):
    """A transformer block over genes; what shifts and scales it comes from time and spot (adaLN-zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.to_attention = nn.Linear(width, 3 * width)
        self.from_attention = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, state: Tensor) -> Tensor:
        """Tokens `(B, K, G, width)` of K samples a spot, given the state `(B, width)` of each spot."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(state)[:, None, None].chunk(6, dim=-1)
        tokens = tokens + gate * self.attend(modulated(tokens, shift, scale))
        return tokens + mlp_gate * self.mlp(modulated(tokens, mlp_shift, mlp_scale))

    def attend(self, tokens: Tensor) -> Tensor:
        """Attention `(B, K, G, width)` among the genes of a sample."""
        parts = self.to_attention(tokens).flatten(0, 1).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return self.from_attention(mixed.transpose(1, 2).reshape(tokens.shape))


class StemNetwork(nn.Module):
    """Predicts the noise in expression profiles from a time and a spot."""

    def __init__(self, config: StemConfig) -> None:
        super().__init__()
        width, inputs = config.width, config.embedding_width
        self.value = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.gene = nn.Parameter(torch.empty(config.n_genes, width))
        self.time = nn.Sequential(nn.Linear(2 * TIME_WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.spot = nn.Sequential(nn.Linear(inputs, inputs), nn.SiLU(), nn.Linear(inputs, width))
        self.blocks = nn.ModuleList(GeneBlock(width, config.heads) for _ in range(config.depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.to_noise = nn.Linear(width, 1)
        self._draw_weights()

    def _draw_weights(self) -> None:
        """Xavier, small numbers for what embeds time and spot, and zeros for all modulation and the last layer.

        How the genes' vectors begin is ours: with small ones, training takes twice as many steps to tell genes apart.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        for layer in [*self.time, *self.spot]:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        nn.init.normal_(self.gene)
        for block in self.blocks:
            assert isinstance(block, GeneBlock)
            nn.init.zeros_(block.modulation.weight)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.to_noise.weight)

    def embed_times(self, times: Tensor) -> Tensor:
        """`(n, width)` of times `(n,)`."""
        return self.time(waves(times))

    def embed_spots(self, embeddings: Tensor) -> Tensor:
        """`(B, width)` of the spots' embeddings `(B, D)`."""
        return self.spot(embeddings)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """The noise `(B, K, G)` float32 in K profiles a spot.

        Args:
            x: `(B, K, G)` profiles with noise.
            state: `(B, width)`, time and spot embedded and added; it is the same for all samples of a spot.
        """
        state = F.silu(state)
        tokens = self.value(x.unsqueeze(-1)) + self.gene
        for block in self.blocks:
            tokens = block(tokens, state)
        shift, scale = self.modulation(state)[:, None, None].chunk(2, dim=-1)
        with torch.autocast(x.device.type, enabled=False):  # bf16 would round the noise to two or three digits
            hidden = modulated(tokens.float(), shift.float(), scale.float())
            return self.to_noise(hidden).squeeze(-1)


class StemModel(Model):
    """Expression drawn by diffusion, given the embedding of the spot; the niche is not read."""

    config: StemConfig
    signal: Tensor
    center: Tensor
    scale: Tensor
    noise_seed: Tensor

    def __init__(self, config: StemConfig) -> None:
        super().__init__(config)
        self.network = StemNetwork(config)
        self.schedule = NoiseSchedule.linear()
        self.register_buffer("signal", torch.tensor(self.schedule.signal, dtype=torch.float64), persistent=False)
        self.register_buffer("center", torch.zeros(config.n_genes))
        self.register_buffer("scale", torch.ones(config.n_genes))
        self.register_buffer("noise_seed", torch.tensor(0))

    def prepare(self, data: SpotData, train: Tensor, val: Tensor, seed: int) -> None:
        """Keep the seed of samples and, where genes are scaled, their scale on the train rows; see `Model.prepare`."""
        self.keep(noise_seed=torch.tensor(seed, device=data.target.device))
        if self.config.standardize_genes:
            target = data.target[train].double()
            deviation = target.std(0, correction=0)
            scale = torch.where(deviation > MIN_DEVIATION, deviation, 1.0)
            self.keep(center=target.mean(0).float(), scale=scale.float())

    def loss(self, batch: Batch) -> tuple[Tensor, Log]:
        """The error of the noise that is predicted, at a time drawn for each spot; `--pearson` is of this noise too."""
        x0 = (batch.target - self.center) / self.scale
        times = torch.randint(len(self.signal), (len(x0),), device=x0.device)
        noise = torch.randn_like(x0)
        x = noised(x0, noise, self.signal[times, None])
        state = self.network.embed_times(times) + self.network.embed_spots(batch.spot)
        predicted = self.network(x.unsqueeze(1), state).squeeze(1)
        loss, objective = self.prediction_loss(predicted, noise)
        return loss, {"loss": loss.detach(), "objective": objective.detach()}

    def predict(self, images: Images) -> Tensor:
        """Predicted expression `(B, G)`, float32: the mean of the samples of each spot."""
        steps = self.schedule.reverse_steps(self.config.sampling_steps)
        return self.mean_sample(images, steps, self.config.samples, self.config.sampler == "ddpm")

    def predict_quickly(self, images: Images) -> Tensor:
        """One sample by few steps of DDIM: worse than the mean of several, but so in every epoch."""
        return self.mean_sample(images, self.schedule.reverse_steps(QUICK_STEPS), 1, False)

    @torch.no_grad()
    def mean_sample(self, images: Images, steps: Sequence[ReverseStep], samples: int, is_random: bool) -> Tensor:
        """The mean `(B, G)` over samples of each spot; only few spots and samples are in memory at once.

        Args:
            images: Of the spots.
            steps: Of the sampler.
            samples: Drawn for each spot.
            is_random: Whether noise is added in each step (DDPM).
        """
        samples_at_once = max(1, min(samples, TOKENS_AT_ONCE // self.config.n_genes))
        spots_at_once = max(1, TOKENS_AT_ONCE // self.config.n_genes // samples_at_once)
        conditions = self.network.embed_spots(images.spot)
        times = self.network.embed_times(torch.tensor([step.time for step in steps], device=conditions.device))
        rows, seed, means = images.rows.tolist(), int(self.noise_seed), []
        for first in range(0, len(rows), spots_at_once):
            condition = conditions[first : first + spots_at_once]
            total = torch.zeros(len(condition), self.config.n_genes, device=condition.device)
            for number in range(0, samples, samples_at_once):
                numbers = range(number, min(samples, number + samples_at_once))
                noise = SpotNoise(seed, rows[first : first + spots_at_once], numbers, condition.device)
                total += self.draw_samples(condition, times, steps, noise, is_random).sum(1)
            means.append(total / samples)
        return torch.cat(means) * self.scale + self.center

    def draw_samples(
        self, condition: Tensor, times: Tensor, steps: Sequence[ReverseStep], noise: SpotNoise, is_random: bool
    ) -> Tensor:
        """Samples `(B, K, G)` in the units that the network learns.

        Args:
            condition: `(B, width)` embedded spots.
            times: `(n, width)` embedded times of the steps.
            steps: n of them.
            noise: Of B spots and K samples.
            is_random: Whether noise is added in each step.
        """

        def draw() -> Tensor:
            return noise.draw(self.config.n_genes)

        def predict_noise(x: Tensor, i: int) -> Tensor:
            return self.network(x, times[i] + condition)

        return take_noise_away(draw(), predict_noise, steps, draw if is_random else None)


def waves(times: Tensor) -> Tensor:
    """Cosines and sines `(n, 2 TIME_WAVES)` float32 of times `(n,)`, in waves of 2 pi to 2 pi times LONGEST_WAVE."""
    exponents = torch.arange(TIME_WAVES, device=times.device) / -TIME_WAVES
    angles = times.unsqueeze(1) * (exponents * math.log(LONGEST_WAVE)).exp()
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def modulated(tokens: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Tokens `(B, K, G, width)`, normalised each, then scaled and shifted by `(B, 1, 1, width)`."""
    return F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6) * (1 + scale) + shift
