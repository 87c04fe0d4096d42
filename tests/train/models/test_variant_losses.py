"""The whole loss of every variant, written out term by term in float64 from the method's equations.

Nothing here is taken from variants.toml or the package's geometry: each row below is what a variant should be.
"""

import math

import numpy as np
import pytest
import torch

from train.experiments.protocols import get_protocol
from train.models.hist import HistConfig, HistModel
from train.models.variants import get_variant, load_variants

ALPHA, BETA, Q = 0.2, 0.4, 0.1
BORDER = 1e-3  # how far arcsin's argument stays below 1

HCA = {("Is", "Gs"): 1 / 4, ("Gs", "Is"): 1 / 4, ("Gn", "Is"): 1 / 4, ("In", "Gs"): 1 / 4}
SPOT_PAIR = {("Is", "Gs"): 1 / 2, ("Gs", "Is"): 1 / 2}
WITHIN = {("Is", "In"): 1 / 4, ("Gs", "Gn"): 1 / 4}
ACROSS = {("Is", "Gs"): 1 / 4, ("In", "Gn"): 1 / 4}
HEA = WITHIN | ACROSS


def turned(pairs):
    return {(b, a): weight for (a, b), weight in pairs.items()}


# variant: (contrasts anchor -> candidates, entailments parent > child, distance, etas)
WRITTEN = {
    "full": (HCA, HEA, "lorentz"),
    "no_gi_hea": (HCA, WITHIN, "lorentz"),
    "no_hea": (HCA, {}, "lorentz"),
    "no_hha": ({}, {}, "lorentz"),
    "meru": (SPOT_PAIR, {("Is", "Gs"): 1}, "lorentz"),
    "clip": (SPOT_PAIR, {}, "euclidean"),
    "euclidean": (HCA, {}, "euclidean"),
    "euclidean_cones": (HCA, HEA, "euclidean"),
    "hycoclip": (
        {("In", "Gn"): 1 / 4, ("Gn", "In"): 1 / 4, ("Is", "Gn"): 1 / 4, ("Gs", "In"): 1 / 4},
        HEA,  # its own: 0.2 * 1/2 of the sum, which is BETA * 1/4
        "lorentz",
    ),
    "spot_only": (HCA, HEA, "lorentz"),
    "niche_only": (HCA, HEA, "lorentz"),
    "reverse_spot_niche": (HCA, turned(WITHIN) | ACROSS, "lorentz"),
    "reverse_image_gene": (HCA, WITHIN | turned(ACROSS), "lorentz"),
}
DECODER = {"meru": "s", "clip": "s", "spot_only": "s", "niche_only": "n"}
HYCOCLIP_ETAS = {("Is", "In"): 1.2, ("Gs", "Gn"): 1.2, ("Is", "Gs"): 0.7, ("In", "Gn"): 0.7}


def lift(v, c):
    """exp at the origin: (space, time)."""
    n = math.sqrt(c) * np.linalg.norm(v)
    x = np.sinh(n) / n * v
    return x, math.sqrt(1 / c + x @ x)


def product(x, y):
    return x[0] @ y[0] - x[1] * y[1]


def distance(x, y, c):
    return np.arccosh(-c * product(x, y)) / math.sqrt(c)


def align(a, b, c, tau, geometry):
    rows = []
    for x in a:
        if geometry == "lorentz":
            rows.append([-distance(lift(x, c), lift(y, c), c) / tau for y in b])
        else:
            rows.append([x @ y / np.linalg.norm(x) / np.linalg.norm(y) / tau for y in b])
    logits = np.array(rows)
    return float(np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits)))


def entail(parents, children, c, eta, geometry):
    total = 0.0
    for p, q in zip(parents, children, strict=True):
        if geometry == "lorentz":
            y, x = lift(p, c), lift(q, c)
            n, inner = np.linalg.norm(y[0]), product(y, x)
            ext = math.acos((x[1] + c * y[1] * inner) / (n * math.sqrt((c * inner) ** 2 - 1)))
            aper = math.asin(min(2 * Q / (math.sqrt(c) * n), 1 - BORDER))
        else:
            ext = math.acos(p @ (q - p) / np.linalg.norm(p) / np.linalg.norm(q - p))
            aper = math.asin(min(Q / np.linalg.norm(p), 1 - BORDER))
        total += max(0.0, ext - eta * aper)
    return total / len(parents)


def written_loss(name, v, mse, c, tau, etas=None, entail_scale=1.0):
    contrasts, entailments, geometry = WRITTEN[name]
    hca = sum(w * align(v[a], v[b], c, tau, geometry) for (a, b), w in contrasts.items())
    etas = etas or {}
    hea = sum(
        entail_scale * w * entail(v[y], v[x], c, etas.get((y, x), 1.0), geometry) for (y, x), w in entailments.items()
    )
    return mse + ALPHA * (hca + BETA * hea)


def setup(variant, seed=3):
    """A model without dropout, a batch, and what enters the losses: tangent vectors, c, tau, MSE in float64."""
    shape = HistConfig(12, 7, width=16, depth=1, dropout=0.0, curvature=1.7, temperature=0.3)
    torch.manual_seed(seed)
    model = HistModel(shape, variant).double()
    torch.manual_seed(seed)
    alike = HistModel(shape, get_variant("full")).double().state_dict()  # all but a decoder of another size
    model.load_state_dict({k: v for k, v in alike.items() if not k.startswith("decoder")}, strict=False)
    torch.manual_seed(seed)
    spot, niche = torch.randn(2, 9, 12, dtype=torch.float64)
    y, y_niche = torch.rand(2, 9, 7, dtype=torch.float64) * 5
    with torch.no_grad():
        images, genes = model.images(spot, niche), model.genes(y, y_niche)
        scale_i, scale_g = model.log_scale_image.exp(), model.log_scale_gene.exp()
        # embed() works in float32; so must what it is compared with start from
        vectors = [
            v.float().double() * s for v, s in zip((*images, *genes), (scale_i, scale_i, scale_g, scale_g), strict=True)
        ]
        v = dict(zip(("Is", "In", "Gs", "Gn"), (x.numpy() for x in vectors), strict=True))
        reads = {"s": images[:1], "n": images[1:], "both": images}[DECODER.get(variant.name, "both")]
        mse = float(((model.decoder(torch.cat(reads, 1)) - y) ** 2).mean())
        loss, _ = model(spot, niche, y, y_niche)
    c, tau = model.log_c.exp().item(), (-model.log_inverse_tau).exp().item()
    return loss.item(), v, mse, c, tau


def test_every_variant_is_written_here():
    assert set(WRITTEN) == set(load_variants())


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_the_whole_loss(name):
    loss, *rest = setup(get_variant(name))
    etas = HYCOCLIP_ETAS if name == "hycoclip" else None
    assert loss == pytest.approx(written_loss(name, *rest, etas=etas), rel=2e-6)


@pytest.mark.parametrize("name", sorted(WRITTEN))
def test_under_the_release_protocol(name):
    """Half the sum instead of a quarter, wider cones within a modality, narrower across; own etas stay."""
    loss, *rest = setup(get_protocol("release").apply(get_variant(name)))
    if name == "hycoclip":
        expected = written_loss(name, *rest, etas=HYCOCLIP_ETAS)
    else:
        both_ways = {("Is", "In"): 1.2, ("Gs", "Gn"): 1.2, ("Is", "Gs"): 0.7, ("In", "Gn"): 0.7}
        expected = written_loss(name, *rest, etas=both_ways | turned(both_ways), entail_scale=2)
    assert loss == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("name", sorted(set(WRITTEN) - {"full"}))
def test_a_variant_differs_from_full_in_its_terms_and_in_nothing_else(name):
    """Same seed: as its inputs are those of full, the loss less the written terms must be the decoder's error alone."""
    full, v, mse, c, tau = setup(get_variant("full"))
    loss, own_v, own_mse, own_c, own_tau = setup(get_variant(name))
    for key in v:
        np.testing.assert_array_equal(own_v[key], v[key])
    assert (own_c, own_tau) == (c, tau)
    if name not in DECODER:
        assert own_mse == pytest.approx(mse, rel=1e-12)
    etas = HYCOCLIP_ETAS if name == "hycoclip" else None
    difference = written_loss(name, v, own_mse, c, tau, etas=etas) - written_loss("full", v, mse, c, tau)
    assert loss - full == pytest.approx(difference, abs=2e-6 * abs(full))
