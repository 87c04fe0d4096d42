"""Crops decoded once, for fine-tuning that starts at them: the pixels that hist-extract encodes, kept as uint8."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from extract.encoders.encoder import Encoder, PooledEncoder
from extract.identity import crop_sides_um, slide_identity
from extract.pipeline import Pipeline, start_pipeline
from extract.slides.crops import SPOT, Crops, plan_crops
from extract.slides.readers import open_image
from extract.tokens import least_spot_um
from hist_cache.cache import Cache, open_complete, read_fingerprint
from hist_cache.console import Meter, progress, size
from hist_cache.errors import HistError, SlideError
from hist_cache.fingerprint import differences
from hist_cache.slides import SlideFiles, find_slide
from train.data import SpotData
from train.finetune.memory import SHARE, Place, choose_place
from train.finetune.token_inputs import HeldStore, Pair


class Pixels(PooledEncoder):
    """In an encoder's place in a pipeline: gives the crops as they come."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), "cls")

    def forward(self, crops: Tensor) -> Tensor:
        return crops


@dataclass(frozen=True)
class Source:
    """A slide's crops that are to be decoded; `at` (n,): the places of its spots among all."""

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
    """Decode the crops of all spots of `data`, (N, S, S, 3) uint8 each, and keep them where they fit.

    Parameters
    ----------
    caches
        The cache of each slide: where its spots are, how its crops were cut, and from which folder.
    encoder
        The one that made the caches, for its input size and way to resize.
    data_root
        Folder of the slides; default: the one that each cache remembers.
    place, share
        Where crops are kept; default: where they fit into this share of what is free.
    scratch
        Folder of the temporary file that holds them where memory does not; default: the system's.

    Raises
    ------
    SlideError
        A slide is not there, cannot be read, or has changed since it was cached.
    HistError
        Crops fit neither memory nor the disk.
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
        both = mapped((2, *shape), folder)
    else:
        both = torch.empty((2, *shape), dtype=torch.uint8, device=device if place == "device" else "cpu")
    spot, niche = both
    with closing(pixel_pipeline(encoder, device)) as pipeline, progress("crops", 2 * count, "crops") as meter:
        for source in sources:
            decode(source, pipeline, (spot, niche), meter)
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
    files = find_slide(data_root or Path(known.provenance["data_root"]), slide)
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
        coords = file["coords"][:][data.row[at.to(data.row.device)].cpu().numpy()]
    sides = crop_sides_um(files, (neighbors,), least_spot_um(known.common))
    return Source(files, coords, [plan_crops(n, coords, s, files.um_per_px) for n, s in sides.items()], at)


def decode(source: Source, pipeline: Pipeline, out: Pair, meter: Meter) -> None:
    """Fill the slide's places of `out`, spots and niches, each (N, S, S, 3) uint8."""
    if not len(source.at):
        return

    def keep(name: str, rows: np.ndarray, crops: Tensor) -> None:
        level = out[0] if name == SPOT else out[1]
        pixels = crops.permute(0, 2, 3, 1).to(torch.uint8)
        level[source.at[torch.from_numpy(rows)].to(level.device)] = pixels.to(level.device)

    with closing(open_image(source.files.id, source.files.image)) as image:
        pipeline.stream(image, source.coords, source.crops, keep, meter.advance)


def mapped(shape: tuple[int, ...], folder: Path) -> Tensor:
    """A uint8 tensor in a file without a name, which is gone with the process, however that ends."""
    needed, free = int(np.prod(shape)), shutil.disk_usage(folder).free
    if needed > free:
        raise HistError(
            f"{folder}: {size(needed)} needed for decoded crops, {size(free)} free; make room, or name another "
            "folder in TMPDIR"
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="w+", shape=shape))
