"""Run the tests that need a GPU, then the benchmarks, unattended; all results end in one JSON file.

    make gpu                    or: python benchmarks/gpu.py --out gpu-results [--minutes 8.5] [--only fold,train]

Data are generated and weights random; nothing is fetched. Each part is a process with a time limit of its own, so that
one that hangs or fails costs no other, and the most important come first. `gpu.json` is complete after every part: what
was not reached is missing in it. `gpu.log` has all that the parts printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from results import write_whole

REPOSITORY = Path(__file__).resolve().parents[1]
BENCHMARKS = Path("benchmarks")
LARGE = "timm:vit_large_patch16_224"
IMPORTED_AS = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "openslide-python": "openslide"}
IMPORTED_AS |= {"openslide-bin": "openslide_bin", "psycopg[binary]": "psycopg", "sqlalchemy": "sqlalchemy"}
FOR_TESTS = ("pytest", "pytest_timeout")


@dataclass(frozen=True)
class Part:
    """One process: its name, the arguments of python, and how many seconds it may take at most."""

    name: str
    argv: list[str]
    limit_s: float


def parts(results: Path) -> Iterator[Part]:
    """All parts, the most important first."""
    sources = sorted((REPOSITORY / "tests").rglob("test_*.py"))
    files = [str(f.relative_to(REPOSITORY)) for f in sources if re.search(r"@on_cuda|mark\.gpu", f.read_text())]
    pytest = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    yield Part("tests", [*pytest, "--timeout=60", "--durations=10", "--tb=short", *files], 200)
    figures = ["--json", str(results)]
    yield bench(
        "extract",
        110,
        "--generated",
        "--encoder",
        LARGE,
        "--precision",
        "bf16",
        "--no-usual",
        "--rounds",
        "2",
        *figures,
    )
    yield bench("fold", 150, *figures)
    yield bench("train", 80, *figures)
    yield bench("finetune", 150, "--spots", "256", "--batch", "64", "--rounds", "2", *figures)
    yield bench("grid", 100, "--repeats", "1", *figures)


def bench(name: str, limit_s: float, *argv: str) -> Part:
    """The part that runs a benchmark."""
    return Part(name, [str(BENCHMARKS / f"bench_{name}.py"), *argv], limit_s)


def missing_packages() -> list[str]:
    """Packages that the project or its tests need and that this Python lacks."""
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    names = [re.split(r"[<>=]", dependency)[0].strip().lower() for dependency in project["dependencies"]]
    modules = {name: IMPORTED_AS.get(name, name.replace("-", "_")) for name in [*names, *FOR_TESTS]}
    return [name for name, module in modules.items() if importlib.util.find_spec(module) is None]


def machine() -> dict[str, Any]:
    """What figures depend on."""
    import torch

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": None,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"gpu": properties.name, "memory_gb": properties.total_memory / 1e9, "cuda": torch.version.cuda}
        found |= {"multiprocessors": properties.multi_processor_count}
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability(0)))
    return found


def run(part: Part, limit_s: float, log: IO[bytes]) -> dict[str, Any]:
    """Run a part; what became of it, how long it took, and the last lines it printed."""
    started = time.monotonic()
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, *part.argv], cwd=REPOSITORY, env=environment, stdout=output, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit_s)
            status = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            status = f"stopped after {limit_s:.0f} s"
        finally:
            end(process)
        output.seek(0)
        text = output.read()
    log.write(f"== {part.name}: {status}\n".encode() + text + b"\n")
    log.flush()
    lines = text.decode(errors="replace").splitlines()
    print("\n".join([*lines[-12:], f"== {part.name}: {status}, {time.monotonic() - started:.0f} s"]), flush=True)
    return {"status": status, "seconds": time.monotonic() - started, "printed": lines[-60:]}


def end(process: subprocess.Popen[bytes]) -> None:
    """End the process and all that it has started, which are of its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        if process.poll() is None or number == signal.SIGTERM:
            time.sleep(0.5)
    process.wait()


def main() -> int:
    """Run the parts within the time; 0 where all of them ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="folder of gpu.json and gpu.log")
    parser.add_argument("--minutes", type=float, default=8.5, help="for all parts together")
    parser.add_argument("--only", help="names of parts, comma-separated")
    arguments = parser.parse_args()
    if missing := missing_packages():
        print(f"missing packages: {', '.join(missing)}; install them, or name another Python: make gpu PYTHON=...")
        if "torch" in missing:
            return 2
    arguments.out.mkdir(parents=True, exist_ok=True)
    results, file = arguments.out / "figures.json", arguments.out / "gpu.json"
    results.unlink(missing_ok=True)
    deadline = time.monotonic() + 60 * arguments.minutes
    found: dict[str, Any] = {"machine": machine(), "missing": missing, "parts": {}, "figures": {}}
    if found["machine"]["gpu"] is None:
        print("no GPU is seen by torch; its tests are skipped, and the benchmarks measure the CPU")
    with (arguments.out / "gpu.log").open("wb") as log:
        for part in parts(results.resolve()):
            if arguments.only and part.name not in arguments.only.split(","):
                continue
            write_whole(file, found | {"running": part.name})
            left = deadline - time.monotonic()
            if left < 10:
                found["parts"][part.name] = {"status": "not reached"}
                continue
            found["parts"][part.name] = run(part, min(part.limit_s, left), log)
            found["figures"] = json.loads(results.read_text()) if results.exists() else {}
    write_whole(file, found)
    results.unlink(missing_ok=True)
    print(f"{file}: " + ", ".join(f"{name} {part['status']}" for name, part in found["parts"].items()))
    return 0 if all(part["status"] == "done" for part in found["parts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
