"""hist-predict: the same numbers as hist-train has for its test slide, from the image alone; nothing computed twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
import tifffile
from scipy import ndimage

import train.cli
from extract import spot_blocks
from extract.pipeline import Pipeline
from hist_cache.cache_file import open_complete
from hist_cache.files import write_json
from hist_cache.runs import Fold, read_object
from tests.commands import make_quick
from tests.small import make_cache, train_once, unfinished
from train.predict.cli import main

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides, their cache and runs of a few methods, each tested on every slide."""
    where = tmp_path_factory.mktemp("predict")
    cache = make_cache(where)
    train_once(cache, where / "runs")
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        short = ("--split", "loso", "--epochs", 2, "--batch-size", 16, "--n-genes", 20, "--jobs", 1, "--fold", 1)
        strong = ("--recipe", "strong", "--ensemble", 2, "--smooth", 0.3, "--width", 8, "--depth", 1)
        triplex = ("--model", "triplex", "--width", 8, "--heads", 2)
        for more in (strong, ("--model", "ridge,bleep,stevs"), triplex):
            argv = ("--cache", cache, "--runs", where / "runs", *short, *more)
            assert train.cli.main([str(a) for a in argv]) == 0
    return where


def run_of(work: Path, method: str, recipe: str = "") -> Path:
    for run in (work / "runs" / "tiny").glob(f"{method}-*"):
        config = read_object(next(run.glob("fold*/config.json")))
        if config.get("recipe", {}).get("name", "") == recipe:
            return run
    raise AssertionError(f"no run of {method}")


def slide_of(fold: Path) -> str:
    return str(Fold(fold).config["split"]["test"][0])


def argv_of(work: Path, run: Path, slide: str, out: Path, cache: Path | None = None) -> tuple[Any, ...]:
    hest = work / "hest"
    return (
        *("--run", run, "--wsi", hest / "wsis" / f"{slide}.tif", "--truth", hest / "st" / f"{slide}.h5ad"),
        *("--out", out, "--cache", cache or work / "cache", "--any-focus"),
    )


METHODS = [("full", ""), ("full", "strong"), ("ridge", ""), ("bleep", ""), ("stevs", ""), ("triplex", "")]


@pytest.mark.parametrize(("method", "recipe"), METHODS)
def test_a_test_slide_gets_the_numbers_of_hist_train(
    work: Path, run_command: Run, tmp_path: Path, method: str, recipe: str
) -> None:
    fold = run_of(work, method, recipe) / "fold1"
    slide = slide_of(fold)
    code, text = run_command(main, *argv_of(work, fold, slide, tmp_path / "out"))
    assert code == 0, text
    found, expected = anndata.read_h5ad(tmp_path / "out" / f"{slide}.h5ad"), Fold(fold).predictions
    assert list(found.obs_names) == list(expected.obs["barcode"])
    assert list(found.var_names) == list(expected.var_names)
    np.testing.assert_allclose(found.X, expected.X, rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(found.layers["truth"], expected.layers["truth"])
    np.testing.assert_array_equal(found.obsm["spatial"], expected.obsm["spatial"])
    assert found.uns["expression"] == expected.uns["expression"]
    metrics, trained = read_object(tmp_path / "out" / f"{slide}.metrics.json"), Fold(fold).metrics
    for name, value in trained["pooled"].items():
        assert metrics["pooled"][name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
    assert "LEAK" not in text


def section(path: Path, side: int = 1500, radius: int = 600, blur: float = 0) -> None:
    """Cells in stroma on glass, 2 um a pixel: a disc of H&E."""
    rng = np.random.default_rng(0)
    disc = np.hypot(*(np.mgrid[:side, :side] - side / 2)) < radius
    cells = ndimage.gaussian_filter(rng.standard_normal((side, side)), 2.5) > 0.05
    amounts = np.stack([0.15 + 0.25 * cells, 0.12 + 0.1 * rng.random((side, side))], axis=-1)
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])  # haematoxylin, eosin
    pixels = np.array([243.0, 242.0, 244.0]) * 10 ** -(amounts @ stains * disc[..., None])
    pixels = ndimage.gaussian_filter(pixels, (blur, blur, 0)) if blur else pixels
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.clip(pixels + rng.normal(0, 0.5, pixels.shape), 0, 255).astype(np.uint8)
    tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good slide among others that cannot be predicted."""
    where = tmp_path_factory.mktemp("slides")
    section(where / "good.tif")
    section(where / "hazy.tif", blur=4)
    tifffile.imwrite(where / "empty.tif", np.full((800, 800, 3), 244, np.uint8), tile=(256, 256), photometric="rgb")
    (where / "corrupt.svs").write_bytes(b"II*\0 and nothing that follows")
    return where


LATTICE = ("--um-per-px", 2, "--pitch", 300)


def predict(work: Path, run: Path, wsi: Path, out: Path, *more: object) -> tuple[object, ...]:
    return ("--run", run, "--wsi", wsi, "--out", out, "--cache", work / "cache", *LATTICE, *more)


def test_one_line_for_each_slide_that_cannot_be_predicted(
    work: Path, slides: Path, run_command: Run, tmp_path: Path
) -> None:
    run = run_of(work, "full")
    code, text = run_command(main, *predict(work, run, slides, tmp_path / "out", "--dry-run"))
    assert code == 1, text
    assert "would write 1 of 4 slides" in text
    assert not (tmp_path / "out").exists()
    code, text = run_command(main, *predict(work, run, slides, tmp_path / "out", "--pseudobulk"))
    assert code == 1, text
    failed = [line for line in text.splitlines() if line.startswith("warning: failed:")]
    assert len(failed) == 3
    for name, problem in (("hazy", "blurred"), ("empty", "no tissue"), ("corrupt", "corrupt.svs")):
        assert sum(name in line and problem in line for line in failed) == 1, failed
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["good.h5ad", "pseudobulk.csv"]
    assert not unfinished(work / "cache")

    table = anndata.read_h5ad(tmp_path / "out/good.h5ad")
    assert table.n_obs > 40
    assert (np.hypot(*(table.obsm["spatial"] - 750).T) < 600 + 55).all()
    steps = np.sort(np.linalg.norm(table.obsm["spatial"][:, None] - table.obsm["spatial"][None], axis=2), axis=1)
    assert np.median(steps[:, 1:7]) == pytest.approx(150)  # px: 300 um, six neighbours
    assert set(table.obs) == {"slide", "distance", "out_of_distribution", "disagreement"}
    assert table.uns["hist_predict"]["folds"] == "fold0, fold1, fold2"
    mean = pd.read_csv(tmp_path / "out/pseudobulk.csv", index_col="slide")
    np.testing.assert_allclose(mean.loc["good"], np.asarray(table.X, dtype=float).mean(0), rtol=1e-5)
    assert list(mean.columns) == list(table.var_names)
    code, text = run_command(main, *predict(work, run, slides / "hazy.tif", tmp_path / "out", "--any-focus"))
    assert code == 0, text
    scanpy.pl.spatial(table, color=table.var_names[0], show=False, library_id="good")


def test_folds_predict_their_mean_and_say_how_they_differ(
    work: Path, slides: Path, run_command: Run, tmp_path: Path
) -> None:
    run, good = run_of(work, "full"), slides / "good.tif"
    tables = []
    for source in (run, *(run / f"fold{i}" for i in range(3))):
        code, text = run_command(main, *predict(work, source, good, tmp_path / source.name))
        assert code == 0, text
        tables.append(anndata.read_h5ad(tmp_path / source.name / "good.h5ad"))
    single = np.stack([np.asarray(t.X, dtype=float) for t in tables[1:]])
    np.testing.assert_allclose(tables[0].X, single.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(tables[0].layers["disagreement"], single.std(0, ddof=1), rtol=1e-2, atol=1e-4)
    assert "disagreement" not in tables[1].layers
    before = (tmp_path / run.name / "good.h5ad").stat().st_mtime_ns
    code, text = run_command(main, *predict(work, run, good, tmp_path / run.name))
    assert "1 slides complete, 0 to embed" in text
    assert (tmp_path / run.name / "good.h5ad").stat().st_mtime_ns == before


def test_a_slide_that_was_trained_on_is_a_leak(work: Path, run_command: Run, tmp_path: Path) -> None:
    run = run_of(work, "full")
    code, text = run_command(main, *argv_of(work, run, "TINY1", tmp_path / "out"))
    assert code == 0, text
    assert "TINY1: LEAK: trained on it: fold" in text
    assert "trained on it" in read_object(tmp_path / "out/TINY1.metrics.json")["seen"]


def test_an_interrupted_slide_goes_on_with_the_next_block(
    work: Path, slides: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, cache = run_of(work, "full"), tmp_path / "cache"
    monkeypatch.setattr(spot_blocks, "BLOCK_SPOTS", 16)
    monkeypatch.setattr(spot_blocks.spot_blocks, "__defaults__", (16,))
    encoded: list[int] = []
    embed = Pipeline.embed

    def embed_some(self: Pipeline, image: Any, coords: Any, *more: Any) -> Any:
        if stop_at is not None and len(encoded) == stop_at:
            raise KeyboardInterrupt
        encoded.append(len(coords))
        return embed(self, image, coords, *more)

    monkeypatch.setattr(Pipeline, "embed", embed_some)
    argv = [*predict(work, run, slides / "good.tif", tmp_path / "out")]
    argv[argv.index(work / "cache")] = cache
    stop_at: int | None = 2
    code, text = run_command(main, *argv)
    assert code == 130, text
    assert len(list(cache.glob("virtual/*/.parts/*/*.npz"))) == 2
    stop_at = None
    code, text = run_command(main, *argv)
    assert code == 0, text
    (path,) = cache.glob("virtual/*/*.h5")
    with open_complete(path) as file:
        assert sum(encoded) == file.spots
        digests = file.digests
    assert not list(cache.glob("virtual/*/.parts/*"))
    shutil.rmtree(cache)
    monkeypatch.undo()
    code, text = run_command(main, *argv)
    with open_complete(path) as file:
        same = {name: file.digests[name] == digests[name] for name in digests}
    assert all(same[name] for name in same if not name.startswith(("embeddings", "niche"))), same


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--run", "RUN"), "which slides"),
        (("--wsi", "GOOD"), "which run"),
        (("--run", "nowhere", "--wsi", "GOOD"), "nowhere"),
        (("--run", "RUN", "--wsi", "nowhere"), "nowhere"),
        (("--run", "RUN", "--wsi", "GOOD", "--coords", "a", "--truth", "b"), "--coords and --truth"),
        (("--run", "RUN", "--wsi", "SLIDES", "--mask", "GOOD"), "one file for 4 slides"),
        (("--run", "RUN", "--wsi", "SLIDES", "--coords", "SLIDES"), "nothing for"),
        (("--run", "RUN", "--wsi", "GOOD", "--pitch", "2"), "--pitch"),
        (("--run", "RUN", "--wsi", "GOOD", "--pitch", "90", "--coords", "a"), "--pitch"),
        (("--run", "RUN", "--wsi", "GOOD", "--genes-to-plot", "NOGENE"), "NOGENE"),
    ],
)
def test_wrong_options_are_one_line(
    work: Path, slides: Path, run_command: Run, argv: tuple[str, ...], message: str
) -> None:
    places = {"RUN": run_of(work, "full"), "GOOD": slides / "good.tif", "SLIDES": slides}
    code, text = run_command(main, *(places.get(a, a) for a in argv), "--cache", work / "cache")
    assert code == 2, text
    assert message in text
    assert len(text.strip().splitlines()) == 1


def test_a_slide_without_a_pixel_size_is_refused_with_the_flag(
    work: Path, slides: Path, run_command: Run, tmp_path: Path
) -> None:
    argv = ("--run", run_of(work, "full"), "--wsi", slides / "good.tif", "--out", tmp_path, "--cache", work / "cache")
    code, text = run_command(main, *argv)
    assert code == 1, text
    assert "no pixel size" in text
    assert "--um-per-px" in text


def test_a_slide_that_has_changed_is_not_predicted_from_what_the_cache_has(
    work: Path, slides: Path, run_command: Run, tmp_path: Path
) -> None:
    wsi = tmp_path / "wsi" / "one.tif"
    wsi.parent.mkdir()
    shutil.copy(slides / "good.tif", wsi)
    run = run_of(work, "full") / "fold0"
    assert run_command(main, *predict(work, run, wsi, tmp_path / "out"))[0] == 0
    content = bytearray(wsi.read_bytes())
    content[len(content) // 2] ^= 0x55  # the image is not compressed, so it has the same size
    wsi.write_bytes(content)
    code, text = run_command(main, *predict(work, run, wsi, tmp_path / "again", "--pseudobulk"))
    assert code == 1, text
    assert "stale" in text
    assert not list((tmp_path / "again").iterdir())


def test_files_beside_predictions_are_those_of_the_same_predictions(
    work: Path, slides: Path, run_command: Run, tmp_path: Path
) -> None:
    run, good, out = run_of(work, "full") / "fold0", slides / "good.tif", tmp_path / "out"

    def call(pitch: int, *more: object) -> str:
        argv = [*predict(work, run, good, out, *more)]
        argv[argv.index(300)] = pitch
        code, text = run_command(main, *argv)
        assert code == 0, text
        return text

    gene = Fold(run).panel[3]
    call(300, "--qupath", "--viewer", "--genes-to-plot", gene)
    assert sorted(p.name for p in out.iterdir()) == [
        *("good.csv", "good.extras.json", "good.geojson", "good.h5ad", "good.html", "good.png")
    ]
    rows = len(pd.read_csv(out / "good.csv"))
    assert gene in pd.read_csv(out / "good.csv")
    before = (out / "good.html").stat().st_mtime_ns
    assert ".html" not in call(300, "--viewer", "--genes-to-plot", gene)
    assert (out / "good.html").stat().st_mtime_ns == before
    call(300, "--viewer")  # of all genes
    assert (out / "good.html").stat().st_mtime_ns > before
    call(400)
    assert sorted(p.name for p in out.iterdir()) == ["good.h5ad"]
    call(400, "--qupath")
    assert len(pd.read_csv(out / "good.csv")) == anndata.read_h5ad(out / "good.h5ad").n_obs < rows


def test_rows_of_earlier_slides_stay_in_pseudobulk(work: Path, slides: Path, run_command: Run, tmp_path: Path) -> None:
    run, out = run_of(work, "full") / "fold0", tmp_path / "out"
    other = Path(shutil.copy(slides / "good.tif", tmp_path / "other.tif"))
    for wsi in (slides / "good.tif", other):
        assert run_command(main, *predict(work, run, wsi, out, "--pseudobulk"))[0] == 0
    table = pd.read_csv(out / "pseudobulk.csv", index_col="slide")
    assert list(table.index) == ["good", "other"]
    np.testing.assert_array_equal(table.loc["good"], table.loc["other"])
    (out / "good.h5ad").unlink()
    assert run_command(main, *predict(work, run, other, out, "--pseudobulk"))[0] == 0
    assert list(pd.read_csv(out / "pseudobulk.csv", index_col="slide").index) == ["other"]


def test_a_blurred_slide_stays_blurred_once_it_is_embedded(
    work: Path, slides: Path, run_command: Run, tmp_path: Path
) -> None:
    argv = predict(work, run_of(work, "full") / "fold0", slides / "hazy.tif", tmp_path / "out")
    assert run_command(main, *argv, "--any-focus")[0] == 0
    code, text = run_command(main, *argv)
    assert code == 1, text
    assert "blurred" in text


def test_files_of_a_run_are_checked_before_anything_is_embedded(
    work: Path, slides: Path, run_command: Run, tmp_path: Path
) -> None:
    for name, change, message in (
        ("panel.txt", lambda file: file.write_text("A\n"), "1 genes"),
        ("recipe.safetensors", lambda file: file.unlink(), "recipe.safetensors"),
        ("model.safetensors", lambda file: file.write_bytes(b"no"), "damaged"),
    ):
        fold = Path(shutil.copytree(run_of(work, "full", "strong") / "fold1", tmp_path / name / "fold1"))
        change(fold / name)
        code, text = run_command(main, *predict(work, fold, slides / "good.tif", tmp_path / "out"))
        assert code == 2, text
        assert message in text
        assert "encoder" not in text
    run = Path(shutil.copytree(run_of(work, "full"), tmp_path / "run"))
    (run / "fold2" / "metrics.json").unlink()
    metrics = read_object(run / "fold1" / "metrics.json")
    write_json(run / "fold1" / "metrics.json", metrics | {"diverged": ["it grew"]})
    code, text = run_command(main, *predict(work, run, slides / "good.tif", tmp_path / "out", "--dry-run"))
    assert code == 0, text
    assert "without a part in the mean: fold2" in text
    assert "fold1: its training diverged (it grew)" in text
