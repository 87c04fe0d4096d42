import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import random as random_sparse

from hist_cache import open_cache
from hist_cache.cache import Cache, remember_last
from hist_cache.cache_file import attributes_digest
from hist_cache.cached_slide import CachedSlide
from hist_cache.errors import HistError, InputError, StaleCacheError
from hist_cache.files import atomic_write
from hist_cache.fingerprint import Fingerprint, array_digest, differences, identity_hash
from hist_cache.slide_file import read_slide, write_slide
from hist_cache.verify import verify_slide

COMMON: dict[str, Any] = {
    **{"encoder": "demo", "weights": "a" * 64, "precision": "fp32", "pretrained": True, "lora": None},
    "crop_rule": {"min_spot_um": 0.0},
}


def make(n: int = 5, genes: int = 7, width: int = 4, sizes: tuple[int, ...] = (6,), seed: int = 0) -> CachedSlide:
    rng = np.random.default_rng(seed)
    counts = random_sparse(n, genes, 0.5, format="csr", random_state=seed)
    counts.data = np.ceil(counts.data * 100).astype(np.int32)
    return CachedSlide(
        barcodes=[f"spöt-{i}" for i in range(n)],
        coords=rng.normal(size=(n, 2)),
        array=rng.integers(0, 9, (n, 2), dtype=np.int32),
        embeddings=rng.normal(size=(n, width)).astype(np.float16),
        counts=counts,
        genes=[f"G{i}" for i in range(genes)],
        thumbnail=rng.integers(0, 255, (4, 5, 3), dtype=np.uint8),
        niches={k: rng.normal(size=(n, width)).astype(np.float16) for k in sizes},
        neighbors={k: some_neighbors(rng, n, k) for k in sizes},
        attributes={"lattice": "hex", "um_per_px": 0.5},
    )


def some_neighbors(rng: np.random.Generator, n: int, k: int) -> np.ndarray:
    """Up to k other rows for each of n, in any order, and -1 for the rest."""
    rows = np.full((n, k), -1, dtype=np.int32)
    for i in range(n):
        others = rng.permutation([r for r in range(n) if r != i])[: rng.integers(0, k + 1)]
        rows[i, : len(others)] = others
    return rows


def folder(root: Path, common: dict = COMMON, dataset: str = "demo") -> Path:
    return root / dataset / f"{common['encoder']}-{identity_hash(common)}"


def write(path: Path, slide: CachedSlide | None = None, common: dict = COMMON) -> CachedSlide:
    slide = slide or make()
    write_slide(path, slide, Fingerprint(common, {"image": "b" * 64}, {"date": "today"}))
    return slide


def rewrite(path: Path, arrays: dict[str, np.ndarray] | None = None, **attributes: object) -> None:
    """Change a file as another program would that follows the format: with digests that fit, and without a seal."""
    with h5py.File(path, "r+") as file:
        digests = json.loads(file.attrs["digests"])
        file.attrs.pop("sealed", None)
        file.attrs.update(attributes)
        for name, values in (arrays or {}).items():
            del file[name]
            file[name] = values
            digests[name] = array_digest(file[name][:])
        digests.pop("attributes", None)
        digests |= {"attributes": attributes_digest(dict(file.attrs) | {"digests": json.dumps(digests)})}
        file.attrs["digests"] = json.dumps(digests)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 9), genes=st.integers(1, 12), width=st.integers(1, 8), seed=st.integers(0, 99),
       sizes=st.sets(st.sampled_from([6, 18, 36])))  # fmt: skip
def test_round_trip(tmp_path_factory, n, genes, width, seed, sizes) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("c") / "S.h5"
    slide = write(path, make(n, genes, width, tuple(sizes), seed))
    back = read_slide(path)
    assert back.digests.keys() == json.loads(h5py.File(path).attrs["digests"]).keys() - {"attributes"}
    assert (back.barcodes, back.genes, back.attributes) == (slide.barcodes, slide.genes, slide.attributes)
    for name in ("coords", "array", "embeddings", "thumbnail"):
        np.testing.assert_array_equal(getattr(back, name), getattr(slide, name))
    np.testing.assert_array_equal(back.counts.toarray(), slide.counts.toarray())
    for k in sizes:
        np.testing.assert_array_equal(back.niches[k], slide.niches[k])
        np.testing.assert_array_equal(back.neighbors[k], slide.neighbors[k])


def test_the_names_are_those_of_the_format(tmp_path: Path) -> None:
    write(tmp_path / "S.h5", make(sizes=(6, 18)))
    with h5py.File(tmp_path / "S.h5") as file:
        shapes = {}
        file.visititems(
            lambda name, node: (
                shapes.update({name: (node.shape, str(node.dtype))}) if isinstance(node, h5py.Dataset) else None
            )
        )
        assert shapes["embeddings"] == ((5, 4), "float16")
        assert shapes["niche/18"] == ((5, 4), "float16")
        assert shapes["neighbors/18"] == ((5, 18), "int32")
        assert shapes["coords"] == ((5, 2), "float64")
        assert shapes["array"] == ((5, 2), "int32")
        assert {"barcodes", "genes", "counts/data", "counts/indices", "counts/indptr"} <= set(shapes)
        assert file["neighbors/18"].attrs["K"] == 18
        assert file["barcodes"][0].decode() == "spöt-0"
        assert file.attrs["schema"] == 1
        assert file.attrs["complete"]
        assert json.loads(file.attrs["fingerprint"])["identity"]["slide"] == {"image": "b" * 64}
        assert set(json.loads(file.attrs["digests"])) == {"attributes", *shapes}


def test_damaged_incomplete_and_foreign_files(tmp_path: Path) -> None:
    path = folder(tmp_path) / "S.h5"
    write(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(HistError, match=r"S\.h5: not a readable cache file"):
        read_slide(path)
    write(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["complete"]
    with pytest.raises(HistError, match="incomplete"):
        read_slide(path)
    write(path)
    with h5py.File(path, "r+") as file:
        file.attrs["schema"] = 99
    with pytest.raises(HistError, match="cache format 99"):
        read_slide(path)
    write(path)
    with pytest.raises(InputError, match="no niches of 36 neighbours"):
        read_slide(path, [36])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as aside:  # noqa: PT012
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_differences_are_spelled_out() -> None:
    assert differences(COMMON, dict(COMMON)) == []
    assert differences(COMMON, COMMON | {"weights": "c" * 64}) == ["weights aaaaaaaaaaaa -> cccccccccccc"]
    assert differences({"a": 1}, {"b": 2}) == ["a 1 -> null", "b null -> 2"]


def test_a_file_that_does_not_belong_is_refused(tmp_path: Path) -> None:
    here = folder(tmp_path)
    write(here / "A.h5")
    write(here / "B.h5", common=COMMON | {"weights": "f" * 64})
    with pytest.raises(StaleCacheError, match="weights aaaaaaaaaaaa -> ffffffffffff"):
        Cache(here).fingerprint()
    (here / "B.h5").unlink()
    renamed = here.rename(here.with_name("demo-00000000"))
    with pytest.raises(StaleCacheError, match="renamed"):
        Cache(renamed).fingerprint()
    assert "its identity is" in verify_slide(renamed / "A.h5")[0]


def test_open_cache_chooses_and_says_what_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing extracted here yet"):
        open_cache(tmp_path)
    with pytest.raises(InputError, match="no cache of kidney"):
        open_cache(tmp_path, "kidney")
    one, two = folder(tmp_path), folder(tmp_path, COMMON | {"encoder": "uni"})
    for f in (one, two):
        write(f / "A.h5")
    (one / "B.h5.partial").write_bytes(b"half")
    with pytest.raises(InputError, match=r"several caches \(demo-.*, uni-.*\)"):
        open_cache(tmp_path, "demo")
    assert open_cache(tmp_path, "demo", "uni").folder == two
    timm = folder(tmp_path, COMMON | {"encoder": "timm:vit_a"})
    timm = timm.with_name(f"timm-vit_a-{timm.name[-8:]}")
    write(timm / "A.h5")
    assert open_cache(tmp_path, "demo", "timm:vit_a").folder == timm, "as it was named to hist-extract"
    remember_last(tmp_path, Cache(one))
    assert open_cache(tmp_path).folder == one
    assert open_cache(one).slides == ["A"]


@pytest.mark.parametrize(
    ("encoder", "slug"),
    [
        ("timm:vit_small_patch16_224", "timm-vit_small_patch16_224"),
        ("timm:vit_small_patch16_224.augreg_in21k", "timm-vit_small_patch16_224.augreg_in21k"),
        ("timm:hf_hub:me/vit-b", "timm-hf_hub-me-vit-b"),
        ("h-optimus-0", "h-optimus-0"),
    ],
)
def test_a_cache_is_opened_by_each_name_of_its_encoder(tmp_path: Path, encoder: str, slug: str) -> None:
    common = COMMON | {"encoder": encoder}
    here = tmp_path / "her2st" / f"{slug}-{identity_hash(common)}"
    write(here / "SPA138.h5", common=common)
    for name in (None, encoder, slug, here.name):
        cache = open_cache(str(tmp_path), "her2st", name)
        assert (cache.folder, cache.slides) == (here, ["SPA138"])
        assert cache.fingerprint().common["encoder"] == encoder
    with pytest.raises(
        InputError, match=r"no cache of her2st with timm:vit_small( \(did you mean .*)?; run hist-extract"
    ):
        open_cache(tmp_path, "her2st", "timm:vit_small")
