"""Gene panels: which genes a model predicts.

HMHVG (high mean, high variance): the 2,000 most variable genes of each slide, their union, the N with the highest
mean and the N with the highest variance, intersected; N grows from 300 until enough genes remain (HiST, appendix B.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from hist_cache.errors import InputError

TECHNICAL = ("MT-", "RPS", "RPL")  # mitochondrial, ribosomal; a bare MT would take metallothioneins too
VARIABLE_PER_SLIDE = 2000
FIRST_N = 300
DEFAULT_SIZE = {"hmhvg": 200, "hvg": 300}


def choose_panel(
    kind: str,
    n: int | None,
    slides: dict[str, tuple[csr_matrix, list[str]]],
    present_in: dict[str, list[str]] | None = None,
) -> list[str]:
    """The panel by `kind`: "hmhvg", "hvg" or a file of names; slides: id -> counts (N, G) raw and gene names.

    present_in: id -> gene names of slides that must have the genes too, but whose counts have no say.
    Best gene first; ties go by name, so the same slides in any order give the same list.
    """
    everywhere = {s: names for s, (_, names) in slides.items()} | (present_in or {})
    if kind not in DEFAULT_SIZE:
        panel = read_panel(Path(kind))
        panel = panel[:n] if n else panel
    else:
        n = n or DEFAULT_SIZE[kind]
        genes = common_genes(everywhere)
        candidates = variable_union({s: (columns(c, g, genes), genes) for s, (c, g) in slides.items()})
        mean, variance = moments(slides, candidates)
        panel = high_mean_high_variance(candidates, mean, variance, n) if kind == "hmhvg" else top(candidates, mean, n)
        if len(panel) < n:
            raise InputError(f"--n-genes {n}: only {len(panel)} genes of these slides are variable; ask for fewer")
    for slide, names in everywhere.items():
        if missing := sorted(set(panel) - set(names)):
            raise InputError(
                f"{slide} lacks {len(missing)} genes of the panel ({', '.join(missing[:5])}); leave them out"
            )
    return panel


def read_panel(file: Path) -> list[str]:
    """Gene names from a text file (one a line, # comments) or HEST-bench's JSON {"genes": [...]}."""
    import json

    try:
        text = file.read_text(encoding="utf-8-sig")
        names = (
            json.loads(text)["genes"]
            if file.suffix == ".json"
            else [line.split("#")[0].strip() for line in text.splitlines()]
        )
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"--genes {file}: neither hmhvg, hvg nor a readable file of gene names ({error})") from None
    names = [name for name in names if name]
    if not names:
        raise InputError(f"--genes {file}: no gene names in it")
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InputError(f"--genes {file}: {twice[0]} stands in it twice")
    return names


def common_genes(names: dict[str, list[str]]) -> list[str]:
    """Genes that every slide has, technical ones left out, by name; names: id -> gene names."""
    return sorted(g for g in set.intersection(*map(set, names.values())) if not g.startswith(TECHNICAL))


def variable_union(slides: dict[str, tuple[csr_matrix, list[str]]]) -> list[str]:
    """The union over slides of each slide's most variable genes, by name."""
    found: set[str] = set()
    for counts, names in slides.values():
        found.update(top(names, normalized_variance(counts), VARIABLE_PER_SLIDE))
    return sorted(found)


def normalized_variance(counts: csr_matrix) -> np.ndarray:
    """(G,) variance over spots of log(1 + count scaled to the median library size): for ranking only."""
    total = np.asarray(counts.sum(1)).ravel().astype(np.float64)
    scale = np.median(total[total > 0]) / np.maximum(total, 1)
    normal = counts.astype(np.float64).multiply(scale[:, None]).tocsr().log1p()
    n = counts.shape[0]
    mean = np.asarray(normal.mean(0)).ravel()
    square = np.asarray(normal.multiply(normal).mean(0)).ravel()
    return (square - mean**2) * n / max(n - 1, 1)


def moments(slides: dict[str, tuple[csr_matrix, list[str]]], genes: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(G,) mean and variance of the raw counts over all spots of all slides."""
    n, total, square = 0, np.zeros(len(genes)), np.zeros(len(genes))
    for counts, names in slides.values():
        c = columns(counts, names, genes).astype(np.float64)
        n += c.shape[0]
        total += np.asarray(c.sum(0)).ravel()
        square += np.asarray(c.multiply(c).sum(0)).ravel()
    mean = total / n
    return mean, square / n - mean**2


def high_mean_high_variance(genes: list[str], mean: np.ndarray, variance: np.ndarray, n: int) -> list[str]:
    """The intersection of the top N by mean and by variance, N grown until n remain; the n of least summed rank."""
    by_mean, by_variance = ranks(genes, mean), ranks(genes, variance)
    for size in range(max(FIRST_N, n), max(len(genes), FIRST_N, n) + 1):
        both = np.flatnonzero((by_mean < size) & (by_variance < size))
        if len(both) >= n:
            break
    order = sorted(both, key=lambda i: (by_mean[i] + by_variance[i], genes[i]))
    return [genes[i] for i in order[:n]]


def top(genes: list[str], values: np.ndarray, n: int) -> list[str]:
    """The n genes of the highest value."""
    rank = ranks(genes, values)
    return [genes[i] for i in np.argsort(rank)[:n]]


def ranks(genes: Sequence[str], values: np.ndarray) -> np.ndarray:
    """(G,) 0 for the highest value; ties by name."""
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.lexsort((np.array(genes), -values))] = np.arange(len(values))
    return rank


def columns(counts: csr_matrix, names: list[str], wanted: list[str]) -> csr_matrix:
    """(N, G) counts of the genes `wanted`, by name."""
    at = {name: i for i, name in enumerate(names)}
    return counts[:, [at[name] for name in wanted]]
