"""Gene panels: the genes that a model predicts.

HMHVG (high mean, high variance) is chosen as in HiST, appendix B.1. The candidates are the 2,000 most variable genes of
each slide, taken together. The panel is the intersection of the N candidates with the highest mean and the N with the
highest variance. N starts at 300 and grows until enough genes remain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from hist_cache.errors import InputError
from hist_cache.texts import bad_name, did_you_mean, read_json, read_text

TECHNICAL = ("MT-", "RPS", "RPL")  # mitochondrial and ribosomal; "MT" without "-" would match metallothioneins too
VARIABLE_PER_SLIDE = 2000
FIRST_N = 300
DEFAULT_SIZE = {"hmhvg": 200, "hvg": 300}


def choose_panel(
    kind: str,
    n: int | None,
    slides: dict[str, tuple[csr_matrix, list[str]]],
    other_genes: dict[str, list[str]] | None = None,
) -> list[str]:
    """Choose the genes of the panel.

    Args:
        kind: "hmhvg", "hvg" (the candidates with the highest mean), or a file of gene names.
        n: Number of genes; None means the default of the kind, or all genes of the file.
        slides: Slide ID -> raw counts (N, G) and the names of the G genes.
        other_genes: Slide ID -> gene names of further slides. They must have the genes of the panel too, but their
            counts are not used.

    Returns:
        Gene names, the best first. Ties are ordered by name, so the order of the slides does not matter.

    Raises:
        InputError: The file is not readable, there are not enough variable genes, or a slide lacks genes of the panel.
    """
    genes_of = {slide: names for slide, (_, names) in slides.items()} | (other_genes or {})
    if kind not in DEFAULT_SIZE:
        panel = read_panel(Path(kind))
        panel = panel[:n] if n else panel
    else:
        n = n or DEFAULT_SIZE[kind]
        genes = common_genes(genes_of)
        candidates = variable_union((columns(c, g, genes), genes) for c, g in slides.values())
        mean, variance = moments(slides, candidates)
        panel = high_mean_high_variance(candidates, mean, variance, n) if kind == "hmhvg" else top(candidates, mean, n)
        if len(panel) < n:
            raise InputError(f"--n-genes {n}: only {len(panel)} genes of these slides are variable; ask for fewer")
    for slide, names in genes_of.items():
        if missing := sorted(set(panel) - set(names)):
            raise InputError(
                f"{slide} lacks {len(missing)} genes of the panel ({', '.join(missing[:5])}); leave them out"
            )
    return panel


def read_panel(file: Path) -> list[str]:
    """Read gene names from a text file (one per line, # starts a comment) or HEST-bench's JSON {"genes": [...]}.

    Raises:
        InputError: The file is not readable, has no names, or has a name twice.
    """
    try:
        names = _panel_names(file)
    except ValueError as error:
        near = did_you_mean(str(file), DEFAULT_SIZE)
        raise InputError(
            f"--genes {file}: neither hmhvg, hvg nor a readable file of gene names ({error}){near}"
        ) from error
    if not names:
        raise InputError(f"--genes {file}: no gene names in it")
    if problem := bad_name(names):
        raise InputError(f"--genes {file}: has {problem}")
    if repeats := sorted(name for name, times in Counter(names).items() if times > 1):
        raise InputError(f"--genes {file}: {repeats[0]} stands in it twice")
    return names


def _panel_names(file: Path) -> list[str]:
    """Return the names in a file; `ValueError` where it has another form."""
    if file.suffix != ".json":
        lines = (line.split("#")[0].strip() for line in read_text(file).splitlines())
        return [line for line in lines if line]
    content = read_json(file)
    names = content.get("genes") if isinstance(content, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError('must be {"genes": [names]}')
    return names


def common_genes(genes_of: dict[str, list[str]]) -> list[str]:
    """List the genes that every slide has, without technical genes, sorted by name.

    Args:
        genes_of: Slide ID -> gene names.
    """
    return sorted(g for g in set.intersection(*map(set, genes_of.values())) if not g.startswith(TECHNICAL))


def variable_union(tables: Iterable[tuple[csr_matrix, list[str]]]) -> list[str]:
    """List the genes that are among the most variable ones of at least one slide, sorted by name.

    Args:
        tables: Of each slide the raw counts (N, G) and the names of the G genes; one is in memory at a time.
    """
    union: set[str] = set()
    for counts, names in tables:
        union.update(top(names, normalized_variance(counts), VARIABLE_PER_SLIDE))
    return sorted(union)


def normalized_variance(counts: csr_matrix) -> NDArray[np.float64]:
    """Compute the variance over spots of log(1 + count), counts scaled to the median library size, to rank genes.

    Args:
        counts: (N, G) raw counts.

    Returns:
        (G,) variances.
    """
    total = np.asarray(counts.sum(1)).ravel().astype(np.float64)
    scale = np.median(total[total > 0]) / np.maximum(total, 1)
    normal = counts.astype(np.float64).multiply(scale[:, None]).tocsr().log1p()
    n = counts.shape[0]
    mean = np.asarray(normal.mean(0), dtype=np.float64).ravel()
    square = np.asarray(normal.multiply(normal).mean(0), dtype=np.float64).ravel()
    variance: NDArray[np.float64] = (square - mean**2) * n / max(n - 1, 1)
    return variance


def moments(
    slides: dict[str, tuple[csr_matrix, list[str]]], genes: list[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the mean and the variance of the raw counts over all spots of all slides.

    Args:
        slides: Slide ID -> raw counts (N, G) and the names of the G genes.
        genes: Names of the genes to use.

    Returns:
        Mean and variance, each of shape (len(genes),).
    """
    n, total, square = 0, np.zeros(len(genes)), np.zeros(len(genes))
    for counts, names in slides.values():
        c = columns(counts, names, genes).astype(np.float64)
        n += c.shape[0]
        total += np.asarray(c.sum(0)).ravel()
        square += np.asarray(c.multiply(c).sum(0)).ravel()
    mean = total / n
    return mean, square / n - mean**2


def high_mean_high_variance(
    genes: list[str], mean: NDArray[np.float64], variance: NDArray[np.float64], n: int
) -> list[str]:
    """Intersect the top N genes by mean and by variance, with N large enough that `n` genes remain.

    Args:
        genes: (G,) names of the candidates.
        mean: (G,) mean counts.
        variance: (G,) variances of the counts.
        n: Number of genes to return; fewer are returned only if there are fewer candidates.

    Returns:
        The n genes of the intersection whose two ranks have the smallest sum, the smallest first.
    """
    by_mean, by_variance = ranks(genes, mean), ranks(genes, variance)
    for size in range(max(FIRST_N, n), max(len(genes), FIRST_N, n) + 1):
        both = np.flatnonzero((by_mean < size) & (by_variance < size))
        if len(both) >= n:
            break
    order = sorted(both, key=lambda i: (by_mean[i] + by_variance[i], genes[i]))
    return [genes[i] for i in order[:n]]


def top(genes: list[str], values: NDArray[np.float64], n: int) -> list[str]:
    """List the n genes with the highest values, the highest first."""
    rank = ranks(genes, values)
    return [genes[i] for i in np.argsort(rank)[:n]]


def ranks(genes: Sequence[str], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rank genes by value: 0 for the highest; ties are ordered by name. Returns shape (G,)."""
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.lexsort((np.array(genes), -values))] = np.arange(len(values))
    return rank


def columns(counts: csr_matrix, names: list[str], genes: list[str]) -> csr_matrix:
    """Select columns of a count matrix by gene name.

    Args:
        counts: (N, G) counts.
        names: (G,) names of the columns.
        genes: Names of the columns to select.

    Returns:
        (N, len(genes)) counts.
    """
    position = {name: i for i, name in enumerate(names)}
    return counts[:, [position[gene] for gene in genes]]
