"""Gene panels: the genes that a model predicts.

HMHVG (high mean, high variance) is chosen as in HiST, appendix B.1. The candidates are the 2,000 most variable genes of
each slide, taken together. The panel is the intersection of the N candidates with the highest mean and the N with the
highest variance. N starts at 300 and grows until enough genes remain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from hist_cache.errors import InputError
from hist_cache.texts import bad_name, did_you_mean, read_json, read_text
from hist_cache.threads import in_threads

TECHNICAL = ("MT-", "RPS", "RPL")  # mitochondrial and ribosomal; "MT" without "-" would match metallothioneins too
VARIABLE_PER_SLIDE = 2000
FIRST_N = 300
DEFAULT_SIZE = {"hmhvg": 200, "hvg": 300}

CountTable = tuple[Callable[[], csr_matrix], Sequence[str]]
"""What gives the raw counts (N, G) of a slide, called in a thread, and the names of the G genes."""


def choose_panel(
    kind: str,
    n: int | None,
    slides: Mapping[str, CountTable],
    other_genes: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Choose the genes of the panel.

    Args:
        kind: "hmhvg", "hvg" (the candidates with the highest mean), or a file of gene names.
        n: Number of genes; None means the default of the kind, or all genes of the file.
        slides: Slide ID -> its counts, of which a few slides' are in memory at a time, and each slide's once.
        other_genes: Slide ID -> gene names of further slides. They must have the genes of the panel too, but their
            counts are not used.

    Returns:
        Gene names, the best first. Ties are ordered by name, so the order of the slides does not matter.

    Raises:
        InputError: The file is not readable, there are not enough variable genes, or a slide lacks genes of the panel.
    """
    genes_of = {slide: names for slide, (_, names) in slides.items()} | dict(other_genes or {})
    if kind not in DEFAULT_SIZE:
        panel = read_panel(Path(kind))
        panel = panel[:n] if n else panel
    else:
        n = n or DEFAULT_SIZE[kind]
        candidates, mean, variance = gene_statistics(slides.values(), common_genes(genes_of))
        panel = high_mean_high_variance(candidates, mean, variance, n) if kind == "hmhvg" else top(candidates, mean, n)
        if len(panel) < n:
            raise InputError(f"--n-genes {n}: only {len(panel)} genes of these slides are variable; ask for fewer")
    for slide, names in genes_of.items():
        if missing := sorted(set(panel).difference(names)):
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


def common_genes(genes_of: Mapping[str, Sequence[str]]) -> list[str]:
    """List the genes that every slide has, without technical genes, sorted by name.

    Args:
        genes_of: Slide ID -> gene names.
    """
    first, *others = {id(names): names for names in genes_of.values()}.values()  # many slides share one list
    return sorted(g for g in set(first).intersection(*others) if not g.startswith(TECHNICAL))


@dataclass(frozen=True)
class SlideStatistics:
    """What one slide says of the genes that all slides have.

    Attributes:
        variable: Names of its most variable genes.
        spots: N.
        sums: (G,) sums of the raw counts of each gene.
        squares: (G,) sums of their squares.
    """

    variable: list[str]
    spots: int
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]


def gene_statistics(
    tables: Iterable[CountTable], genes: Sequence[str]
) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """Find the genes that are among the most variable ones of at least one slide; slides are read in threads.

    Args:
        tables: Of each slide.
        genes: Names of the genes that may be chosen.

    Returns:
        Their names, sorted; and mean and variance of their raw counts over all spots of all slides.
    """
    spots, sums, squares = 0, np.zeros(len(genes)), np.zeros(len(genes))
    union: set[str] = set()
    for slide in in_threads(lambda table: slide_statistics(table[0](), table[1], genes), tables):
        union.update(slide.variable)
        spots += slide.spots
        sums += slide.sums
        squares += slide.squares
    candidates = sorted(union)
    position = {name: i for i, name in enumerate(genes)}
    chosen = [position[name] for name in candidates]
    mean = sums[chosen] / spots
    return candidates, mean, squares[chosen] / spots - mean**2


def slide_statistics(counts: csr_matrix, names: Sequence[str], genes: Sequence[str]) -> SlideStatistics:
    """Compute what one slide says of some of its genes.

    Args:
        counts: (N, G) raw counts.
        names: (G,) names of the columns.
        genes: Names of the genes that may be chosen.
    """
    position = {name: i for i, name in enumerate(names)}
    chosen = np.array([position[gene] for gene in genes], dtype=np.int64)
    variable = top(genes, normalized_variance(counts, chosen), VARIABLE_PER_SLIDE)
    values = counts.data.astype(np.float64)
    sums = column_sums(counts, values)
    values *= values
    return SlideStatistics(variable, counts.shape[0], sums[chosen], column_sums(counts, values)[chosen])


def normalized_variance(counts: csr_matrix, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute the variance over spots of log(1 + count), counts scaled to the median library size, to rank genes.

    Args:
        counts: (N, G) raw counts.
        chosen: (n,) columns of the genes, which are the library.

    Returns:
        (n,) variances.
    """
    n, n_columns = counts.shape
    library = np.zeros(n_columns)
    library[chosen] = 1
    raw = counts.data.astype(np.float64)
    total = csr_matrix((raw, counts.indices, counts.indptr), shape=counts.shape) @ library
    scale = np.median(total[total > 0]) / np.maximum(total, 1)
    values = np.repeat(scale, np.diff(counts.indptr))
    values *= raw
    np.log1p(values, out=values)
    share = np.multiply(values, 1 / n, out=raw)  # no further memory: to ask for it takes longer than to multiply
    mean = column_sums(counts, share)
    values *= values
    values *= 1 / n
    square = column_sums(counts, values)
    variance: NDArray[np.float64] = (square - mean**2) * n / max(n - 1, 1)
    return variance[chosen]


def column_sums(table: csr_matrix, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add up each column (G,) of a table that has other values where `table` (N, G) has its own."""
    there = csr_matrix((values, table.indices, table.indptr), shape=table.shape)
    return np.asarray(there.sum(0), dtype=np.float64).ravel()


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


def top(genes: Sequence[str], values: NDArray[np.float64], n: int) -> list[str]:
    """List the n genes with the highest values, the highest first."""
    rank = ranks(genes, values)
    return [genes[i] for i in np.argsort(rank)[:n]]


def ranks(genes: Sequence[str], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rank genes by value: 0 for the highest; ties are ordered by name. Returns shape (G,)."""
    rank = np.empty(len(values), dtype=np.int64)
    rank[np.lexsort((np.array(genes), -values))] = np.arange(len(values))
    return rank


def columns(counts: csr_matrix, names: Sequence[str], genes: Sequence[str]) -> csr_matrix:
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
