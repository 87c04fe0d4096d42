"""What is written, what is replaced, datasets in hist.toml, and the picture of the spots."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from extract.imports.cli import main
from extract.imports.dataset_entry import add_to_dataset, check_new_name
from extract.imports.element_image import write_element
from extract.imports.options import ImportOptions
from extract.imports.overlay import OFF_TISSUE, ON_TISSUE, write_overlay
from extract.slides.readers import open_image
from hist_cache.errors import InputError
from hist_cache.slides import find_slide
from tests.extract.imports.sources import SIZE, Section, write_outs

Run = Callable[..., tuple[int, str]]


def test_the_same_source_is_replaced_and_another_only_if_that_is_said(
    section: Section, image: Path, tmp_path: Path, run_command: Run
) -> None:
    write_outs(tmp_path / "P7/outs", section)
    write_outs(tmp_path / "other/P7/outs", section)
    assert "(new)" in run_command(main, "P7", "--image", image)[1]
    metadata = tmp_path / "data/metadata/P7.json"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"patient": "Patient 3", "organ": "Liver"}))
    assert "(replaced)" in run_command(main, "P7/outs", "--image", image)[1]
    values = json.loads(metadata.read_text())
    assert (values["patient"], values["organ"]) == ("Patient 3", "Liver")  # what users add stays
    assert values["hist_import"]["source"] == str(tmp_path / "P7")
    code, text = run_command(main, "other/P7", "--image", image)
    assert code == 2
    assert f"has a slide P7 from {tmp_path / 'P7'}; give --id for another ID, or --replace" in text
    assert run_command(main, "other/P7", "--image", image, "--replace")[0] == 0
    assert run_command(main, "P7", "--image", image, "--id", "P8")[0] == 0
    picture = tmp_path / "scan.png"
    PIL.Image.fromarray(section.pixels).save(picture)
    assert run_command(main, "P7", "--image", picture, "--id", "P8")[0] == 0
    assert find_slide(tmp_path / "data", "P8").image.resolve() == picture
    assert not (tmp_path / "data/wsis/P8.tif").is_symlink()


def test_a_dry_run_writes_nothing(section: Section, image: Path, tmp_path: Path, run_command: Run) -> None:
    write_outs(tmp_path / "P7/outs", section)
    code, text = run_command(main, "P7", "--image", image, "--name", "mine", "--dry-run")
    assert code == 0
    assert "100% of the spots lie on tissue" in text
    assert not (tmp_path / "data").exists()


def test_where_links_are_impossible_the_image_is_copied_and_that_is_said(
    section: Section, image: Path, tmp_path: Path, run_command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: object, **more: object) -> None:
        raise OSError(1, "Operation not permitted")

    write_outs(tmp_path / "P7/outs", section)
    monkeypatch.setattr(os, "symlink", refuse)
    code, text = run_command(main, "P7", "--image", image)
    assert code == 0
    assert "no link to" in text
    copy = tmp_path / "data/wsis/P7.tif"
    assert not copy.is_symlink()
    assert copy.read_bytes() == image.read_bytes()


def test_several_sources_become_a_dataset_and_one_that_fails_is_named(
    section: Section, image: Path, tmp_path: Path, run_command: Run
) -> None:
    (tmp_path / "images").mkdir()
    for slide in ("P7", "P8"):
        write_outs(tmp_path / slide / "outs", section)
        (tmp_path / f"images/{slide}.tif").symlink_to(image)
    write_outs(tmp_path / "P9/outs", section)
    argv = (main, "P7", "P8", "P9", "nothing", "--image", "images", "--name", "mine", "--data-root", "data")
    code, text = run_command(*argv)
    assert code == 1
    assert "no image called P9 in this folder" in text
    assert "nothing: no such file or folder" in text
    assert "next: hist-extract --dataset mine --data-root data" in text
    assert tomllib.loads((tmp_path / "data/hist.toml").read_text()) == {"datasets": {"mine": {"ids": ["P7", "P8"]}}}


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("empty",), "no measured slide that is read (Visium HD: an outs/ folder"),
        (("P7",), "P7: which image? give --image F"),
        (("P7", "--image", "none.tif"), "none.tif: no such file"),
        (("P7", "--image", "scan.gif"), ".gif is no ending of a slide's image"),
        (("P7", "P7", "--id", "A"), "--id names one slide"),
        (("P7", "P7", "--image", "scan.gif"), "for several sources give a folder of images"),
        (("P7", "--name", "kidney"), "this program has one of that name"),
        (("P7", "--name", "../x"), "a name has letters, digits"),
        (("P7", "--scale", "0"), "must be above 0"),
    ],
)
def test_one_line_says_what_is_wrong(
    argv: tuple[str, ...], said: str, section: Section, tmp_path: Path, run_command: Run
) -> None:
    write_outs(tmp_path / "P7/outs", section)
    (tmp_path / "empty").mkdir()
    (tmp_path / "scan.gif").write_bytes(b"GIF89a")
    code, text = run_command(main, *argv, "--data-root", "data")
    assert code in (1, 2)
    assert said in text
    assert len(text.splitlines()) == 1


def test_a_dataset_is_added_and_the_rest_of_the_file_stays(tmp_path: Path) -> None:
    file = tmp_path / "hist.toml"
    assert add_to_dataset(tmp_path, "mine", ["A", "B"]) == file
    assert file.read_text() == '[datasets.mine]\nids = ["A", "B"]\n'
    text = """# my data
[datasets.mine]  # livers
title = "Livers [2024]"
ids = [  # two
  "A",
  "B",
]
split = "patient"

[datasets.mine.patients]
"Patient 1" = ["A", "B"]

[encoders.own]
width = 3
"""
    file.write_text(text)
    add_to_dataset(tmp_path, "mine", ["B", "C"])
    assert file.read_text() == text.replace('ids = [  # two\n  "A",\n  "B",\n]', 'ids = ["A", "B", "C"]')
    add_to_dataset(tmp_path, "dotted.name", ["Ä 1"])
    assert tomllib.loads(file.read_text())["datasets"]["dotted.name"] == {"ids": ["Ä 1"]}
    assert file.read_text().startswith("# my data\n")


@pytest.mark.parametrize("text", ['datasets = {mine = {ids = ["A"]}}\n', "datasets = 3\n", "[datasets.mine"])
def test_a_file_that_cannot_be_changed_stays_as_it_is(text: str, tmp_path: Path) -> None:
    (tmp_path / "hist.toml").write_text(text)
    with pytest.raises(InputError, match=r"hist\.toml: (change it by hand|not TOML)"):
        add_to_dataset(tmp_path, "mine", ["B"])
    assert (tmp_path / "hist.toml").read_text() == text


def test_names_of_the_program_are_taken() -> None:
    check_new_name("mine")
    for name in ("her2st", "default", "all", "a b"):
        with pytest.raises(InputError, match=f"--name {name}"):
            check_new_name(name)


def test_images_that_are_no_links_are_neither_lost_nor_read_in_place_of_the_new_one(
    section: Section, image: Path, tmp_path: Path, run_command: Run
) -> None:
    write_outs(tmp_path / "P7/outs", section)
    kept = tmp_path / "data/wsis/P7.tif"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"the only copy")
    code, text = run_command(main, "P7", "--image", image)
    assert (code, f"P7.tif: is not {image} and would be replaced" in " ".join(text.split())) == (2, True)
    assert kept.read_bytes() == b"the only copy"
    picture = tmp_path / "scan.png"
    PIL.Image.fromarray(section.pixels).save(picture)
    code, text = run_command(main, "P7", "--image", picture, "--replace")  # P7.tif would come before P7.png
    assert (code, "P7.tif: another image of P7; move it away" in " ".join(text.split())) == (2, True)
    assert run_command(main, "P7", "--image", image, "--replace")[0] == 0
    assert kept.resolve() == image


def test_options_for_another_kind_of_source_are_refused(
    section: Section, image: Path, tmp_path: Path, run_command: Run
) -> None:
    write_outs(tmp_path / "P7/outs", section)
    for name, value in (("alignment", "m.csv"), ("positions", "p.tsv"), ("pitch", 100), ("spot", 55), ("bin", 16)):
        code, text = run_command(main, "P7", "--image", image, f"--{name}", value)
        assert code == 2
        assert f"--{name} is not for a source of the kind Space Ranger; leave it out" in " ".join(text.split())


def test_two_stores_of_one_name_have_images_of_their_own(tmp_path: Path) -> None:
    class Pixels:  # as much of an element as is needed
        def __init__(self, value: int) -> None:
            self.data = np.full((3, 30, 40), value, dtype=np.uint8)
            self.shape, self.dtype = self.data.shape, self.data.dtype

        def transpose(self, *axes: str) -> Pixels:
            return self

    options = ImportOptions(source=("P7.zarr",), data_root=str(tmp_path / "data"))
    files = []
    for value, folder in ((50, "A"), (90, "B")):
        files.append(write_element("P7", tmp_path / folder / "P7.zarr", "he", Pixels(value), options))
    assert [PIL.Image.open(file).getpixel((5, 5)) for file in files] == [(50, 50, 50), (90, 90, 90)]


def test_the_picture_has_outlines_where_spots_are_and_counts_beside(
    section: Section, image: Path, tmp_path: Path
) -> None:
    coords = np.array([[300.0, 200.0], [600.0, 500.0]])
    opened = open_image("P7", image)
    write_overlay(tmp_path / "a.png", opened, coords, 40.0, np.array([True, False]), np.array([1.0, 100.0]))
    opened.close()
    with PIL.Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (2 * SIZE[0], SIZE[1])
        assert picture.getpixel((300, 200 - 20)) == ON_TISSUE
        assert picture.getpixel((600, 500 - 20)) == OFF_TISSUE
        assert picture.getpixel((SIZE[0] + 300, 200)) == (68, 1, 84)  # the first and the last colour of viridis
        assert picture.getpixel((SIZE[0] + 600, 500)) == (253, 231, 37)
