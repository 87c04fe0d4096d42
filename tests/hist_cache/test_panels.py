import re
import weakref
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy.sparse import csr_matrix

from hist_cache.errors import InputError
from hist_cache.panels import (
    CountTable,
    choose_panel,
    gene_statistics,
    high_mean_high_variance,
    normalized_variance,
    read_panel,
    slide_statistics,
)
from hist_cache.processes import cores
from hist_cache.threads import MAX_THREADS


def counts(n: int = 120, genes: int = 900, seed: int = 0) -> csr_matrix:
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.6, 6, genes) * rng.gamma(4, 0.25, (n, 1)) * rng.gamma(3, 1 / 3, (n, genes))
    return csr_matrix(rng.poisson(rate))


def table(values: csr_matrix, genes: list[str]) -> CountTable:
    return lambda: values, genes


def names(genes: int = 900) -> list[str]:
    return [f"GENE{i:04d}" for i in range(genes)]


def test_variability_is_the_variance_after_scanpys_normalisation() -> None:
    chosen = np.random.default_rng(5).permutation(900)[:700]
    spots = anndata.AnnData(counts().astype(np.float64)[:, chosen], var=pd.DataFrame(index=names(700)))
    sc.pp.normalize_total(spots)
    sc.pp.log1p(spots)
    expected = spots.X.toarray().var(0, ddof=1)
    np.testing.assert_allclose(normalized_variance(counts(), chosen), expected, rtol=1e-6, atol=1e-9)


def test_variability_has_the_bits_of_scipys_own_operations() -> None:
    """A panel's last genes may differ by the last bit, and panels are in the names of finished runs."""
    chosen = np.sort(np.random.default_rng(6).permutation(900)[:600])
    own = counts(seed=3)[:, chosen]
    total = np.asarray(own.sum(1)).ravel().astype(np.float64)
    scale = np.median(total[total > 0]) / np.maximum(total, 1)
    normal = own.astype(np.float64).multiply(scale[:, None]).tocsr().log1p()
    mean, square = (np.asarray(values.mean(0)).ravel() for values in (normal, normal.multiply(normal)))
    np.testing.assert_array_equal(normalized_variance(counts(seed=3), chosen), (square - mean**2) * 120 / 119)


def test_moments_are_those_of_all_spots() -> None:
    tables = [table(counts(seed=1), names()), table(counts(seed=2)[:, ::-1].tocsr(), names()[::-1])]
    candidates, mean, variance = gene_statistics(tables, names())
    stacked = np.concatenate([counts(seed=1).toarray(), counts(seed=2).toarray()])
    assert candidates == names(), "fewer than 2,000"
    np.testing.assert_allclose(mean, stacked.mean(0))
    np.testing.assert_allclose(variance, stacked.var(0))


def test_each_slides_counts_are_read_once_and_few_are_there_together() -> None:
    there, most, reads = set(), 0, []

    def reader(number: int) -> CountTable:
        def read() -> csr_matrix:
            nonlocal most
            own = counts(n=20, seed=number)
            there.add(number)
            weakref.finalize(own, there.discard, number)
            reads.append(number)
            most = max(most, len(there))
            return own

        return read, names()

    panel = choose_panel("hmhvg", 50, {f"S{i}": reader(i) for i in range(24)})
    assert sorted(reads) == list(range(24))
    assert most <= min(len(cores()), MAX_THREADS) + 1
    assert panel == choose_panel("hmhvg", 50, {f"S{i}": table(counts(n=20, seed=i), names()) for i in range(24)})


def test_hmhvg_is_the_grown_intersection() -> None:
    rng = np.random.default_rng(0)
    genes, mean, variance = names(1000), rng.random(1000), rng.random(1000)
    panel = high_mean_high_variance(genes, mean, variance, 200)
    by_mean = pd.Series(-mean, genes).rank()
    by_variance = pd.Series(-variance, genes).rank()
    n = 300
    while True:
        both = [g for g in genes if by_mean[g] <= n and by_variance[g] <= n]
        if len(both) >= 200:
            break
        n += 1
    assert panel == sorted(both, key=lambda g: (by_mean[g] + by_variance[g], g))[:200]


def test_the_order_of_slides_and_genes_does_not_matter() -> None:
    a, b = counts(seed=1), counts(seed=2)
    turned = np.random.default_rng(0).permutation(900)
    there = choose_panel("hmhvg", 200, {"A": table(a, names()), "B": table(b, names())})
    shuffled = [names()[i] for i in turned]
    back = choose_panel("hmhvg", 200, {"B": table(b[:, turned].tocsr(), shuffled), "A": table(a, names())})
    assert there == back
    assert len(there) == 200
    assert len(choose_panel("hvg", None, {"A": table(a, names())})) == 300


def test_technical_genes_are_left_out_and_metallothioneins_stay() -> None:
    n = names()
    n[:5] = ["MT-CO1", "RPS3", "RPL4", "MT1E", "MT2A"]
    c = counts().toarray()
    c[:, :5] = np.random.default_rng(0).poisson(np.linspace(1, 300, 120)[:, None], (120, 5))
    panel = choose_panel("hmhvg", 200, {"A": table(csr_matrix(c), n)})
    assert {"MT1E", "MT2A"} <= set(panel)
    assert not {"MT-CO1", "RPS3", "RPL4"} & set(panel)


def test_only_genes_that_all_slides_have() -> None:
    panel = choose_panel(
        "hvg", 300, {"A": table(counts(seed=1), names()), "B": table(counts(seed=2)[:, :600].tocsr(), names(600))}
    )
    assert set(panel) <= set(names(600))


def test_panels_from_files(tmp_path: Path) -> None:
    slides = {"A": table(counts(), names())}
    file = tmp_path / "panel.txt"
    file.write_text("GENE0003\n# a comment\nGENE0001  # another\n\n")
    assert choose_panel(str(file), None, slides) == ["GENE0003", "GENE0001"]
    bench = tmp_path / "var_50genes.json"
    bench.write_text('{"genes": ["GENE0009"]}')
    assert choose_panel(str(bench), None, slides) == ["GENE0009"]
    for text, message in (
        ("GENE0001\nGENE0001\n", "twice"),
        ("NONE\n", "A lacks 1 genes of the panel .NONE"),
        ("", "no gene names"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            choose_panel(str(file), None, slides)
    with pytest.raises(InputError, match="neither hmhvg, hvg nor"):
        choose_panel("hmvg", None, slides)


def test_too_many_genes_asked_for() -> None:
    with pytest.raises(InputError, match="--n-genes 3000: only"):
        choose_panel("hmhvg", 3000, {"A": table(counts(), names())})


def test_the_union_takes_a_gene_variable_in_one_slide_only() -> None:
    flat = np.full((50, 2100), 5)
    odd = flat.copy()
    odd[::2, 7] = 80
    genes = names(2100)
    assert "GENE0007" in slide_statistics(csr_matrix(odd), genes, genes).variable
    assert "GENE0007" in gene_statistics([table(csr_matrix(flat), genes), table(csr_matrix(odd), genes)], genes)[0]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("g.json", b"[1]", 'must be {"genes": [names]}'),
        ("g.json", b'{"genes": "A"}', 'must be {"genes": [names]}'),
        ("g.json", b'{"genes": [1]}', 'must be {"genes": [names]}'),
        ("g.json", b'{"genes": ["A", ""]}', "an empty name"),
        ("g.json", b'{"genes": ["A\\n"]}', "a name with control characters"),
        ("g.json", b'{"genes": []}', "no gene names in it"),
        ("g.json", b"[" * 100_000, "nested too deep"),
        ("g.txt", b"\xff", "not text in UTF-8"),
        ("g.txt", b"A\0B", "a name with control characters"),
        ("g.txt", b"# nothing\n\n", "no gene names in it"),
        ("g.txt", b"A\nB\nA\n", "A stands in it twice"),
        ("", b"", "not a file"),
    ],
)
def test_panel_files_of_any_content(tmp_path, name, content, says):
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=re.escape(says)):
        read_panel(tmp_path / name)
