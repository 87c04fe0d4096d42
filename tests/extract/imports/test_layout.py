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
from extract.imports.overlay import OFF_TISSUE, ON_TISSUE, write_overlay
from extract.slides.readers import open_image
from hist_cache.errors import InputError
from hist_cache.slides import find_slide
from tests.extract.imports.sources import SIZE, Section, make_section, write_image, write_outs

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def section() -> Section:
    return make_section()


@pytest.fixture(scope="module")
def image(section: Section, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image(tmp_path_factory.mktemp("images") / "scan.tif", section.pixels)


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
        (("empty",), "no measured slide that is read (Space Ranger: an outs/ folder"),
        (("P7",), "P7: which image? give --image F"),
        (("P7", "--image", "none.tif"), "none.tif: no such file"),
        (("P7", "--image", "scan.gif"), ".gif is no ending of a slide's image"),
        (("P7", "P7", "--id", "A"), "--id names one slide"),
        (("P7", "P7", "--image", "scan.gif"), "for several sources give a folder of images"),
        (("P7", "--name", "kidney"), "a dataset of hist-cache has this name"),
        (("P7", "--name", "../x"), "use letters, digits"),
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


def test_names_of_presets_are_taken() -> None:
    check_new_name("mine")
    with pytest.raises(InputError, match="--name her2st"):
        check_new_name("her2st")


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
