"""Figures of benchmarks in one JSON file, which several of them add to."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """The option of all benchmarks that name a file for their figures."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the figures to this file")


def add_results(file: Path | None, name: str, figures: dict[str, Any]) -> None:
    """Add figures under a name to those of the file, which is replaced at once; None: nothing is written."""
    if file is None:
        return
    known = json.loads(file.read_text()) if file.exists() else {}
    write_whole(file, known | {name: known.get(name, {}) | figures})


def write_whole(file: Path, values: dict[str, Any]) -> None:
    """Write JSON aside and rename it: a process that is killed leaves the file as it was."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(json.dumps(values, indent=1) + "\n")
    os.replace(aside, file)
