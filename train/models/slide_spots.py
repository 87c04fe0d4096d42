"""Spots by slide: what a model needs that looks at a whole slide, and batches of one slide each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from train.data import Surroundings


@dataclass(frozen=True, eq=False)
class OneSlide:
    """The n spots of a slide.

    Attributes:
        rows: `(n,)` int64, their rows among all spots.
        ring: `(n, K)` int64, the spots of ring 1 around each of them as places in `rows`; n where there is none.
    """

    rows: Tensor
    ring: Tensor


class SlideSpots:
    """All N spots, without their expression.

    Args:
        spots: Of all slides, with ring 1 at least.

    Attributes:
        embeddings: `(N, D)` float16.
        slide: `(N,)` int64 number of each spot's slide.
        place: `(N,)` int64, where each spot is in the `rows` of its slide.
        slides: By number.
    """

    def __init__(self, spots: Surroundings) -> None:
        self.embeddings, self.slide = spots.spot, spots.slide
        self.place = torch.zeros_like(spots.slide)
        self.slides: dict[int, OneSlide] = {}
        self._slide = spots.slide.cpu()  # here its numbers can be read without waiting for the device
        for number in self._slide.unique().tolist():
            rows = (self._slide == number).nonzero().squeeze(1).to(spots.slide.device)
            self.place[rows] = torch.arange(len(rows), device=rows.device)
            ring = spots.rings[0][rows]
            self.slides[number] = OneSlide(rows, torch.where(ring >= 0, self.place[ring], len(rows)))

    def slides_of(self, rows: Tensor) -> list[int]:
        """Numbers of the slides of some rows `(n,)`, in order. This waits for the device."""
        return self._slide[rows.cpu()].unique().tolist()

    def batches(self, rows: Tensor, batch_size: int, order: torch.Generator) -> list[tuple[int, Tensor]]:
        """Batches of spots of one slide each, drawn anew, with the numbers of their slides.

        A slide's last batch that is not full is left out, unless it is the only one: other batches take its spots the
        next time.

        Args:
            rows: `(n,)` of the spots.
            batch_size: Spots a batch.
            order: Draws the order of spots and batches.

        Returns:
            Slides, and rows `(batch_size,)`, or fewer of a slide with fewer spots.
        """
        slide = self._slide[rows.cpu()]  # once an epoch, before the device has work
        slides: list[int] = []
        parts: list[Tensor] = []
        for number in slide.unique().tolist():
            own = (slide == number).nonzero().squeeze(1)
            mixed = own[torch.randperm(len(own), generator=order)]
            full = [mixed[i * batch_size : (i + 1) * batch_size] for i in range(max(1, len(own) // batch_size))]
            parts += full
            slides += [number] * len(full)
        drawn = rows[torch.cat(parts).to(rows.device)].split([len(part) for part in parts])
        return [(slides[i], drawn[i]) for i in torch.randperm(len(parts), generator=order).tolist()]
