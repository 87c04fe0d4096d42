"""Training what a setting asks for: one model, or the members of an ensemble one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from train import distributed
from train.data import SpotData
from train.experiments.jobs import Job
from train.experiments.outputs import make_member
from train.fit.checkpoints import Progress
from train.fit.config import EncodingConfig
from train.fit.loop import fit
from train.models.base import Model
from train.models.ensemble import EnsembleModel

EpochReport = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Trained:
    """A model and how its training went, member by member."""

    model: Model
    members: tuple[Progress, ...]

    @property
    def first(self) -> Model:
        """The model, or the first member of an ensemble."""
        return self.model.member(0) if isinstance(self.model, EnsembleModel) else self.model

    @property
    def epochs(self) -> int:
        """Epochs of all members together."""
        return sum(progress.epoch for progress in self.members)

    @property
    def history(self) -> list[dict[str, float]]:
        """What was logged, a row an epoch; with several members each row names its own, counted from 0."""
        if len(self.members) == 1:
            return self.members[0].history
        return [{"member": float(i)} | row for i, progress in enumerate(self.members) for row in progress.history]


def train_one(
    job: Job, model: Model, data: SpotData, on_epoch: EpochReport, encoding: EncodingConfig | None, member: int = 0
) -> Progress:
    """Train one model; see `fit`. A model that does not learn by gradient steps is computed at once.

    Args:
        job: The fold.
        model: As it was drawn.
        data: All spots, as the recipe has them.
        on_epoch: Called with each row of the history.
        encoding: How an encoder that is fine-tuned is fed.
        member: Which one of an ensemble it is; the seed is counted up with it.
    """
    setting = job.setting
    train, val = data.rows(job.split.train), data.rows(job.split.val)
    config = replace(setting.fit, seed=member_seed(job, member))
    model.look_around(data.surroundings)
    model.prepare(data, train, val, config.seed)
    if not model.learns:
        return Progress()
    checkpoint, followed = job.member_checkpoint(member), member + 1 < setting.recipe.ensemble
    return fit(
        *(model, data, train, val, config, checkpoint, on_epoch, setting.protocol.tested, encoding), followed=followed
    )


def train_members(job: Job, first: Model, data: SpotData, on_epoch: EpochReport) -> Trained:
    """Train an ensemble. The checkpoint of a member that is trained is kept until the fold ends, and stands for it.

    Interrupted, it leaves these checkpoints; after a stop that was asked for no other member begins.

    Args:
        job: The fold.
        first: The first member, as it was drawn.
        data: All spots, as the recipe has them.
        on_epoch: Called with each row of the history; epochs are counted over all members.
    """
    members: list[Model] = []
    progress: list[Progress] = []

    def counted(row: dict[str, float]) -> None:
        on_epoch(row | {"epoch": row["epoch"] + sum(p.epoch for p in progress)})

    for i in range(job.setting.recipe.ensemble):
        member = first
        if i > 0:
            torch.manual_seed(member_seed(job, i))
            member = make_member(job.setting).to(data.spot.device)
            if distributed.rank() > 0:
                torch.manual_seed(member_seed(job, i) + distributed.rank())  # the same weights, other dropout
        done = train_one(job, member, data, counted, None, i)
        member.zero_grad()  # of what is trained, only the weights are needed from here on
        progress.append(replace(done, best={}))
        members.append(member)
    return Trained(EnsembleModel(members), tuple(progress))


def member_seed(job: Job, member: int) -> int:
    """The seed of a member: the setting's for the first one, and the next ones after it."""
    return (job.setting.fit.seed + member) % 2**32
