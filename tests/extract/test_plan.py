"""What is planned where an earlier version has extracted."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from extract.cli import main
from extract.plan import Request, plan_extraction
from extract.slides.image import Image
from extract.slides.readers import open_image
from hist_cache.cache import Cache, open_cache
from hist_cache.errors import SlideError
from hist_cache.sources import HestFolder
from tests.hist_cache.test_fingerprint import unpack_version_0_1


def test_a_cache_of_version_0_1_is_continued(tmp_path: Path) -> None:
    root = unpack_version_0_1(tmp_path)
    cache = Cache(root / "cache/tiny/timm-test_vit-466e3250")
    common = cache.fingerprint().common
    request = Request(HestFolder(root / "hest"), (6,), 112.0, common)
    plan = plan_extraction(request, cache.slides, cache.folder)
    assert [task.state for task in plan.tasks] == ["complete"] * 3
    assert (plan.failed, plan.crops) == ([], 0)
    plan = plan_extraction(replace(request, sizes=(6, 18)), cache.slides, cache.folder)
    assert [(task.state, task.missing) for task in plan.tasks] == [("add", (18,))] * 3

    other = replace(request, common=common | {"crop_rule": {"min_spot_um": 0.0}})
    plan = plan_extraction(other, cache.slides, cache.folder)
    assert plan.tasks == []
    with pytest.raises(SlideError, match='stale: spot_crop_um "spot diameter, at least 112" -> "spot diameter"'):
        raise plan.failed[0]


def test_a_complete_cache_is_planned_without_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the files are those of the fingerprint, the cache knows all that a plan needs of them."""
    root = unpack_version_0_1(tmp_path)
    cache = Cache(root / "cache/tiny/timm-test_vit-466e3250")
    request = Request(HestFolder(root / "hest"), (6, 18), 112.0, cache.fingerprint().common)

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("the table is opened")

    monkeypatch.setattr("hist_cache.h5ad.first_reader", refuse)
    plan = plan_extraction(request, cache.slides, cache.folder)
    assert plan.failed == []
    assert [task.spots for task in plan.tasks] == [len(cache.read(slide)) for slide in cache.slides]
    plan = plan_extraction(request, cache.slides, tmp_path / "new")
    assert ["the table is opened" in str(error) for error in plan.failed] == [True] * 3


def test_the_images_of_a_complete_cache_stay_closed(
    hest_root: Path, run_command: Callable[..., tuple[int, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until a file or the version of a reader is another one."""
    options = ("--ids", "TINY1,TINY2", "--data-root", hest_root, "--encoder", "demo")
    assert run_command(main, *options)[0] == 0
    cache = open_cache(tmp_path / "cache", "custom")
    request = Request(HestFolder(hest_root), (6,), 0.0, cache.fingerprint().common)
    opened: list[str] = []

    def open_and_tell(slide: str, image: Path) -> Image:
        opened.append(slide)
        return open_image(slide, image)

    monkeypatch.setattr("extract.plan.open_image", open_and_tell)

    def states() -> list[str]:
        opened.clear()
        return [task.state for task in plan_extraction(request, cache.slides, cache.folder).tasks]

    assert (states(), opened) == (["complete"] * 2, [])
    os.utime(hest_root / "wsis/TINY2.tif", ns=(1, 1))
    assert (states(), opened) == (["complete"] * 2, ["TINY2"])
    with monkeypatch.context() as another:
        another.setattr("extract.identity.versions", lambda: {"tifffile": "another"})
        assert (states(), opened) == (["complete"] * 2, ["TINY1", "TINY2"])
    monkeypatch.setattr("extract.identity.READER_RULES", 0)
    assert (states(), opened) == (["complete"] * 2, ["TINY1", "TINY2"])
