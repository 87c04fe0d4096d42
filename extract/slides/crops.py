"""Where the crops of spots and niches lie, and a store of tiles from which they are cut.

A crop is a square of micrometres around a spot's centre. It is cut at level 0, on whole pixels, and is white outside
the slide. Spots are taken in an order in which every tile is decoded only once, and few tiles are in memory together.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from extract.slides.image import WHITE, Image


@dataclass(frozen=True)
class Crops:
    """One square crop per spot, all of the same size."""

    name: str
    """`spot`, or the neighbourhood size of niches: `6`."""
    side_px: int
    """Side of the square, level-0 px."""
    left: np.ndarray
    """(N,) int, level-0 px; may be outside the slide."""
    top: np.ndarray
    """(N,) int, level-0 px; may be outside the slide."""


def niche_side_um(n_rings: int, pitch_um: float, spot_um: float) -> float:
    """Return the side of the square that holds rings 1 to `n_rings`: 2 (n_rings pitch + spot radius).

    On Visium, ring 1 needs 255 um.

    Args:
        n_rings: Number of rings around the spot.
        pitch_um: Distance between the centres of neighbouring spots, um.
        spot_um: Diameter of a spot, um.
    """
    return 2 * (n_rings * pitch_um + spot_um / 2)


def plan_crops(name: str, coords: np.ndarray, side_um: float, um_per_px: float) -> Crops:
    """Place a square crop around each spot, rounded to whole pixels.

    Args:
        name: Name of the crops, as in `Crops`.
        coords: (N, 2) centres of the spots, level-0 px, x then y.
        side_um: Side of the square, um.
        um_per_px: Size of a level-0 pixel, um.
    """
    side = max(1, round(side_um / um_per_px))
    corner = np.round(coords - side / 2).astype(np.int64)
    return Crops(name, side, corner[:, 0], corner[:, 1])


@dataclass(frozen=True)
class Piece:
    """The part of a crop that comes from one tile: `crop[to] = tile[take]`."""

    tile: tuple[int, int]
    """Column and row of the tile."""
    to: tuple[slice, slice]
    """Rows and columns within the crop."""
    take: tuple[slice, slice]
    """Rows and columns within the tile."""


def tile_range(image: Image, left: int, top: int, side: int) -> tuple[range, range]:
    """Find the tiles that a crop touches.

    Args:
        image: The slide's image.
        left: Left edge of the crop, level-0 px.
        top: Upper edge of the crop, level-0 px.
        side: Side of the crop, px.

    Returns:
        Columns and rows of the tiles; empty for a crop outside the slide.
    """

    def tiles_along(start: int, image_size: int, tile_size: int) -> range:
        first, end = max(start, 0), min(start + side, image_size)
        return range(first // tile_size, -(-end // tile_size)) if first < end else range(0)

    return tiles_along(left, image.width, image.tile_width), tiles_along(top, image.height, image.tile_height)


def pieces(image: Image, left: int, top: int, side: int) -> list[Piece]:
    """List the parts of tiles that make up a crop; none for a crop outside the slide. Arguments as of `tile_range`."""
    columns, rows = tile_range(image, left, top, side)
    across = [(c, *_overlap(left, side, c * image.tile_width, image.tile_width, image.width)) for c in columns]
    down = [(r, *_overlap(top, side, r * image.tile_height, image.tile_height, image.height)) for r in rows]
    return [Piece((c, r), (to_y, to_x), (take_y, take_x)) for r, to_y, take_y in down for c, to_x, take_x in across]


def _overlap(start: int, side: int, tile_start: int, tile_size: int, image_size: int) -> tuple[slice, slice]:
    """Find, along one axis, where the overlap of a crop and a tile lies in the crop, and where in the tile."""
    low, high = max(start, tile_start), min(start + side, tile_start + tile_size, image_size)
    return slice(low - start, high - start), slice(low - tile_start, high - tile_start)


def read_central_tile(image: Image, coords: np.ndarray) -> None:
    """Decode the tile in the middle of the spots, to see whether tiles can be decoded at all.

    Args:
        image: The slide's image.
        coords: (N, 2) centres of the spots, level-0 px, x then y.

    Raises:
        SlideError: It cannot be decoded.
    """
    x, y = np.clip(np.median(coords, axis=0), 0, (image.width - 1, image.height - 1)).astype(int)
    image.read_tile(int(x) // image.tile_width, int(y) // image.tile_height)


def reading_order(coords: np.ndarray, band_px: float) -> np.ndarray:
    """Order the spots in bands across the tissue, so that few tiles are in memory at a time.

    Bands are taken one after the other along the longer side of the tissue.

    Args:
        coords: (N, 2) centres of the spots, level-0 px, x then y.
        band_px: Width of a band, level-0 px.

    Returns:
        (N,) rows of `coords`.
    """
    extent = np.ptp(coords, axis=0)
    along = int(extent[1] >= extent[0])
    return np.lexsort((coords[:, 1 - along], coords[:, along] // band_px))


def spot_runs(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Divide an order of spots into consecutive runs of `size` spots; the last one may be shorter."""
    for start in range(0, len(order), size):
        yield order[start : start + size]


class TileStore:
    """Decoded tiles, each kept from the first crop that needs it to the last, so that it is decoded only once.

    Args:
        image: The slide's image.
        crops: All crops that will be cut.
        pool: Threads that decode.
    """

    def __init__(self, image: Image, crops: list[Crops], pool: ThreadPoolExecutor) -> None:
        self._image, self._pool = image, pool
        shape = (-(-image.height // image.tile_height), -(-image.width // image.tile_width))
        self._uses = np.zeros(shape, dtype=np.int32)  # how many crops still need each tile
        for c in crops:
            for left, top in zip(c.left.tolist(), c.top.tolist(), strict=True):
                columns, rows = tile_range(image, left, top, c.side_px)
                self._uses[rows.start : rows.stop, columns.start : columns.stop] += 1
        self._tiles: dict[tuple[int, int], np.ndarray] = {}

    def load(self, plans: list[list[Piece]]) -> None:
        """Decode, in parallel, the tiles of these crops that are not in memory yet."""
        missing = sorted({p.tile for plan in plans for p in plan} - self._tiles.keys(), key=lambda t: (t[1], t[0]))
        share = max(1, -(-len(missing) // (4 * self._pool._max_workers)))  # a task for each tile would be slower

        def decode(tiles: list[tuple[int, int]]) -> list[np.ndarray]:
            return [self._image.read_tile(*tile) for tile in tiles]

        parts = [missing[i : i + share] for i in range(0, len(missing), share)]
        for tiles, arrays in zip(parts, self._pool.map(decode, parts), strict=True):
            self._tiles.update(zip(tiles, arrays, strict=True))

    def cut(self, plan: list[Piece], out: np.ndarray) -> None:
        """Cut a crop from loaded tiles.

        Args:
            plan: The pieces of the crop.
            out: (side, side, 3) uint8, filled; what no piece covers becomes white.
        """
        covered = sum((p.to[0].stop - p.to[0].start) * (p.to[1].stop - p.to[1].start) for p in plan)
        if covered < out.shape[0] * out.shape[1]:
            out[:] = WHITE
        for piece in plan:
            out[piece.to] = self._tiles[piece.tile][piece.take]

    def release(self, plans: list[list[Piece]]) -> None:
        """Note that these crops are cut, and drop the tiles that no other crop needs."""
        for plan in plans:
            for piece in plan:
                column, row = piece.tile
                self._uses[row, column] -= 1
                if not self._uses[row, column]:
                    self._tiles.pop(piece.tile, None)

    @property
    def bytes(self) -> int:
        """Memory that the loaded tiles take."""
        return sum(tile.nbytes for tile in self._tiles.values())
