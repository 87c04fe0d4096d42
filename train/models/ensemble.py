"""Several models of one kind whose mean predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from train.data import Batch, Images, Surroundings
from train.models.base import Model
from train.models.projection import TangentProjection

PREFIX = "members."


class EnsembleModel(Model):
    """Trained member by member; what has no mean (the geometry) is the first member's."""

    members: nn.ModuleList

    def __init__(self, members: Sequence[Model]) -> None:
        super().__init__(members[0].config)
        self.precision = members[0].precision
        self.members = nn.ModuleList(members)

    def member(self, i: int) -> Model:
        """Member `i`, counted from 0."""
        member = self.members[i]
        assert isinstance(member, Model)
        return member

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the weights of each member, and the tensors that it keeps."""
        own = {f"{PREFIX}{i}." for i in range(len(self.members))}
        if strict and any(not name.startswith(tuple(own)) for name in state_dict):
            raise RuntimeError("its weights are not those of this ensemble")
        for i in range(len(self.members)):
            head = f"{PREFIX}{i}."
            of_member = {k.removeprefix(head): v for k, v in state_dict.items() if k.startswith(head)}
            self.member(i).load_state_dict(of_member, strict, assign)

    def look_around(self, spots: Surroundings) -> None:
        """Let each member look around."""
        for i in range(len(self.members)):
            self.member(i).look_around(spots)

    def predict(self, images: Images) -> Tensor:
        """The mean of the members' predictions `(B, G)`."""
        return torch.stack([self.member(i).predict(images) for i in range(len(self.members))]).mean(0)

    def project(self, batch: Batch) -> TangentProjection | None:
        """The geometry of the first member."""
        return self.member(0).project(batch)
