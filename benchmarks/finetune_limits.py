"""What fine-tuning is measured against: its matrix products alone, and the encoder without gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from bench_train import DTYPES, seconds
from torch.utils.flop_counter import FlopCounterMode

from train.data import Inputs

CROPS_OF_RATE = {"cpu": 16, "cuda": 256}  # crops whose MLP gives the rate


def gemm_rate(tokens: tuple[int, int], device: torch.device, precision: str) -> float:
    """Measured FLOP/s of the first product of an MLP; `tokens` are the number and width of a crop's."""
    dtype = DTYPES[precision]
    count, width = tokens
    x = torch.randn(CROPS_OF_RATE[device.type] * count, width, device=device, dtype=dtype)
    weight = torch.randn(4 * width, width, device=device, dtype=dtype)
    return 8 * width * x.numel() / seconds(lambda: F.linear(x, weight), 9)


def products_of_a_crop(inputs: Inputs) -> float:
    """Operations of all products of one crop, forward and backward, counted while they are computed."""
    rows = torch.arange(2)
    with FlopCounterMode(display=False) as counter:
        inputs.encode(inputs.read(rows).spot).sum().backward()
    return counter.get_total_flops() / len(rows)


def forward_seconds(inputs: Inputs, batch: int, rounds: int) -> float:
    """Median seconds a crop through the encoder, without gradients."""
    crops = torch.cat([*inputs.read(torch.arange(batch))])
    with torch.no_grad():
        return seconds(lambda: inputs.encode(crops), rounds) / len(crops)


def print_limits(opened: Mapping[str, Inputs], whole: str, rate: float, spots: int, batch: int, rounds: int) -> None:
    """Print what no epoch can be shorter than.

    Args:
        opened: Inputs by the name of the method.
        whole: Name of the method that runs the whole encoder.
        rate: Of `gemm_rate`.
        spots: Of an epoch, each with its niche.
        batch: Spots of a step.
        rounds: Repeats of the forward pass.
    """
    products = {name: products_of_a_crop(inputs) for name, inputs in opened.items()}
    print(f"products alone, forward and backward, at the {rate / 1e9:.0f} GFLOP/s of an MLP's:")
    for name, count in products.items():
        print(
            f"  {name:32} {2 * spots * count / rate:8.3f} s an epoch   {products[whole] / count:5.2f} x as fast as the "
            f"whole encoder   {count / 1e9:.1f} GFLOP a crop"
        )
    forward = 2 * spots * forward_seconds(opened[whole], min(batch, spots), rounds)
    print(f"  {'whole encoder, forward only':32} {forward:8.3f} s an epoch, measured")
