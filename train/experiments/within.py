"""Splits within slices: what they cannot be combined with, and what is said of them before folds run."""

from __future__ import annotations

import numpy as np

from hist_cache.errors import InputError
from hist_cache.fingerprint import is_tuned
from hist_cache.slide_parts import N_BANDS, WITHIN
from hist_cache.splits import SPLIT_PARTS, Split
from train.options import TrainOptions
from train.parts import BandCut
from train.workspace import Workspace

NOTHING_OF_NEW_SLIDES = (
    "test spots are on slides that were trained on: the numbers say nothing of new slides (--split loso does)"
)


def check_within(options: TrainOptions, workspace: Workspace) -> None:
    """`InputError` for what has no meaning where parts of the same slide are trained on and tested.

    Args:
        options: Of a command with `--split within`.
        workspace: The cache.
    """
    if workspace.test_dataset is not None:
        raise InputError(f"--split within tests parts of the slides that are trained on, not {workspace.test_dataset}")
    if options.finetune_lora or options.lora:
        raise InputError(
            "--split within: an adapter learns whole slides, those spots included that are tested; leave out "
            f"{'--finetune-lora' if options.finetune_lora else '--lora'}"
        )
    if is_tuned(workspace.common):
        raise InputError(
            f"--split within: the encoder of {workspace.cache.folder} was fine-tuned on whole slides; give --encoder "
            "with the plain one's name"
        )


def describe_within(split: Split, cut: BandCut, workspace: Workspace) -> str:
    """Say which band a fold tests, how many spots its parts have, and how many were dropped.

    Args:
        split: The fold's.
        cut: How slides are cut for it.
        workspace: The cache.
    """
    parts = workspace.parts(cut)
    counts = {part: int(np.sum([len(parts[name].rows) for name in getattr(split, part)])) for part in SPLIT_PARTS}
    dropped = sum(map(len, workspace.slides.values())) - sum(counts.values())
    return (
        f"{WITHIN} {len(workspace.slides)} slides, band {cut.tested} of {N_BANDS} tested and band "
        f"{(cut.tested + 1) % N_BANDS} validated: train {counts['train']:,} spots, validate {counts['val']:,}, test "
        f"{counts['test']:,}; {dropped:,} dropped, whose niches reach another part"
    )
