"""What the metadata of a slide may say, and the one line that anything else ends in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hist_cache.errors import SlideError
from hist_cache.slides import find_slide


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", "holds a list"),
        ('"text"', "holds a text"),
        ("null", "holds null"),
        ("3.5", "holds a number"),
        ("true", "holds true or false"),
        ("", "not JSON"),
        ("{" * 100_000, "not JSON"),
        ("[" * 100_000, "nested too deep"),
        ('{"pixel_size_um_estimated": ' + "9" * 5000 + "}", "not JSON"),
        ('{"pixel_size_um_estimated": ' + "9" * 400 + "}", "pixel_size_um_estimated is 999"),
        ('{"pixel_size_um_estimated": 1e999}', "pixel_size_um_estimated is inf"),
        ('{"pixel_size_um_estimated": "a lot"}', "pixel_size_um_estimated is 'a lot'"),
        ('{"pixel_size_um_estimated": [1]}', "pixel_size_um_estimated is [1]"),
        ('{"pixel_size_um_estimated": true}', "pixel_size_um_estimated is True"),
        ('{"pixel_size_um_estimated": "1_0"}', "pixel_size_um_estimated is '1_0'"),
        ('{"st_technology": ["Visium"], "pixel_size_um_estimated": 1}', "no spot size"),
        (b"\xff\xfe{}", "not text in UTF-8"),
        (b"{}" + b"\0" * 9, "not JSON"),
    ],
)
def test_metadata_that_are_no_metadata(hest_root: Path, text: str | bytes, says: str) -> None:
    file = hest_root / "metadata/TINY1.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SlideError) as error:
        find_slide(hest_root, "TINY1")
    assert says in str(error.value)
    assert f"TINY1: {file}: " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"pixel_size_um_estimated": -0.5}, "pixel_size_um_estimated is -0.5; it must be a number above 0"),
        ({"pixel_size_um_estimated": 0}, "pixel_size_um_estimated is 0"),
        ({"pixel_size_um_estimated": 25}, "pixel_size_um_estimated is 25 um, not between 0.05 and 10"),
        ({"pixel_size_um_estimated": 1e6}, "pixel_size_um_estimated is 1e+06 um"),
        ({"pixel_size_um_estimated": 0.001}, "pixel_size_um_estimated is 0.001 um"),
        ({"inter_spot_dist": -100}, "inter_spot_dist is -100"),
        ({"inter_spot_dist": 1e5}, "inter_spot_dist is 100000 um"),
        ({"spot_diameter": -55}, "spot_diameter is -55"),
        ({"spot_diameter": 2000}, "spot_diameter is 2000 um"),
        ({"spot_diameter": 120}, "larger than inter_spot_dist 100 um (interchanged?); correct"),
        (
            {"inter_spot_dist": 2, "spot_diameter": 2},
            "inter_spot_dist is 2 um, not between 5 and 1000; pool such bins into",
        ),
        ({"spot_diameter": 2}, "spot_diameter is 2 um, not between 5 and 1000; pool such bins into spots (hist-import"),
        ({"patient": "a\0b"}, "patient is a name with control characters ('a\\x00b')"),
        ({"patient": "\ud800"}, "patient is a name with control characters"),
        ({"patient": "x" * 1000}, "patient is a name of 1,000 characters"),
    ],
)
def test_values_that_no_slide_has(hest_root: Path, values: dict[str, object], says: str) -> None:
    change(hest_root, values)
    with pytest.raises(SlideError) as error:
        find_slide(hest_root, "TINY1")
    assert says in str(error.value)
    assert "TINY1.json" in str(error.value)


def test_one_flag_accepts_any_scale_but_no_nonsense(hest_root: Path) -> None:
    change(hest_root, {"pixel_size_um_estimated": 25, "inter_spot_dist": 2, "spot_diameter": 2000})
    with pytest.raises(SlideError, match="give --any-scale if it is right"):
        find_slide(hest_root, "TINY1")
    assert find_slide(hest_root, "TINY1", any_scale=True).um_per_px == 25
    change(hest_root, {"pixel_size_um_estimated": -25})
    with pytest.raises(SlideError, match="must be a number above 0"):
        find_slide(hest_root, "TINY1", any_scale=True)


def test_a_patient_may_be_a_number(hest_root: Path) -> None:
    for stated, patient in ((7, "7"), ("P", "P"), (None, None), (float("nan"), None), ("", None), ([], None),
                            ("nan", None), ("None", None), (" null", None), ("Nancy", "Nancy")):  # fmt: skip
        change(hest_root, {"patient": stated})
        assert find_slide(hest_root, "TINY1").patient == patient


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"id,pixel_size_um_estimated\nTINY1,\xff\n", "not text in UTF-8"),
        (b'id,x\nTINY1,"' + b"y" * 200_000 + b'"\n', "not CSV"),
        (b"", "no metadata"),
        (b"id\nTINY1\n", "no pixel size"),
        (b"id,pixel_size_um_estimated,st_technology\nTINY1,-1,Visium\n", "pixel_size_um_estimated is '-1'"),
        (b"id,pixel_size_um_estimated,st_technology\nTINY1,1,Visium,more,and more\n", None),
    ],
)
def test_the_table_of_metadata(hest_root: Path, content: bytes, says: str | None) -> None:
    (hest_root / "metadata/TINY1.json").unlink()
    (hest_root / "HEST_v1.csv").write_bytes(content)
    if says is None:
        assert find_slide(hest_root, "TINY1").um_per_px == 1
        return
    with pytest.raises(SlideError) as error:
        find_slide(hest_root, "TINY1")
    assert says in str(error.value)


def test_advice_to_fetch_a_slide_is_for_slides_of_hest(hest_root: Path) -> None:
    with pytest.raises(SlideError, match=r"MINE: .*no such file; put it there"):
        find_slide(hest_root, "MINE")
    with pytest.raises(SlideError, match=r"SPA138: .*no such file; hist-extract --download"):
        find_slide(hest_root, "SPA138")


def change(root: Path, values: dict[str, object]) -> None:
    file = root / "metadata/TINY1.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
