"""The cache in memory: all spots of all slides as contiguous tensors on the device; a batch is an index."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from hist_cache.errors import HistError
from train.depth import slide_depths
from train.expression import Transform

_T = TypeVar("_T")


class SpotNiche(NamedTuple):
    """Two tensors, one of the spots and one of their niches; row i of both belongs to spot i."""

    spot: Tensor
    niche: Tensor


@dataclass(frozen=True)
class Images:
    """What a model sees of B spots when it predicts.

    Attributes:
        spot: `(B, D)` float32 embeddings (tokens or crops before an encoder has made embeddings of them).
        niche: The same of the niches.
        rows: `(B,)` int64, the spots' rows in the `SpotData` that they come from.
    """

    spot: Tensor
    niche: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Batch(Images):
    """What a model learns from.

    Attributes:
        expression: `(B, G)` float32 profiles of the spots, which networks of genes read.
        niche_expression: The same of the niches.
        target: `(B, G)` float32, what the model's predictions are compared with. Without a recipe that changes it, it
            is `expression`.
    """

    expression: Tensor
    niche_expression: Tensor
    target: Tensor


@dataclass(frozen=True, eq=False)
class Targets:
    """What is learnt in place of the expression itself, for all N spots; see `train.recipes`.

    Attributes:
        expression: `(N, G)` float32 profiles of the spots, which networks of genes read.
        niche_expression: The same of the niches.
        target: `(N, G)` float32, what a model's output is compared with.
        offset: `(N, G)` float32, what is added to a model's output to make it expression. It is computed without the
            expression of validation and test spots.
    """

    expression: Tensor
    niche_expression: Tensor
    target: Tensor
    offset: Tensor


@dataclass(frozen=True, eq=False)
class Surroundings:
    """All spots without their expression: what a model may see around the spots of a batch.

    Attributes:
        spot: `(N, D)` float16 embeddings; `niche` likewise.
        slide: `(N,)` int64 number of each spot's slide.
        position: `(N, 2)` float32 centres on the slide in um.
        rings: Of ring 1, 2, ...: `(N, K)` int64 rows, as in `SpotData`.
        whole: `(N,)` int64 number of the whole slide on which `position` is. All parts of a slide that was cut have
            the same one, each a `slide` of its own; without cuts it is `slide`.
    """

    spot: Tensor
    niche: Tensor
    slide: Tensor
    position: Tensor
    rings: tuple[Tensor, ...]
    whole: Tensor


class Inputs(Protocol):
    """What images are made from: cached embeddings, tokens or crops. The training loop uses only these members."""

    @property
    def description(self) -> str:
        """What is read, where it is kept and how large it is; empty where there is nothing to say."""

    @property
    def device(self) -> torch.device:
        """Where `read` puts the inputs."""

    @property
    def resident(self) -> bool:
        """Whether all inputs are in the device's memory, so that reading ahead gains nothing."""

    @property
    def encoder(self) -> nn.Module | None:
        """The encoder that is fine-tuned with the model; None where embeddings are read as they are."""

    def read(self, rows: Tensor, augment: torch.Generator | None = None) -> SpotNiche:
        """Inputs `(n, ...)` of `rows` `(n,)` int64, in that order, on the device.

        Args:
            rows: Best on the CPU unless the inputs are resident.
            augment: Draws how the crops of each spot are turned and mirrored.
        """

    def encode(self, inputs: Tensor) -> Tensor:
        """Embeddings `(n, D)` float32 of either kind of inputs, with gradients to what is trained of the encoder."""

    def close(self) -> None:
        """Give back memory, files and threads."""


@dataclass(frozen=True)
class CachedEmbeddings:
    """Embeddings `(N, D)` float16 as the cache holds them."""

    spot: Tensor
    niche: Tensor
    description = ""
    resident = True
    encoder: nn.Module | None = None

    @property
    def device(self) -> torch.device:
        """The device of the tensors."""
        return self.spot.device

    def read(self, rows: Tensor, augment: torch.Generator | None = None) -> SpotNiche:
        """Embeddings of `rows`, float32."""
        return SpotNiche(self.spot[rows].float(), self.niche[rows].float())

    def encode(self, inputs: Tensor) -> Tensor:
        """The inputs, which are embeddings already."""
        return inputs

    def close(self) -> None:
        """Nothing is held besides the tensors."""


@dataclass(frozen=True, eq=False)
class SpotData:
    """N spots with G panel genes, on one device.

    Attributes:
        spot: `(N, D)` float16 embeddings; `niche` likewise.
        expression: `(N, G)` float32 in `UNITS[transform]`; `niche_expression` likewise.
        slide: `(N,)` int64 index into `slides`.
        row: `(N,)` int64 row of the slide's file.
        complete: `(N,)` bool, whether all neighbours are on the slide.
        slides: IDs of the slides, or names of their parts (`hist_cache.slide_parts`).
        panel: Names of the genes.
        transform: Of the counts.
        total: `(N,)` float32 counts of each spot over all genes; None where they are not known.
        position: `(N, 2)` float32 centres on the slide in um; None where they are not known.
        rings: Of ring 1, 2, ...: `(N, K)` int64 rows of the spots in this ring around each spot, -1 where there is
            none. Only as many rings as were asked for.
        encoder_inputs: What an encoder that is fine-tuned reads; without it images are `spot` and `niche`.
        targets: What is learnt in place of `expression`, where a recipe says so.
        whole_slides: Of each of `slides` the ID of the whole slide, where they are parts; None where they are whole.
    """

    spot: Tensor
    niche: Tensor
    expression: Tensor
    niche_expression: Tensor
    slide: Tensor
    row: Tensor
    complete: Tensor
    slides: list[str]
    panel: list[str]
    transform: Transform = "log2"
    total: Tensor | None = None
    position: Tensor | None = None
    rings: tuple[Tensor, ...] = ()
    encoder_inputs: Inputs | None = None
    targets: Targets | None = None
    whole_slides: list[str] | None = None

    @property
    def inputs(self) -> Inputs:
        """What images are made from."""
        if self.encoder_inputs is not None:
            return self.encoder_inputs
        return CachedEmbeddings(self.spot, self.niche)

    @property
    def target(self) -> Tensor:
        """What a model learns to predict, `(N, G)`: the expression, or what a recipe puts in its place."""
        return self.expression if self.targets is None else self.targets.target

    @property
    def surroundings(self) -> Surroundings:
        """Everything but expression."""
        position = self.spot.new_zeros(len(self.slide), 2) if self.position is None else self.position
        return Surroundings(self.spot, self.niche, self.slide, position.float(), self.rings, self.whole)

    @property
    def whole(self) -> Tensor:
        """`(N,)` int64 number of the whole slide that each spot is on; `slide` where slides were not cut."""
        if self.whole_slides is None:
            return self.slide
        numbers = {name: i for i, name in enumerate(dict.fromkeys(self.whole_slides))}
        of_slides = torch.tensor([numbers[name] for name in self.whole_slides], device=self.slide.device)
        return of_slides[self.slide]

    def rows(self, slides: Sequence[str]) -> Tensor:
        """Rows of these slides' spots, in order.

        Raises:
            HistError: There are none, because all spots of these slides were dropped.
        """
        wanted = torch.tensor([self.slides.index(s) for s in slides], device=self.slide.device)
        rows = torch.isin(self.slide, wanted).nonzero().squeeze(1)
        if not len(rows):
            raise HistError(
                f"{', '.join(slides)}: no spot has a complete niche, so that --edge-spots drop leaves none; give "
                "--edge-spots keep, or fewer --neighbors"
            )
        return rows

    def only(self, slides: Sequence[str]) -> SpotData:
        """The spots of some slides, in the same order, in memory of their own."""
        rows = self.rows(slides)
        per_spot = ("spot", "niche", "expression", "niche_expression", "slide", "row", "complete")
        values: dict[str, Any] = {name: getattr(self, name)[rows] for name in per_spot}
        new_rows = torch.full((len(self.slide) + 1,), -1, device=rows.device)  # the last one stands for "none"
        new_rows[rows] = torch.arange(len(rows), device=rows.device)
        values["rings"] = tuple(new_rows[ring[rows]] for ring in self.rings)
        values |= {name: None if (v := getattr(self, name)) is None else v[rows] for name in ("total", "position")}
        return replace(self, **values, encoder_inputs=None, targets=None)

    def depths(self) -> dict[str, float]:
        """Median counts a spot of each slide, over all genes; {} where they are not known."""
        if self.total is None:
            return {}
        depths = slide_depths(self.total.cpu().numpy(), self.slide.cpu().numpy(), len(self.slides))
        return dict(zip(self.slides, depths.tolist(), strict=True))


class TensorCache(Generic[_T]):
    """Keeps the `size` values that were used last: tensors are large, and many runs in a row need the same.

    Args:
        size: How many are kept.
        close: Called for each that is dropped.
    """

    def __init__(self, size: int = 1, close: Callable[[_T], None] = lambda value: None) -> None:
        self._size, self._close = size, close
        self._values: OrderedDict[Hashable, _T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """The value of a key, made if it is not kept; the one unused for longest is dropped first to free memory."""
        if key not in self._values:
            while len(self._values) >= self._size:
                self._close(self._values.popitem(last=False)[1])
            self._values[key] = make()
        self._values.move_to_end(key)
        return self._values[key]
