"""What the training loop, folds, sweeps and reports need of a model, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hist_cache.values import Precision, SelectBy
from train.data import Batch, Images, SpotData, Surroundings
from train.models.configs import ModelConfig
from train.models.projection import TangentProjection

MIN_SQUARES = 1e-12  # keeps the gradient of a correlation finite where a gene has no variance

LEAST_NORM = 1e-2
"""A correlation divides by the norm of the predictions, or by this share of the target's norm where that is larger.

Otherwise the gradient grows as predictions shrink, and a model that begins at 0 would take a far too large first step.
"""

Log = dict[str, Tensor]
"""Detached scalars by name, on the device; their means over an epoch go into history.csv."""


class Model(nn.Module):
    """Base of all models: embeddings of spot and niche crops in, expression out.

    A model that learns by gradient steps has a `loss`; another one computes itself in `prepare`. Both `predict`.
    """

    learns: ClassVar[bool] = True
    """Whether it is trained by gradient steps."""

    precision: Precision = "fp32"
    """Of its matrix products; set where the model is made. Whoever calls it does so in its `autocast`."""

    pearson: float = 0.0
    """Weight of 1 - PCC in its prediction loss; set where the model is made."""

    select_by: SelectBy = "mse"
    """How a model that does not learn by gradient steps chooses hyperparameters; set where the model is made."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config

    def autocast(self, device: torch.device) -> torch.autocast:
        """A context in which layers compute their matrix products in the model's precision.

        In it a weight is converted to bf16 once, however often it is used. So there is one context around the forward
        pass of a step, the backward pass is outside, and none surrounds an update, after which the copies are stale.
        """
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def prediction_loss(self, predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The error of predictions `(B, G)` as a part of a loss, and the MSE within it, which is logged.

        With `pearson` it has 1 - PCC beside the MSE: the mean over genes of the correlation over the batch's spots. It
        is that with what is learnt, which is what ridge leaves under `--ridge skip`.
        """
        mse = F.mse_loss(predicted, target)
        if not self.pearson:
            return mse, mse
        return mse + self.pearson * (1 - batch_pcc(predicted, target)), mse

    def loss(self, batch: Batch) -> tuple[Tensor, Log]:
        """The loss of a batch, a scalar, and what to log; `mse` should be in the log.

        Predictions are compared with `batch.target`; `batch.expression` is what networks of genes read.

        It is computed in float32 or better: what layers return may be bf16.
        """
        raise NotImplementedError

    def predict(self, images: Images) -> Tensor:
        """Predicted expression `(B, G)` from images alone, float32 or better."""
        raise NotImplementedError

    def predict_quickly(self, images: Images) -> Tensor:
        """The same, where there is a faster way that is good enough to choose the epoch by."""
        return self.predict(images)

    def look_around(self, spots: Surroundings) -> None:
        """Take the images and places of all spots; rows of a batch count in them.

        It is called before `prepare`, and before spots of other slides are predicted.
        """

    def batches(self, rows: Tensor, batch_size: int, order: torch.Generator) -> list[Tensor]:
        """The rows of an epoch's batches, drawn anew; all `(batch_size,)`, or one smaller batch of all there are.

        A last batch that is not full is left out (other batches take its spots next epoch): contrast needs its
        negatives.

        Args:
            rows: `(n,)` of the train spots.
            batch_size: Spots a batch.
            order: Draws the order.
        """
        rows = rows[torch.randperm(len(rows), generator=order).to(rows.device)]
        return [rows[i * batch_size : (i + 1) * batch_size] for i in range(max(1, len(rows) // batch_size))]

    def prepare(self, data: SpotData, train: Tensor, val: Tensor, seed: int) -> None:
        """Compute what the model needs before its first step: a bank, a PCA, or all of it where it does not learn.

        Args:
            data: All spots; only the rows named here may be read.
            train: `(n,)` rows of the train spots.
            val: `(m,)` rows of the validation spots, only to choose hyperparameters, such as the strength of ridge.
            seed: For whatever is drawn; torch's random state differs between processes.
        """

    def keep(self, **tensors: Tensor) -> None:
        """Make tensors that `prepare` computes part of the model's state, in place of those it had.

        They are saved and loaded with the weights, whatever their shapes are.
        """
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load weights, and take the tensors of `keep`."""
        own = self.state_dict()
        self.keep(**{k: v for k, v in state_dict.items() if "." not in k and (k not in own or k in self._buffers)})
        return super().load_state_dict(state_dict, strict, assign)

    def start_at_zero(self) -> None:
        """Make the model predict 0 before its first step, where it can: it then begins as what is added to it."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer. Adapters of an encoder that is fine-tuned too join the first of them."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def after_step(self) -> None:
        """Bring parameters back into their ranges after an optimizer step."""

    def project(self, batch: Batch) -> TangentProjection | None:
        """Where the embeddings of test spots lie in the model's latent space; None where it has no geometry."""
        return None

    def warnings(self, epoch: Mapping[str, float]) -> list[str]:
        """Sentences on what looks wrong in the logged values of the epoch that is tested; empty where all is well."""
        return []


def batch_pcc(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean over genes of the PCC over spots, differentiable; one without variance in either counts as 0.

    Where predictions are far smaller than the target it is less than the PCC; see `LEAST_NORM`.

    Args:
        predicted: `(B, G)`.
        target: `(B, G)`.
    """
    p, t = (values.float() - values.float().mean(0) for values in (predicted, target))
    t_squares = t.square().sum(0)
    squares = torch.maximum(p.square().sum(0), LEAST_NORM**2 * t_squares) * t_squares
    return ((p * t).sum(0) / squares.clamp(min=MIN_SQUARES).sqrt()).mean()


class PreparedModel(Model):
    """Base of models that are computed at once, in `prepare`."""

    learns = False


def embedding_pair(data: SpotData, rows: Tensor) -> Tensor:
    """`(n, 2 D)` float64 embeddings of spot and niche side by side, on the CPU: the input of the baselines."""
    return torch.cat([data.spot[rows], data.niche[rows]], dim=1).double().cpu()
