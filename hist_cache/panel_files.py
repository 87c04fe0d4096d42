"""Gene panels kept in the folder of a cache, so that they are not chosen again for each command (docs/cache-format.md).

A file is never believed for its name alone: it says what its panel was chosen from, and has a digest of all it says.
One that says anything else, or cannot be read, counts as none, and is written anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hist_cache.cached_slide import COUNT_ARRAYS, CachedSlide
from hist_cache.errors import WriteError
from hist_cache.files import write_json
from hist_cache.fingerprint import short_hash
from hist_cache.panels import DEFAULT_SIZE
from hist_cache.texts import read_json

PANEL_FOLDER = "panels"
RULE = 1  # how `hist_cache.panels` chooses; a panel that another rule has chosen is not used

log = logging.getLogger(__name__)


def panel_source(
    kind: str, n: int | None, chosen_on: Mapping[str, CachedSlide], slides: Mapping[str, CachedSlide]
) -> dict[str, Any] | None:
    """All that decides a panel, as plain values; None where it is a file's, or a slide is not from a cache.

    Args:
        kind: Of the panel, as `choose_panel` takes it.
        n: Its size.
        chosen_on: Slides whose counts choose it.
        slides: All slides; they have its genes.
    """
    if kind not in DEFAULT_SIZE or not all(slide.digests for slide in slides.values()):
        return None
    return {
        "rule": RULE,
        "kind": kind,
        "n": n or DEFAULT_SIZE[kind],
        "counts": sorted([slide.digests[name] for name in ("genes", *COUNT_ARRAYS)] for slide in chosen_on.values()),
        "genes": sorted({slide.digests["genes"] for slide in slides.values()}),
    }


def panel_path(folder: Path, source: Mapping[str, Any]) -> Path:
    """Where the panel of a source is kept in a cache's folder."""
    return folder / PANEL_FOLDER / f"{source['kind']}-{source['n']}-{short_hash(dict(source))}.json"


def read_kept_panel(folder: Path, source: dict[str, Any], genes_of: Collection[Collection[str]]) -> list[str] | None:
    """The panel that was kept for a source; None where there is none that can be trusted.

    Args:
        folder: Of the cache.
        source: As `panel_source` gives it.
        genes_of: Names of the genes of each slide.
    """
    path = panel_path(folder, source)
    if not path.exists():
        return None
    try:
        content = read_json(path)
    except ValueError:
        content = None
    panel = content.get("panel") if isinstance(content, dict) else None
    if isinstance(panel, list) and content == _content(source, panel) and _fits(panel, source["n"], genes_of):
        return panel
    log.info(f"{path}: damaged, or of another cache; its panel is chosen anew")
    return None


def _fits(panel: list[Any], n: int, genes_of: Collection[Collection[str]]) -> bool:
    """Whether a panel is `n` different genes that every slide has."""
    names = {name for name in panel if isinstance(name, str)}
    return len(panel) == n == len(names) and all(names.issubset(genes) for genes in genes_of)


def keep_panel(folder: Path, source: dict[str, Any], panel: list[str]) -> None:
    """Write a panel; where nothing can be written, the next command chooses it again."""
    with suppress(WriteError):
        write_json(panel_path(folder, source), _content(source, panel))


def _content(source: dict[str, Any], panel: list[Any]) -> dict[str, Any]:
    """What the file of a panel holds."""
    text = json.dumps([source, panel], sort_keys=True)
    return {"chosen_from": source, "panel": panel, "sha256": hashlib.sha256(text.encode()).hexdigest()}
