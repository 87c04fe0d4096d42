"""Crops as inputs: the pixels that hist-extract encodes, decoded once and kept as uint8."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from extract.encoders.encoder import Encoder, PooledEncoder, blocks_before
from extract.encoders.tuned_forward import first_adapted, tuned_forward
from extract.identity import crop_sides_um, slide_identity
from extract.pipeline import Pipeline, start_pipeline
from extract.slides.batches import CropTransform, to_device
from extract.slides.crops import Crops, plan_crops
from extract.slides.readers import open_image
from hist_cache.cache import Cache
from hist_cache.cache_file import open_complete
from hist_cache.console import Meter, progress, size
from hist_cache.disk_room import check_room
from hist_cache.errors import SlideError
from hist_cache.files import write_error
from hist_cache.fingerprint import CropRule, differences
from hist_cache.slide_file import read_fingerprint
from hist_cache.slides import SlideFiles, find_slide
from hist_cache.token_files import SPOT
from hist_cache.values import Precision
from train.data import SpotData, SpotNiche
from train.finetune.inputs import Caches, HeldStore, StoredInputs, check_caches
from train.finetune.memory import SHARE, Place, choose_place


class Pixels(PooledEncoder):
    """Takes an encoder's place in a pipeline and gives the crops as they come."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), "cls")

    def forward(self, crops: Tensor) -> Tensor:
        """The crops."""
        return crops


@dataclass(frozen=True)
class Source:
    """The crops of one slide that are to be decoded; `at` `(n,)` holds the places of its spots among all."""

    files: SlideFiles
    coords: np.ndarray
    crops: list[Crops]
    at: Tensor


def crop_store(
    caches: Mapping[str, Cache],
    data: SpotData,
    neighbors: int,
    encoder: Encoder,
    device: torch.device,
    data_root: Path | None = None,
    place: Place | None = None,
    share: float = SHARE,
    scratch: Path | None = None,
) -> HeldStore:
    """Decode the crops of all spots of `data`, `(N, S, S, 3)` uint8 each, and keep them where they fit.

    Args:
        caches: The cache of each slide: where its spots are, how its crops were cut, and from which folder.
        data: The spots.
        neighbors: Neighbourhood size of the niches.
        encoder: The one that made the caches, for its input size and way to resize.
        device: Where they are used.
        data_root: Folder of the slides; default: the one that each cache remembers.
        place: Where crops are kept; default: the nearest place where they fit.
        share: The share of what is free that they may take.
        scratch: Folder of the temporary file that holds them where memory does not; default: the system's.

    Raises:
        SlideError: A slide is not there, cannot be read, or has changed since it was cached.
        WriteError: Crops fit neither memory nor the disk.
    """
    sources = [find_source(caches[s], s, data, i, neighbors, data_root) for i, s in enumerate(data.slides)]
    count, side = len(data.row), encoder.input_size
    shape = (count, side, side, 3)
    taken = 2 * int(np.prod(shape))
    place = place or choose_place(taken, device, share)
    folder = scratch or Path(tempfile.gettempdir())
    where = {"device": "on the GPU", "memory": "in memory", "disk": f"in a temporary file in {folder}"}[place]
    description = (
        f"crops: {count:,} spots and niches of {neighbors} neighbours, decoded once to {side} x {side} px, "
        f"{size(taken)} {where}"
    )
    if place == "disk":
        both = mapped_tensor((2, *shape), folder)
    else:
        both = torch.empty((2, *shape), dtype=torch.uint8, device=device if place == "device" else "cpu")
    spot, niche = both
    with closing(pixel_pipeline(encoder, device)) as pipeline, progress("crops", 2 * count, "crops") as meter:
        for source in sources:
            decode_crops(source, pipeline, SpotNiche(spot, niche), meter)
    return HeldStore(spot, niche, device, description, mapped=place == "disk")


def pixel_pipeline(encoder: Encoder, device: torch.device) -> Pipeline:
    """The encoder's pipeline up to the pixels, resized but not normalised: gives (n, 3, S, S) of values 0..255."""
    plain = replace(encoder, module=Pixels(), mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))
    return start_pipeline(plain, "fp32", device)  # exact: float32 holds these numbers


def find_source(cache: Cache, slide: str, data: SpotData, index: int, neighbors: int, data_root: Path | None) -> Source:
    """What of a slide is to be decoded; `SlideError` where its files are not those that were cached."""
    path = cache.path(slide)
    known = read_fingerprint(path)
    if data_root is None and "data_root" not in known.provenance:
        raise SlideError(slide, path, "does not say where its slide is", "give --data-root")
    files = find_slide(data_root or Path(known.provenance["data_root"]), slide, any_scale=True)
    with closing(open_image(slide, files.image)) as image:
        identity, _ = slide_identity(files, image, known)
    if different := differences(known.slide, identity):
        raise SlideError(
            slide,
            files.image,
            f"not what {path} was made from: {'; '.join(different)}",
            "extract again, or give the --data-root of the slides that were cached",
        )
    at = (data.slide == index).nonzero().squeeze(1).cpu()
    with open_complete(path) as file:
        coords = file.array("coords")[data.row[at.to(data.row.device)].cpu().numpy()]
    sides = crop_sides_um(files, (neighbors,), CropRule.from_identity(known.common).min_spot_um)
    return Source(files, coords, [plan_crops(n, coords, s, files.um_per_px) for n, s in sides.items()], at)


def decode_crops(source: Source, pipeline: Pipeline, out: SpotNiche, meter: Meter) -> None:
    """Fill the slide's places of `out`, spots and niches, each `(N, S, S, 3)` uint8."""
    if not len(source.at):
        return

    def keep(name: str, rows: np.ndarray, crops: Tensor) -> None:
        level = out.spot if name == SPOT else out.niche
        pixels = crops.permute(0, 2, 3, 1).to(torch.uint8)
        level[source.at[torch.from_numpy(rows)].to(level.device)] = pixels.to(level.device)

    with closing(open_image(source.files.id, source.files.image)) as image:
        pipeline.stream(image, source.coords, source.crops, keep, meter.advance)


def mapped_tensor(shape: tuple[int, ...], folder: Path) -> Tensor:
    """A uint8 tensor in a file without a name, which is gone with the process, however that ends."""
    needed = int(np.prod(shape))
    check_room(folder, needed, "decoded crops", "make room, or name another folder in TMPDIR")
    with tempfile.TemporaryFile(dir=folder) as file:
        if hasattr(os, "posix_fallocate"):  # a disk that is full later would end the process
            try:
                os.posix_fallocate(file.fileno(), 0, needed)
            except OSError as error:
                raise write_error(error, folder) from error
        return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="w+", shape=shape))


class CropInputs(StoredInputs):
    """Crops `(S, S, 3)` uint8, decoded once from the slides; `encode` runs the whole encoder.

    For the other arguments and for errors see `crop_store`.

    Args:
        cache: That of all slides, or of each: where the crops are, and by default the slides.
        data: The spots.
        neighbors: Neighbourhood size of the niches.
        source: The encoder that made the cache.
        device: Where they are encoded.
        precision: Of the encoder.
        data_root: Folder of the slides.
        place: Where crops are kept.
        share: The share of what is free that they may take.
        scratch: Folder of a temporary file.

    Raises:
        StaleCacheError: Another encoder made the cache.
    """

    def __init__(
        self,
        cache: Caches,
        data: SpotData,
        neighbors: int,
        source: Encoder,
        device: torch.device,
        precision: Precision,
        data_root: Path | None = None,
        *,
        place: Place | None = None,
        share: float = SHARE,
        scratch: Path | None = None,
    ) -> None:
        caches = check_caches(cache, data, source)
        store = crop_store(caches, data, neighbors, source, device, data_root, place, share, scratch)
        super().__init__(store, source, precision)
        self._transform = CropTransform(source, device, torch.float32)

    def read(self, rows: Tensor, augment: torch.Generator | None = None) -> SpotNiche:
        """Crops of `rows`; `augment` draws for each spot how both of its crops are turned and mirrored."""
        crops = self.store.read(rows)
        if augment is None:
            return crops
        turns = torch.randint(8, (len(rows),), generator=augment)
        return SpotNiche(*(dihedral(level, turns) for level in crops))

    def encode(self, inputs: Tensor) -> Tensor:
        """Crops `(n, S, S, 3)` to embeddings `(n, D)` float32."""
        module = self.source.module
        first = first_adapted(module)

        def embed(part: Tensor) -> Tensor:
            crops = self._transform.empty(len(part))
            self._transform.fill(part, crops)
            return tuned_forward(module, blocks_before(module, crops, first), first)

        return self.in_parts(inputs, embed)


def dihedral(crops: Tensor, turns: Tensor) -> Tensor:
    """Move each crop by one of the square's 8 symmetries.

    Args:
        crops: `(n, S, S, 3)`.
        turns: `(n,)`, 0 (as it is) to 7. Bits 0, 1 and 2 stand for transposed, then upside down, then left to right;
            each of the 8 symmetries is one combination of these.
    """
    turns = to_device(turns, crops.device)[:, None, None, None]
    crops = torch.where((turns & 1).bool(), crops.transpose(1, 2), crops)
    crops = torch.where((turns & 2).bool(), crops.flip(1), crops)
    return torch.where((turns & 4).bool(), crops.flip(2), crops)
