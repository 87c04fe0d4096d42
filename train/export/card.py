"""The model card of an export: what it is, what it was tested on, and how it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from extract.encoders.registry import find_entry, use_recorded_encoder
from hist_cache.console import size
from train.metrics import mean_of, std_of
from train.models.registry import get_model
from train.predict.folds import TrainedFold

SHOWN_METRICS = ("pcc@10", "pcc@50", "pcc@200", "mse")
ROWS = {"ridge": "ridge on the same embeddings", "train_mean": "train mean"}


def model_card(folds: Sequence[TrainedFold], metrics: Sequence[dict[str, Any]], n_bytes: int) -> str:
    """The README.md of an export, with the head that model hubs read.

    Args:
        folds: That it has.
        metrics: The content of the metrics.json of each.
        n_bytes: Size of all files.
    """
    setting, scale = folds[0].setting, folds[0].scale
    use_recorded_encoder(setting.cache)
    entry = get_model(setting.model_name)
    encoder, pretrained = setting.cache["encoder"], setting.cache["pretrained"]
    weights = "" if pretrained else ", with random weights: what it predicts is for testing programs only"
    tuned = " with LoRA adapters that are in this folder" if folds[0].adapter else ", frozen"
    slides = {digest for fold in folds for digest in fold.images.values()}
    warnings = dict.fromkeys(text for m in metrics for text in m.get("warnings", []) if text.startswith("LEAK"))
    lines = [
        *("---", "library_name: hist-cache", "license: other", "tags:"),
        *("- spatial-transcriptomics", "- histology", "- gene-expression", "---", ""),
        *(f"# {entry.title}, trained on {setting.dataset}", ""),
        f"Predicts the expression of {len(folds[0].panel)} genes at spots of H&E slides"
        + (f" ({entry.reference})." if entry.reference else "."),
        *("", "```bash", "hist-predict --run . --wsi SLIDE.svs", "```", ""),
        "| | |",
        "|---|---|",
        f"| method | `{setting.method}` |",
        f"| encoder | `{encoder}`{tuned}{weights} |",
        f"| weights of the encoder | not in this folder; {find_entry(encoder).terms}; "
        f"SHA-256 {setting.cache['weights']} |",
        f"| spots | {scale.spot_um:g} um, {scale.pitch_um:g} um apart, niches of {setting.neighbors} neighbours |"
        if scale
        else "| spots | not known |",
        f"| genes | `fold*/panel.txt` ({setting.genes}) |",
        f"| folds | {len(folds)}; hist-predict gives their mean, and how much they differ |",
        f"| trained and tested on | {len(slides) or 'an unknown number of'} slides of {setting.dataset}, split by "
        f"{setting.split}; `images` in config.json has the SHA-256 of each |",
        f"| size | {size(n_bytes)} |",
        *("", "## Test slides", "", table(metrics), ""),
        "Mean and standard deviation over the folds, each on slides that it was not trained on.",
        *(f"- {text}" for text in warnings),
        *("", "## Licence", ""),
        "Whoever trained it decides on its licence, within that of the encoder's weights and of the training data. "
        "It is for research; no diagnosis may rest on it. There are no images, no measured expression and no names of "
        "slides or patients in this folder.",
        "",
    ]
    return "\n".join(lines)


def table(metrics: Sequence[dict[str, Any]]) -> str:
    """Test metrics of the model and of its baselines, in Markdown."""
    known = [name for name in SHOWN_METRICS if all(name in m["pooled"] for m in metrics)]
    rows = {"this model": [m["pooled"] for m in metrics]}
    for name, title in ROWS.items():
        if all(name in m["controls"] for m in metrics):
            rows[title] = [m["controls"][name] for m in metrics]
    lines = ["| | " + " | ".join(name.upper() for name in known) + " |", "|---" * (len(known) + 1) + "|"]
    for title, values in rows.items():
        means, stds = mean_of(values), std_of(values) if len(values) > 1 else {}
        cells = [f"{means[n]:.3f}" + (f" ± {stds[n]:.3f}" if n in stds else "") for n in known if n in means]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
