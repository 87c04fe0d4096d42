"""A HEST folder of tiny slides, and where the real ones are, if anywhere."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import settings
from scipy.sparse import csr_matrix

from hist_cache.options import UNEXPECTED
from hist_cache.own_tables import OwnTables
from tests.commands import REPOSITORY, Command, make_quick

settings.register_profile("any speed", deadline=None, max_examples=40)  # a busy machine is no fault of the code
settings.load_profile("any speed")
SHARED = REPOSITORY.parent / "shared"
CHROMIUM = shutil.which("chromium")
TINY_ENCODER = "timm:test_vit"  # 160 px input, width 64: a test model that timm ships

needs_shared = pytest.mark.skipif(not (SHARED / "hest").is_dir(), reason="no ../shared/hest beside the repository")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs a browser or a database: `make test-fast` leaves it out. Then put files of slow tests first.

    Else a worker may begin a long test when the others have nothing left to do. Each worker begins with a part of equal
    length of what is collected, so each part has slow files first; of these the files in order, each in one piece.
    """
    for item in items:
        for fixture, mark in (("browser", "browser"), ("postgres_server", "database")):
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(mark)
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    marks = ("slow", "long")
    slow = [any(item.get_closest_marker(mark) for item in file for mark in marks) for file in files.values()]
    order = sorted(zip(slow, files.values(), strict=True), key=lambda pair: not pair[0])
    parts: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for i, (_, file) in enumerate(order):
        parts[i % workers] += file
    items[:] = [item for part in sorted(parts, key=len, reverse=True) for item in part]


def write_slide(root: Path, slide: str, *, rows: int = 6, columns: int = 10, um_per_px: float = 2.0, seed: int = 0,
                genes: int = 30, metadata: dict[str, Any] | None = None) -> Path:  # fmt: skip
    """A hex lattice of about rows x columns / 2 spots on noise, 100 um pitch; returns the h5ad's path."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[0:rows, 0:columns].reshape(2, -1)
    keep = (row + column) % 2 == 0
    row, column = row[keep], column[keep]
    xy = np.stack([column * 50.0 + 100, row * 86.6 + 100], axis=1) / um_per_px
    width, height = (int(v) + round(100 / um_per_px) for v in xy.max(0))
    for folder in ("st", "wsis", "metadata"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    image = rng.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    image = np.kron(image, np.ones((8, 8, 1), dtype=np.uint8))[:height, :width]
    tifffile.imwrite(root / "wsis" / f"{slide}.tif", image, tile=(64, 64), compression="jpeg", photometric="rgb")
    shade = np.array([image[int(y) - 5 : int(y) + 5, int(x) - 5 : int(x) + 5].mean() for x, y in xy]) / 255
    rate = 2 + 20 * np.outer(shade, rng.random(genes)) * rng.gamma(2, 1, genes)
    counts = rng.poisson(rate).astype(np.float32)
    barcodes = [f"{r:03d}x{c:03d}" for r, c in zip(row, column, strict=True)]
    table = anndata.AnnData(
        X=csr_matrix(counts),
        obs=pd.DataFrame({"array_row": row, "array_col": column}, index=barcodes),
        var=pd.DataFrame(index=[f"GENE{i}" for i in range(genes)]),
        obsm={"spatial": xy},
    )
    path = root / "st" / f"{slide}.h5ad"
    table.write_h5ad(path)
    described = {
        "id": slide,
        "st_technology": "Visium",
        "pixel_size_um_estimated": um_per_px,
        "patient": None,
    }
    (root / "metadata" / f"{slide}.json").write_text(json.dumps(described | (metadata or {})))
    return path


def stored_version(folder: Path) -> Path:
    """Unpack what version 0.1 left of its caches, runs and a study into a folder."""
    with tarfile.open(REPOSITORY / "tests/data/version_0_1.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


HIST_EXTRACT = "from extract.cli import main; raise SystemExit(main())"
HIST_TRAIN = "from train.cli import main; raise SystemExit(main())"
TALKATIVE = """import sys
import hist_cache.console
hist_cache.console.PLAIN_EVERY_S = 0.1
from train.cli import main
if __name__ == "__main__":
    sys.exit(main())
"""  # hist-train that tells of every epoch


def epochs_run(fold: Path) -> int:
    """Epochs after which a stopped fold wrote its checkpoint."""
    import torch

    from train.fit.checkpoints import Checkpoint

    stored = Checkpoint(fold / "checkpoint.pt").read(torch.device("cpu"))
    assert stored is not None
    return int(stored[1]["progress"]["epoch"])


def wait_for_epochs(process: Any, folds: int = 1) -> None:
    """Until a talkative hist-train, a `Popen` or a `Command`, has trained so many folds for an epoch at least."""
    heard: set[str] = set()
    while len(heard) < folds:
        line = process.stdout.readline()
        assert line, "it ended"
        if ": epoch " in line:
            heard.add(line.split(": epoch ")[0].rpartition(" ")[2])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for tests that open pages in it."""
    if CHROMIUM is None:
        pytest.skip("no chromium here (apt-get install chromium)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright here (pip install playwright)")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Give torch its threads back: numba, by which scanpy computes, takes as many as there are cores for all of OpenMP.

    With another number of threads, sums have other last digits, and a training is not that of a new process any more.
    """
    torch = sys.modules.get("torch")
    before = None if torch is None else torch.get_num_threads()
    yield
    if before is not None and sys.modules["torch"].get_num_threads() != before:
        sys.modules["torch"].set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A HEST folder with slides TINY1 and TINY2, which tests copy and leave as it is."""
    root = tmp_path_factory.mktemp("tiny") / "hest"
    for i in (1, 2):
        write_slide(root, f"TINY{i}", seed=i)
    return root


@pytest.fixture
def hest_root(tiny_slides: Path, tmp_path: Path) -> Path:
    """A HEST folder with slides TINY1 and TINY2."""
    return Path(shutil.copytree(tiny_slides, tmp_path / "hest"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of `tests.small` beside its slides, which tests leave as they are; some files have one of their own."""
    from tests.small import make_cache  # it imports this file

    return make_cache(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def plain_runs(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one training on that cache gives, in a process of its own, which tests leave as it is."""
    from tests.small import TRAIN

    folder = tmp_path_factory.mktemp("runs")
    argv = [str(a) for a in ("--cache", cache, "--runs", folder, *TRAIN)]
    command = Command(HIST_TRAIN, argv)
    try:
        text, _ = command.communicate()
        assert command.returncode == 0, text
    finally:
        command.end()
    return folder


@pytest.fixture
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blank figures and no new processes, unless the test is marked `unpatched`; see `tests.commands`."""
    if request.node.get_closest_marker("unpatched") is None:
        make_quick(monkeypatch)


@pytest.fixture
def start_command() -> Iterator[Callable[..., Command]]:
    """Start a script with arguments in a process of its own, which ends with the test."""
    commands: list[Command] = []

    def start(script: str, *argv: object, file: Path | None = None) -> Command:
        commands.append(Command(script, [str(a) for a in argv], file))
        return commands[-1]

    yield start
    for command in commands:
        command.end()


@pytest.fixture
def run_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quick: None
) -> Callable[..., tuple[int, str]]:
    """Call a command's main in this process, in a folder of its own: (exit code, all it printed)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hist_cache.own_tables._current", [OwnTables()])  # those before the test are back after it
    for name in ("HIST_CACHE", "HIST_RUNS", "HIST_DATA", "HIST_TOML"):
        monkeypatch.delenv(name, raising=False)

    def call(main: Callable[[list[str]], int], *argv: object) -> tuple[int, str]:
        capsys.readouterr()
        try:
            code = main([str(a) for a in argv])
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        assert UNEXPECTED not in printed.err, printed.err  # a fault of the program, not of its input
        return code, printed.out + printed.err

    return call
