"""A slide embedded block by block: what is encoded is kept, and memory does not grow with the number of spots.

A block is a compact part of the slide, so that few tiles are decoded twice. Each is a file of its own beside the cache
file while the slide is not complete. A command that is killed goes on with the block that it was at.
"""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from extract.pipeline import Pipeline
from extract.slides.crops import plan_crops
from extract.slides.image import Image
from hist_cache.files import atomic_write
from hist_cache.fingerprint import Fingerprint, short_hash

log = logging.getLogger(__name__)

BLOCK_SPOTS = 2048  # a block has at most so many spots
BLOCK_FOLDER = ".parts"  # subfolder of a cache folder


def spot_blocks(coords: NDArray[np.float64], largest: int = BLOCK_SPOTS) -> list[NDArray[np.int64]]:
    """Divide spots into compact blocks: halves along the longer side, again and again.

    Args:
        coords: (N, 2) spot centres.
        largest: Spots a block at most.

    Returns:
        Rows of each block, each row in one of them; the same for the same spots.
    """
    blocks, todo = [], [np.arange(len(coords))]
    while todo:
        rows = todo.pop()
        if len(rows) <= largest:
            blocks.append(rows)
            continue
        extent = np.ptp(coords[rows], axis=0)
        order = rows[np.argsort(coords[rows, int(extent[1] >= extent[0])], kind="stable")]
        middle = len(order) // 2
        todo += [np.sort(order[middle:]), np.sort(order[:middle])]
    return blocks


class BlockFiles:
    """The blocks of a slide that are encoded already.

    Args:
        path: The slide's cache file, which is not there yet.
        fingerprint: What it is made from; blocks that were made from something else are not found.
        blocks: Rows of each block.
    """

    def __init__(self, path: Path, fingerprint: Fingerprint, blocks: Sequence[NDArray[np.int64]]) -> None:
        made_from = {"common": fingerprint.common, "slide": fingerprint.slide, "blocks": [len(b) for b in blocks]}
        identity = short_hash(json.loads(json.dumps(made_from)))
        self.folder = path.parent / BLOCK_FOLDER / f"{path.stem}-{identity}"
        self.blocks = blocks

    def _path(self, block: int) -> Path:
        return self.folder / f"{block:05d}.npz"

    def load(self, block: int) -> dict[str, NDArray[np.float16]] | None:
        """The embeddings of a block; None where it is not there, or damaged, which is logged."""
        path = self._path(block)
        try:
            with np.load(path, allow_pickle=False) as arrays:  # a zip file, whose checksums are compared
                return {name: arrays[name] for name in arrays.files}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            log.warning(f"{path}: damaged ({type(error).__name__}); it is computed again")
            return None

    def save(self, block: int, arrays: dict[str, NDArray[np.float16]]) -> None:
        """Keep the embeddings of a block."""
        with atomic_write(self._path(block)) as aside, aside.open("wb") as opened:
            np.savez(opened, **arrays)  # type: ignore[arg-type]

    def read(self) -> Iterator[tuple[NDArray[np.int64], dict[str, NDArray[np.float16]]]]:
        """Rows and embeddings of each block; all of them are there."""
        for number, rows in enumerate(self.blocks):
            arrays = self.load(number)
            if arrays is None:
                raise FileNotFoundError(f"{self._path(number)}: removed while the slide was written; run this again")
            yield rows, arrays

    def remove(self) -> None:
        """Remove all blocks, once the cache file is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)


def embed_blocks(
    pipeline: Pipeline,
    image: Image,
    coords: NDArray[np.float64],
    sides_um: dict[str, float],
    um_per_px: float,
    files: BlockFiles,
    advance: Callable[[int], None],
) -> None:
    """Encode the blocks of a slide that are not there yet.

    Args:
        pipeline: The encoder.
        image: The slide's image.
        coords: (N, 2) spot centres, level-0 px.
        sides_um: Name of the crops -> their side.
        um_per_px: Size of a level-0 pixel.
        files: Where the blocks are kept.
        advance: Called with the number of crops that are done.
    """
    for number, rows in enumerate(files.blocks):
        if files.load(number) is None:
            crops = [plan_crops(name, coords[rows], side, um_per_px) for name, side in sides_um.items()]
            files.save(number, pipeline.embed(image, coords[rows], crops, advance))
        else:
            advance(len(rows) * len(sides_um))
