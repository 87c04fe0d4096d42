"""HiST: four streams, hyperbolic alignment, and a decoder that reads the images alone; on cached embeddings, or on an
encoder that is tuned with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hist_cache.errors import InputError
from train.distributed import all_gather
from train.models.alignment import Embedded, contrast_loss, entailment_loss, geometry_summary
from train.models.lorentz import exp_map0
from train.models.variants import Variant

CURVATURE_RANGE = (0.1, 10.0)
MAX_INVERSE_TEMPERATURE = 100.0


@dataclass(frozen=True)
class HistConfig:
    """Sizes and loss weights; the defaults are the paper's (HiST, appendix B.2)."""

    embedding_width: int
    n_genes: int
    width: int = 1024
    depth: int = 2  # residual blocks a stream
    dropout: float = 0.1
    alpha: float = 0.2
    beta: float = 0.4
    curvature: float = 1.0
    fixed_curvature: bool = False
    temperature: float = 0.07
    decoder_space: Literal["tangent", "hyperbolic"] = "tangent"

    def __post_init__(self) -> None:
        low, high = CURVATURE_RANGE
        limits = {
            "width": self.width >= 1,
            "depth": self.depth >= 0,
            "dropout": 0 <= self.dropout < 1,
            "alpha": self.alpha >= 0,
            "beta": self.beta >= 0,
            "curvature": low <= self.curvature <= high,
            "temperature": self.temperature >= 1 / MAX_INVERSE_TEMPERATURE,
        }
        for name, holds in limits.items():
            if not holds:
                raise InputError(
                    f"--{name} {getattr(self, name)}: out of range"
                    + (f" ({low} to {high})" if name == "curvature" else "")
                )


class ResidualMLP(nn.Module):
    """LN, Linear, `depth` x [x + MLP(LN x)] with ratio 2, LN: (B, in) -> (B, width)."""

    def __init__(self, inputs: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.LayerNorm(inputs), nn.Linear(inputs, width))
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.GELU(),
                nn.Linear(2 * width, width),
                nn.Dropout(dropout),  # one a block: drawing its mask is a tenth of a step on a CPU
            )
            for _ in range(depth)
        )
        self.leave = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return self.leave(x)


class Stream(nn.Module):
    """One input, e.g. spot embeddings, to its representation: Linear, then a residual MLP."""

    def __init__(self, inputs: int, config: HistConfig) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, config.width)
        self.encode = ResidualMLP(config.width, config.width, config.depth, config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.encode(self.enter(x))


class HistModel(nn.Module):
    """HiST. `predict` takes images alone; `forward` gives the loss (Eq. 11) and what to log.

    spot, niche (B, D) embeddings, or with an encoder what that takes, (B, ...); expression, niche_expression (B, G).
    """

    def __init__(self, config: HistConfig, variant: Variant, encoder: nn.Module | None = None) -> None:
        super().__init__()
        self.config, self.variant, self.encoder = config, variant, encoder
        d = config.width
        self.image_spot, self.image_niche = (
            Stream(config.embedding_width, config),
            Stream(config.embedding_width, config),
        )
        self.gene_spot, self.gene_niche = Stream(config.n_genes, config), Stream(config.n_genes, config)
        self.project_image, self.project_gene = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        for projection in (self.project_image, self.project_gene):
            nn.init.normal_(projection.weight, std=d**-0.5)
        decoder_inputs = 2 * d if variant.decoder == "both" else d
        self.decoder = nn.Sequential(
            ResidualMLP(decoder_inputs, d, config.depth, config.dropout), nn.Linear(d, config.n_genes)
        )
        # A LayerNorm output has norm sqrt(d); the scales bring it to 1 before exp_map0.
        self.log_scale_image = nn.Parameter(torch.tensor(math.log(d**-0.5)))
        self.log_scale_gene = nn.Parameter(torch.tensor(math.log(d**-0.5)))
        self.log_c = nn.Parameter(torch.tensor(math.log(config.curvature)), requires_grad=not config.fixed_curvature)
        self.log_inverse_tau = nn.Parameter(torch.tensor(-math.log(config.temperature)))

    def geometry_parameters(self) -> list[nn.Parameter]:
        """Scales, curvature, temperature: no weight decay on these."""
        return [self.log_scale_image, self.log_scale_gene, self.log_c, self.log_inverse_tau]

    def trained_state(self) -> dict[str, Tensor]:
        """All weights but the encoder's frozen ones, which are known and large."""
        frozen = {name for name, p in self.named_parameters() if name.startswith("encoder.") and not p.requires_grad}
        frozen |= {name for name, _ in self.named_buffers() if name.startswith("encoder.")}
        return {name: tensor for name, tensor in self.state_dict().items() if name not in frozen}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """The reverse; RuntimeError where a weight is missing, unknown or of another shape."""
        if set(state) != set(self.trained_state()):
            raise RuntimeError("its weights are not those of this model")
        self.load_state_dict(state, strict=False)

    @torch.no_grad()
    def constrain_(self) -> None:
        """Bring curvature, scales and temperature back into their ranges; call after every optimiser step."""
        self.log_c.clamp_(*map(math.log, CURVATURE_RANGE))
        self.log_scale_image.clamp_(max=0.0)
        self.log_scale_gene.clamp_(max=0.0)
        self.log_inverse_tau.clamp_(max=math.log(MAX_INVERSE_TEMPERATURE))

    def images(self, spot: Tensor, niche: Tensor) -> tuple[Tensor, Tensor]:
        """(B, d) tangent vectors at the origin, before scaling."""
        return self.project_image(self.image_spot(spot)), self.project_image(self.image_niche(niche))

    def genes(self, expression: Tensor, niche_expression: Tensor) -> tuple[Tensor, Tensor]:
        return self.project_gene(self.gene_spot(expression)), self.project_gene(self.gene_niche(niche_expression))

    def embed(self, images: tuple[Tensor, Tensor], genes: tuple[Tensor, Tensor]) -> Embedded:
        """The four embeddings: on the hyperboloid (space components), or scaled as they are in a Euclidean variant."""
        with torch.autocast(images[0].device.type, enabled=False):
            c = self.log_c.exp()
            scales = [self.log_scale_image] * 2 + [self.log_scale_gene] * 2
            points = [v.float() * s.exp() for v, s in zip((*images, *genes), scales, strict=True)]
            if self.variant.terms.geometry == "lorentz":
                points = [exp_map0(v, c) for v in points]
            return Embedded(points[0], points[1], points[2], points[3], c, (-self.log_inverse_tau).exp())

    def decode(self, images: tuple[Tensor, Tensor]) -> Tensor:
        """(B, G) predicted log2 expression from the image representations."""
        if self.config.decoder_space == "hyperbolic":
            with torch.autocast(images[0].device.type, enabled=False):
                c, scale = self.log_c.exp(), self.log_scale_image.exp()
                images = (exp_map0(images[0].float() * scale, c), exp_map0(images[1].float() * scale, c))
        chosen = {"both": images, "spot": images[:1], "niche": images[1:]}[self.variant.decoder]
        return self.decoder(torch.cat(chosen, dim=1)).float()

    def encode(self, spot: Tensor, niche: Tensor) -> tuple[Tensor, Tensor]:
        """(B, D) embeddings, both crops in one pass; without an encoder these are what is given."""
        if self.encoder is None:
            return spot, niche
        a, b = self.encoder(torch.cat([spot, niche])).chunk(2)
        return a, b

    def predict(self, spot: Tensor, niche: Tensor) -> Tensor:
        """(B, G) predicted expression; no gene count is read."""
        return self.decode(self.images(*self.encode(spot, niche)))

    def forward(
        self, spot: Tensor, niche: Tensor, expression: Tensor, niche_expression: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(*self.encode(spot, niche), expression, niche_expression)

    def loss(
        self, spot: Tensor, niche: Tensor, expression: Tensor, niche_expression: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss from (B, D) embeddings. With several processes, alignment is over the rows of all of them."""
        images = self.images(spot, niche)
        mse = F.mse_loss(self.decode(images), expression)
        genes = self.genes(expression, niche_expression)
        e = self.embed((all_gather(images[0]), all_gather(images[1])), (all_gather(genes[0]), all_gather(genes[1])))
        weight = self.config.alpha * self.variant.alpha_scale
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):  # without weight they are only logged
            hca = contrast_loss(e, self.variant.terms)
            hea, cones = entailment_loss(e, self.variant.terms)
        loss = mse + weight * (hca + self.config.beta * hea)
        log = {"loss": loss.detach(), "mse": mse.detach(), "hca": hca.detach(), "hea": hea.detach()}
        return loss, log | cones | geometry_summary(e, self.variant.terms.geometry)
