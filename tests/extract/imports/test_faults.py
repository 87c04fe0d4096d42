"""What goes wrong in practice is named in one line with the option that mends it, and the option mends it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from extract.imports.cli import main
from hist_cache.slides import find_slide
from hist_cache.spots import read_spots
from tests.extract.imports.sources import Section, color, marks_at, write_image, write_outs

Run = Callable[..., tuple[int, str]]


def halved(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels[::2, ::2])


@pytest.mark.parametrize(
    ("change", "swapped", "small_copy", "flags", "said"),
    [
        (lambda p: p, True, True, "--swap-xy", "x and y interchanged"),
        (np.fliplr, False, True, "--flip x", "turned or mirrored against the positions, by tissue_lowres_image.png"),
        (np.flipud, False, False, "--flip y", "image mirrored"),
        (np.rot90, False, True, "--swap-xy --flip y", "turned or mirrored"),
        (halved, False, True, "--scale 0.5", "of another resolution: 0.5 px of it are one px of the positions"),
        (halved, False, False, "--scale 0.5", "image of another resolution"),
        (lambda p: halved(np.fliplr(p)), False, True, "--flip x --scale 0.5", "mirrored and of another resolution"),
    ],
    ids=["swapped", "mirrored", "mirrored, no copy", "turned", "halved", "halved, no copy", "both"],
)
def test_the_fault_is_named_with_the_flag_that_mends_it(
    change: Callable[[np.ndarray], np.ndarray], swapped: bool, small_copy: bool, flags: str, said: str,
    section: Section, tmp_path: Path, run_command: Run,
) -> None:  # fmt: skip
    outs = write_outs(tmp_path / "P7/outs", section, coords=section.coords[:, ::-1] if swapped else None)
    if not small_copy:
        (outs / "spatial/tissue_lowres_image.png").unlink()
    image = write_image(tmp_path / "scan.tif", np.ascontiguousarray(change(section.pixels)))
    code, text = run_command(main, "P7", "--image", image, "--data-root", "data")
    assert code == 1
    assert len(text.splitlines()) == 1
    assert said in text
    assert f"; give {flags} (or --any-place); data/spatial_plots/P7_refused.png shows it" in text
    assert not (tmp_path / "data/st").exists()
    assert (tmp_path / "data/spatial_plots/P7_refused.png").exists()

    code, text = run_command(main, "P7", "--image", image, "--data-root", "data", *flags.split())
    assert code == 0, text
    assert "warning" not in text
    slide = find_slide(tmp_path / "data", "P7")
    assert slide.um_per_px == pytest.approx(4 if "--scale" in flags else 2, rel=1e-3)
    assert marks_at(slide.image, read_spots(slide).coords) == [color(i) for i in section.measured]
    assert not (tmp_path / "data/spatial_plots/P7_refused.png").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p[:, :800], "800 x 700 px are not the proportions of the image that the positions were made on"),
        (lambda p: 255 - p, "does not look like tissue_lowres_image.png"),
    ],
    ids=["cut", "another image"],
)
def test_another_image_is_refused_unless_it_is_asked_for(
    change: Callable[[np.ndarray], np.ndarray], said: str, section: Section, tmp_path: Path, run_command: Run
) -> None:
    write_outs(tmp_path / "P7/outs", section)
    image = write_image(tmp_path / "scan.tif", np.ascontiguousarray(change(section.pixels)))
    code, text = run_command(main, "P7", "--image", image, "--data-root", "data")
    assert (code, said in text) == (1, True)
    code, text = run_command(main, "P7", "--image", image, "--data-root", "data", "--any-place")
    assert (code, said in text) == (0, True)


def test_spots_outside_of_an_image_of_any_other_resolution(section: Section, tmp_path: Path, run_command: Run) -> None:
    outs = write_outs(tmp_path / "P7/outs", section)
    (outs / "spatial/tissue_lowres_image.png").unlink()
    PIL.Image.fromarray(section.pixels).resize((270, 210)).save(tmp_path / "scan.png")
    code, text = run_command(main, "P7", "--image", "scan.png", "--data-root", "data")
    assert code == 1
    assert "spots lie outside of the image (270 x 210 px)" in text
    assert "--scale is its width by that of the image they are of" in text
    assert run_command(main, "P7", "--image", "scan.png", "--data-root", "data", "--scale", 0.3)[0] == 0


def test_pixel_sizes_that_disagree_are_said_and_the_spots_are_believed(
    section: Section, tmp_path: Path, run_command: Run
) -> None:
    write_outs(tmp_path / "P7/outs", section)
    image = write_image(tmp_path / "scan.tif", section.pixels, um_per_px=0.5)
    code, text = run_command(main, "P7", "--image", image, "--data-root", "data")
    assert code == 0
    assert "a pixel has 0.5 um by the image (the TIFF's resolution), and 2 um by the pitch of 100 um" in text
    assert "--um-per-px 0.5 if the first is right" in text
    code, text = run_command(main, "P7", "--image", image, "--data-root", "data", "--um-per-px", 1.9)
    assert code == 0
    assert find_slide(tmp_path / "data", "P7").um_per_px == 1.9
    assert "and 1.9 um by --um-per-px" in text
