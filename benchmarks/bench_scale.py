"""What many slides cost before the first crop is encoded.

    python benchmarks/bench_scale.py [--slides 10000]

Planning: seconds in which hist-extract finds that all slides of a folder are complete, and hist-train finds what they
were made from, beside an index. The slides are links to one that is generated, so that their files are in memory: on a
shared file system, each call of the system takes longer.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from unittest import mock

from results import add_json_option, add_results

import extract.cli
import hist_cache.header_index
from extract.plan import Request, plan_extraction
from hist_cache.cache import Cache
from hist_cache.demo.slides import DEMO_IDS, write_demo
from hist_cache.header_index import HeaderIndex
from hist_cache.slide_file import read_header
from hist_cache.slides import find_slide
from hist_cache.sources import HestFolder


def linked_slides(folder: Path, root: Path, slide: str, made: Path, n: int) -> tuple[list[str], Path]:
    """Link a slide and its cache file under many names, and index the links.

    Args:
        folder: To link in: `hest`, and `cache`.
        root: Folder of the slide.
        slide: Its ID.
        made: Its cache file.
        n: How many.

    Returns:
        The IDs, and the cache folder.
    """
    files = find_slide(root, slide)
    cache = folder / "cache" / made.parent.name
    cache.mkdir(parents=True)
    names = [f"MANY{i}" for i in range(n)]
    for kind, file in (("st", files.table), ("wsis", files.image), ("metadata", root / f"metadata/{slide}.json")):
        (folder / "hest" / kind).mkdir(parents=True)
        for name in names:
            os.symlink(file.resolve(), folder / "hest" / kind / f"{name}{file.suffix}")
    header, index = read_header(made), HeaderIndex(cache)
    with mock.patch.object(hist_cache.header_index, "read_header", return_value=header):  # which knows its own name
        for name in names:
            os.symlink(made.resolve(), cache / f"{name}.h5")
            index.header(cache / f"{name}.h5")
    with mock.patch.object(hist_cache.header_index, "MIN_NEW", 1):
        index.save()
    return names, cache


def plan_many(folder: Path, names: list[str], cache: Path) -> tuple[float, float]:
    """Plan linked slides; returns the seconds of hist-extract's planning and of hist-train's metadata."""
    header = HeaderIndex(cache).header(cache / f"{names[0]}.h5")
    began = time.perf_counter()
    plan = plan_extraction(Request(HestFolder(folder / "hest"), (6,), 0.0, header.fingerprint.common), names, cache)
    planned = time.perf_counter()
    Cache(cache).fingerprint()
    read = time.perf_counter()
    states = {task.state for task in plan.tasks}
    if plan.failed or states != {"complete"} or len(plan.tasks) != len(names):
        raise SystemExit(f"the slides are not complete: {states}, {plan.failed[:1]}")
    return planned - began, read - planned


def planning(n: int) -> dict[str, float]:
    """Measure and print what planning many complete slides takes."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_demo(folder / "demo", DEMO_IDS[:1])
        slide = DEMO_IDS[0]
        argv = ["--ids", slide, "--data-root", str(folder / "demo"), "--cache", str(folder / "made")]
        if extract.cli.main([*argv, "--encoder", "timm:test_vit", "--random-weights", "--precision", "fp32"]):
            raise SystemExit("the slide could not be extracted")
        [made] = (folder / "made").glob(f"*/*/{slide}.h5")
        plan_s, metadata_s = plan_many(folder, *linked_slides(folder, folder / "demo", slide, made, n))
    print(f"planning {n:,} complete slides: {plan_s:.1f} s; what hist-train reads of them: {metadata_s:.1f} s")
    return {"slides": n, "planning_s": plan_s, "metadata_s": metadata_s}


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=10_000, metavar="N", help="how many slides (default: 10000)")
    add_json_option(parser)
    args = parser.parse_args()
    add_results(args.json, "scale", planning(args.slides))


if __name__ == "__main__":
    main()
