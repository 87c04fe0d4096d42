"""Which slides a command works on, beside others that live, are dead or are gone."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import extract.claims
import extract.embeddings
from extract.claims import LOCKS, Claims, array_place, own_place
from extract.cli import main
from extract.plan import Request, plan_extraction
from hist_cache.cache import Cache
from hist_cache.files import HOST
from hist_cache.leases import LEASE_S, Leases
from hist_cache.slide_file import read_slide, write_slide
from hist_cache.sources import HestFolder
from tests.extract.test_scheduler import cache_of, options
from tests.hist_cache.test_leases import holder
from tests.small import unfinished

Run = Callable[..., tuple[int, str]]
ELSEWHERE = holder(machine="elsewhere", pid=12)


@pytest.fixture(scope="module")
def made(tiny_slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the tiny slides, which tests copy."""
    cache = tmp_path_factory.mktemp("made") / "cache"
    assert main([str(a) for a in options(tiny_slides, "--cache", cache)]) == 0
    return cache


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Cache:
    shutil.copytree(made, tmp_path / "cache")
    return cache_of(tmp_path)


def lock(cache: Cache, slide: str, text: str = ELSEWHERE, age_s: float = 0.0) -> Path:
    file = cache.folder / LOCKS / f"{slide}.lock"
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    then = time.time() - age_s
    os.utime(file, (then, then))
    return file


def request_of(cache: Cache, root: Path) -> Request:
    return Request(HestFolder(root), (6,), 0.0, cache.fingerprint().common)


def test_a_host_that_is_gone_stops_nobody(hest_root: Path, copied: Cache, run_command: Run) -> None:
    copied.path("TINY1").unlink()
    file = lock(copied, "TINY1", age_s=LEASE_S + 60)
    code, text = run_command(main, *options(hest_root))
    assert code == 0, text
    assert "others are at" not in text
    assert copied.slides == ["TINY1", "TINY2"]
    assert not file.exists()


def test_no_wait_names_the_slides_in_other_hands(hest_root: Path, copied: Cache, run_command: Run) -> None:
    for slide in copied.slides:
        copied.path(slide).unlink()
    file = lock(copied, "TINY1")
    code, text = run_command(main, *options(hest_root, "--no-wait"))
    assert code == 0, text
    assert text.count("not waited for, others are at 1 slides: TINY1 (process 12 on n1)") == 1
    assert copied.slides == ["TINY2"]
    assert file.read_text() == ELSEWHERE


def test_another_is_waited_for_until_it_is_gone(
    hest_root: Path, copied: Cache, run_command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied.path("TINY2").unlink()
    file = lock(copied, "TINY2")
    sleep = time.sleep

    def pause(seconds: float) -> None:
        if file.exists():
            os.utime(file, (1, 1))
        sleep(seconds)

    monkeypatch.setattr(extract.claims, "ROUND_S", 0.05)
    monkeypatch.setattr(extract.claims.time, "sleep", pause)
    code, text = run_command(main, *options(hest_root))
    assert code == 0, text
    assert text.count("others are at what is left: TINY2 (process 12 on n1)") == 1
    assert copied.slides == ["TINY1", "TINY2"]


def test_another_is_not_waited_for_without_end(
    hest_root: Path, copied: Cache, run_command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied.path("TINY2").unlink()
    monkeypatch.setattr(extract.claims, "ROUND_S", 0.05)
    monkeypatch.setattr(extract.claims, "LONGEST_WAIT_S", 0.2)
    lock(copied, "TINY2")
    code, text = run_command(main, *options(hest_root))
    assert code == 1, text
    assert f"{LOCKS}/TINY2.lock: process 12 on n1 has been at it for 0 s; end that process and run this again" in text


def test_slides_in_other_hands_are_tried_again_after_a_while_only(
    hest_root: Path, copied: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    for slide in copied.slides:
        copied.path(slide).unlink()
        lock(copied, slide)
    request, tried = request_of_new(copied, hest_root), []
    take = Leases.take
    monkeypatch.setattr(Leases, "take", lambda self, name: tried.append(name) or take(self, name))
    with Claims(plan_extraction(request, ["TINY1", "TINY2"], copied.folder), request) as claims:
        for _ in range(5):
            assert claims.take(wait=False) is None
        assert (claims.left, sorted(tried)) == (2, ["TINY1", "TINY2"])
        monkeypatch.setattr(claims, "_next_round", 0.0)
        (copied.folder / LOCKS / "TINY2.lock").unlink()
        claim = claims.take(wait=False)
        assert claim is not None
        assert claim.task.files.id == "TINY2"
        assert claims.left == 1


def request_of_new(cache: Cache, root: Path) -> Request:
    return Request(HestFolder(root), (6,), 0.0, {})


def test_elements_of_an_array_begin_at_different_places(monkeypatch: pytest.MonkeyPatch) -> None:
    assert array_place() == 0.0
    for number, expected in ((4, 0.0), (6, 0.25), (8, 0.5), (10, 0.75)):
        for name, value in (("ID", number), ("MIN", 4), ("STEP", 2), ("COUNT", 4)):
            monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
        assert array_place() == expected
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "none")
    assert array_place() == 0.0
    assert 0 <= own_place() < 1


@pytest.mark.parametrize(("element", "order"), [(None, "0123"), (0, "0123"), (1, "2301")])
def test_the_order_of_slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, element: int | None, order: str) -> None:
    if element is not None:
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(element))
        monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    assert taken(tmp_path, monkeypatch) == order


def test_beside_another_command_the_order_is_turned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract.claims, "own_place", lambda: 0.5)
    first = Leases(tmp_path / LOCKS)
    assert first.take("0") is not None
    assert taken(tmp_path, monkeypatch) == "312"
    first.close()


def taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The order in which slides 0 to 3 are claimed."""
    from extract.plan import ExtractionPlan, Task
    from hist_cache.header_index import HeaderIndex
    from hist_cache.slides import SlideFiles

    tasks = [
        Task(SlideFiles(name, folder, folder, {}, 1.0, 1.0, 1.0, None), folder / f"{name}.h5", "new", (6,), 1)
        for name in "0123"
    ]
    by_id = {task.files.id: task for task in tasks}
    monkeypatch.setattr(extract.claims, "plan_slide", lambda request, slide, headers, known: by_id[slide])
    order = ""
    with Claims(ExtractionPlan(HeaderIndex(folder), tasks), Request(HestFolder(folder), (6,), 0.0, {})) as claims:
        while claim := claims.take(wait=False):
            order += claim.task.files.id
    return order


def test_what_others_add_meanwhile_is_kept(
    hest_root: Path, copied: Cache, run_command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--neighbors 18` beside `--neighbors 36`, where locks do not hold: both sizes are there in the end."""
    code, text = run_command(main, *options(hest_root, "--neighbors", "36", "--cache", copied.folder.parents[1]))
    assert code == 0, text
    complete = {slide: read_slide(copied.path(slide)) for slide in copied.slides}
    fingerprint = copied.fingerprint()
    only_6 = {slide: read_slide(copied.path(slide), [6]) for slide in copied.slides}
    for slide, content in only_6.items():
        content.attributes = {k: v for k, v in content.attributes.items() if k != "side_um/36"}
        write_slide(copied.path(slide), content, copied.headers.header(copied.path(slide)).fingerprint)
    assert copied.headers.header(copied.path("TINY1")).sizes == [6]
    embed = extract.embeddings.embed

    def embed_beside_another(task: object, *others: object) -> object:
        made = embed(task, *others)
        path = copied.path(task.files.id)
        write_slide(path, complete[task.files.id], copied.headers.header(path).fingerprint)
        return made

    monkeypatch.setattr(extract.embeddings, "embed", embed_beside_another)
    code, text = run_command(main, *options(hest_root, "--neighbors", "18"))
    assert code == 0, text
    for slide, before in complete.items():
        after = read_slide(copied.path(slide))
        assert sorted(after.niches) == [6, 18, 36]
        assert after.digests.items() >= {k: v for k, v in before.digests.items() if k != "attributes"}.items()
        assert after.attributes["side_um/36"] == before.attributes["side_um/36"]
    assert fingerprint.common == Cache(copied.folder).fingerprint().common


def test_of_two_that_add_at_the_same_moment_the_next_run_adds_one_again(
    hest_root: Path, copied: Cache, run_command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract.embeddings, "take_niches", lambda *_: None)  # read before the other one had renamed
    before = {slide: copied.path(slide).read_bytes() for slide in copied.slides}
    assert run_command(main, *options(hest_root, "--neighbors", "36"))[0] == 0
    lost = read_slide(copied.path("TINY1")).digests
    for slide, content in before.items():
        copied.path(slide).write_bytes(content)
    assert run_command(main, *options(hest_root, "--neighbors", "18"))[0] == 0
    assert sorted(read_slide(copied.path("TINY1")).niches) == [6, 18]
    monkeypatch.undo()
    code, text = run_command(main, *options(hest_root, "--neighbors", "18,36", "--cache", copied.folder.parents[1]))
    assert code == 0, text
    assert "2 to add niches to" in text
    after = read_slide(copied.path("TINY1"))
    assert sorted(after.niches) == [6, 18, 36]
    assert after.digests["niche/36"] == lost["niche/36"]


def test_leftovers_are_told_apart_and_removed(hest_root: Path, copied: Cache, run_command: Run) -> None:
    """Also where all slides are complete."""
    folder, pid = copied.folder, os.getpid()
    names = {
        f"TINY1.h5.{HOST}-{2**30}-0123abcd.partial": "left by a killed run; the next run removes it",
        f"TINY1.h5.{HOST}-{pid}-0123abcd.partial": f"being written by process {pid}",
        "TINY1.h5.n1-12-0123abcd.partial": "being written on n1, or left there; last written ",
        "TINY2.h5.n1-12-0123abcd.partial": "being written on n1, or left there; last written ",
        "TINY2.tokens4.h5.n1-12-0123abcd.partial": "being written on n1, or left there; last written ",
        "TINY2.h5.partial": "left by a killed run; the next run removes it",
        f"index.sqlite.{HOST}-{2**30}-0123abcd.partial": "left by a killed run; the next run removes it",
    }
    for name in names:
        (folder / name).write_bytes(b"half")
    long_ago = time.time() - LEASE_S - 60
    for name in ("TINY1.h5.n1-12-0123abcd.partial", "TINY2.tokens4.h5.n1-12-0123abcd.partial"):
        os.utime(folder / name, (long_ago, long_ago))
    lock(copied, "TINY2.tokens4", ELSEWHERE)  # it stands still, but its writer renews the lease
    code, text = run_command(main, "--ids", "TINY1,TINY2", "--status")
    assert code == 0
    for name, what in names.items():
        assert f"  {name}: {what}" in text
    code, text = run_command(main, *options(hest_root))
    assert code == 0, text
    assert [path.name for path in unfinished(folder)] == [
        f"TINY1.h5.{HOST}-{pid}-0123abcd.partial",
        "TINY2.h5.n1-12-0123abcd.partial",
        "TINY2.tokens4.h5.n1-12-0123abcd.partial",
    ]
    assert text.count("left by a run that was killed") == 4
    assert json.loads((folder / LOCKS / "TINY2.tokens4.lock").read_text())["pid"] == 12
