import json
from pathlib import Path

import matplotlib.path
import numpy as np
import PIL.Image
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from extract.slides.masks import even_odd, read_mask
from extract.slides.tissue import MASK_UM
from hist_cache.errors import SlideError

SIZE = (1000, 800)
SQUARE = [[100, 100], [700, 100], [700, 600], [100, 600], [100, 100]]
HOLE = [[300, 300], [500, 300], [500, 400], [300, 400], [300, 300]]
FAR = [[800, 700], [950, 700], [950, 790], [800, 700]]
POLYGON = {"type": "Polygon", "coordinates": [SQUARE, HOLE]}
TRIANGLE = {"type": "Polygon", "coordinates": [FAR]}
POINT = {"type": "Point", "coordinates": [5, 5]}


def feature(geometry: object) -> dict:
    return {"type": "Feature", "id": "a", "geometry": geometry, "properties": {"objectType": "annotation"}}


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("content", [
    {"type": "FeatureCollection", "features": [feature(POLYGON), feature(TRIANGLE), feature(POINT), feature(None)]},
    {"type": "FeatureCollection", "features": [
        feature({"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [FAR]]})]},
    feature({"type": "GeometryCollection", "geometries": [POLYGON, TRIANGLE, POINT]}),
    {"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [FAR]]},
    [feature(POLYGON), feature(TRIANGLE)],
])  # fmt: skip
def test_polygons_and_their_holes(tmp_path: Path, content: object) -> None:
    mask = read_mask("S", write(tmp_path / "m.geojson", content), SIZE, MASK_UM / 4)
    assert mask.pixels.shape == (200, 250)
    points = np.random.default_rng(0).uniform(-100, 1100, (5000, 2))
    outer, hole, far = (matplotlib.path.Path(ring) for ring in (SQUARE, HOLE, FAR))
    expected = (outer.contains_points(points) & ~hole.contains_points(points)) | far.contains_points(points)
    edges = np.abs(np.concatenate([SQUARE, HOLE]).T[..., None, None] - points.T[:, None, None])
    near = (edges.min(axis=(0, 1, 2)) < 4) | (abs(points - [875, 745]) < 90).all(axis=1)
    np.testing.assert_array_equal(mask.contains(points)[~near], expected[~near])
    assert mask.contains(np.array([[400.0, 350], [200, 200], [940, 720]])).tolist() == [False, True, True]


def test_overlapping_polygons_are_joined(tmp_path: Path) -> None:
    both = {"type": "MultiPolygon", "coordinates": [[SQUARE], [HOLE]]}
    assert read_mask("S", write(tmp_path / "m.json", both), SIZE, 1.0).contains(np.array([[400.0, 350]])).all()


@given(st.lists(st.tuples(st.floats(-5, 25), st.floats(-5, 25)), min_size=3, max_size=12))
def test_even_odd_counts_crossings(corners: list[tuple[float, float]]) -> None:
    ring = np.array(corners)
    inside = even_odd([ring], 0, 20, 20)
    for y in range(20):
        for x in range(0, 20, 3):
            crossed = 0
            for (x0, y0), (x1, y1) in zip(ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True):
                if (y0 <= y) != (y1 <= y):
                    ends = sorted([(y0, x0), (y1, x1)])
                    at = ends[0][1] + (y - ends[0][0]) / (ends[1][0] - ends[0][0]) * (ends[1][1] - ends[0][1])
                    crossed += at < x
            # A corner or an edge that meets the point exactly may count either way.
            assert inside[y, x] == (crossed % 2 == 1) or _on_edge(ring, x, y)


def _on_edge(ring: np.ndarray, x: float, y: float) -> bool:
    start, end = ring, np.roll(ring, -1, axis=0)
    along = end - start
    length = np.maximum((along**2).sum(1), 1e-300)
    t = np.clip((([x, y] - start) * along).sum(1) / length, 0, 1)
    return bool((np.abs(start + t[:, None] * along - [x, y]).max(1) < 1e-9).any() or (abs(ring[:, 1] - y) < 1e-9).any())


@pytest.mark.parametrize("name", ["m.png", "m.tif"])
def test_a_picture_of_another_resolution(tmp_path: Path, name: str) -> None:
    pixels = np.zeros((80, 101), dtype=np.uint8)
    pixels[10:60, 10:70] = 1
    if name == "m.png":
        PIL.Image.fromarray(pixels).save(tmp_path / name)
    else:
        tifffile.imwrite(tmp_path / name, pixels, tile=(32, 32), photometric="minisblack")
    mask = read_mask("S", tmp_path / name, SIZE, 0.5)
    np.testing.assert_array_equal(mask.pixels, pixels == 1)
    assert mask.contains(np.array([[300.0, 300.0], [990.0, 300.0], [-1.0, 300.0]])).tolist() == [True, False, False]
    assert mask.area_mm2 == pytest.approx(3000 / 8080 * 0.5 * 0.4, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("m.json", "{", r"not JSON"),
        ("m.json", {"type": "Topology"}, "not GeoJSON"),
        ("m.json", {"a": 1}, "not GeoJSON"),
        ("m.json", feature(POINT), "no Polygon or MultiPolygon"),
        ("m.json", {"type": "Polygon"}, "a Polygon without coordinates"),
        ("m.json", {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}, "fewer than 3 corners"),
        ("m.json", {"type": "Polygon", "coordinates": [[[0, 0], [1, "x"], [2, 2]]]}, "no pairs of numbers"),
        ("m.json", '{"type": "Polygon", "coordinates": [[[0, 0], [1, NaN], [2, 2]]]}', "no numbers"),
        ("m.json", {"type": "MultiPolygon", "coordinates": [[[[-9, -9], [-1, -9], [-1, -1]]]]}, "no polygon lies on"),
        ("m.json", "[" * 50 + "]" * 50, "without end"),
        ("m.txt", "", "a mask is a .geojson, .png or .tif file"),
        ("m.png", "", "not a PNG"),
    ],
)
def test_bad_masks_get_one_line(tmp_path: Path, name: str, content: object, says: str) -> None:
    with pytest.raises(SlideError, match=rf"^S: .*{name}: .*{says}.*; ") as raised:
        read_mask("S", write(tmp_path / name, content), SIZE, 0.5)
    assert "\n" not in str(raised.value)


def test_pictures_that_are_no_mask_of_this_slide(tmp_path: Path) -> None:
    PIL.Image.new("L", (100, 84), 1).save(tmp_path / "a.png")
    with pytest.raises(SlideError, match="another aspect ratio: 100 x 84 px for a slide of 1,000 x 800 px"):
        read_mask("S", tmp_path / "a.png", SIZE, 0.5)
    PIL.Image.new("L", (100, 80), 0).save(tmp_path / "b.png")
    with pytest.raises(SlideError, match="no tissue in it"):
        read_mask("S", tmp_path / "b.png", SIZE, 0.5)
    tifffile.imwrite(tmp_path / "c.tif", np.ones((80, 100), dtype=np.uint16), photometric="minisblack")
    with pytest.raises(SlideError, match="16 bits"):
        read_mask("S", tmp_path / "c.tif", SIZE, 0.5)
