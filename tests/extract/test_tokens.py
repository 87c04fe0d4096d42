"""hist-extract --tokens-at and --lora as a whole, on tiny slides."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

from extract.cli import main
from extract.encoders.adapters import adapter_digest, save_adapter
from extract.encoders.encoder import Encoder, FirstBlocks, blocks_before
from extract.encoders.lora import LoraConfig, adapt
from extract.encoders.registry import load_encoder
from extract.encoders.tuned_forward import tuned_forward
from extract.identity import common_identity, folder_name
from extract.tokens import MAX_FLOAT16, make_tokens
from hist_cache.cache import Cache, open_cache
from hist_cache.errors import InputError, StaleCacheError
from hist_cache.token_files import open_tokens, token_files
from tests.conftest import TINY_ENCODER, write_slide
from tests.extract.test_scheduler import IDS, Run, cache_of, options

BLOCK = 4
AT = ("--tokens-at", BLOCK)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder(TINY_ENCODER, random_weights=True)


def continued(where: Path, encoder: Encoder, slide: str, name: str) -> np.ndarray:
    """Embeddings from the stored tokens, by the blocks after the cut."""
    size = int(name.removeprefix("niche/")) if name != "spot" else 6
    with open_tokens(cache_of(where), slide, BLOCK, [size]) as tokens, torch.inference_mode():
        stored = torch.from_numpy(tokens.read(name, range(len(tokens)))).float()
        return tuned_forward(encoder.module, stored, BLOCK).numpy()


def test_tokens_continue_to_the_embeddings(hest_root: Path, run_command: Run, tmp_path: Path, encoder: Encoder) -> None:
    code, text = run_command(main, *options(hest_root, *AT, "--neighbors", "6,18"))
    assert code == 0, text
    assert "tokens entering block 4 (101 x 64 float16 a crop, 12.9 kB): 0 slides complete, 2 to do" in text
    cache = cache_of(tmp_path)
    assert cache.slides == ["TINY1", "TINY2"]
    for slide in cache.slides:
        held = cache.read(slide)
        for name, kept in (("spot", held.embeddings), ("niche/6", held.niches[6]), ("niche/18", held.niches[18])):
            # Tokens of about 3 rounded to 11 bits, then six blocks' worth of sums.
            np.testing.assert_allclose(continued(tmp_path, encoder, slide, name), kept, atol=5e-3)
        with open_tokens(cache, slide, BLOCK, [6, 18]) as tokens:
            assert tokens.barcodes == held.barcodes


def test_again_then_more_niches_then_verify(
    hest_root: Path, run_command: Run, tmp_path: Path, encoder: Encoder
) -> None:
    run_command(main, *options(hest_root))
    code, text = run_command(main, *options(hest_root, *AT))
    assert code == 0, text
    assert "0 crops (spots and niches 6)" in text, "the embeddings are there"
    paths = token_files(cache_of(tmp_path).folder)
    assert [p.name for p in paths] == ["TINY1.tokens4.h5", "TINY2.tokens4.h5"]
    first = [p.read_bytes() for p in paths]

    code, text = run_command(main, *options(hest_root, *AT))
    assert code == 0
    assert "2 slides complete, 0 to do, 0 failed: 0 crops, 0 B on disk" in text
    assert [p.read_bytes() for p in paths] == first

    code, text = run_command(main, *options(hest_root, *AT, "--neighbors", "6,18"))
    assert code == 0
    assert "0 slides complete, 2 to do, 0 failed: 60 crops, 775.7 kB" in text
    kept = cache_of(tmp_path).read("TINY1")
    np.testing.assert_allclose(continued(tmp_path, encoder, "TINY1", "spot"), kept.embeddings, atol=5e-3)
    np.testing.assert_allclose(continued(tmp_path, encoder, "TINY1", "niche/18"), kept.niches[18], atol=5e-3)

    code, text = run_command(main, "--ids", IDS, "--verify")
    assert code == 0, text
    assert text.count(" ok") == 4
    assert "TINY1.tokens4  niches 6,18" in text
    assert "2 slides, " in text
    assert "; tokens " in text
    with open_tokens(cache_of(tmp_path), "TINY2", BLOCK) as tokens:
        crop = tokens.read("niche/6", [3]).tobytes()
    content = bytearray(paths[1].read_bytes())
    content[content.index(crop) + 5] ^= 1
    paths[1].write_bytes(content)
    code, text = run_command(main, "--ids", IDS, "--verify")
    assert code == 1
    assert "TINY2.tokens4: " in text
    assert "niche/6 has other values than when it was written (crop 3); delete the file and extract again" in text
    assert text.count(" ok") == 3


def test_dry_run_says_the_size_and_whether_it_fits(
    hest_root: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, text = run_command(main, *options(hest_root, *AT, "--dry-run"))
    assert code == 0, text
    assert "120 crops, 1.6 MB on disk" in text  # 120 x 101 x 64 x 2 bytes
    assert "would take about" in text
    assert not (tmp_path / "cache").exists()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    code, text = run_command(main, *options(hest_root, *AT))
    assert code == 1
    assert "1.6 MB needed for tokens, 1.0 MB free; make room" in text
    assert not (tmp_path / "cache").exists()


def test_a_stale_token_file_is_refused(hest_root: Path, run_command: Run, tmp_path: Path) -> None:
    run_command(main, *options(hest_root, *AT))
    cache = cache_of(tmp_path)
    before = token_files(cache.folder)[0].read_bytes()
    write_slide(hest_root, "TINY1", seed=9)
    cache.path("TINY1").unlink()
    code, text = run_command(main, *options(hest_root, *AT))
    assert code == 1
    assert "TINY1.tokens4.h5: stale: image " in text
    assert token_files(cache.folder)[0].read_bytes() == before
    assert "stale beside TINY1.h5: image " in run_command(main, "--ids", IDS, "--verify")[1]
    with pytest.raises(StaleCacheError, match=r"image .* -> "):
        open_tokens(cache, "TINY1", BLOCK)


def test_one_bad_slide_does_not_stop_the_others(hest_root: Path, run_command: Run, tmp_path: Path) -> None:
    image = hest_root / "wsis/TINY1.tif"
    image.write_bytes(image.read_bytes()[:-5000])
    code, text = run_command(main, *options(hest_root, *AT))
    assert code == 1
    assert "1 slides failed" in text
    assert [p.name for p in token_files(cache_of(tmp_path).folder)] == ["TINY2.tokens4.h5"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--tokens-at", 7], "encoder timm:test_vit has 6 blocks; give one from 0 to 6"),
        (["--encoder", "timm:test_resnet", "--tokens-at", 1], "is a ResNet, not a timm VisionTransformer"),
        (["--tokens-at", 1, "--lora", "run"], "--lora and --tokens-at exclude each other"),
        (["--lora", "nowhere"], "nowhere: no adapter here"),
    ],
)
def test_wrong_input(hest_root: Path, run_command: Run, more: list[object], says: str) -> None:
    code, text = run_command(main, *options(hest_root, *more))
    assert code == 2
    assert says in text
    assert "Traceback" not in text


def test_what_float16_cannot_hold_is_said(
    hest_root: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FirstBlocks, "forward", lambda self, crops: blocks_before(self, crops, self.block) * 1e5)
    code, text = run_command(main, *options(hest_root, *AT))
    assert code == 1
    assert "do not fit float16 (up to " in text
    assert f"it ends at {MAX_FLOAT16:,})" in text
    assert "hist-train --no-token-cache" in text
    assert token_files(cache_of(tmp_path).folder) == []
    assert list(cache_of(tmp_path).folder.glob("*.partial")) == []


def test_tokens_for_whoever_has_the_cache(hest_root: Path, run_command: Run, tmp_path: Path, encoder: Encoder) -> None:
    """What the command computes, from a cache and its encoder; the encoder stays as it was, precision included."""
    bf16 = ("--precision", "bf16", "--min-spot-um", 80)
    run_command(main, *options(hest_root, *bf16, *AT, "--cache", tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "two", ignore=shutil.ignore_patterns("*.tokens*.h5"))
    one, two = (open_cache(tmp_path / name, "custom") for name in ("one", "two"))
    assert token_files(two.folder) == []
    assert make_tokens(two, ["TINY1"], [6], encoder, BLOCK, hest_root) == []
    assert [p.name for p in token_files(two.folder)] == ["TINY1.tokens4.h5"]
    with open_tokens(one, "TINY1", BLOCK) as a, open_tokens(two, "TINY1", BLOCK) as b:
        for name in ("spot", "niche/6"):
            np.testing.assert_array_equal(a.read(name, range(30)), b.read(name, range(30)))
    assert {p.dtype for p in encoder.module.parameters()} == {torch.float32}
    assert two.fingerprint().common["crop_rule"] == {"min_spot_um": 80.0}
    other = load_encoder("timm:test_vit2", random_weights=True)
    with pytest.raises(StaleCacheError, match='encoder "timm:test_vit" -> "timm:test_vit2"'):
        make_tokens(two, ["TINY2"], [6], other, BLOCK, hest_root)
    adapted = load_encoder(TINY_ENCODER, random_weights=True)
    adapt(adapted, LoraConfig(layers=1))
    with pytest.raises(InputError, match="make them before adapting"):
        make_tokens(two, ["TINY2"], [6], adapted, BLOCK, hest_root)


def tuned(folder: Path) -> Path:
    """A fold with an adapter of the tiny encoder, its weights drawn at random."""
    adapted = adapt(load_encoder(TINY_ENCODER, random_weights=True), LoraConfig(layers=2))
    torch.manual_seed(0)
    for parameter in adapted.parameters:
        torch.nn.init.normal_(parameter, std=0.2)
    save_adapter(adapted, folder / "adapter")
    (folder / "metrics.json").write_text("{}")
    return folder


def test_a_tuned_cache_is_another_one(hest_root: Path, run_command: Run, tmp_path: Path, encoder: Encoder) -> None:
    run_command(main, *options(hest_root))
    frozen = cache_of(tmp_path)
    fold = tuned(tmp_path / "run/fold0")
    digest = adapter_digest(fold / "adapter")
    code, text = run_command(main, *options(hest_root, "--lora", tmp_path / "run"))
    assert code == 0, text
    assert f"with the adapter {fold / 'adapter'} (digest {digest[:12]}) merged" in text
    assert f"was made otherwise: lora null -> {digest[:12]}" in text
    [cache] = [Cache(f) for f in frozen.folder.parent.iterdir() if f != frozen.folder]
    assert cache_of(tmp_path).folder == frozen.folder, "what is opened by default stays"
    assert (cache.fingerprint().common["lora"], frozen.fingerprint().common["lora"]) == (digest, None)
    assert cache.fingerprint().common["weights"] == frozen.fingerprint().common["weights"]
    assert cache.fingerprint().provenance["adapter"] == str(fold.parent)
    kept, before = cache.read("TINY1"), frozen.read("TINY1")
    assert np.abs(kept.embeddings.astype(float) - before.embeddings).max() > 0.05
    np.testing.assert_array_equal(kept.neighbors[6], before.neighbors[6])

    # Without --encoder it is the run's, random weights included; what is there is not computed again.
    code, text = run_command(
        main, "--ids", IDS, "--data-root", hest_root, "--precision", "fp32", "--lora", fold / "adapter"
    )
    assert code == 0, text
    assert "2 slides complete" in text


def test_an_adapter_of_another_encoder(hest_root: Path, run_command: Run, tmp_path: Path) -> None:
    tuned(tmp_path / "run/fold0")
    code, text = run_command(main, *options(hest_root, "--encoder", "timm:test_vit2", "--lora", tmp_path / "run"))
    assert code == 2
    assert "this adapter belongs to encoder timm:test_vit with weights" in text
    code, text = run_command(main, *options(hest_root, "--encoder", "timm:test_resnet", "--lora", tmp_path / "run"))
    assert code == 2


def test_caches_made_before_adapters_keep_their_names() -> None:
    fake = Encoder("fake", None, 3, 32, (0.5,) * 3, (0.5,) * 3, "bilinear", False, "test", "0" * 64)  # type: ignore[arg-type]
    common = common_identity(fake, "fp32", 0.0)
    assert common["lora"] is None
    assert folder_name(fake, common) == "fake-e649bed9"
