"""Which pixels each spot and niche takes, and a sweep over the slide that decodes every tile once.

A crop is a square of micrometres around a spot's centre, cut at level 0 on whole pixels; off-slide area is white.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from extract.images import WHITE, Image

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


def pieces(image: Image, left: int, top: int, side: int) -> list[Piece]:
    """The tile parts that make up the square at (left, top); none of them off the slide."""
    found = []
    x_end, y_end = min(left + side, image.width), min(top + side, image.height)
    for row in range(max(top, 0) // image.tile_height, -(-y_end // image.tile_height) if y_end > 0 else 0):
        y0, y1 = row * image.tile_height, min((row + 1) * image.tile_height, y_end)
        ya = max(y0, top)
        for column in range(max(left, 0) // image.tile_width, -(-x_end // image.tile_width) if x_end > 0 else 0):
            x0, x1 = column * image.tile_width, min((column + 1) * image.tile_width, x_end)
            xa = max(x0, left)
            if ya < y1 and xa < x1:
                found.append(
                    Piece(
                        (column, row),
                        (slice(ya - top, y1 - top), slice(xa - left, x1 - left)),
                        (slice(ya - y0, y1 - y0), slice(xa - x0, x1 - x0)),
                    )
                )
    return found


def sweep_order(coords: np.ndarray, band_px: float) -> np.ndarray:
    """(N,) order of spots band by band along the longer side of the tissue, so that few tiles are alive at once."""
    extent = np.ptp(coords, axis=0)
    along = int(extent[1] >= extent[0])
    return np.lexsort((coords[:, 1 - along], coords[:, along] // band_px))


class TileStore:
    """Tiles held from the first crop that needs them to the last: each is decoded once, and dropped when done with."""

    def __init__(self, image: Image, plans: list[list[Piece]], pool: ThreadPoolExecutor) -> None:
        self._image, self._pool = image, pool
        self._uses = Counter(piece.tile for plan in plans for piece in plan)
        self._tiles: dict[tuple[int, int], np.ndarray] = {}
        self.decoded = 0

    def load(self, plans: list[list[Piece]]) -> None:
        """Decode what these crops need and is not here yet, in parallel."""
        missing = sorted({p.tile for plan in plans for p in plan} - self._tiles.keys(), key=lambda t: (t[1], t[0]))
        share = max(1, -(-len(missing) // (4 * self._pool._max_workers)))  # a task per tile costs more than the tile

        def decode(tiles: list[tuple[int, int]]) -> list[np.ndarray]:
            return [self._image.read_tile(*tile) for tile in tiles]

        parts = [missing[i : i + share] for i in range(0, len(missing), share)]
        for tiles, arrays in zip(parts, self._pool.map(decode, parts), strict=True):
            self._tiles.update(zip(tiles, arrays, strict=True))
        self.decoded += len(missing)

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
                self._uses[piece.tile] -= 1
                if not self._uses[piece.tile]:
                    self._tiles.pop(piece.tile, None)

    @property
    def bytes(self) -> int:
        return sum(tile.nbytes for tile in self._tiles.values())


def blocks(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cut an order into runs of at most `size`."""
    for start in range(0, len(order), size):
        yield order[start : start + size]
