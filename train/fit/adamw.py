"""AdamW in one fused pass over memory, without what surrounds it in torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

BETAS = 0.9, 0.999
EPS = 1e-8


class AdamW:
    """What `torch.optim.AdamW(fused=True)` computes, by the same kernel, with the same state in checkpoints.

    To make an optimizer of torch imports its compiler, which takes seconds in every process, and a step of a small
    model spends more time in its checks than in the kernel.

    Args:
        groups: Parameters (`params`) and where they differ from the arguments `lr` and `weight_decay`.
        lr: Learning rate.
        weight_decay: As a share of the learning rate.

    Attributes:
        param_groups: The groups, with all their options.
        state: Of each parameter that had a gradient: its number of steps and two moments.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]], lr: float, weight_decay: float) -> None:
        options: dict[str, Any] = {"lr": lr, "betas": BETAS, "eps": EPS, "weight_decay": weight_decay}
        self.param_groups: list[dict[str, Any]] = [
            options | {**group, "params": list(group["params"])} for group in groups
        ]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Of all groups."""
        return [p for group in self.param_groups for p in group["params"]]

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self, scale: Tensor | None, skip: Tensor) -> None:
        """Update all parameters that have a gradient, without waiting for the device.

        Args:
            scale: Gradients are divided by it, and written; None leaves them as they are. A scalar.
            skip: 1 where nothing shall change, else 0. A scalar.
        """
        for group in self.param_groups:
            alike: dict[torch.dtype, list[tuple[Tensor, ...]]] = defaultdict(list)  # the kernel takes one type at once
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.dtype].append((p, p.grad, *self._state_of(p)))
            for tensors in alike.values():
                parameters, gradients, steps, means, squares = map(list, zip(*tensors, strict=True))
                torch._foreach_add_(steps, [1 - skip] * len(steps))
                torch._fused_adamw_(
                    parameters,
                    gradients,
                    means,
                    squares,
                    [],
                    steps,
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    amsgrad=False,
                    maximize=False,
                    grad_scale=scale,
                    found_inf=skip,
                )

    def _state_of(self, p: nn.Parameter) -> tuple[Tensor, Tensor, Tensor]:
        state = self.state.get(p)
        if state is None:
            state = self.state[p] = {
                "step": torch.zeros((), device=p.device),
                "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
            }
        return state["step"], state["exp_avg"], state["exp_avg_sq"]

    def state_dict(self) -> dict[str, Any]:
        """Options and state by the numbers of parameters, as optimizers of torch name them."""
        number = {p: i for i, p in enumerate(self.parameters)}
        groups = [group | {"params": [number[p] for p in group["params"]]} for group in self.param_groups]
        return {"state": {number[p]: state for p, state in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, stored: Mapping[str, Any]) -> None:
        """Take what `state_dict`, or that of torch's AdamW, gave.

        Raises:
            ValueError: It is of other parameters.
        """
        groups, parameters = stored["param_groups"], self.parameters
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in self.param_groups]:
            raise ValueError("the groups of parameters are others")
        state = {parameters[number]: values for number, values in stored["state"].items()}
        for p, values in state.items():
            if values["exp_avg"].shape != p.shape or values["exp_avg_sq"].shape != p.shape:
                raise ValueError("a moment has another shape than its parameter")
        for own, group in zip(self.param_groups, groups, strict=True):
            own.update({name: group[name] for name in own if name != "params"})
        names = ("step", "exp_avg", "exp_avg_sq")
        self.state = {p: {name: values[name].to(p.device) for name in names} for p, values in state.items()}
