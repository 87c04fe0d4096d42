"""Contrast and entailment against a second implementation of the paper's formulas, in float64 numpy."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from train.models import lorentz
from train.models.alignment import Embeddings, Terms, contrast_loss, entailment_loss, geometry_summary, info_nce
from train.models.variants import load_variants

VARIANTS = load_variants()
FULL = VARIANTS["full"].terms
NAMES = ("image_spot", "image_niche", "gene_spot", "gene_niche")
QUARTERS = (0.25, 0.25, 0.25, 0.25)
NONE = (0.0, 0.0, 0.0, 0.0)


def make_embeddings(points, c, tau):
    return Embeddings(**dict(zip(NAMES, points, strict=True)), c=torch.as_tensor(c), tau=torch.as_tensor(tau))


def batch(seed=0, n=12, d=6, c=1.3, tau=0.2, dtype=torch.float64, spread=1.0):
    """Random points at radii around `spread`."""
    draw = torch.Generator().manual_seed(seed)
    v = [spread * torch.randn(n, d, generator=draw, dtype=torch.float64) / d**0.5 for _ in NAMES]
    points = [lorentz.exp_map0(x, c).to(dtype) for x in v]
    return make_embeddings(points, torch.tensor(c, dtype=dtype), torch.tensor(tau, dtype=dtype))


def leaves(embeddings):
    """The same batch with every tensor a leaf that requires a gradient."""
    return replace(
        embeddings, **{k: getattr(embeddings, k).detach().clone().requires_grad_() for k in (*NAMES, "c", "tau")}
    )


def total(embeddings, variant, alpha=0.2, beta=0.4):
    hca, (hea, _) = contrast_loss(embeddings, variant.terms), entailment_loss(embeddings, variant.terms)
    return alpha * variant.alpha_scale * (hca + beta * hea)


def all_gradients(loss, embeddings):
    return torch.autograd.grad(loss, [getattr(embeddings, k) for k in (*NAMES, "c", "tau")], allow_unused=True)


# The reference.


def ref_time(x, c):
    return math.sqrt(1 / c + x @ x)


def ref_product(x, y, c):
    return x @ y - ref_time(x, c) * ref_time(y, c)


def ref_align(a, b, c, tau, geometry):
    loss = 0.0
    for i in range(len(a)):
        if geometry == "lorentz":
            logits = np.array([-np.arccosh(-c * ref_product(a[i], y, c)) / math.sqrt(c) / tau for y in b])
        else:
            logits = np.array([a[i] @ y / np.linalg.norm(a[i]) / np.linalg.norm(y) / tau for y in b])
        loss -= math.log(np.exp(logits[i]) / np.exp(logits).sum())
    return loss / len(a)


def ref_entail(parents, children, c, eta, geometry):
    loss = 0.0
    for y, x in zip(parents, children, strict=True):
        n = np.linalg.norm(y)
        if geometry == "lorentz":
            p = ref_product(y, x, c)
            angle = math.acos((ref_time(x, c) + c * ref_time(y, c) * p) / (n * math.sqrt((c * p) ** 2 - 1)))
            aperture = math.asin(min(float(2 * 0.1 / (math.sqrt(c) * n)), 1 - lorentz.APERTURE_MARGIN))
        else:
            angle = math.acos(y @ (x - y) / (n * np.linalg.norm(x - y)))
            aperture = math.asin(min(float(0.1 / n), 1 - lorentz.APERTURE_MARGIN))
        loss += max(0.0, angle - eta * aperture)
    return loss / len(parents)


def ref_losses(embeddings, terms):
    i_s, i_n, g_s, g_n = (getattr(embeddings, k).detach().double().numpy() for k in NAMES)
    c, tau = embeddings.c.item(), embeddings.tau.item()
    anchors = ((i_s, g_s), (g_s, i_s), (g_n, i_s), (i_n, g_s))
    if terms.main == "niche":
        anchors = ((i_n, g_n), (g_n, i_n), (g_s, i_n), (i_s, g_n))
    hca = hea = 0.0
    for w, (a, b) in zip(terms.contrast, anchors, strict=True):
        hca += w * ref_align(a, b, c, tau, terms.geometry)
    pairs = ((i_s, i_n), (g_s, g_n), (i_s, g_s), (i_n, g_n))
    for w, eta, reverse, (y, x) in zip(terms.entail, terms.etas, terms.reverse, pairs, strict=True):
        hea += w * ref_entail(*((x, y) if reverse else (y, x)), c, eta, terms.geometry)
    return hca, hea


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_matches_the_reference(name):
    variant, embeddings = VARIANTS[name], batch()
    hca, hea = ref_losses(embeddings, variant.terms)
    assert contrast_loss(embeddings, variant.terms).item() == pytest.approx(hca, rel=1e-9)
    assert entailment_loss(embeddings, variant.terms)[0].item() == pytest.approx(hea, rel=1e-9)
    expected = 0.2 * variant.alpha_scale * (hca + 0.4 * hea)
    assert total(embeddings, variant).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
@pytest.mark.parametrize("k", range(4))
def test_each_term_alone_with_its_own_weight_and_eta(k, geometry):
    embeddings = batch(seed=k, spread=2.0)
    weights = ((0.7, 0.0, 0.0, 0.0), (0.0, 0.7, 0.0, 0.0), (0.0, 0.0, 0.7, 0.0), (0.0, 0.0, 0.0, 0.7))[k]
    for reverse in (False, True):
        terms = Terms(weights, weights, etas=(0.7, 1.2, 1.5, 0.9), reverse=(reverse,) * 4, geometry=geometry)
        hca, hea = ref_losses(embeddings, terms)
        assert contrast_loss(embeddings, terms).item() == pytest.approx(hca, rel=1e-9)
        assert entailment_loss(embeddings, terms)[0].item() == pytest.approx(hea, rel=1e-9)


def test_float32_is_as_good():
    embeddings = batch(n=32, d=64, dtype=torch.float32)
    hca, hea = ref_losses(embeddings, FULL)
    assert contrast_loss(embeddings, FULL).item() == pytest.approx(hca, rel=1e-5)
    assert entailment_loss(embeddings, FULL)[0].item() == pytest.approx(hea, rel=1e-5)


def test_variants_differ_in_what_they_should():
    embeddings = batch(spread=3.0)
    totals = {name: total(embeddings, variant).item() for name, variant in VARIANTS.items()}
    assert totals["no_hha"] == 0
    assert totals["spot_only"] == totals["niche_only"] == totals["full"]
    differing = set(VARIANTS) - {"spot_only", "niche_only"}
    assert len({totals[name] for name in differing}) == len(differing)


def test_a_term_of_weight_zero_reads_nothing():
    embeddings = leaves(batch())
    clip = VARIANTS["clip"].terms
    broken = replace(
        embeddings, image_niche=embeddings.image_niche * math.nan, gene_niche=embeddings.gene_niche * math.nan
    )
    assert contrast_loss(broken, clip).item() == contrast_loss(embeddings, clip).item()
    hea, cones = entailment_loss(broken, clip)
    assert hea.item() == 0
    assert not hea.requires_grad
    assert all(v.isnan() for v in cones.values())


# What the losses reward.


def towards(a, b, share):
    return a + share * (b - a)


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
def test_pulling_pairs_together_lowers_contrast(geometry):
    """Eq. 8 as printed has the opposite sign."""
    embeddings = batch()
    terms = Terms(QUARTERS, NONE, geometry=geometry)
    losses = [
        contrast_loss(
            replace(
                embeddings,
                gene_spot=towards(embeddings.gene_spot, embeddings.image_spot, share),
                image_niche=towards(embeddings.image_niche, embeddings.image_spot, share),
                gene_niche=towards(embeddings.gene_niche, embeddings.image_spot, share),
            ),
            terms,
        ).item()
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert losses == sorted(losses, reverse=True)
    assert all(loss >= 0 for loss in losses)  # bounded below, because j = i is among the candidates


def test_contrast_of_points_that_are_all_alike_is_log_of_the_batch():
    embeddings = batch(n=16)
    same = replace(embeddings, **{name: embeddings.image_spot[:1].expand(16, -1) for name in NAMES})
    for geometry in ("lorentz", "euclidean"):
        loss = contrast_loss(same, Terms(QUARTERS, NONE, geometry=geometry))
        assert loss.item() == pytest.approx(math.log(16), rel=1e-6)
    assert info_nce(torch.zeros(16, 16)).item() == pytest.approx(math.log(16))


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
def test_children_on_the_ray_of_their_parents_are_entailed(geometry):
    embeddings = batch(spread=3.0)
    x = embeddings.image_spot
    embeddings = replace(embeddings, image_niche=1.2 * x, gene_spot=1.2 * x, gene_niche=1.5 * x)
    forward, cones = entailment_loss(embeddings, Terms(NONE, QUARTERS, geometry=geometry))
    backward, reverse_cones = entailment_loss(embeddings, Terms(NONE, QUARTERS, reverse=(True,) * 4, geometry=geometry))
    assert forward.item() == 0
    assert cones["violated"].item() == 0
    assert reverse_cones["violated"].item() == 1
    assert backward.item() > 2


def test_diagnostics():
    embeddings = leaves(batch(n=40, spread=3.0))
    hea, cones = entailment_loss(embeddings, FULL)
    assert hea.requires_grad
    assert not any(v.requires_grad for v in cones.values())
    pairs = ((0, 1), (2, 3), (0, 2), (1, 3))
    points = [getattr(embeddings, name) for name in NAMES]
    excess = [
        lorentz.exterior_angle(points[y], points[x], embeddings.c) - lorentz.half_aperture(points[y], embeddings.c)
        for y, x in pairs
    ]
    aperture = [lorentz.half_aperture(points[y], embeddings.c).mean() for y, _ in pairs]
    assert cones["violated"].item() == pytest.approx((torch.stack(excess) > 0).double().mean().item())
    assert cones["aperture"].item() == pytest.approx(torch.stack(aperture).mean().item())
    summary = geometry_summary(embeddings)
    assert set(summary) == {"c", "tau", *(f"radius_{name}" for name in NAMES)}
    for name in NAMES:
        x = getattr(embeddings, name)
        expected = lorentz.dist(x, torch.zeros_like(x), embeddings.c).mean().item()
        assert summary[f"radius_{name}"].item() == pytest.approx(expected)
    assert not any(v.requires_grad for v in summary.values())
    flat = geometry_summary(embeddings, "euclidean")["radius_gene_spot"].item()
    assert flat == pytest.approx(embeddings.gene_spot.norm(dim=-1).mean().item(), rel=1e-6)


def test_the_start_is_as_the_method_says():
    """|v| = 1 in many dimensions: half-apertures near 10 degrees, entailment near 2.4 rad over four terms."""
    x = torch.randn(4, 64, 1024, generator=torch.Generator().manual_seed(0))
    points = [lorentz.exp_map0(v / v.norm(dim=-1, keepdim=True), 1.0) for v in x]
    embeddings = make_embeddings(points, 1.0, 0.07)
    hea, cones = entailment_loss(embeddings, FULL)
    assert math.degrees(cones["aperture"].item()) == pytest.approx(10, abs=1)
    angle = hea.item() + cones["aperture"].item()
    assert 2.0 < angle < 2.8
    assert cones["violated"].item() == 1


# Numerics.


@pytest.mark.parametrize("name", VARIANTS)
def test_identical_pairs_have_finite_gradients(name):
    x = batch(n=200, d=32, dtype=torch.float32).image_spot
    embeddings = leaves(make_embeddings([x] * 4, 1.0, 0.01))
    loss = total(embeddings, VARIANTS[name])
    assert loss.isfinite()
    assert all(g is None or g.isfinite().all() for g in all_gradients(loss, embeddings))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["full", "euclidean_cones"])
@pytest.mark.parametrize("c", [0.1, 10.0])
def test_gradients_are_finite_at_the_edges(c, name, dtype):
    embeddings = batch(n=6, d=8)
    x = embeddings.image_spot / embeddings.image_spot.norm(dim=-1, keepdim=True)
    sizes = torch.tensor([0.0, 1e-6, 0.2 * c**-0.5, 1.0, 100.0, 1e3], dtype=torch.float64).unsqueeze(-1)
    points = [(p * sizes).to(dtype) for p in (x, x.roll(1, 0), x.flip(0), x)]
    embeddings = leaves(make_embeddings(points, c, 0.01))
    loss = total(embeddings, VARIANTS[name])
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(g is None or g.isfinite().all() for g in all_gradients(loss, embeddings))


@pytest.mark.parametrize("name", ["full", "euclidean_cones"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_autocast_changes_nothing(name, dtype):
    start = batch(n=16, d=32, dtype=dtype)

    def values_and_gradients():
        embeddings = leaves(start)
        loss = total(embeddings, VARIANTS[name])
        cones = entailment_loss(embeddings, VARIANTS[name].terms)[1]
        grads = [g for g in all_gradients(loss, embeddings) if g is not None]
        return [loss.detach(), *cones.values(), *grads, *geometry_summary(embeddings).values()]

    outside = values_and_gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = values_and_gradients()
    assert outside[0].dtype == torch.float32
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(outside, inside, strict=True))


@pytest.mark.parametrize("name", ["full", "euclidean_cones", "reverse_spot_niche"])
def test_gradients_are_those_of_the_loss(name):
    embeddings = batch(n=5, d=3, spread=2.0)

    def loss(*values):
        return total(Embeddings(*values), VARIANTS[name])

    inputs = [getattr(embeddings, k).detach().clone().requires_grad_() for k in (*NAMES, "c", "tau")]
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", VARIANTS)
def test_on_a_gpu_alike_and_without_a_sync(name):
    on_cpu = leaves(batch(n=64, d=128, dtype=torch.float32))
    on_gpu = leaves(replace(on_cpu, **{k: getattr(on_cpu, k).detach().cuda() for k in (*NAMES, "c", "tau")}))
    expected = total(on_cpu, VARIANTS[name])
    total(on_gpu, VARIANTS[name])  # the first call may set up libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            result = total(on_gpu, VARIANTS[name])
            grads = all_gradients(result, on_gpu) if result.requires_grad else ()
            geometry_summary(on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(grads, all_gradients(expected, on_cpu), strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-6)
