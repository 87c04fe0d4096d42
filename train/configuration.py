"""How the runs of a study were made: settings, protocol, cache, variants, origin, as the report shows them."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from train.layout import Cell, Column, Row, Table
from train.results import VARIANTS, Results, RunResult

PROTOCOLS = Path(__file__).with_name("protocols.toml")


def configuration_table(results: Results) -> Table:
    """A row a setting; one column where all runs share it all, else one a run, those that differ first."""
    runs = results.runs
    rows: dict[str, list[str]] = {}
    for run in runs:
        for key, value in _facts(run).items():
            rows.setdefault(key, []).append(value)
    differ = [key for key, values in rows.items() if len(set(values)) > 1]
    columns = tuple(Column(run.label) for run in runs) if differ else (Column("all runs"),)
    ordered = [*differ, *(key for key in rows if key not in differ)]
    shown = [Row(key, "run", tuple(Cell(v) for v in rows[key][: len(columns)])) for key in ordered]
    return Table("configuration", "Settings", columns, tuple(shown), (), "setting")


def _facts(run: RunResult) -> dict[str, str]:
    settings = run.settings | {
        "slides": f"{len(run.settings['slides'])}",
        "panel": run.settings["panel"][:8] or "each fold's",
    }
    return {key.replace("_", " "): _text(value) for key, value in settings.items()}


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def variant_lines(results: Results) -> list[tuple[str, str]]:
    """Each variant and each protocol that was run, with its line of description."""
    lines = []
    for file, names in (
        (VARIANTS, [run.variant for run in results.runs]),
        (PROTOCOLS, [f"{run.settings['protocol']}" for run in results.runs]),
    ):
        rows = tomllib.loads(file.read_text("utf-8"))
        kind = "" if file == VARIANTS else "protocol "
        lines += [(kind + name, rows.get(name, {}).get("description", "–")) for name in dict.fromkeys(names)]
    return lines


def cache_facts(results: Results) -> list[tuple[str, str]]:
    """The fingerprint of each cache that was trained on: its short hash, and all of it as JSON."""
    found = {run.settings["cache"]: run.config["cache"] for run in results.runs}
    return [(short, json.dumps(cache, indent=1, sort_keys=True)) for short, cache in found.items()]


def origin(run: RunResult) -> str:
    """When, by what command and with what versions the first fold was run."""
    made = run.config.get("provenance", {})
    versions = made.get("versions", {})
    with_what = ", ".join(f"{name} {versions[name]}" for name in ("hist-cache", "torch", "timm") if name in versions)
    return "; ".join(
        filter(None, [made.get("date", "")[:16].replace("T", " "), made.get("device"), with_what, made.get("command")])
    )
