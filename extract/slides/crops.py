"""Which pixels each spot and niche takes, and a sweep over the slide that decodes every tile once.

A crop is a square of micrometres around a spot's centre, cut at level 0 on whole pixels; off-slide area is white.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from extract.slides.readers import WHITE, Image

SPOT = "spot"


@dataclass(frozen=True)
class Crops:
    """One square crop per spot: `name` is "spot" or a ring's neighbourhood size ("6"), left and top (N,) int, px."""

    name: str
    side_px: int
    left: np.ndarray
    top: np.ndarray


def niche_side_um(m: int, pitch_um: float, spot_um: float) -> float:
    """Side of the square that holds rings 1..m: 2 (m pitch + spot radius), e.g. 255 um for ring 1 on Visium."""
    return 2 * (m * pitch_um + spot_um / 2)


def plan_crops(name: str, coords: np.ndarray, side_um: float, um_per_px: float) -> Crops:
    """Square crops of `side_um` around `coords` (N, 2; level-0 px, x then y), rounded to whole pixels."""
    side = max(1, round(side_um / um_per_px))
    corner = np.round(coords - side / 2).astype(np.int64)
    return Crops(name, side, corner[:, 0], corner[:, 1])


@dataclass(frozen=True)
class Piece:
    """The part of one tile that lies in one crop: `crop[to] = tile[take]`."""

    tile: tuple[int, int]
    to: tuple[slice, slice]
    take: tuple[slice, slice]


def tile_range(image: Image, left: int, top: int, side: int) -> tuple[range, range]:
    """Columns and rows of the tiles that the square at (left, top) touches; empty off the slide."""

    def span(start: int, whole: int, tile: int) -> range:
        first, end = max(start, 0), min(start + side, whole)
        return range(first // tile, -(-end // tile)) if first < end else range(0)

    return span(left, image.width, image.tile_width), span(top, image.height, image.tile_height)


def pieces(image: Image, left: int, top: int, side: int) -> list[Piece]:
    """The tile parts that make up the square at (left, top); none of them off the slide."""
    columns, rows = tile_range(image, left, top, side)
    across = [(c, *_overlap(left, side, c * image.tile_width, image.tile_width, image.width)) for c in columns]
    down = [(r, *_overlap(top, side, r * image.tile_height, image.tile_height, image.height)) for r in rows]
    return [Piece((c, r), (to_y, to_x), (take_y, take_x)) for r, to_y, take_y in down for c, to_x, take_x in across]


def _overlap(start: int, side: int, tile_start: int, tile: int, whole: int) -> tuple[slice, slice]:
    """Along one axis: where the overlap of crop and tile lies in the crop, and where in the tile."""
    low, high = max(start, tile_start), min(start + side, tile_start + tile, whole)
    return slice(low - start, high - start), slice(low - tile_start, high - tile_start)


def sweep_order(coords: np.ndarray, band_px: float) -> np.ndarray:
    """(N,) order of spots band by band along the longer side of the tissue, so that few tiles are alive at once."""
    extent = np.ptp(coords, axis=0)
    along = int(extent[1] >= extent[0])
    return np.lexsort((coords[:, 1 - along], coords[:, along] // band_px))


class TileStore:
    """Tiles held from the first crop that needs them to the last: each is decoded once, and dropped when done with."""

    def __init__(self, image: Image, crops: list[Crops], pool: ThreadPoolExecutor) -> None:
        self._image, self._pool = image, pool
        shape = (-(-image.height // image.tile_height), -(-image.width // image.tile_width))
        self._uses = np.zeros(shape, dtype=np.int32)  # by how many crops each tile is still needed
        for c in crops:
            for left, top in zip(c.left.tolist(), c.top.tolist(), strict=True):
                columns, rows = tile_range(image, left, top, c.side_px)
                self._uses[rows.start : rows.stop, columns.start : columns.stop] += 1
        self._tiles: dict[tuple[int, int], np.ndarray] = {}

    def load(self, plans: list[list[Piece]]) -> None:
        """Decode what these crops need and is not here yet, in parallel."""
        missing = sorted({p.tile for plan in plans for p in plan} - self._tiles.keys(), key=lambda t: (t[1], t[0]))
        share = max(1, -(-len(missing) // (4 * self._pool._max_workers)))  # a task per tile costs more than the tile

        def decode(tiles: list[tuple[int, int]]) -> list[np.ndarray]:
            return [self._image.read_tile(*tile) for tile in tiles]

        parts = [missing[i : i + share] for i in range(0, len(missing), share)]
        for tiles, arrays in zip(parts, self._pool.map(decode, parts), strict=True):
            self._tiles.update(zip(tiles, arrays, strict=True))

    def cut(self, plan: list[Piece], out: np.ndarray) -> None:
        """Fill `out` (side, side, 3) from tiles that are here; what no piece covers becomes white."""
        covered = sum((p.to[0].stop - p.to[0].start) * (p.to[1].stop - p.to[1].start) for p in plan)
        if covered < out.shape[0] * out.shape[1]:
            out[:] = WHITE
        for piece in plan:
            out[piece.to] = self._tiles[piece.tile][piece.take]

    def release(self, plans: list[list[Piece]]) -> None:
        """These crops are done: forget tiles that no other crop needs."""
        for plan in plans:
            for piece in plan:
                column, row = piece.tile
                self._uses[row, column] -= 1
                if not self._uses[row, column]:
                    self._tiles.pop(piece.tile, None)

    @property
    def bytes(self) -> int:
        return sum(tile.nbytes for tile in self._tiles.values())


def blocks(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cut an order into runs of at most `size`."""
    for start in range(0, len(order), size):
        yield order[start : start + size]
