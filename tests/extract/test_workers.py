"""Slides extracted by several processes: the same cache as of one, and what happens to a slide that kills them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from extract.chosen_encoder import ChosenEncoder, EncoderPlace
from extract.cli import main
from extract.identity import common_identity
from extract.plan import Request, plan_extraction
from extract.workers import ExtractionSetup, extract_with
from hist_cache.cache import Cache, open_cache
from hist_cache.cache_file import open_complete
from hist_cache.own_tables import own_tables
from hist_cache.processes import ProcessExecutor
from hist_cache.slides import SlideFiles
from hist_cache.sources import HestFolder
from hist_cache.spots import Spots
from hist_cache.verify import verify_slide
from tests.conftest import TINY_ENCODER, write_slide
from tests.extract.test_scheduler import options

Run = Callable[..., tuple[int, str]]
CHOSEN = ChosenEncoder(None, TINY_ENCODER, None, random_weights=True, lora=None)


def digests(cache: Cache) -> dict[str, dict[str, str]]:
    """Digests of all arrays of all files of a cache, tokens too."""
    found = {}
    for path in sorted(cache.folder.glob("*.h5")):
        with open_complete(path) as file:
            found[path.name] = dict(file.digests)
    return found


@pytest.mark.usefixtures("quick")
def test_two_workers_make_the_cache_of_one(hest_root: Path, run_command: Run, tmp_path: Path) -> None:
    for name in ("TINY3", "TINY4"):
        write_slide(hest_root, name)
    wanted = ["--ids", "TINY1,TINY2,TINY3,TINY4", "--tokens-at", "1"]
    code, text = run_command(main, *options(hest_root, *wanted, "--cache", tmp_path / "one"))
    assert code == 0, text
    code, text = run_command(main, *options(hest_root, *wanted, "--cache", tmp_path / "two", "--jobs", 2))
    assert code == 0, text
    assert "2 at once" in text
    assert "crops/s" in text
    one, two = (open_cache(tmp_path / name, "custom") for name in ("one", "two"))
    assert one.folder.name == two.folder.name
    assert digests(one) == digests(two)
    assert len(digests(one)) == 8
    assert all(verify_slide(two.path(slide)) == [] for slide in two.slides)
    assert not [file for file in two.folder.rglob("*") if "partial" in file.name or file.suffix == ".lock"]
    code, text = run_command(main, *options(hest_root, *wanted, "--cache", tmp_path / "two", "--jobs", 2))
    assert code == 0, text
    assert "4 slides complete, 0 to extract" in text


@dataclass(frozen=True)
class PoisonedFolder(HestFolder):
    """Slides of which one kills every process that reads it."""

    poison: str = ""

    def read(self, files: SlideFiles) -> Spots:
        """Read the slide, or die."""
        if files.id == self.poison:
            os._exit(9)
        return super().read(files)


def setup_for(source: HestFolder, folder: Path) -> ExtractionSetup:
    folder.mkdir()
    common = common_identity(CHOSEN.load(), "fp32", 0.0)
    place = EncoderPlace("cpu", "fp32", fast_only=False)
    return ExtractionSetup(CHOSEN, place, Request(source, (6,), 0.0, common), {}, folder, own_tables())


@pytest.mark.usefixtures("quick")
def test_a_slide_that_kills_its_workers_fails_by_name_and_the_others_are_there(hest_root: Path, tmp_path: Path) -> None:
    write_slide(hest_root, "TINY3")
    setup = setup_for(PoisonedFolder(hest_root, poison="TINY2"), tmp_path / "cache")
    plan = plan_extraction(setup.request, ["TINY1", "TINY2", "TINY3"], tmp_path / "cache")
    [error], clock = extract_with(ProcessExecutor(2), plan, setup)
    assert str(error).startswith(f"TINY2: {hest_root / 'wsis/TINY2.tif'}: its process died (exit code 9)")
    assert Cache(tmp_path / "cache").slides == ["TINY1", "TINY3"]
    assert clock.crops == 120
    assert not list((tmp_path / "cache").rglob("*.lock"))


@pytest.mark.usefixtures("quick")
def test_a_bad_slide_does_not_stop_the_others(hest_root: Path, run_command: Run, tmp_path: Path) -> None:
    image = hest_root / "wsis/TINY1.tif"
    image.write_bytes(image.read_bytes()[:-5000])
    code, text = run_command(main, *options(hest_root, "--jobs", 2))
    assert code == 1
    assert "1 slides failed" in text
    assert text.count(f"TINY1: {image}: truncated") == 2  # when it fails, and at the end
    assert open_cache(tmp_path / "cache", "custom").slides == ["TINY2"]


@pytest.mark.usefixtures("quick")
def test_workers_with_another_encoder_do_nothing(hest_root: Path, tmp_path: Path) -> None:
    setup = setup_for(HestFolder(hest_root), tmp_path / "cache")
    other = replace(setup.request, common=setup.request.common | {"encoder": "another"})
    plan = plan_extraction(other, ["TINY1"], tmp_path / "cache")
    with pytest.raises(Exception, match="the encoder here is another one: encoder"):
        extract_with(ProcessExecutor(1), plan, replace(setup, request=other))
    assert not Cache(tmp_path / "cache").slides


def test_options_of_another_engine_are_refused(hest_root: Path, run_command: Run) -> None:
    code, text = run_command(main, *options(hest_root, "--workers", 2))
    assert code == 2
    assert "--workers: is for --engine ray; on this machine --jobs N gives the number" in text


@pytest.mark.usefixtures("quick")
def test_an_encoder_of_the_users_own(hest_root: Path, run_command: Run, tmp_path: Path) -> None:
    own = tmp_path / "mine.toml"
    own.write_text(
        '[encoders.mine]\narchitecture = "test_vit"\narguments = { num_classes = 0 }\npooling = "cls"\n'
        'input_size = 160\nweights = "random"\n'
    )
    given = ["--ids", "TINY1,TINY2", "--data-root", hest_root, "--encoder", "mine", "--own", own]
    code, text = run_command(main, *given, "--jobs", 2)
    assert code == 0, text
    assert len(open_cache(tmp_path / "cache", "custom").slides) == 2
