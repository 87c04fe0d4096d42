"""What a reader of a fold's numbers must be warned of: how its epoch was selected, and what it is beside ridge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from train.fit.checkpoints import Progress
from train.fit.config import FitConfig, Tested

FIRST_EPOCHS = 3
"""Where the best epoch is among so many and is not the last one, the model got worse almost from the start."""

SHARE_OF_RIDGE = 0.8
"""There is a warning where the PCC is below this share of that of ridge on the same spots."""

OTHER_RULES = "--select-by centered_mse or pcc do not count a slide's offset"
OTHER_SLIDES = "--validate-on alike takes other slides"


def selection_warnings(
    members: Sequence[Progress], config: FitConfig, val: Sequence[str], tested: Tested, is_within: bool = False
) -> list[str]:
    """Say where the best epoch is among the first: the validation score got worse from the start.

    Args:
        members: Of the training.
        config: Of the loop.
        val: The validation slides.
        tested: The epoch that is tested; where it is the last one, nothing was selected.
        is_within: Whether `val` are parts of the slides that are trained on, so that no others can be taken.
    """
    early = [p for p in members if 0 <= p.best_epoch < min(FIRST_EPOCHS, p.epoch - 1)]
    if not early or tested == "last":
        return []
    epochs = ", ".join(f"{p.best_epoch} of {p.epoch}" for p in early)
    if is_within:
        return [
            f"selection: the best epoch is {epochs}: by {config.select_by} on the validation parts training made the "
            "model worse from the start, so that it is hardly trained"
        ]
    advice = f"{OTHER_RULES}, {OTHER_SLIDES}" if config.select_by in ("mse", "loss") else OTHER_SLIDES
    return [
        f"selection: the best epoch is {epochs}: by {config.select_by} on {', '.join(val)} training made the model "
        f"worse from the start, so that it is hardly trained; these slides may be of another batch ({advice})"
    ]


def ridge_warnings(pooled: Mapping[str, float], controls: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say where the model is far below ridge on the same test spots.

    Args:
        pooled: Metrics of the model.
        controls: Metrics of what any model must beat.
    """
    ridge = controls.get("ridge", {})
    shared = [name for name in pooled if name.startswith("pcc@") and name in ridge]
    if not shared:
        return []
    widest = max(shared, key=lambda name: int(name.removeprefix("pcc@")))
    own, other = pooled[widest], ridge[widest]
    if other <= 0 or own >= SHARE_OF_RIDGE * other:
        return []
    return [f"far below ridge: {widest.upper()} {own:.3f}, where ridge on the same embeddings has {other:.3f}"]
