"""The whole loss of every variant, written out term by term in float64 from the equations of the method.

Nothing comes from variants.toml or from the geometry of the package: each row below says what a variant should be.
"""

import math

import numpy as np
import pytest
import torch

from train.data import Batch
from train.experiments.protocols import get_protocol
from train.models.configs import HistConfig
from train.models.hist import HistModel
from train.models.variants import get_variant, load_variants

ALPHA, BETA, Q = 0.2, 0.4, 0.1
APERTURE_MARGIN = 1e-3  # the argument of arcsin stays this far below 1

HCA = {("Is", "Gs"): 1 / 4, ("Gs", "Is"): 1 / 4, ("Gn", "Is"): 1 / 4, ("In", "Gs"): 1 / 4}
SPOT_PAIR = {("Is", "Gs"): 1 / 2, ("Gs", "Is"): 1 / 2}
WITHIN = {("Is", "In"): 1 / 4, ("Gs", "Gn"): 1 / 4}
ACROSS = {("Is", "Gs"): 1 / 4, ("In", "Gn"): 1 / 4}
HEA = WITHIN | ACROSS


def reversed_pairs(pairs):
    return {(b, a): weight for (a, b), weight in pairs.items()}


# variant: (contrasts anchor -> candidates, entailments parent > child, geometry)
EXPECTED_TERMS = {
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
        HEA,  # HyCoCLIP has 0.2 * 1/2 of the sum, which is BETA * 1/4
        "lorentz",
    ),
    "spot_only": (HCA, HEA, "lorentz"),
    "niche_only": (HCA, HEA, "lorentz"),
    "reverse_spot_niche": (HCA, reversed_pairs(WITHIN) | ACROSS, "lorentz"),
    "reverse_image_gene": (HCA, WITHIN | reversed_pairs(ACROSS), "lorentz"),
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
            aper = math.asin(min(2 * Q / (math.sqrt(c) * n), 1 - APERTURE_MARGIN))
        else:
            ext = math.acos(p @ (q - p) / np.linalg.norm(p) / np.linalg.norm(q - p))
            aper = math.asin(min(Q / np.linalg.norm(p), 1 - APERTURE_MARGIN))
        total += max(0.0, ext - eta * aper)
    return total / len(parents)


def expected_loss(name, v, mse, c, tau, etas=None, entail_scale=1.0):
    contrasts, entailments, geometry = EXPECTED_TERMS[name]
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
    # All weights of the full variant but those of the decoder, whose size may differ.
    same_weights = HistModel(shape, get_variant("full")).double().state_dict()
    model.load_state_dict({k: v for k, v in same_weights.items() if not k.startswith("decoder")}, strict=False)
    torch.manual_seed(seed)
    spot, niche = torch.randn(2, 9, 12, dtype=torch.float64)
    y, y_niche = torch.rand(2, 9, 7, dtype=torch.float64) * 5
    batch = Batch(spot, niche, torch.arange(9), y, y_niche, y)
    with torch.no_grad():
        images, genes = model.image_tangents(batch), model.gene_tangents(batch)
        scale_i, scale_g = model.log_scale_image.exp(), model.log_scale_gene.exp()
        # embed() works in float32, so the expected loss must start from float32 values too.
        vectors = [
            v.float().double() * s for v, s in zip((*images, *genes), (scale_i, scale_i, scale_g, scale_g), strict=True)
        ]
        v = dict(zip(("Is", "In", "Gs", "Gn"), (x.numpy() for x in vectors), strict=True))
        decoder_inputs = {"s": images[:1], "n": images[1:], "both": images}[DECODER.get(variant.name, "both")]
        mse = float(((model.decoder(torch.cat(decoder_inputs, 1)) - y) ** 2).mean())
        loss, _ = model.loss(batch)
    c, tau = model.log_c.exp().item(), (-model.log_inverse_tau).exp().item()
    return loss.item(), v, mse, c, tau


def test_every_variant_is_written_here():
    assert set(EXPECTED_TERMS) == set(load_variants())


@pytest.mark.parametrize("name", sorted(EXPECTED_TERMS))
def test_the_whole_loss(name):
    loss, *rest = setup(get_variant(name))
    etas = HYCOCLIP_ETAS if name == "hycoclip" else None
    assert loss == pytest.approx(expected_loss(name, *rest, etas=etas), rel=2e-6)


@pytest.mark.parametrize("name", sorted(EXPECTED_TERMS))
def test_under_the_release_protocol(name):
    """Half the sum instead of a quarter, wider cones within a modality, narrower across; own etas stay."""
    loss, *rest = setup(get_protocol("release").apply(get_variant(name)))
    if name == "hycoclip":
        expected = expected_loss(name, *rest, etas=HYCOCLIP_ETAS)
    else:
        release_etas = {("Is", "In"): 1.2, ("Gs", "Gn"): 1.2, ("Is", "Gs"): 0.7, ("In", "Gn"): 0.7}
        expected = expected_loss(name, *rest, etas=release_etas | reversed_pairs(release_etas), entail_scale=2)
    assert loss == pytest.approx(expected, rel=2e-6)


@pytest.mark.parametrize("name", sorted(set(EXPECTED_TERMS) - {"full"}))
def test_a_variant_differs_from_full_in_its_terms_and_in_nothing_else(name):
    """With the same seed and inputs, the loss without the expected terms is the error of the decoder alone."""
    full, v, mse, c, tau = setup(get_variant("full"))
    loss, own_v, own_mse, own_c, own_tau = setup(get_variant(name))
    for key in v:
        np.testing.assert_array_equal(own_v[key], v[key])
    assert (own_c, own_tau) == (c, tau)
    if name not in DECODER:
        assert own_mse == pytest.approx(mse, rel=1e-12)
    etas = HYCOCLIP_ETAS if name == "hycoclip" else None
    difference = expected_loss(name, v, own_mse, c, tau, etas=etas) - expected_loss("full", v, mse, c, tau)
    assert loss - full == pytest.approx(difference, abs=2e-6 * abs(full))
