"""Slides whose expression follows from their embeddings, each with offsets of its own, as of another batch."""

from __future__ import annotations

import torch

from train.data import SpotData

SIZES = (41, 30, 23)
WIDTH, GENES = 7, 5
TRAIN, VAL, TEST = torch.arange(94).split(SIZES)


def make_data(seed: int = 0, n_rings: int = 2, sizes: tuple[int, ...] = SIZES) -> SpotData:
    """Slides A, B, ... of `sizes` spots; their rings are drawn, and some spots have none."""
    g = torch.Generator().manual_seed(seed)
    n = sum(sizes)
    slide = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    spot, niche = torch.randn(2, n, WIDTH, generator=g) + torch.randn(2, len(sizes), WIDTH, generator=g)[:, slide]
    y = spot @ torch.randn(WIDTH, GENES, generator=g) + niche @ torch.randn(WIDTH, GENES, generator=g)
    y = 4 + y / WIDTH**0.5 + torch.randn(len(sizes), GENES, generator=g)[slide]
    y = y + 0.3 * torch.randn(n, GENES, generator=g)
    first = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    rings = []
    for ring in range(1, n_rings + 1):
        rows = torch.full((n, 6 * ring), -1)
        for i in range(n):
            start, size = int(first[slide[i]]), sizes[int(slide[i])]
            others = [int(r) + start for r in torch.randperm(size, generator=g) if int(r) + start != i]
            count = int(torch.randint(0, 4, (1,), generator=g))
            places = torch.randperm(6 * ring, generator=g)[:count]
            rows[i, places] = torch.tensor(others[:count], dtype=torch.int64)
        rings.append(rows)
    rows = torch.cat([torch.arange(size) for size in sizes])
    names = [chr(ord("A") + i) for i in range(len(sizes))]
    genes = [f"G{i}" for i in range(GENES)]
    return SpotData(
        *(spot.half(), niche.half(), y, 0.9 * y + 0.1, slide, rows, torch.ones(n, dtype=torch.bool), names, genes),
        rings=tuple(rings),
    )
