"""Fine-tuning reads the same from cached tokens and from crops, wherever either is kept."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hist_cache.memory
from extract.cli import main
from extract.encoders.encoder import Encoder, PooledEncoder, blocks_before
from extract.encoders.lora import LoraConfig, adapt
from extract.encoders.registry import load_encoder
from extract.pipeline import Pipeline
from extract.slides.crops import niche_side_um
from extract.slides.readers import open_image
from hist_cache.cache import Cache, open_cache
from hist_cache.errors import HistError, InputError, SlideError, StaleCacheError
from hist_cache.memory import free_memory
from hist_cache.slides import find_slide
from tests.conftest import TINY_ENCODER, write_slide
from train.assembly import assemble, read_slides
from train.data import Inputs, SpotData
from train.finetune.crop_inputs import CropInputs, dihedral, find_source
from train.finetune.inputs import HeldStore
from train.finetune.memory import choose_place
from train.finetune.token_inputs import TokenInputs
from train.fit.batches import prefetch

CPU = torch.device("cpu")
BLOCK = 2  # of 6
ROWS = torch.tensor([41, 3, 59, 3, 0, 30, 29, 41, 12])  # of two slides of 30, out of order, some twice


def load() -> Encoder:
    return load_encoder(TINY_ENCODER, random_weights=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`hest` and `cache`, with tokens at block 2."""
    where = tmp_path_factory.mktemp("inputs")
    for i in (1, 2):
        write_slide(where / "hest", f"TINY{i}", seed=i)
    options = ["--ids", "TINY1,TINY2", "--encoder", TINY_ENCODER, "--random-weights", "--precision", "fp32"]
    places = ["--data-root", str(where / "hest"), "--cache", str(where / "cache")]
    assert main([*options, *places, "--tokens-at", str(BLOCK), "--neighbors", "6,18"]) == 0
    return where


@pytest.fixture(scope="module")
def cache(made: Path) -> Cache:
    return open_cache(made / "cache", "custom")


@pytest.fixture(scope="module")
def data(cache: Cache) -> SpotData:
    return assemble(read_slides(cache, [6]), 6, ["GENE1", "GENE2"], CPU)


def tokens_of(cache: Cache, data: SpotData, encoder: Encoder, **more: Any) -> TokenInputs:
    return TokenInputs(cache, data, 6, encoder, BLOCK, CPU, "fp32", **more)


def crops_of(cache: Cache, data: SpotData, encoder: Encoder, **more: Any) -> CropInputs:
    return CropInputs(cache, data, 6, encoder, CPU, "fp32", **more)


def tuned(layers: int = 4) -> tuple[Encoder, list[nn.Parameter]]:
    """The encoder with adapters as if trained: fresh ones do nothing."""
    encoder = load()
    adapted = adapt(encoder, LoraConfig(layers=layers))
    torch.manual_seed(3)
    for parameter in adapted.parameters:
        nn.init.normal_(parameter, std=0.1)
    return encoder, adapted.parameters


def outcome(inputs: Inputs, parameters: list[nn.Parameter]) -> tuple[Tensor, list[Tensor]]:
    """Embeddings (2 n, D) of ROWS, spots then niches, and the gradients of a loss on them."""
    embeddings = torch.cat([inputs.encode(level) for level in inputs.read(ROWS)])
    assert embeddings.dtype == torch.float32
    target = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(1))
    return embeddings.detach(), list(torch.autograd.grad(F.mse_loss(embeddings, target), parameters))


def with_exact_tokens(inputs: TokenInputs, crops: CropInputs) -> TokenInputs:
    """The same, its tokens not rounded to float16."""
    levels = []
    with torch.no_grad():
        for level in crops.read(torch.arange(60)):
            normalised = crops._transform.empty(60)
            crops._transform.fill(level, normalised)
            levels.append(blocks_before(inputs.source.module, normalised, inputs.block))
    inputs.store = HeldStore(levels[0], levels[1], CPU, "exact", mapped=False)
    return inputs


def test_both_give_the_cached_embeddings(cache: Cache, data: SpotData) -> None:
    encoder = load()
    for inputs in (tokens_of(cache, data, encoder), crops_of(cache, data, encoder)):
        with torch.inference_mode():
            spot, niche = map(inputs.encode, inputs.read(ROWS))
        for found, cached in ((spot, data.spot), (niche, data.niche)):
            torch.testing.assert_close(found, cached[ROWS].float(), atol=5e-3, rtol=0)


@pytest.mark.parametrize("layers", [4, 2])  # tokens at block 2 of 6 serve both
def test_tokens_equal_the_whole_encoder(cache: Cache, data: SpotData, layers: int) -> None:
    encoder, parameters = tuned(layers)
    crops, tokens = crops_of(cache, data, encoder), tokens_of(cache, data, encoder)
    embeddings, gradients = outcome(crops, parameters)
    rounded, rounded_gradients = outcome(tokens, parameters)
    torch.testing.assert_close(rounded, embeddings, atol=5e-3, rtol=0)
    assert not torch.equal(rounded, embeddings)
    for mine, theirs in zip(rounded_gradients, gradients, strict=True):
        assert (mine - theirs).norm() < 5e-3 * theirs.norm()
    exact, exact_gradients = outcome(with_exact_tokens(tokens, crops), parameters)
    torch.testing.assert_close(exact, embeddings, atol=1e-6, rtol=1e-6)
    for mine, theirs in zip(exact_gradients, gradients, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-5)


@pytest.mark.slow
def test_checkpointing_changes_no_gradient(cache: Cache, data: SpotData) -> None:
    encoder, parameters = tuned()
    for inputs in (tokens_of(cache, data, encoder), crops_of(cache, data, encoder)):
        _, plain = outcome(inputs, parameters)
        encoder.module.backbone.set_grad_checkpointing(True)
        _, checkpointed = outcome(inputs, parameters)
        encoder.module.backbone.set_grad_checkpointing(False)
        for mine, theirs in zip(checkpointed, plain, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-5)


def test_a_few_crops_at_a_time_on_a_cpu(cache: Cache, data: SpotData, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, parameters = tuned()
    for inputs in (tokens_of(cache, data, encoder), crops_of(cache, data, encoder)):
        entered: list[int] = []
        hook = encoder.module.backbone.norm.register_forward_pre_hook(lambda _, x, e=entered: e.append(len(x[0])))
        together, gradients = outcome(inputs, parameters)
        with monkeypatch.context() as patch:
            patch.setattr("train.finetune.inputs.KEPT_BYTES", 4 * 2 * 101 * 192)  # 101 tokens, MLP of 192
            apart, others = outcome(inputs, parameters)
        hook.remove()
        assert entered == [9, 9, 3, 3, 3, 3, 3, 3]
        torch.testing.assert_close(apart, together, atol=1e-6, rtol=1e-5)
        for mine, theirs in zip(others, gradients, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


def test_bf16_is_near(cache: Cache, data: SpotData) -> None:
    encoder, parameters = tuned()
    for inputs in (tokens_of(cache, data, encoder), crops_of(cache, data, encoder)):
        exact, _ = outcome(inputs, parameters)
        inputs.precision = "bf16"
        near, gradients = outcome(inputs, parameters)
        assert F.cosine_similarity(near, exact).min() > 0.999
        assert not torch.equal(near, exact)
        assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("kind", [tokens_of, crops_of])
def test_memory_and_disk_give_the_same_bytes(cache: Cache, data: SpotData, kind: Any, tmp_path: Path) -> None:
    scratch = {"scratch": tmp_path} if kind is crops_of else {}
    held, kept = kind(cache, data, load(), place="memory"), kind(cache, data, load(), place="disk", **scratch)
    assert held.resident
    assert not kept.resident
    assert held.description.endswith("in memory")
    assert kept.description.endswith(f"temporary file in {tmp_path}" if scratch else f"read from {cache.folder}")
    assert "60 spots and niches of 6 neighbours" in held.description
    whole = kept.read(torch.arange(60))
    for level, (a, b) in enumerate(zip(held.read(ROWS), kept.read(ROWS), strict=True)):
        assert torch.equal(a, b)
        assert torch.equal(a, whole[level][ROWS])
    assert list(tmp_path.iterdir()) == [], "the file has no name"
    assert kept.read(torch.arange(0))[0].shape[0] == 0
    kept.close()


def test_data_without_some_spots_in_another_order(cache: Cache, data: SpotData) -> None:
    """`slide` and `row` say which spots there are; nothing is read of the others."""
    some = torch.tensor([7, 33, 5, 59, 31])
    few = replace(data, slide=data.slide[some], row=data.row[some])
    for kind in (tokens_of, crops_of):
        found, expected = kind(cache, few, load()).read(torch.arange(5)), kind(cache, data, load()).read(some)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    two = {"TINY1": cache, "TINY2": Cache(cache.folder)}
    spot, _ = TokenInputs(two, data, 6, load(), BLOCK, CPU, "fp32").read(some)
    assert torch.equal(spot, tokens_of(cache, data, load()).read(some)[0])


def test_crops_are_what_hist_extract_encodes(cache: Cache, data: SpotData) -> None:
    """To the last bit, the normalised inputs of its encoder."""
    encoder = load()
    seen: dict[str, Tensor] = {name: torch.empty(30, 3, 160, 160) for name in ("spot", "6")}

    class Listening(PooledEncoder):
        def forward(self, crops: Tensor) -> Tensor:
            return crops

    def keep(name: str, rows: np.ndarray, crops: Tensor) -> None:
        seen[name][torch.from_numpy(rows)] = crops

    source = find_source(cache, "TINY2", data, 1, 6, None)
    pipeline = Pipeline(replace(encoder, module=Listening(nn.Identity(), "cls")), CPU, torch.float32, 7, 2)
    pipeline.stream(open_image("TINY2", source.files.image), source.coords, source.crops, keep)
    inputs = crops_of(cache, data, encoder)
    spot, niche = inputs.read(torch.arange(30, 60))
    assert (spot.dtype, spot.shape) == (torch.uint8, (30, 160, 160, 3))
    for mine, theirs in ((spot, seen["spot"]), (niche, seen["6"])):
        normalised = inputs._transform.empty(30)
        inputs._transform.fill(mine, normalised)
        assert torch.equal(normalised, theirs)


def test_crops_by_hand(cache: Cache, data: SpotData, made: Path) -> None:
    """Cut from the whole picture, white outside, resized one at a time."""
    files = find_slide(made / "hest", "TINY1")
    image = open_image("TINY1", files.image)
    tiles = [[image.read_tile(c, r) for c in range(-(-image.width // 64))] for r in range(-(-image.height // 64))]
    pixels = np.concatenate([np.concatenate(row, 1) for row in tiles])
    padded = np.pad(pixels, ((300, 300), (300, 300), (0, 0)), constant_values=255)
    sides = [round(um / files.um_per_px) for um in (files.spot_um, niche_side_um(1, files.pitch_um, files.spot_um))]
    rows = torch.tensor([0, 17])
    for found, side in zip(crops_of(cache, data, load()).read(rows), sides, strict=True):
        for i, (x, y) in enumerate(cache.read("TINY1", [6]).coords[rows.numpy()]):
            left, top = round(x - side / 2) + 300, round(y - side / 2) + 300
            cut = torch.from_numpy(padded[top : top + side, left : left + side]).permute(2, 0, 1)[None]
            whole = F.interpolate(cut, (160, 160), mode=load().interpolation, antialias=True, align_corners=False)
            assert torch.equal(found[i], whole[0].permute(1, 2, 0))


def test_the_eight_symmetries() -> None:
    crop = torch.arange(27, dtype=torch.uint8).reshape(1, 3, 3, 3)
    turned = dihedral(crop.expand(8, -1, -1, -1), torch.arange(8))
    plain = {torch.rot90(c, k, (1, 2)).numpy().tobytes() for c in (crop, crop.flip(2)) for k in range(4)}
    assert len(plain) == 8
    assert {t.numpy().tobytes() for t in turned} == plain
    assert torch.equal(turned[0], crop[0])


def test_spot_and_niche_are_turned_alike(cache: Cache, data: SpotData) -> None:
    inputs = crops_of(cache, data, load())
    rows = torch.arange(60)
    turned = inputs.read(rows, torch.Generator().manual_seed(5))
    turns = []
    for level, plain in zip(turned, inputs.read(rows), strict=True):
        every = torch.stack([dihedral(plain, torch.full((60,), k)) for k in range(8)])
        turns.append((every == level).flatten(2).all(2).int().argmax(0))
        assert (every == level).flatten(2).all(2).any(0).all()
    assert torch.equal(turns[0], turns[1])
    assert set(turns[0].tolist()) == set(range(8))
    again = inputs.read(rows, torch.Generator().manual_seed(5))
    assert torch.equal(again[0], turned[0])


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_prefetched_in_order(cache: Cache, data: SpotData, place: Any) -> None:
    chunks = list(ROWS.split(2))
    for kind in (tokens_of, crops_of):
        inputs = kind(cache, data, load(), place=place)
        for (spot, niche), rows in zip(prefetch(inputs, chunks), chunks, strict=True):
            assert torch.equal(spot, inputs.read(rows)[0])
            assert torch.equal(niche, inputs.read(rows)[1])
        assert list(prefetch(inputs, [])) == []


def test_augmented_alike_wherever_crops_are_kept(cache: Cache, data: SpotData) -> None:
    """And whatever the training draws meanwhile, from the same state of torch."""
    runs = []
    for place in ("memory", "disk"):
        torch.manual_seed(7)
        inputs = prefetch(crops_of(cache, data, load(), place=place), list(ROWS.split(2)), augment=True)
        runs.append([(spot, niche, torch.rand(3)) for spot, niche in inputs])
    for one, other in zip(*runs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class Failing:
    """Reads two chunks, then fails."""

    resident, device = False, CPU

    def __init__(self) -> None:
        self.asked: list[int] = []

    def read(self, rows: Tensor, augment: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        self.asked.append(int(rows[0]))
        if rows[0] == 2:
            raise SlideError("TINY1", "file", "gone")
        return rows, rows


def test_prefetched_passes_errors_on_and_ends_its_thread() -> None:
    chunks = [torch.tensor([i]) for i in range(9)]
    failing: Any = Failing()
    inputs = prefetch(failing, chunks)
    assert [int(next(inputs)[0]) for _ in range(2)] == [0, 1]
    with pytest.raises(SlideError, match="gone"):
        next(inputs)
    assert not reading()
    failing = Failing()
    closing: Iterator[Any] = prefetch(failing, chunks)
    next(closing)
    closing.close()  # type: ignore[attr-defined]
    assert not reading()
    assert len(failing.asked) <= 3, "no more is read than two ahead"


def reading() -> bool:
    return any(thread.name.startswith("inputs") for thread in threading.enumerate())


def test_an_adapter_before_the_cut_is_refused(cache: Cache, data: SpotData) -> None:
    inputs = tokens_of(cache, data, tuned(5)[0])
    with pytest.raises(HistError, match="block 1 of timm:test_vit is adapted, but tokens enter at block 2"):
        inputs.encode(inputs.read(ROWS)[0])


def test_tokens_cannot_be_turned(cache: Cache, data: SpotData) -> None:
    with pytest.raises(InputError, match="--no-token-cache"):
        next(prefetch(tokens_of(cache, data, load()), [ROWS], augment=True))


def test_what_does_not_fit_the_cache_is_refused(cache: Cache, data: SpotData) -> None:
    other = load_encoder("timm:test_vit2", random_weights=True)
    for kind in (tokens_of, crops_of):
        with pytest.raises(StaleCacheError, match='made by another encoder: encoder "timm:test_vit"'):
            kind(cache, data, other)
    with pytest.raises(InputError, match=r"tokens3\.h5: no such file; run hist-extract .* --tokens-at 3"):
        TokenInputs(cache, data, 6, load(), 3, CPU, "fp32")
    with pytest.raises(InputError, match="no tokens of niches of 36 neighbours"):
        TokenInputs(cache, data, 36, load(), BLOCK, CPU, "fp32")
    with pytest.raises(InputError, match="has 6 blocks; give one from 0 to 6"):
        TokenInputs(cache, data, 6, load(), 7, CPU, "fp32")


def test_a_slide_that_changed_is_refused(cache: Cache, data: SpotData, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "hest", tmp_path / "moved", copy_function=shutil.copy)  # of another time
    spot, _ = crops_of(cache, data, load(), data_root=tmp_path / "moved").read(ROWS)
    assert torch.equal(spot, crops_of(cache, data, load()).read(ROWS)[0])
    write_slide(tmp_path / "moved", "TINY2", seed=9)
    with pytest.raises(SlideError, match=r"TINY2\.tif: not what .*TINY2\.h5 was made from: image .* -> .*--data-root"):
        crops_of(cache, data, load(), data_root=tmp_path / "moved")
    with pytest.raises(InputError, match="no such folder; give the HEST data with --data-root"):
        crops_of(cache, data, load(), data_root=tmp_path / "nowhere")


def test_no_room_on_the_disk(cache: Cache, data: SpotData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(HistError, match=r"9\.2 MB needed for decoded crops, 1\.0 MB free; .*TMPDIR"):
        crops_of(cache, data, load(), place="disk", scratch=tmp_path)


def test_what_fits_stays_in_memory(
    cache: Cache, data: SpotData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < free_memory() < 2**50
    free = SimpleNamespace(available=4000 * 1024)
    monkeypatch.setattr(hist_cache.memory.psutil, "virtual_memory", lambda: free)
    monkeypatch.setattr(hist_cache.memory, "CONTAINER", tmp_path)
    assert free_memory() == 4000 * 1024
    assert choose_place(2000 * 1024, CPU) == "memory"
    assert choose_place(2000 * 1024 + 1, CPU) == "disk"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_place(2000 * 1024, CPU) == "disk", "two processes share the memory"
    for name, n_bytes in (("memory_reserved", 500_000), ("memory_allocated", 100_000)):
        monkeypatch.setattr(torch.cuda, name, lambda device, n=n_bytes: n)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_600_000, 10**9))
    gpu = torch.device("cuda", 1)
    assert choose_place(1_000_000, gpu) == "device", "half of what is free, and of what torch keeps and does not use"
    assert choose_place(1_000_002, gpu) != "device"
    for name, text in (("max", "3000000"), ("current", "2500000"), ("stat", "anon 5\ninactive_file 500000")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert free_memory() == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() == 4000 * 1024
    assert not crops_of(cache, data, load()).resident, "9.2 MB of crops into 1 MB"
    assert tokens_of(cache, data, load(), share=1e9).resident
