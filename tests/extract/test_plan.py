"""What is planned where an earlier version has extracted."""

from dataclasses import replace
from pathlib import Path

import pytest

from extract.plan import Request, plan_extraction
from hist_cache.cache import Cache
from hist_cache.errors import SlideError
from tests.hist_cache.test_fingerprint import unpack_version_0_1


def test_a_cache_of_version_0_1_is_continued(tmp_path: Path) -> None:
    root = unpack_version_0_1(tmp_path)
    cache = Cache(root / "cache/tiny/timm-test_vit-466e3250")
    common = cache.fingerprint().common
    request = Request(root / "hest", (6,), 112.0, common)
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
