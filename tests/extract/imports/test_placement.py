"""Turning positions is turning pictures, and the right way is told from the seven others and from other scales."""

from __future__ import annotations

import numpy as np
import pytest

from extract.imports.placement import (
    COMMON_SCALES,
    Placement,
    best_on_tissue,
    compare_pictures,
    fit_to_tissue,
    orientations,
)
from extract.slides.readers import open_image
from extract.slides.tissue import TissueMask, find_tissue
from hist_cache.slides import find_slide
from hist_cache.spots import read_places
from tests.conftest import SHARED, needs_shared
from tests.extract.imports.sources import SIZE, UM_PER_PX, make_section


@pytest.mark.parametrize("placement", orientations(1.0))
def test_positions_turn_as_the_picture_does(placement: Placement) -> None:
    picture = np.zeros((40, 60, 3), dtype=np.uint8)
    picture[7, 11] = 255
    turned = placement.turn(picture)
    (x, y) = placement.apply(np.array([[11.5, 7.5]]), (turned.shape[1], turned.shape[0]))[0]  # the middle of a pixel
    assert turned[int(y), int(x), 0] == 255


def test_flags_are_those_of_the_command() -> None:
    assert Placement(True, 0.25, "xy").flags == "give --swap-xy --flip xy --scale 0.25"
    assert Placement().flags == "give none of --swap-xy, --flip and --scale"


def test_overlap_and_share_by_counting() -> None:
    tissue = np.zeros((50, 50), dtype=bool)
    tissue[10:30, 10:40] = True
    mask = TissueMask(tissue, 500, 500, 1.0)
    every = np.stack(np.meshgrid(np.arange(105, 500, 10), np.arange(105, 300, 10)), axis=-1).reshape(-1, 2) * 1.0
    fit = fit_to_tissue(every, Placement(), mask, pitch_px=1.0)
    assert fit.on_tissue == 600 / 800  # 20 rows of 40 columns, of which 30 are on tissue
    near = np.zeros((50, 50), dtype=bool)  # and their neighbours
    near[10:30, 10:50] = near[9:31, 10:50] = near[10:30, 9:50] = True
    assert fit.overlap == pytest.approx(600 / (near | tissue).sum())


@pytest.mark.parametrize("wrong", orientations(1.0)[1:])
def test_the_right_orientation_is_found_whatever_was_done_to_the_positions(wrong: Placement) -> None:
    section = make_section()
    mask = find_tissue(section.pixels, SIZE, UM_PER_PX)
    coords = section.coords[section.measured].astype(float)
    size = SIZE[::-1] if wrong.swap_xy else SIZE
    changed = wrong.apply(coords, size)
    best = best_on_tissue(changed, (1.0,), mask, 50)
    assert best.on_tissue > 0.97
    assert best.is_clearly_better(fit_to_tissue(changed, Placement(), mask, 50))
    if wrong.flip is None or not wrong.swap_xy:  # else swapping comes first, and the mirrored axis is the other one
        assert best.placement == wrong


def test_a_small_copy_tells_orientation_and_scale() -> None:
    section = make_section()
    small = section.pixels[2::5, 2::5]
    image = section.pixels[::2, ::-2].swapaxes(0, 1)
    best = compare_pictures(small, 0.2, np.ascontiguousarray(image), (image.shape[1], image.shape[0]))[0]
    assert best.correlation > 0.9
    assert (best.placement.swap_xy, best.placement.flip) == (True, "y")
    assert best.placement.scale == pytest.approx(0.5)


@needs_shared
@pytest.mark.parametrize("slide", ["SPA138", "SPA139", "SPA140", "SPA141"])
def test_on_real_sections_every_wrong_orientation_is_told_and_the_right_one_never_doubted(slide: str) -> None:
    files = find_slide(SHARED / "hest", slide)
    image = open_image(slide, files.image)
    size = (image.width, image.height)
    mask = find_tissue(image.overview(), size, files.um_per_px)
    image.close()
    coords, pitch_px = read_places(slide, files.table)[1], files.pitch_um / files.um_per_px
    fits = [fit_to_tissue(coords, placement, mask, pitch_px) for placement in orientations(1.0)]
    assert [fits[0].is_clearly_better(fit) for fit in fits] == [False] + [True] * 7
    assert not best_on_tissue(coords, COMMON_SCALES, mask, pitch_px).is_clearly_better(fits[0])
