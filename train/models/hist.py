"""HiST: four streams, hyperbolic alignment, and a decoder that reads the images alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from train.data import Batch, Images, SpotNiche
from train.distributed import all_gather
from train.models.alignment import Embeddings, contrast_loss, entailment_loss, geometry_summary
from train.models.base import Log, Model
from train.models.configs import CURVATURE_RANGE, MAX_INVERSE_TEMPERATURE, HistConfig
from train.models.exponential import scaled_exp_map0
from train.models.lorentz import MAX_RADIUS, exp_map0, time_component
from train.models.numerics import at_least_float32
from train.models.projection import TangentProjection, tangent_projection
from train.models.streams import ResidualMLP, Stream, encode
from train.models.variants import Variant

MIN_RADIUS = 1e-2  # below it an embedding counts as collapsed into the origin
MIN_ENTAILMENT_LOSS = 1e-4  # below it every cone holds its child


class HistModel(Model):
    """HiST (Eq. 1-11). The variant says which terms of the losses count, and which images the decoder reads."""

    config: HistConfig

    def __init__(self, config: HistConfig, variant: Variant) -> None:
        super().__init__(config)
        self.variant = variant
        d = config.width
        has_network = config.image_network == "own"
        latent = d if has_network else config.embedding_width  # without a network the encoder's own space
        self.image_spot, self.image_niche = (
            Stream(config.embedding_width, d, config.depth, config.dropout) if has_network else nn.Identity()
            for _ in range(2)
        )
        self.gene_spot = Stream(config.n_genes, d, config.depth, config.dropout)
        has_own = config.gene_network == "own"
        self.gene_niche = Stream(config.n_genes, d, config.depth, config.dropout) if has_own else None
        self.project_image = nn.Linear(d, d, bias=False) if has_network else nn.Identity()
        self.project_gene = nn.Linear(d, latent, bias=False)
        for projection in (self.project_image, self.project_gene):
            if isinstance(projection, nn.Linear):
                nn.init.normal_(projection.weight, std=d**-0.5)
        decoder_inputs = latent + (config.decoder_space == "points" and variant.terms.geometry == "lorentz")
        self.decoder = nn.Sequential(
            ResidualMLP((1 + (variant.decoder == "both")) * decoder_inputs, d, config.depth, config.dropout),
            nn.Linear(d, config.n_genes),
        )
        # A LayerNorm output has norm sqrt(d); the scales bring it to 1 before the exponential map.
        scale = 0.0 if config.map_scale == "one" else math.log(d**-0.5)
        self.log_scale_image = nn.Parameter(torch.tensor(scale), requires_grad=config.map_scale == "learned")
        self.log_scale_gene = nn.Parameter(torch.tensor(scale), requires_grad=config.map_scale == "learned")
        self.log_c = nn.Parameter(torch.tensor(math.log(config.curvature)), requires_grad=not config.fixed_curvature)
        self.log_inverse_tau = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    @torch.no_grad()
    def start_at_zero(self) -> None:
        """See `Model.start_at_zero`: the last layer of the decoder begins with zeros."""
        to_genes = self.decoder[1]
        assert isinstance(to_genes, nn.Linear)
        to_genes.weight.zero_()
        to_genes.bias.zero_()

    def geometry_parameters(self) -> list[nn.Parameter]:
        """Scales, curvature and temperature, which have no weight decay."""
        return [self.log_scale_image, self.log_scale_gene, self.log_c, self.log_inverse_tau]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All other parameters with weight decay, those of the geometry without."""
        geometry = {id(p) for p in self.geometry_parameters()}
        trained = [p for p in self.parameters() if p.requires_grad]
        return [
            {"params": [p for p in trained if id(p) not in geometry]},
            {"params": [p for p in trained if id(p) in geometry], "weight_decay": 0.0},
        ]

    @torch.no_grad()
    def after_step(self) -> None:
        """Bring curvature, scales and temperature back into their ranges, if they have any."""
        if self.config.limits == "none":
            return
        self.log_c.clamp_(*map(math.log, CURVATURE_RANGE))
        self.log_scale_image.clamp_(max=0.0)
        self.log_scale_gene.clamp_(max=0.0)
        self.log_inverse_tau.clamp_(max=math.log(MAX_INVERSE_TEMPERATURE))

    def image_tangents(self, images: Images) -> SpotNiche:
        """Tangent vectors at the origin, `(B, d)` each, before they are scaled."""
        if not (isinstance(self.image_spot, Stream) and isinstance(self.image_niche, Stream)):
            return SpotNiche(images.spot, images.niche)
        encoded = encode([self.image_spot, self.image_niche], [images.spot, images.niche])
        return SpotNiche(*self.project_image(encoded).unbind())

    def gene_tangents(self, batch: Batch) -> SpotNiche:
        """The same of the expression profiles."""
        if self.gene_niche is None:
            encoded = self.gene_spot(torch.cat([batch.expression, batch.niche_expression])).unflatten(0, (2, -1))
        else:
            encoded = encode([self.gene_spot, self.gene_niche], [batch.expression, batch.niche_expression])
        return SpotNiche(*self.project_gene(encoded).unbind())

    def tangents(self, batch: Batch) -> tuple[SpotNiche, SpotNiche]:
        """Both, all four networks together where there are four."""
        networks = self.image_spot, self.image_niche, self.gene_spot, self.gene_niche
        streams = [network for network in networks if isinstance(network, Stream)]
        if len(streams) < len(networks):
            return self.image_tangents(batch), self.gene_tangents(batch)
        inputs = [batch.spot, batch.niche, batch.expression, batch.niche_expression]
        encoded = encode(streams, inputs)
        images, genes = self.project_image(encoded[:2]), self.project_gene(encoded[2:])
        return SpotNiche(*images.unbind()), SpotNiche(*genes.unbind())

    def embed(self, images: SpotNiche, genes: SpotNiche) -> Embeddings:
        """The four embeddings from tangent vectors.

        Returns:
            Space components on the hyperboloid (Eq. 5), or scaled vectors in a Euclidean variant.
        """
        with torch.autocast(images.spot.device.type, enabled=False):
            c = self.log_c.exp()
            tangents = torch.stack([v.float() for v in (*images, *genes)])
            image, gene = self.log_scale_image, self.log_scale_gene
            log_scales = torch.stack((image, image, gene, gene))
            if self.variant.terms.geometry == "lorentz":
                points = scaled_exp_map0(tangents, log_scales, c)
            else:
                points = tangents * log_scales.exp().view(4, 1, 1)
            return Embeddings.of_points(points, c, (-self.log_inverse_tau).exp())

    def decode(self, images: SpotNiche) -> Tensor:
        """Predicted log2 expression `(B, G)` from the tangent vectors of the images."""
        if self.config.decoder_space != "tangent":
            images = SpotNiche(*map(self._decoder_input, images))
        inputs = {"both": images, "spot": images[:1], "niche": images[1:]}[self.variant.decoder]
        hidden, to_genes = self.decoder[0](torch.cat(inputs, dim=1)), self.decoder[1]
        with torch.autocast(hidden.device.type, enabled=False):  # bf16 would round expression to two or three digits
            return to_genes(at_least_float32(hidden))

    def _decoder_input(self, v: Tensor) -> Tensor:
        """What a decoder that does not read tangent vectors reads in their place, float32."""
        with torch.autocast(v.device.type, enabled=False):
            c, scaled = self.log_c.exp(), v.float() * self.log_scale_image.exp()
            if self.config.decoder_space == "hyperbolic":
                return exp_map0(scaled, c)
            if self.variant.terms.geometry == "euclidean":
                return scaled
            space = exp_map0(scaled, c)
            return torch.cat([time_component(space, c).unsqueeze(-1), space], dim=-1)

    def predict(self, images: Images) -> Tensor:
        """Predicted log2 expression `(B, G)`; no gene count is read."""
        return self.decode(self.image_tangents(images))

    def loss(self, batch: Batch) -> tuple[Tensor, Log]:
        """Prediction error plus weighted alignment (Eq. 11), the latter over the rows of all processes."""
        images, genes = self.tangents(batch)
        error, mse = self.prediction_loss(self.decode(images), batch.target)
        embeddings = self.embed(SpotNiche(*map(all_gather, images)), SpotNiche(*map(all_gather, genes)))
        weight = self.config.alpha * self.variant.alpha_scale
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):  # without weight they are only logged
            hca = contrast_loss(embeddings, self.variant.terms)
            hea, cones = entailment_loss(embeddings, self.variant.terms)
        loss = error + weight * (hca + self.config.beta * hea)
        log = {"loss": loss.detach(), "mse": mse.detach(), "hca": hca.detach(), "hea": hea.detach()}
        return loss, log | cones | geometry_summary(embeddings, self.variant.terms.geometry)

    def project(self, batch: Batch) -> TangentProjection:
        """Where the spots' four embeddings lie; those of genes come from counts, which no prediction reads."""
        embeddings = self.embed(*self.tangents(batch))
        return tangent_projection(embeddings, self.variant.terms.geometry)

    def warnings(self, epoch: Mapping[str, float]) -> list[str]:
        """Signs that the geometry has collapsed."""
        if self.variant.terms.geometry != "lorentz" or not self.variant.alpha_scale:
            return []
        problems = []
        low, high = CURVATURE_RANGE
        if self.config.limits == "kept" and not low * 1.01 < epoch["c"] < high / 1.01:
            problems.append(f"geometry: curvature at its limit ({epoch['c']:.3g})")
        if any(self.variant.terms.entail) and epoch["hea"] < MIN_ENTAILMENT_LOSS:
            problems.append("geometry: entailment loss is 0, every cone holds its child")
        radii = [value for name, value in epoch.items() if name.startswith("radius_")]
        if min(radii) < MIN_RADIUS:
            problems.append("geometry: an embedding has collapsed into the origin")
        if max(radii) * epoch["c"] ** 0.5 > 0.99 * MAX_RADIUS:
            problems.append("geometry: an embedding is at the greatest radius, where lengths no longer count")
        return problems
