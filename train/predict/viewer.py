"""A page of one predicted slide, to be opened in a browser: the H&E beside the map of a gene, or under it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hist_cache.console import size
from hist_cache.files import atomic_write
from train.metrics import gene_pcc
from train.predict.predicted import (
    DISAGREEMENT,
    DISTANCE,
    MEASURED,
    OUT_OF_DISTRIBUTION,
    PERCENTILES,
    SlidePicture,
    gene_columns,
    gene_values,
    nearest_distance,
    predicted_slide,
    spatial_variance,
    spot_diameter,
    stored_picture,
    um_per_px,
    value_range,
)
from train.report.map_codes import map_script, palette, script_hash, to_base64, to_codes

if TYPE_CHECKING:
    import anndata

log = logging.getLogger(__name__)

VIEWER_TEMPLATE, VIEWER_STYLE, VIEWER_SCRIPT = "viewer.html.jinja", "viewer.css", "viewer.js"
MAX_PAGE_BYTES = 30_000_000  # as many genes are embedded as fit, unless genes are named
MAX_PICTURE_PX = 4096  # longer side of the picture
PICTURE_QUALITY = 85  # of the JPEG
PREDICTED = "predicted"
GENE_LAYERS = {PREDICTED: "Predicted", MEASURED: "Measured", DISAGREEMENT: "Disagreement of models"}
DISTANCE_LABEL = "Distance to the training data"
SPOT_DISAGREEMENT = "mean-disagreement"


def write_viewer(
    path: Path, table: anndata.AnnData, picture: SlidePicture | None = None, genes: Sequence[str] | None = None
) -> Path:
    """Write the page: one file with its style, script, picture and numbers, which asks nothing of a network.

    Args:
        path: the HTML file.
        table: of one slide; X may be a file, of which the chosen genes alone are kept.
        picture: of the whole slide (default: the small one of the table); one that is longer than `MAX_PICTURE_PX`
            is made smaller.
        genes: the genes on the page, in this order (default: those that vary most in space, as many as
            `MAX_PAGE_BYTES` holds, and these first).

    Returns:
        The HTML file.

    Raises:
        InputError: A gene was not predicted.
    """
    layers = [name for name in GENE_LAYERS if name == PREDICTED or name in table.layers]
    slide = _slide_data(table, picture or stored_picture(table), layers)
    style, script = _own_file(VIEWER_STYLE), map_script() + _own_file(VIEWER_SCRIPT)
    n_bytes = len(json.dumps(slide)) + len(style) + len(script)
    bytes_a_gene = len(layers) * len(to_base64(bytes(2 * table.n_obs))) + 100
    if genes is None:
        columns = np.argsort(-spatial_variance(table), kind="stable").tolist()
        columns = columns[: max(1, int((MAX_PAGE_BYTES - n_bytes) // bytes_a_gene))]
    else:
        columns = gene_columns(table, genes)
    n_bytes += bytes_a_gene * len(columns)
    choice = _choice(len(columns), table.n_vars, named=genes is not None)
    values = {name: gene_values(table, columns, None if name == PREDICTED else name) for name in layers}
    names = [str(table.var_names[column]) for column in columns]
    slide["genes"] = [
        _gene_data(gene, {key: part[:, k] for key, part in values.items()}) for k, gene in enumerate(names)
    ]
    html = _page(table, slide, f"{choice} This page has {size(n_bytes)}.", style, script)
    with atomic_write(path) as aside:
        aside.write_text(html, encoding="utf-8", errors="replace")
    log.info(f"{path}: {choice} {size(path.stat().st_size)}")
    return path


def _choice(count: int, total: int, named: bool) -> str:
    """Which genes the page has, in a sentence."""
    if count == total:
        return f"All {total:,} predicted genes, those first that vary most in space." if not named else "All genes."
    if named:
        return f"{count:,} of {total:,} predicted genes, as they were asked for."
    limit = size(MAX_PAGE_BYTES)
    return f"The {count:,} of {total:,} predicted genes that vary most in space: a page with all has more than {limit}."


def _slide_data(table: anndata.AnnData, picture: SlidePicture, layers: list[str]) -> dict[str, Any]:
    """All that the script needs beside the genes."""
    coords = np.asarray(table.obsm["spatial"], dtype=np.float64)
    choices = [{"id": name, "label": GENE_LAYERS[name], "ofGene": True} for name in layers]
    of_spots = {}
    if DISTANCE in table.obs:
        of_spots[DISTANCE] = table.obs[DISTANCE].to_numpy()
        choices.append({"id": DISTANCE, "label": DISTANCE_LABEL, "ofGene": False})
    if DISAGREEMENT in table.obs:
        of_spots[SPOT_DISAGREEMENT] = table.obs[DISAGREEMENT].to_numpy()
        choices.append({"id": SPOT_DISAGREEMENT, "label": "Disagreement, mean over genes", "ofGene": False})
    outside = table.obs[OUT_OF_DISTRIBUTION].to_numpy(bool) if OUT_OF_DISTRIBUTION in table.obs else None
    return {
        "slide": predicted_slide(table),
        "unit": str(table.uns["expression"]),
        "umPerPx": um_per_px(table),
        "diameter": spot_diameter(table),
        "pitch": nearest_distance(coords) or spot_diameter(table),
        "picture": _picture_data(picture),
        "palette": to_base64(palette()),
        "x": to_base64(coords[:, 0].astype("<f4")),
        "y": to_base64(coords[:, 1].astype("<f4")),
        "names": [str(name) for name in table.obs_names],
        "outside": None if outside is None else to_base64(outside.astype(np.uint8)),
        "layers": choices,
        "spots": {name: _codes(values) | {"range": value_range(values)} for name, values in of_spots.items()},
    }


def _gene_data(gene: str, values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Values of one gene in each layer, `(N,)`; measured and predicted expression have one range of colours."""
    common = value_range(np.concatenate([values[name] for name in (PREDICTED, MEASURED) if name in values]))
    pcc = gene_pcc(values[PREDICTED][:, None], values[MEASURED][:, None])[0] if MEASURED in values else np.nan
    coded = {
        name: _codes(part) | {"range": value_range(part) if name == DISAGREEMENT else common}
        for name, part in values.items()
    }
    return {"name": gene, "pcc": float(pcc) if np.isfinite(pcc) else None, "layers": coded}


def _codes(values: np.ndarray) -> dict[str, Any]:
    """Values `(N,)` in 16 bits, as the script reads them."""
    (low,), (high,), codes = to_codes(values[:, None], 16)
    return {"low": float(low), "high": float(high), "codes": to_base64(codes)}


def _picture_data(picture: SlidePicture) -> dict[str, Any]:
    """The picture as a JPEG in a URI."""
    from PIL import Image

    image = Image.fromarray(np.asarray(picture.pixels, dtype=np.uint8)).convert("RGB")
    longer = max(image.size)
    if longer > MAX_PICTURE_PX:
        width, height = (max(1, round(length * MAX_PICTURE_PX / longer)) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=PICTURE_QUALITY)
    h, w = picture.pixels.shape[:2]
    return {
        "uri": f"data:image/jpeg;base64,{to_base64(buffer.getvalue())}",
        "width": w * picture.downsample,  # in level-0 px
        "height": h * picture.downsample,
    }


def _page(table: anndata.AnnData, data: dict[str, Any], note: str, style: str, script: str) -> str:
    """The page as HTML, whose security policy allows nothing but its own style, script and picture."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    facts = [f"{table.n_obs:,} spots", f"{table.n_vars:,} predicted genes", str(table.uns["expression"])]
    if OUT_OF_DISTRIBUTION in table.obs:
        facts.append(f"{int(table.obs[OUT_OF_DISTRIBUTION].sum()):,} spots unlike the training data")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # No tag can begin in JSON without its <, so a name cannot end the script element that holds it.
    numbers = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return environment.get_template(VIEWER_TEMPLATE).render(
        slide=predicted_slide(table),
        facts=" · ".join(facts),
        run=str(table.uns["hist_predict"].get("run", "")),
        note=note,
        layers=data["layers"],
        percentiles=PERCENTILES,
        data=Markup(numbers),
        style=Markup(style),
        script=Markup(script),
        style_hash=script_hash(style),
        script_hash=script_hash(script),
    )


def _own_file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
