"""The settings and metrics of a fold without names of slides and patients, and without paths."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from hist_cache.splits import SPLIT_PARTS

SHOWN = 12  # digits of an image's digest that stand for the name of its slide
LEFT_OUT = ("patients", "provenance", "digests")  # of config.json
FILES = ("genes", "split_kind")  # of config.json, which may be paths
NAMELESS_LEAK = "LEAK: this fold saw slides or patients that it was tested on (their names are left out)"


def slide_aliases(slides: Iterable[str], images: Mapping[str, str]) -> dict[str, str]:
    """What stands for the names of slides: digits of their images' digests, or a number where these are not known."""
    aliases = {}
    for number, slide in enumerate(dict.fromkeys(slides)):
        aliases[slide] = f"slide-{images[slide][:SHOWN]}" if slide in images else f"slide-{number}"
    return aliases


def nameless_config(config: Mapping[str, Any], aliases: Mapping[str, str], images: Mapping[str, str]) -> dict[str, Any]:
    """The content of a config.json without names.

    Args:
        config: The content.
        aliases: What stands for the name of each slide.
        images: SHA-256 of the slides' images.
    """
    values = {key: value for key, value in config.items() if key not in LEFT_OUT}
    values["cache"] = {key: value for key, value in values["cache"].items() if key != "adapter"}
    values["slides"] = [aliases[slide] for slide in values["slides"]]
    values["images"] = {aliases[slide]: digest for slide, digest in images.items() if slide in aliases}
    values |= {key: Path(str(values[key])).name for key in FILES}
    split = {part: [renamed(name, aliases) for name in values["split"][part]] for part in SPLIT_PARTS}
    values["split"] = split | {"name": values["split_kind"]}
    if values.get("leak"):
        values["leak"] = NAMELESS_LEAK
    return values


def nameless_metrics(
    metrics: Mapping[str, Any], aliases: Mapping[str, str], patients: Collection[str]
) -> dict[str, Any]:
    """The content of a metrics.json without names; warnings that have one are left out, but for leaks.

    Args:
        metrics: The content.
        aliases: What stands for the name of each slide.
        patients: Their names.
    """
    values = dict(metrics)
    for key in ("slides", "spots"):
        if isinstance(values.get(key), dict):
            values[key] = {renamed(name, aliases): value for name, value in values[key].items()}
    kept = []
    for text in values.get("warnings", []):
        if not has_name(text, {*aliases, *patients}):
            kept.append(text)
        elif text.startswith("LEAK"):
            kept.append(NAMELESS_LEAK)
    return values | {"warnings": kept}


def renamed(name: str, aliases: Mapping[str, str]) -> str:
    """The alias of a slide, also where a part of the slide is named: `ID@train0`."""
    slide = max((s for s in aliases if name == s or name.startswith(f"{s}@")), key=len, default="")
    return aliases[slide] + name.removeprefix(slide) if slide else "slide"


def has_name(text: str, names: Collection[str]) -> bool:
    """Whether one of the names stands in a text as a word."""
    return any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for name in names)
