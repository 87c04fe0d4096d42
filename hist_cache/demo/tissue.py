"""A generated H&E section: regions from filtered noise, nuclei as stamps, and two stains mixed by Beer-Lambert's law.

It looks like tissue in a thumbnail and in a spot crop. The region and the nuclei at each place are known, so that the
expression can depend on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt, gaussian_filter, map_coordinates
from scipy.spatial import cKDTree

BACKGROUND, STROMA, TUMOUR, IMMUNE, FAT = range(5)
REGIONS = ("background", "stroma", "tumour", "immune", "fat")  # names of the five values
GRID_PX = 4  # the coarse grid of the region maps has one cell per 4 x 4 px
HAEMATOXYLIN = np.array([0.66, 0.70, 0.27])  # optical density in red, green, blue per unit of stain
EOSIN = np.array([0.10, 0.62, 0.27])
GLASS = np.array([246.0, 245.0, 247.0])  # colour of the slide without tissue

# Kind of nucleus -> mean distance between nuclei where they are densest (um), half axes (um), darkness.
NUCLEI = {TUMOUR: (10.5, (5.2, 4.2), 0.90), IMMUNE: (7.2, (2.9, 2.7), 1.15), STROMA: (15.0, (6.5, 1.5), 0.85)}
# Region -> density of each kind of nucleus (tumour, immune, stroma) in it, 0 to 1.
DENSITY = {
    BACKGROUND: (0.0, 0.0, 0.0),
    STROMA: (0.0, 0.03, 0.65),
    TUMOUR: (0.95, 0.02, 0.05),
    IMMUNE: (0.0, 0.92, 0.15),
    FAT: (0.0, 0.0, 0.0),
}
# Region -> haematoxylin and eosin outside of nuclei.
CYTOPLASM = {
    BACKGROUND: (0, 0),
    STROMA: (0.03, 0.52),
    TUMOUR: (0.19, 0.42),
    IMMUNE: (0.14, 0.22),
    FAT: (0, 0.06),
}


@dataclass(frozen=True)
class Tissue:
    """A section and its content.

    Attributes:
        pixels: (H, W, 3) RGB image.
        regions: (ceil(H / 4), ceil(W / 4)) region of each cell of the coarse grid, an index into `REGIONS`.
        nuclei: (M, 2) centres of the nuclei in px, x then y.
        kinds: (M,) kind of each nucleus: TUMOUR, IMMUNE or STROMA.
    """

    pixels: NDArray[np.uint8]
    regions: NDArray[np.int8]
    nuclei: NDArray[np.float64]
    kinds: NDArray[np.int64]


def grow_tissue(rng: np.random.Generator, width: int, height: int, um_per_px: float) -> Tissue:
    """Generate one section; the same state of the generator gives the same pixels.

    Args:
        rng: Generator of everything in the section.
        width: Width in px.
        height: Height in px.
        um_per_px: Pixel size.
    """
    shape = (-(-height // GRID_PX), -(-width // GRID_PX))
    um = um_per_px * GRID_PX
    regions = _region_map(rng, shape, um)
    along = _fibre_potential(rng, shape, um)
    lumen = (regions == TUMOUR) & (_noise(rng, shape, 16 / um) > 1.75)
    lumen &= distance_transform_edt(regions == TUMOUR) * um > 12
    nuclei, kinds = _scatter_nuclei(rng, regions, lumen, um_per_px, (height, width))

    size = (height, width)
    haematoxylin, eosin = _cytoplasm(rng, regions, lumen, along, um_per_px, size)
    _stamp_nuclei(rng, haematoxylin, nuclei, kinds, along, um_per_px)
    tile = _noise(rng, (512, 512), 1.5)  # this tile is repeated, which is not visible in grain
    grain = np.tile(tile, (height // 512 + 1, width // 512 + 1))[:height, :width]
    thickness = 1 + 0.07 * _noise(rng, size, 150 / um_per_px)
    haematoxylin *= thickness * (1 + 0.06 * grain)
    eosin *= thickness * (1 + 0.04 * grain)
    return Tissue(_stain(rng, haematoxylin, eosin), regions, nuclei, kinds)


def _noise(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> NDArray[np.float32]:
    """Return (H, W) smooth noise with mean 0 and standard deviation 1.

    It is drawn on a coarser grid and scaled up if sigma, the smoothing in px, is large.
    """
    step = max(1.0, sigma / 2.5)
    coarse = tuple(max(8, int(np.ceil(n / step))) for n in shape)
    white = rng.standard_normal(coarse, dtype=np.float32)
    field = gaussian_filter(white, sigma / step, mode="wrap", truncate=3)
    field = (field - field.mean()) / field.std()
    return field if coarse == shape else _scale(field, shape)


def _scale(field: NDArray[np.floating[Any]], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Resize a field to (H, W) with bicubic interpolation."""
    image = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
    return np.array(image.resize(shape[::-1], Image.Resampling.BICUBIC))


def _region_map(rng: np.random.Generator, shape: tuple[int, int], um: float) -> NDArray[np.int8]:
    """Return the regions on the coarse grid, with `um` per cell: tumour, immune cells and fat in a blob of stroma."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    u, v = (x / shape[1] - 0.5) * 2, (y / shape[0] - 0.5) * 2
    angle = np.arctan2(v, u)
    radius = (np.abs(u) ** 2.5 + np.abs(v) ** 2.5) ** (1 / 2.5)
    for fold in (2, 3, 5):
        bulge, phase = 0.05 * rng.uniform(0.5, 1.2), rng.uniform(0, 2 * np.pi)
        radius = radius * (1 + bulge * np.cos(fold * angle + phase))
    radius = radius + 0.025 * _noise(rng, shape, 50 / um) + 0.006 * _noise(rng, shape, 8 / um)

    ragged = 0.22 * _noise(rng, shape, 11 / um)
    tumour = _noise(rng, shape, 75 / um) + 0.6 * _noise(rng, shape, 200 / um) + ragged
    immune = _noise(rng, shape, 52 / um) + ragged
    fat = _noise(rng, shape, 110 / um) + 0.5 * ragged
    regions = np.full(shape, STROMA, dtype=np.int8)
    regions[fat > 1.15] = FAT
    regions[tumour > 0.42] = TUMOUR
    regions[(immune > 0.95) & (tumour < 1.4)] = IMMUNE
    regions[radius > 0.885] = BACKGROUND
    return regions


def _fibre_potential(rng: np.random.Generator, shape: tuple[int, int], um: float) -> NDArray[np.float64]:
    """Return a smooth field (in um) on the coarse grid; fibres run along its contours."""
    y, x = np.mgrid[: shape[0], : shape[1]] * um
    angle = rng.uniform(0, np.pi)
    waves = 75 * _noise(rng, shape, 140 / um) + 12 * _noise(rng, shape, 45 / um)
    potential: NDArray[np.float64] = np.cos(angle) * x + np.sin(angle) * y + waves
    return potential


def _scatter_nuclei(
    rng: np.random.Generator,
    regions: NDArray[np.int8],
    lumen: NDArray[np.bool_],
    um_per_px: float,
    size: tuple[int, int],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Place nuclei of each kind on a shaken hexagonal grid, where they rarely overlap, and thin them out by region.

    Returns:
        (M, 2) centres in px, x then y; and (M,) kinds.
    """
    patchy = 1 + 0.45 * _noise(rng, regions.shape, 40 / um_per_px / GRID_PX)
    nuclei, kinds = [], []
    for column, (kind, (spacing_um, _, _)) in enumerate(NUCLEI.items()):
        pitch = spacing_um / um_per_px
        rows, columns = int(size[0] / pitch / 0.866), int(size[1] / pitch)
        j, i = np.mgrid[:rows, :columns].reshape(2, -1)
        points = np.stack([(i + 0.5 * (j % 2)) * pitch, j * 0.866 * pitch], axis=1)
        points += rng.uniform(-0.36, 0.36, points.shape) * pitch
        cells = np.clip((points / GRID_PX).astype(int), 0, np.array(regions.shape)[::-1] - 1)
        region = regions[cells[:, 1], cells[:, 0]]
        density = np.array([DENSITY[r][column] for r in range(len(REGIONS))])[region]
        density = density * np.clip(patchy[cells[:, 1], cells[:, 0]], 0.25, 1.0) * ~lumen[cells[:, 1], cells[:, 0]]
        keep = rng.random(len(points)) < density
        nuclei.append(points[keep])
        kinds.append(np.full(keep.sum(), kind))
    return np.concatenate(nuclei), np.concatenate(kinds)


def _cytoplasm(
    rng: np.random.Generator,
    regions: NDArray[np.int8],
    lumen: NDArray[np.bool_],
    along: NDArray[np.float64],
    um_per_px: float,
    size: tuple[int, int],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (H, W) haematoxylin and eosin of everything but nuclei: cytoplasm, fibres with gaps, fat cells, lumens."""
    # Regions are smoothed on the coarse grid, so that their borders are about 5 um wide. Eosin has no fine detail, so
    # half the resolution is enough.
    half = (size[0] // 2, size[1] // 2)
    hollow = 1 - 0.93 * gaussian_filter(lumen.astype(np.float32), 0.8)
    soft = [gaussian_filter((regions == r).astype(np.float32), 0.8) * hollow for r in range(len(REGIONS))]
    haematoxylin = sum(CYTOPLASM[r][0] * soft[r] for r in range(len(REGIONS)))
    smooth = sum(CYTOPLASM[r][1] * soft[r] for r in range(len(REGIONS)) if r != STROMA)
    stroma, fat = _scale(soft[STROMA], half), _scale(soft[FAT], half)

    # Fibres are noise that is stretched along the contours of the potential.
    across = _scale(along, half) / (2 * um_per_px)
    y, x = np.mgrid[: half[0], : half[1]].astype(np.float32)
    texture = _noise(rng, (512, 512), 1.6) + 0.9 * _noise(rng, (512, 512), 5)
    bend = 0.3 * _noise(rng, half, 60)
    fibre = map_coordinates(texture, [across, 0.04 * (x + y) + bend], order=1, mode="grid-wrap")
    eosin = _scale(smooth, half) + CYTOPLASM[STROMA][1] * stroma * np.clip(1 + 0.33 * fibre, 0.12, 1.7)

    # The membranes of fat cells are where the two nearest cell centres have the same distance.
    fat_px = np.argwhere(fat > 0.05)
    pitch = 38 / um_per_px / 2
    centres = np.mgrid[0 : half[0] : pitch, 0 : half[1] : pitch].reshape(2, -1).T
    centres = centres + rng.uniform(-0.42, 0.42, centres.shape) * pitch
    if len(fat_px):
        distances = cKDTree(centres).query(fat_px, k=2)[0]
        gap_um = (distances[:, 1] - distances[:, 0]) * um_per_px
        eosin[tuple(fat_px.T)] += 0.55 * fat[tuple(fat_px.T)] * np.exp(-(gap_um**2))
    return np.maximum(_scale(haematoxylin, size), 0), np.maximum(_scale(eosin, size), 0)


def _stamp_nuclei(
    rng: np.random.Generator,
    haematoxylin: NDArray[np.float32],
    nuclei: NDArray[np.float64],
    kinds: NDArray[np.int64],
    along: NDArray[np.float64],
    um_per_px: float,
) -> None:
    """Draw nuclei into the haematoxylin map: spindles along the fibres, other nuclei in random directions."""
    gradient = np.gradient(along)
    cells = np.clip((nuclei / GRID_PX).astype(int), 0, np.array(along.shape)[::-1] - 1)
    angles = rng.uniform(0, np.pi, len(nuclei))
    spindle = kinds == STROMA
    fibre_angle = np.arctan2(gradient[0][cells[:, 1], cells[:, 0]], gradient[1][cells[:, 1], cells[:, 0]]) + np.pi / 2
    angles[spindle] = fibre_angle[spindle] + rng.normal(0, 0.2, spindle.sum())
    n_turns, n_shapes = 16, 6
    turn = np.round(angles / np.pi * n_turns).astype(int) % n_turns
    shape = rng.integers(0, n_shapes, len(nuclei))
    dark = rng.uniform(0.75, 1.15, len(nuclei)).astype(np.float32)
    height, width = haematoxylin.shape
    for kind, (_, axes_um, depth) in NUCLEI.items():
        axes_px = np.array(axes_um) / um_per_px
        stamps = [
            [_stamp(np.random.default_rng([kind, s]), axes_px, np.pi * t / n_turns) for s in range(n_shapes)]
            for t in range(n_turns)
        ]
        reach = stamps[0][0].shape[0] // 2
        corners = np.round(nuclei).astype(int) - reach
        inside = (corners >= 0).all(1) & (corners + 2 * reach < (width, height)).all(1)
        for n in np.flatnonzero((kinds == kind) & inside):
            x, y = corners[n]
            patch = haematoxylin[y : y + 2 * reach + 1, x : x + 2 * reach + 1]
            np.maximum(patch, stamps[turn[n]][shape[n]] * (depth * dark[n]), out=patch)


def _stamp(rng: np.random.Generator, axes_px: NDArray[np.float64], angle: float) -> NDArray[np.float32]:
    """Return one nucleus, (2R+1, 2R+1) values from 0 to 1: an uneven ellipse with a darker rim and chromatin clumps."""
    axes = axes_px * rng.uniform(0.78, 1.22)
    reach = int(np.ceil(axes_px.max() * 1.22 * 1.25 + 2))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    a = (np.cos(angle) * x + np.sin(angle) * y) / axes[0]
    b = (np.cos(angle) * y - np.sin(angle) * x) / axes[1]
    direction = np.arctan2(b, a)
    radius = np.hypot(a, b)
    for fold in (2, 3):
        radius = radius * (1 + 0.07 * np.cos(fold * direction + rng.uniform(0, 2 * np.pi)))
    edge = 1 / (1 + np.exp((radius - 1) * axes.min() * 1.8))
    clumps = gaussian_filter(rng.standard_normal(x.shape), 1.5)
    inner = 0.84 + 0.16 * np.clip(radius, 0, 1) ** 2 + 0.5 * clumps * (axes.min() > 3)
    nucleus: NDArray[np.float32] = (edge * inner).astype(np.float32)
    return nucleus


def _stain(
    rng: np.random.Generator, haematoxylin: NDArray[np.float32], eosin: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Return the (H, W, 3) RGB image of the two stains, whose strength and hue differ from slide to slide."""
    h = HAEMATOXYLIN * rng.uniform(0.93, 1.07) * rng.uniform(0.97, 1.03, 3)
    e = EOSIN * rng.uniform(0.92, 1.08) * rng.uniform(0.97, 1.03, 3)
    pixels = np.empty((*haematoxylin.shape, 3), dtype=np.uint8)
    for c in range(3):
        density = np.float32(h[c]) * haematoxylin + np.float32(e[c]) * eosin
        pixels[..., c] = np.clip(np.float32(GLASS[c]) * np.exp(-density) + 0.5, 0, 255)
    return pixels
