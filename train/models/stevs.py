"""STevs-style: our reconstruction of an abstract (ICLR 2026 submission 24046, withdrawn); no result is STevs's own.

Public, in the abstract: a multimodal VAE with a Swin Transformer for the image and an MLP for the coordinates side by
side, fused by a product of experts; a latent alignment loss; a decoder of expression; tests within and across slices.

Filled in by us, as neither code nor sizes nor losses are public: the Swin is a cached encoder (`hist-extract --encoder
timm:swin_...`, or any other); coordinates are centred and on one scale a slide, with Fourier features of 8 bands;
experts are Linear-LayerNorm-GELU 512, 256 and give mean and log variance (from -8 to 8) of 64 dimensions; the product
has a unit prior; training draws from it, tests take its mean; the decoder is 256, 512 and the genes, from the train
mean. Loss = error + 1e-3 KL (mean over dimensions, from 0 over the first steps) + 0.1 x squared distance between the
means of image and coordinates (mean over dimensions) + 0.5 x the error of each expert alone with the prior. We align by
that distance and not by symmetric KL, which would also make the coordinates as certain as the image. A floor under the
variance of the coordinate expert limits what it can override. In training the coordinates of a batch are turned,
mirrored and shifted at random, and the coordinate expert is missing for 0.3 of the spots.

Tests read the image alone (`--experts image`). Across slices a coordinate says neither which part of the tissue a spot
is in nor what was measured beside it: how a section lies on its slide is chance. So coordinates take part in training,
as a second view that the image's latent space is aligned with, and no prediction depends on them. Sections of one
block, which lie alike, would leak otherwise. `--experts both` predicts from the product of both, as the abstract has
it: train with it beside the other, on slides of other patients. It changes no weight, only predictions and, through
validation, the epoch that is tested.

Within slices (`--split within`) `--experts both` is the abstract's model, and all parts of a slide have one frame of
coordinates. They are turned in training there too: a band that is tested is at places that no train spot is at, and
coordinates as they are were no better (docs/models.md). What places alone say stands below each such table as
interpolation.

1.1 M parameters at D = 1024 and G = 200 (1.8 M with the niche's expert), 2 MFLOP a spot.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from hist_cache.errors import HistError
from train.data import Batch, Images, SpotData, Surroundings
from train.models.base import Log, Model
from train.models.configs import StevsConfig
from train.models.coordinates import fourier_features, turned_at_random, unit_coordinates
from train.models.gaussians import Gaussian, divergence_from_prior, product_with_prior

BANDS = 8
ENCODER_WIDTHS = 512, 256
DECODER_WIDTHS = 256, 512
LOG_VARIANCE = -8.0, 8.0
ALONE_WEIGHT = 0.5
"""Weight of the error of each expert alone."""
MIN_KL = 0.01
"""A smaller divergence a dimension means that the latent space says nothing about a spot."""
MAX_SHARE = 0.8
"""A larger share of the experts' precision means that the coordinate expert overrides the image."""


def normed_layers(widths: tuple[int, ...]) -> list[nn.Module]:
    """Linear layers between these widths, each with LayerNorm and GELU after it."""
    return [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.LayerNorm(b), nn.GELU())]


class Expert(nn.Module):
    """A network that gives a Gaussian in the latent space."""

    def __init__(self, inputs: int, latent: int, variance_floor: float = 0.0) -> None:
        super().__init__()
        self.variance_floor = variance_floor
        self.layers = nn.Sequential(
            *normed_layers((inputs, *ENCODER_WIDTHS)), nn.Linear(ENCODER_WIDTHS[-1], 2 * latent)
        )

    def forward(self, x: Tensor) -> Gaussian:
        """Gaussians of inputs `(B, inputs)`."""
        mean, log_variance = self.layers(x).float().chunk(2, dim=1)
        return Gaussian(mean, 1 / (log_variance.clamp(*LOG_VARIANCE).exp() + self.variance_floor))


class WarmUp(nn.Module):
    """A weight that grows from 0 to 1 over the first steps; the count of steps is part of the model's state."""

    steps: Tensor

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def weight(self) -> Tensor:
        """The weight, a scalar on the device; 1 outside of training, so that losses of epochs compare."""
        reached = (self.steps.float() / self.length).clamp(max=1.0)
        return reached if self.training else torch.ones_like(reached)


class StevsModel(Model):
    """Expression from a latent Gaussian, the product of what image and coordinates say."""

    config: StevsConfig

    def __init__(self, config: StevsConfig) -> None:
        super().__init__(config)
        latent = config.latent_width
        self.image = nn.ModuleList(Expert(config.embedding_width, latent) for _ in range(1 + config.niche_expert))
        self.coordinate = Expert(2 + 4 * BANDS, latent, config.variance_floor)
        self.decoder = nn.Sequential(*normed_layers((latent, *DECODER_WIDTHS)))
        self.to_genes = nn.Linear(DECODER_WIDTHS[-1], config.n_genes)
        self.warm_up = WarmUp(config.warm_up_steps)
        self.places: Tensor | None = None

    def look_around(self, spots: Surroundings) -> None:
        """Take the spots' coordinates on their whole slides; see `Model.look_around`."""
        self.places = unit_coordinates(spots.position, spots.whole)

    @torch.no_grad()
    def prepare(self, data: SpotData, train: Tensor, val: Tensor, seed: int) -> None:
        """Begin near the train mean of what is learnt; see `Model.prepare`."""
        self.to_genes.bias.copy_(data.target[train].mean(0))

    @torch.no_grad()
    def start_at_zero(self) -> None:
        """See `Model.start_at_zero`: the last layer of the decoder begins with zeros."""
        nn.init.zeros_(self.to_genes.weight)
        nn.init.zeros_(self.to_genes.bias)

    def image_experts(self, images: Images) -> list[Gaussian]:
        """What the spot says, and what the niche says where it has an expert."""
        return [expert(x) for expert, x in zip(self.image, (images.spot, images.niche), strict=False)]

    def coordinate_expert(self, rows: Tensor) -> Gaussian:
        """What the coordinates of rows `(B,)` say; they are turned at random in training."""
        if self.places is None:
            raise HistError("stevs: the places of the spots are not known; call look_around before")
        places = self.places[rows]
        return self.coordinate(fourier_features(turned_at_random(places) if self.training else places, BANDS))

    def decode(self, latent: Tensor) -> Tensor:
        """Expression `(B, G)` float32 of latent vectors `(B, d)`."""
        hidden = self.decoder(latent)
        with torch.autocast(hidden.device.type, enabled=False):  # bf16 would round expression to two or three digits
            return self.to_genes(hidden.float())

    def posterior(self, images: Images) -> Gaussian:
        """What is known of the spots at test, from the image alone or with their coordinates."""
        experts = self.image_experts(images)
        if self.config.experts == "both":
            experts.append(self.coordinate_expert(images.rows))
        return product_with_prior(experts)

    def predict(self, images: Images) -> Tensor:
        """Predicted expression `(B, G)`, float32, of the posterior's mean."""
        return self.decode(self.posterior(images).mean)

    def loss(self, batch: Batch) -> tuple[Tensor, Log]:
        """Error, divergence from the prior, alignment of the experts, and the error of each alone."""
        images, coordinate = self.image_experts(batch), self.coordinate_expert(batch.rows)
        posteriors = [product_with_prior([*images, self._dropped(coordinate)])]
        posteriors += [product_with_prior([expert]) for expert in (*images, coordinate)]
        latent = [p.draw() if self.training else p.mean for p in posteriors]
        outputs = self.decode(torch.cat(latent)).chunk(len(latent))
        (error, mse), *alone = [self.prediction_loss(output, batch.target) for output in outputs]

        kl = divergence_from_prior(posteriors[0])
        alignment = torch.stack([(image.mean - coordinate.mean).square().mean() for image in images]).mean()
        loss = error + ALONE_WEIGHT * torch.stack([own for own, _ in alone]).sum()
        loss = loss + self.config.kl_weight * self.warm_up.weight() * kl + self.config.align_weight * alignment
        log = {"loss": loss, "mse": mse, "kl": kl, "alignment": alignment}
        log["coordinate_share"] = share_of_precision(coordinate, images)
        return loss, {name: value.detach() for name, value in log.items()}

    def _dropped(self, coordinate: Gaussian) -> Gaussian:
        """The coordinate expert, which says nothing about some spots in training."""
        if not self.training:
            return coordinate
        kept = torch.rand_like(coordinate.precision[:, :1]) >= self.config.coordinate_dropout
        return coordinate._replace(precision=coordinate.precision * kept)

    def after_step(self) -> None:
        """Count the step."""
        self.warm_up.steps.add_(1)

    def warnings(self, epoch: Mapping[str, float]) -> list[str]:
        """Signs that the latent space is empty, or that it is not the image's."""
        problems = []
        if epoch["kl"] < MIN_KL:
            problems.append(
                f"latent space: the posterior has collapsed into the prior (KL {epoch['kl']:.2g} a dimension), so that "
                "predictions hardly depend on the spot; try a lower --kl-weight"
            )
        if epoch["coordinate_share"] > MAX_SHARE:
            problems.append(
                f"latent space: the coordinate expert overrides the image, with {epoch['coordinate_share']:.0%} of the "
                "precision of all experts; try a higher --variance-floor"
            )
        return problems


def share_of_precision(expert: Gaussian, others: list[Gaussian]) -> Tensor:
    """The mean share, from 0 to 1, that an expert has of the precision of all experts, the prior left out."""
    total = sum((other.precision for other in others), expert.precision)
    return (expert.precision / total).mean()
