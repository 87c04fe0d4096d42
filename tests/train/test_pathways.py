"""Gene sets from files of any content, and scores against a loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from hist_cache.errors import InputError
from train.pathways import pathway_metrics, pathway_scores, read_gene_sets, sets_in_panel, z_scores

PANEL = [f"G{i}" for i in range(12)]
SETS = {"even": ("G0", "G2", "G4", "G6"), "odd": ("G1", "G3", "G5", "ELSEWHERE"), "two": ("G1", "G2", "NOWHERE")}


def test_a_gmt_file(tmp_path: Path) -> None:
    file = tmp_path / "sets.gmt"
    file.write_text("\ufeffHYPOXIA\thttps://x.org/a b\tVEGFA\tCA9\tVEGFA\t\r\n\nREPAIR\t\tPCNA\n", encoding="utf-8")
    assert read_gene_sets(file) == {"HYPOXIA": ("VEGFA", "CA9"), "REPAIR": ("PCNA",)}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no gene sets in it"),
        (b" \n\n", "no gene sets in it"),
        (b"\xff\xfe", "not text in UTF-8"),
        (b"A\tb\tC\nname only\n", "line 2: no GMT; give name, description and genes, separated by tabs"),
        (b"A,b,C,D", "line 1: no GMT"),
        (b"A\tdescription\t\t\t", "line 1: no GMT"),
        (b"\tdescription\tG1", "line 1: an empty name"),
        (b"A\tb\tG\x001", "line 1: a name with control characters"),
        (b"A\tb\tG1\x0bG2", "line 1: a name with control characters"),
        (b"A\tb\tG1\nA\tb\tG2", "line 2: A stands in it twice"),
        (b"A\tb\t" + b"G" * 400, "line 1: a name of 400 characters"),
        (b'{"A": ["G1"]}', "line 1: no GMT"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "sets.gmt"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_gene_sets(file)
    assert str(caught.value).startswith(f"--pathways {file}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_gene_sets(tmp_path / "sets.gmt")


def test_sets_need_three_genes_of_the_panel() -> None:
    assert sets_in_panel(SETS, PANEL) == {"even": ("G0", "G2", "G4", "G6"), "odd": ("G1", "G3", "G5")}


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 30), slides=st.integers(1, 3), constant=st.integers(0, 4), seed=st.integers(0, 999))
def test_scores_against_a_loop(n: int, slides: int, constant: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    t, p = (rng.gamma(2, 1, (n, 12)).astype(np.float32) for _ in range(2))
    slide = np.array([f"S{i}" for i in rng.integers(0, slides, n)], dtype=object)
    for j in range(0, 2 * constant, 2):
        t[slide == "S0", j] = 0.3
    kept = sets_in_panel(SETS, PANEL)
    scores = pathway_scores(z_scores(p, t, slide), PANEL, kept)
    assert scores.shape == (n, 2)
    for i in range(n):
        own = [k for k in range(n) if slide[k] == slide[i]]
        for column, genes in enumerate(kept.values()):
            z = []
            for gene in genes:
                j = PANEL.index(gene)
                values = [float(t[k, j]) for k in own]
                mean = sum(values) / len(values)
                deviation = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
                if deviation > 1e-9:
                    z.append((float(p[i, j]) - mean) / deviation)
            expected = sum(z) / len(z) if z else np.nan
            np.testing.assert_allclose(scores[i, column], expected, rtol=1e-9, atol=1e-9)


def test_metrics_against_scipy() -> None:
    rng = np.random.default_rng(0)
    t = rng.gamma(2, 1, (40, 12))
    p = t + rng.normal(size=t.shape)
    slide = np.repeat(["A", "B"], 20)
    metrics = pathway_metrics(p, t, slide, PANEL, SETS)
    expected = {}
    for name, genes in sets_in_panel(SETS, PANEL).items():
        columns = [PANEL.index(gene) for gene in genes]
        scores = {}
        for kind, values in (("p", p), ("t", t)):
            parts = []
            for s in "AB":
                own = t[slide == s][:, columns]
                parts.append(((values[slide == s][:, columns] - own.mean(0)) / own.std(0)).mean(1))
            scores[kind] = np.concatenate(parts)
        expected[name] = pearsonr(scores["p"], scores["t"]).statistic
    assert {name: values["pcc"] for name, values in metrics.pathways.items()} == pytest.approx(expected)
    assert {name: values["genes"] for name, values in metrics.pathways.items()} == {"even": 4, "odd": 3}
    assert metrics.mean == pytest.approx(np.mean(list(expected.values())))


def test_what_cannot_be_predicted_counts_as_zero_or_not_at_all() -> None:
    rng = np.random.default_rng(0)
    t = rng.gamma(2, 1, (20, 12))
    t[:, :8:2] = 1.5
    slide = np.array(["A"] * 20)
    metrics = pathway_metrics(t, t, slide, PANEL, SETS)
    assert metrics.pathways["even"]["pcc"] == 0, "all its genes are constant"
    assert metrics.pathways["odd"]["pcc"] == pytest.approx(1)
    assert pathway_metrics(np.ones_like(t), t, slide, PANEL, SETS).pathways["odd"]["pcc"] == 0
    none = pathway_metrics(t, t, slide, PANEL, {"two": ("G1", "G2")})
    assert (none.pathways, none.mean) == ({}, None)
    half = np.array(["A"] * 10 + ["B"] * 10)
    t[10:, :8:2] = rng.gamma(2, 1, (10, 4))
    assert pathway_metrics(t, t, half, PANEL, SETS).pathways["even"]["pcc"] == pytest.approx(1), "over the spots of B"
