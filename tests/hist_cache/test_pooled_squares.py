"""Every slide of HEST-1k works with the right sizes of its spots, or is refused with the reason."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from hist_cache.errors import SlideError
from hist_cache.metadata import read_scale
from hist_cache.slides import find_slide
from hist_cache.spots import Spots, read_spots
from hist_cache.texts import read_csv

TABLE = Path(__file__).resolve().parents[3] / "shared" / "hest_metadata.csv"


@pytest.mark.skipif(not TABLE.exists(), reason="../shared is absent")
def test_every_row_of_the_table_works_or_is_refused_with_the_reason() -> None:
    outcomes: Counter[tuple[object, ...]] = Counter()
    refused = {}
    for row in read_csv(TABLE)[1]:
        metadata = {name: value for name, value in row.items() if value}
        try:
            scale = read_scale(row["id"], TABLE, metadata)
        except SlideError as error:
            refused[row["id"]] = error.problem
        else:
            outcomes[row["st_technology"], scale.pitch_um, scale.spot_um, scale.pooled] += 1
    assert outcomes == {
        ("Visium", 100, 55, False): 602,
        ("Spatial Transcriptomics", 200, 100, False): 540,
        ("Xenium", 100, 100, True): 65,
        ("Visium HD", 128, 128, True): 10,
    }
    assert sorted(refused) == sorted(f"NCBI{n}" for n in range(759, 771))
    assert set(refused.values()) == {"spot_diameter 150 um is larger than inter_spot_dist 110 um (interchanged?)"}
    assert sum(outcomes.values()) + len(refused) == 1229


def write(root: Path, pitch_px: float, metadata: dict[str, object]) -> Path:
    """A slide of 12 x 12 spots, with an image that is never opened."""
    for folder in ("st", "wsis", "metadata"):
        (root / folder).mkdir(parents=True)
    (root / "wsis/TENX128.tif").touch()
    row, column = np.mgrid[:12, :12].reshape(2, -1)
    names = [f"{r}x{c}" for r, c in zip(row, column, strict=True)]
    table = anndata.AnnData(
        X=np.ones((144, 3), dtype=np.float32),
        obs=pd.DataFrame({"array_row": row, "array_col": column}, index=names),
        var=pd.DataFrame(index=["A", "B", "C"]),
        obsm={"spatial": np.stack([column, row], axis=1) * pitch_px + 1000},
    )
    table.write_h5ad(root / "st/TENX128.h5ad")
    (root / "metadata/TENX128.json").write_text(json.dumps({"id": "TENX128", **metadata}))
    return root


def read(root: Path, any_scale: bool = False) -> tuple[float, Spots]:
    files = find_slide(root, "TENX128", any_scale)
    assert files.pitch_um == files.spot_um
    return files.spot_um, read_spots(files, any_scale)


HD = {"st_technology": "Visium HD", "inter_spot_dist": 2.0, "spot_diameter": 2.0, "pixel_size_um_estimated": 0.273883}
XENIUM = {"st_technology": "Xenium", "inter_spot_dist": float("nan"), "pixel_size_um_estimated": 0.2125}


@pytest.mark.parametrize(("metadata", "side"), [(HD, 128), (XENIUM, 100)])
def test_squares_that_hest_pooled(
    tmp_path: Path, metadata: dict[str, float], side: float, caplog: pytest.LogCaptureFixture
) -> None:
    root = write(tmp_path / "hest", side / metadata["pixel_size_um_estimated"], metadata)
    spot_um, spots = read(root)
    assert (spot_um, len(spots)) == (side, 144)
    assert f"its spots are taken for HEST's squares of {side} um" in caplog.text


@pytest.mark.parametrize("any_scale", [False, True])
@pytest.mark.parametrize("bin_um", [2, 8, 16])
def test_fine_bins_are_never_taken_for_spots(tmp_path: Path, bin_um: float, any_scale: bool) -> None:
    root = write(tmp_path / "hest", bin_um / HD["pixel_size_um_estimated"], HD)
    with pytest.raises(SlideError) as error:
        read(root, any_scale)
    assert f"spots lie {bin_um} um apart, and no squares of 128 um" in str(error.value)
    assert f"hist-import {root}/st/TENX128.h5ad --pseudo-spots 55" in str(error.value)


def test_bins_where_other_metadata_say_spots(tmp_path: Path) -> None:
    root = write(tmp_path / "hest", 8 / 0.25, {"st_technology": "Visium", "pixel_size_um_estimated": 0.25})
    with pytest.raises(SlideError, match=r"TENX128\.h5ad --pseudo-spots 55 pools fine bins into spots; correct it"):
        read_spots(find_slide(root, "TENX128"))


def test_a_pixel_size_that_the_squares_contradict(tmp_path: Path) -> None:
    """As NCBI784 of HEST-1k: its spots lie 274.78 px apart, 58.4 um by the pixel size that its metadata state."""
    root = write(tmp_path / "hest", 274.784593593837, XENIUM)
    with pytest.raises(SlideError, match=r"lie 58\.39 um apart, .* set pixel_size_um_estimated to 0\.3639 if they are"):
        read(root)
    (root / "metadata/TENX128.json").write_text(json.dumps(XENIUM | {"pixel_size_um_estimated": 0.3639}))
    assert read(root)[0] == 100


def test_sizes_that_are_stated_are_kept(tmp_path: Path) -> None:
    root = write(
        tmp_path / "hest",
        16 / 0.25,
        HD | {"inter_spot_dist": 16, "spot_diameter": 16} | {"pixel_size_um_estimated": 0.25},
    )
    assert read(root)[0] == 16
