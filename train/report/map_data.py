"""The maps of a page: measured and predicted expression of many genes, as the script that draws them reads it.

A value is a whole number of 8 bits, so that a page holds all genes of all folds of some runs. Where it cannot hold all,
it has the genes that were named and those that are predicted best and worst.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hist_cache.console import size
from train.expression import UNITS
from train.figures import SPOT_ENLARGEMENT
from train.metrics import gene_pcc
from train.report.fold_result import FoldResult
from train.report.fold_values import FoldValues, read_picture, read_values
from train.report.map_codes import palette, to_base64, to_codes
from train.report.results import RunResult

if TYPE_CHECKING:
    import pandas as pd

FEWEST_GENES = 10  # folds are left out before fewer genes are shown
SCALE_ENDS = 0.01, 0.99  # quantiles of the measured values between which the colours of both maps run
PICTURE_PX = 640, 320, 160  # longer side of a slide's picture: the first of which all pictures fit
PICTURES_SHARE = 0.3  # of the bytes, that pictures have at most
WEBP_OF_MAPS = 72
BASE64_BYTES = 4 / 3  # of text for a byte
GENE_BYTES = 12 * BASE64_BYTES  # for each gene of a fold besides its values: two ends and a PCC


@dataclass(frozen=True)
class MapPicker:
    """Maps of the runs of a group, of which a reader chooses.

    Attributes:
        data: JSON, with no `<` in it.
        unit: Of the expression.
        note: Which genes and folds there are, and why not all.
    """

    data: str
    unit: str
    note: str


def map_picker(
    runs: Sequence[RunResult], main: RunResult, correlations: pd.Series, named: Sequence[str], max_bytes: float
) -> MapPicker | None:
    """The maps of the runs' folds, as many as fit.

    Args:
        runs: of one group.
        main: whose best and worst genes are shown where not all fit.
        correlations: PCC by gene of that run.
        named: genes that are shown in any case.
        max_bytes: that the data may have on the page.

    Returns:
        The maps; None where not a single gene of a fold fits, or no fold has these genes.
    """
    numbers = sorted({fold.number for run in runs for fold in run.folds})
    kept = list(numbers)
    room = (1 - PICTURES_SHARE) * max_bytes
    while len(kept) > 1 and room < max(FEWEST_GENES, len(named)) * _bytes_a_gene(runs, kept):
        kept.pop()
    count = int(room // _bytes_a_gene(runs, kept))
    if count < 1:
        return None
    every = [str(gene) for gene in correlations.sort_values(ascending=False, kind="stable").index]
    chosen = _choose(every, named, count)
    data = _MapData(chosen, (*named, *every)[0], UNITS[main.setting.transform])
    for run in runs:
        data.add(run, [fold for fold in run.folds if fold.number in kept])
    if not data.runs:
        return None
    known = set(every)
    has_others = any(not known.issuperset(fold.fold.panel) for run in runs for fold in run.folds)
    content = data.content(int(PICTURES_SHARE * max_bytes))
    # No tag can begin in JSON without its <, so a name cannot end the script element that holds it.
    text = json.dumps(content, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    others = f" Other runs are shown on the genes that {main.label} has too." if has_others else ""
    return MapPicker(text, data.unit, _note(chosen, every, named, kept, numbers, main.label, max_bytes) + others)


def _bytes_a_gene(runs: Sequence[RunResult], numbers: Sequence[int]) -> float:
    """Bytes of text that a gene takes in these folds: its predictions by each run, and what was measured, once."""
    folds = [fold for run in runs for fold in run.folds if fold.number in numbers]
    tests = {(fold.number, fold.test_slides, spots) for fold in folds if (spots := _n_spots(fold))}
    spots = sum(map(_n_spots, folds)) + sum(n for _, _, n in tests)
    slides = sum(len(fold.pictured) for fold in folds)
    return spots * BASE64_BYTES + 2 * slides * GENE_BYTES


def _n_spots(fold: FoldResult) -> int:
    """Test spots of a fold; version 0.1 did not write it in every case."""
    return int(fold.metrics["n_spots"]) if "n_spots" in fold.metrics else len(read_values(fold.fold).slides)


def _choose(every: Sequence[str], named: Sequence[str], count: int) -> list[str]:
    """All genes where they fit; else the named ones, then as many of the best as of the worst.

    Args:
        every: all genes, the best first.
        named: some of them.
        count: that fit.
    """
    if count >= len(every):
        return list(every)
    others = [gene for gene in every if gene not in named]
    rest = max(count - len(named), 0)
    best, worst = (rest + 1) // 2, rest // 2
    return [*named, *others[:best], *others[len(others) - worst :]]


def _note(
    chosen: Sequence[str],
    every: Sequence[str],
    named: Sequence[str],
    kept: Sequence[int],
    numbers: Sequence[int],
    label: str,
    max_bytes: float,
) -> str:
    ends = "Both maps have one scale, between the 1st and the 99th percentile of what was measured on the slide."
    if len(chosen) == len(every) and len(kept) == len(numbers):
        return f"All {len(every)} genes of all folds. {ends}"
    genes = f"All {len(every)} genes"
    if len(chosen) < len(every):
        own = [f"the {len(named)} that were named"] if named else []
        rest = len(chosen) - len(named)
        own += [f"the {rest} that {label} predicts best and worst"] if rest > 0 else []
        genes = f"Of {len(every)} genes, {' and '.join(own)}"
    folds = f", of fold{'s' * (len(kept) > 1)} {', '.join(map(str, kept))} alone" if len(kept) < len(numbers) else ""
    return f"{genes}{folds}: with all genes of all folds, the maps would take more than {size(int(max_bytes))}. {ends}"


@dataclass
class _MapData:
    """What is collected of the folds of all runs; what was measured, and pictures of slides, are kept once."""

    genes: list[str]
    first: str
    """Of the genes: the one that is shown first."""
    unit: str
    runs: list[dict[str, Any]] = field(default_factory=list)
    spots: list[dict[str, Any]] = field(default_factory=list)
    """The spots of a slide, and what was measured there."""
    places: dict[str, int] = field(default_factory=dict)
    """In `spots`, by a digest."""
    files: dict[str, FoldResult] = field(default_factory=dict)
    """By slide: a fold that has its picture."""

    def add(self, run: RunResult, folds: Sequence[FoldResult]) -> None:
        """Read some folds of a run."""
        own = []
        for fold in folds:
            values = read_values(fold.fold)
            place = {gene: i for i, gene in enumerate(values.genes)}
            genes = [i for i, gene in enumerate(self.genes) if gene in place]
            if not genes:
                continue
            columns = [place[self.genes[i]] for i in genes]
            slides = list(dict.fromkeys(values.slides.tolist()))
            self.files |= {slide: fold for slide in slides if slide not in self.files}
            maps = [self._slide(values, slide, genes, columns) for slide in slides]
            own.append({"number": fold.number, "slides": maps})
        if own:
            self.runs.append({"label": run.label, "folds": own})

    def _slide(self, values: FoldValues, slide: str, genes: list[int], columns: list[int]) -> dict[str, Any]:
        rows = np.flatnonzero(values.slides == slide)
        truth, predicted = values.truth[rows][:, columns], values.predicted[rows][:, columns]
        coords = values.coords[rows].astype("<f4")
        measured = to_codes(truth, 8)
        low, high, codes = (part.tobytes() for part in measured)
        parts = (slide, repr(genes), coords.tobytes(), low, high, codes)
        key = hashlib.sha256(b"|".join(p.encode() if isinstance(p, str) else p for p in parts)).hexdigest()
        if key not in self.places:
            self.places[key] = len(self.spots)
            first, last = np.quantile(truth, SCALE_ENDS, axis=0)
            spots = {
                "genes": None if len(genes) == len(self.genes) else genes,
                "x": to_base64(coords[:, 0]),
                "y": to_base64(coords[:, 1]),
                "from": _floats(first),
                "to": _floats(np.where(last > first, last, first + 1)),
            }
            self.spots.append(spots | _codes(measured))
        pcc = _floats(gene_pcc(predicted, truth))
        return {"slide": slide, "spots": self.places[key], "pcc": pcc, **_codes(to_codes(predicted, 8))}

    def content(self, max_picture_bytes: int) -> dict[str, Any]:
        """All of it for the script; its pictures take no more than so many bytes."""
        return {
            "palette": to_base64(palette()),
            "genes": self.genes,
            "first": self.first,
            "pictures": self._pictures(max_picture_bytes),
            "spots": self.spots,
            "runs": self.runs,
        }

    def _pictures(self, max_bytes: int) -> dict[str, dict[str, Any]]:
        """The slides with their pictures, which are left out where even the smallest are too large."""
        facts, sizes = {}, {}
        for slide, fold in self.files.items():
            stored = read_picture(fold.fold, slide)
            facts[slide] = _picture_facts(stored)
            sizes[slide] = [_webp(stored["images"]["lowres"], longer_side) for longer_side in PICTURE_PX]
        for k in range(len(PICTURE_PX)):
            if sum(len(uris[k]) for uris in sizes.values()) <= max_bytes:
                return {slide: own | {"uri": sizes[slide][k]} for slide, own in facts.items()}
        return {slide: own | {"uri": None} for slide, own in facts.items()}


def _codes(coded: Any) -> dict[str, str]:
    return {"low": _floats(coded.low), "high": _floats(coded.high), "codes": to_base64(coded.codes)}


def _floats(values: np.ndarray) -> str:
    return to_base64(np.asarray(values, dtype="<f4"))


def _picture_facts(picture: dict[str, Any]) -> dict[str, float]:
    """The size of a slide's picture and of its spots, in level-0 px."""
    scales, (height, width) = picture["scalefactors"], picture["images"]["lowres"].shape[:2]
    scale = float(scales["tissue_lowres_scalef"])
    diameter = SPOT_ENLARGEMENT * float(scales["spot_diameter_fullres"])
    return {"width": width / scale, "height": height / scale, "diameter": diameter}


def _webp(pixels: np.ndarray, longer_side: int) -> str:
    """A picture as a URI."""
    from PIL import Image

    image = Image.fromarray(pixels).convert("RGB")
    image.thumbnail((longer_side, longer_side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=WEBP_OF_MAPS, method=4)
    return f"data:image/webp;base64,{to_base64(buffer.getvalue())}"
