"""Splits within slices: the names of the parts that every slide is cut into, and which parts make a split.

All parts of a slide are trained, validated or tested on together in one fold, each under a name of its own, such as
`SPA119@train0`: a name stands for one set of spots, so that nothing that is kept by name mixes folds.
`hist_cache.bands` says which spots are in a part.
"""

from __future__ import annotations

from collections.abc import Collection

WITHIN = "within"
"""The kind of these splits, as `--split` takes it and results name it."""
N_BANDS = 5
"""Every slide is cut into as many bands, and there are as many folds."""
ROLES = ("train", "val", "test")
_MARK = "@"


def part_name(slide: str, part: str, tested: int) -> str:
    """Name a part of a slide: `SPA119@train0` is the train part where band 0 is tested."""
    return f"{slide}{_MARK}{part}{tested}"


def whole_slide(name: str) -> str:
    """Return the ID of the slide that a part named by `part_name` is of."""
    return name.rpartition(_MARK)[0]


def within_rows(slides: Collection[str]) -> list[tuple[str, dict[str, list[str]]]]:
    """List the name of each split within slices, and the names of its parts by role; split i tests band i."""
    ids = sorted(set(slides))
    return [
        (f"{WITHIN}-{tested}", {part: [part_name(slide, part, tested) for slide in ids] for part in ROLES})
        for tested in range(N_BANDS)
    ]
