"""Lorentz geometry against 50-digit arithmetic, geoopt and the laws of distances and angles, under any autocast."""

import math

import mpmath as mp  # type: ignore[import-untyped]
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.models import lorentz

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
CURVATURES = [0.1, 1.0, 10.0]

curvatures = st.floats(0.1, 10)
norms = st.one_of(st.just(0.0), st.floats(-6, 3).map(lambda e: 10**e))
gaps = st.floats(-6, 0).map(lambda e: 10**e)
seeds = st.integers(0, 2**32)
dims = st.sampled_from([1, 2, 3, 8])


def for_all(*strategies):
    """Hypothesis without its deadline, because a busy machine exceeds it."""
    return lambda test: settings(deadline=None, max_examples=60)(given(*strategies)(test))


def rng(seed):
    return torch.Generator().manual_seed(seed)


def directions(n, d, seed):
    x = torch.randn(n, d, generator=rng(seed), dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def exact(x):
    return [mp.mpf(float(v)) for v in x]


def dot(x, y):
    return mp.fsum(a * b for a, b in zip(x, y, strict=True))


def exact_pair(x, y, c):
    """Two rows and c at 50 digits, their time components and their Lorentz product."""
    x, y, c = exact(x), exact(y), mp.mpf(c)
    t_x, t_y = mp.sqrt(1 / c + dot(x, x)), mp.sqrt(1 / c + dot(y, y))
    return x, y, c, t_x, t_y, dot(x, y) - t_x * t_y


def exact_distance(x, y, c):
    with mp.workdps(50):
        *_, inner = exact_pair(x, y, c)
        return float(mp.acosh(max(mp.mpf(1), -mp.mpf(c) * inner)) / mp.sqrt(mp.mpf(c)))


def exact_exterior_angle(y, x, c):
    """Eq. 7 as printed in the paper: arccos((t_x + c t_y <y,x>) / (|y| sqrt((c <y,x>)^2 - 1)))."""
    with mp.workdps(50):
        x, y, c, t_x, t_y, inner = exact_pair(x, y, c)
        cosine = (t_x + c * t_y * inner) / (mp.sqrt(dot(y, y)) * mp.sqrt((c * inner) ** 2 - 1))
        return float(mp.acos(max(-1, min(1, cosine))))


def gradients(function, *inputs):
    """Value of a function, and the gradients of the sum of it."""
    leaves = [v.detach().clone().requires_grad_() for v in inputs]
    out = function(*leaves)
    return out, torch.autograd.grad(out.sum(), leaves)


# Values.


@for_all(seeds, dims, norms, gaps, curvatures)
def test_distance_of_points_however_close(seed, d, norm, gap, c):
    y = (norm * directions(1, d, seed)).float()
    x = (y + gap * max(norm, 1e-3) * directions(1, d, seed + 1)).float()
    expected = exact_distance(x[0], y[0], c)
    assert lorentz.dist(x, y, c).item() == pytest.approx(expected, rel=1e-6, abs=1e-20)


@for_all(seeds, dims, norms, norms, curvatures)
def test_distance_of_points_however_far(seed, d, norm_x, norm_y, c):
    x, y = (norm_x * directions(1, d, seed)).float(), (norm_y * directions(1, d, seed + 1)).float()
    expected = exact_distance(x[0], y[0], c)
    assert lorentz.dist(x, y, c).item() == pytest.approx(expected, rel=1e-6, abs=1e-20)
    n = max(norm_x, norm_y, c**-0.5)
    pair = lorentz.pairwise_dist(x, y, c).item()
    assert pair == pytest.approx(expected, rel=1e-6, abs=1e-7 * n)
    if expected > 2e-6 * n:
        assert pair == pytest.approx(expected, rel=1e-4)


@for_all(seeds, norms, gaps, curvatures)
def test_pairwise_distance_of_close_points(seed, norm, gap, c):
    y = (norm * directions(4, 64, seed)).float()
    x = (y + gap * max(norm, 1e-3) * directions(4, 64, seed + 1)).float()
    n = max(norm * (1 + gap), c**-0.5)
    result = lorentz.pairwise_dist(x, y, c)
    for i in range(4):
        for j in range(4):
            expected = exact_distance(x[i], y[j], c)
            assert result[i, j].item() == pytest.approx(expected, rel=1e-4 if expected > 2e-6 * n else 0, abs=1e-7 * n)


def test_short_distances_are_not_lost_beside_one():
    x = 1e-12 * directions(3, 4, 0)
    for distances in (lorentz.dist(x, 0 * x, 1.0), lorentz.pairwise_dist(x, 0 * x[:1], 1.0)[:, 0]):
        torch.testing.assert_close(distances, x.norm(dim=-1), rtol=1e-9, atol=0)


def test_pairwise_distance_of_coincident_points_at_full_size():
    for norm in (0.0, 1.0, 1e3):
        for c in CURVATURES:
            x = (norm * directions(128, 1024, 0)).float()
            coincident = lorentz.pairwise_dist(x, x, c).diagonal()
            assert coincident.max() <= 1e-7 * max(norm, c**-0.5)
            assert (lorentz.dist(x, x, c) == 0).all()


@for_all(seeds, dims, norms, norms, gaps, curvatures)
def test_exterior_angle_as_printed(seed, d, norm_y, norm_x, gap, c):
    y = (max(norm_y, 2e-3) * directions(1, d, seed)).float()
    far_child = norm_x * directions(1, d, seed + 1)
    for x in (far_child.float(), (y + gap * y.norm() * directions(1, d, seed + 1)).float()):
        if torch.equal(x, y):
            continue
        result = lorentz.exterior_angle(y, x, c).item()
        rounding = 1e-7 * math.sqrt(1 + c * min(x.norm(), y.norm()) ** 2) + 1e-6
        assert result == pytest.approx(exact_exterior_angle(y[0], x[0], c), abs=rounding)


@for_all(seeds, st.floats(0.01, 1e3), curvatures, st.floats(0.01, 0.5))
def test_half_aperture_as_printed(seed, norm, c, q):
    y = (norm * directions(1, 3, seed)).float()
    result = lorentz.half_aperture(y, c, q).item()
    sine = 2 * q / (math.sqrt(c) * y.double().norm().item())
    assert result == pytest.approx(math.asin(min(sine, 1 - lorentz.APERTURE_MARGIN)), rel=1e-6)
    euclidean = lorentz.euclidean_half_aperture(y, q).item()
    assert euclidean == pytest.approx(math.asin(min(sine * math.sqrt(c) / 2, 1 - lorentz.APERTURE_MARGIN)), rel=1e-6)


@for_all(seeds, dims, norms, curvatures)
def test_exponential_and_logarithm_are_inverse(seed, d, norm, c):
    v = (min(norm, 0.999 * lorentz.MAX_RADIUS / c**0.5) * directions(3, d, seed)).float()
    x = lorentz.exp_map0(v, c)
    torch.testing.assert_close(lorentz.log_map0(x, c), v, rtol=2e-6, atol=1e-30)
    # The map keeps distances from the origin.
    torch.testing.assert_close(lorentz.radius(x, c), v.norm(dim=-1), rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(lorentz.dist(x, 0 * x, c), lorentz.radius(x, c), rtol=2e-6, atol=1e-30)


@for_all(seeds, st.floats(0, 10), curvatures)
def test_exponential_as_printed(seed, radius, c):
    v = radius / c**0.5 * directions(1, 3, seed)
    with mp.workdps(30):
        exact_v = exact(v[0])
        r = mp.sqrt(mp.mpf(c) * dot(exact_v, exact_v))
        r = min(r, mp.mpf(lorentz.MAX_RADIUS))
        scale = mp.sinh(r) / r if r else mp.mpf(1)
        expected = [float(scale * a) for a in exact_v]
    torch.testing.assert_close(lorentz.exp_map0(v, c)[0].tolist(), expected, rtol=1e-12, atol=1e-30)


@pytest.mark.parametrize("c", CURVATURES)
def test_radius_is_held(c):
    v = 1e3 * directions(5, 16, 0)
    x = lorentz.exp_map0(v, c)
    max_radii = torch.full((5,), lorentz.MAX_RADIUS / c**0.5, dtype=x.dtype)
    torch.testing.assert_close(lorentz.radius(x, c), max_radii)
    torch.testing.assert_close(x / x.norm(dim=-1, keepdim=True), v / 1e3)
    assert x.to(torch.float16).isfinite().all()
    assert x.norm(dim=-1).max() < torch.finfo(torch.float16).max


@for_all(seeds, norms, curvatures)
def test_points_lie_on_the_hyperboloid(seed, norm, c):
    x = norm * directions(3, 4, seed)
    t = lorentz.time_component(x, c)
    torch.testing.assert_close(t**2 - (x * x).sum(-1), torch.full_like(t, 1 / c), rtol=1e-8, atol=1e-9)


# Laws.


@for_all(seeds, st.tuples(norms, norms, norms), curvatures)
def test_distance_is_a_metric(seed, three_norms, c):
    x, y, z = (n * directions(4, 5, seed + i) for i, n in enumerate(three_norms))
    xy, yz, xz = (lorentz.dist(*pair, c) for pair in ((x, y), (y, z), (x, z)))
    torch.testing.assert_close(xy, lorentz.dist(y, x, c), rtol=1e-8, atol=0)
    torch.testing.assert_close(lorentz.pairwise_dist(x, y, c), lorentz.pairwise_dist(y, x, c).T, rtol=1e-6, atol=1e-4)
    assert (xz <= (xy + yz) * (1 + 1e-7)).all()
    assert (xy >= 0).all()


@for_all(seeds, st.floats(0.01, 100), st.floats(0.01, 100), curvatures)
def test_curvature_is_only_a_change_of_unit(seed, norm_x, norm_y, c):
    x, y, s = norm_x * directions(3, 5, seed), norm_y * directions(3, 5, seed + 1), c**0.5
    for function in (lorentz.dist, lorentz.exterior_angle):
        unit = s if function is lorentz.dist else 1
        result, expected = unit * function(y, x, c), function(s * y, s * x, 1.0)
        torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(lorentz.half_aperture(y, c), lorentz.half_aperture(s * y, 1.0))


@for_all(seeds, st.floats(0.25, 50), st.floats(1.01, 20), curvatures)
def test_cones(seed, norm, factor, c):
    y = norm / c**0.5 * directions(3, 6, seed)
    outwards = lorentz.exterior_angle(y, factor * y, c)
    assert (outwards < 1e-5).all()
    assert (lorentz.exterior_angle(factor * y, y, c) > math.pi - 1e-5).all()
    assert (lorentz.exterior_angle(y, -y, c) > math.pi - 1e-5).all()
    # A child inside a parent's cone has its own, narrower cone; slightly off the axis it is still inside.
    aperture = lorentz.half_aperture(y, c)
    assert (lorentz.half_aperture(factor * y, c) < aperture).all()
    off = directions(3, 6, seed + 1)
    tilted = factor * (y + 0.01 * (1 - 1 / factor) * aperture.unsqueeze(-1) * off / c**0.5)
    assert (lorentz.exterior_angle(y, tilted, c) < aperture).all()


@for_all(seeds, st.floats(0.1, 10), st.floats(0.1, 10))
def test_euclidean_cones_are_the_limit_of_no_curvature(seed, norm_x, norm_y):
    x, y = norm_x * directions(3, 5, seed), norm_y * directions(3, 5, seed + 1)
    euclidean = lorentz.euclidean_exterior_angle(y, x)
    torch.testing.assert_close(lorentz.exterior_angle(y, x, 1e-9), euclidean, rtol=1e-5, atol=1e-5)
    w = x - y
    arccos_angle = torch.acos((y * w).sum(-1) / (y.norm(dim=-1) * w.norm(dim=-1)))
    torch.testing.assert_close(euclidean, arccos_angle, rtol=1e-5, atol=1e-5)


@for_all(seeds, norms, norms)
def test_cosine(seed, norm_x, norm_y):
    x, y = directions(4, 5, seed), directions(3, 5, seed + 1)
    expected = x @ y.T * min(1, norm_x / lorentz.MIN_DISTANCE) * min(1, norm_y / lorentz.MIN_DISTANCE)
    torch.testing.assert_close(lorentz.pairwise_cosine(norm_x * x, norm_y * y), expected, rtol=1e-9, atol=1e-12)


def test_conventions_where_an_angle_is_undefined():
    x, zero = directions(2, 4, 0), torch.zeros(2, 4, dtype=torch.float64)
    half_pi = torch.full((2,), math.pi / 2, dtype=torch.float64)
    for ext in (lambda y, x: lorentz.exterior_angle(y, x, 1.0), lorentz.euclidean_exterior_angle):
        assert (ext(x, x) == 0).all()
        torch.testing.assert_close(ext(zero, x), half_pi)
        torch.testing.assert_close(ext(x, zero), 2 * half_pi)
    max_aperture = math.asin(1 - lorentz.APERTURE_MARGIN)
    assert lorentz.half_aperture(zero, 1.0).tolist() == [max_aperture, max_aperture]


# Gradients.

POINTWISE = {
    "time_component": lorentz.time_component,
    "exp_map0": lorentz.exp_map0,
    "log_map0": lorentz.log_map0,
    "radius": lorentz.radius,
    "half_aperture": lorentz.half_aperture,
    "euclidean_half_aperture": lambda y, c: lorentz.euclidean_half_aperture(y) * c,
}
PAIRED = {
    "dist": lorentz.dist,
    "pairwise_dist": lorentz.pairwise_dist,
    "exterior_angle": lorentz.exterior_angle,
    "euclidean_exterior_angle": lambda y, x, c: lorentz.euclidean_exterior_angle(y, x) * c,
    "pairwise_cosine": lambda x, y, c: lorentz.pairwise_cosine(x, y) * c / len(x),
}


def awkward_pairs():
    """Zero, tiny, huge, coincident, nearly coincident, opposite and collinear points, (n, 16) twice."""
    u, v = directions(1, 16, 0)[0], directions(1, 16, 1)[0]
    sizes = [0.0, 1e-8, 1e-4, 0.2, 0.2002, 1.0, 30.0, 1e3, 3e4]
    pairs = [(a * u, b * v) for a in sizes for b in sizes]
    for a in sizes:
        pairs += [(a * u, a * u), (a * u, -a * u), (a * u, 0.5 * a * u), (a * u, 2 * a * u)]
        pairs += [(a * u, a * u + gap * max(a, 1e-3) * v) for gap in (1e-12, 1e-7, 1e-4, 1.5e-3, 1e-2)]
    return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", CURVATURES)
@pytest.mark.parametrize("name", [*POINTWISE, *PAIRED])
def test_values_and_gradients_are_finite(name, c, dtype):
    x, y = (p.to(dtype) for p in awkward_pairs())
    assert x.isfinite().all()
    inputs = (x, torch.tensor(c)) if name in POINTWISE else (x, y, torch.tensor(c))
    out, grads = gradients((POINTWISE | PAIRED)[name], *inputs)
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert out.isfinite().all()
    for leaf, grad in zip(inputs, grads, strict=True):
        assert grad.dtype == leaf.dtype
        assert grad.isfinite().all()


@pytest.mark.parametrize("c", CURVATURES)
def test_gradients_are_bounded_where_formulas_are_not(c):
    x, y = awkward_pairs()
    _, (gx, gy) = gradients(lambda a, b: lorentz.dist(a, b, c), x, y)
    assert max(gx.norm(dim=-1).max(), gy.norm(dim=-1).max()) <= 1 + 1e-4
    # An angle's gradient grows as 1/distance, and near the origin as 1/|y|; it stops at about 1/MIN_DISTANCE.
    for ext in (lambda a, b: lorentz.exterior_angle(a, b, c), lorentz.euclidean_exterior_angle):
        _, (gy, gx) = gradients(ext, y, x)
        assert max(gx.norm(dim=-1).max(), gy.norm(dim=-1).max()) <= max(c**0.5, 1) / lorentz.MIN_DISTANCE
    norms_at_border = 0.2 / c**0.5 * torch.linspace(0.999, 1.01, 1000, dtype=torch.float64)
    _, (g,) = gradients(lambda n: lorentz.half_aperture(n.unsqueeze(-1), c), norms_at_border)
    assert g.abs().max() <= 112 * c**0.5


@pytest.mark.parametrize("c", CURVATURES)
@pytest.mark.parametrize("name", [*POINTWISE, *PAIRED])
def test_gradients_are_those_of_the_values(name, c):
    x = torch.tensor([[0.5], [2.0], [40.0]]) * directions(3, 4, 0)
    y = torch.tensor([[0.7], [1.0], [45.0]]) * directions(3, 4, 1)
    inputs = (0.1 * x,) if name == "exp_map0" else (x,) if name in POINTWISE else (x, y)
    inputs = tuple(v.requires_grad_() for v in (*inputs, torch.tensor(c, dtype=torch.float64)))
    assert torch.autograd.gradcheck((POINTWISE | PAIRED)[name], inputs)


def test_identical_pairs_have_finite_gradients():
    for seed in range(20):
        x = lorentz.exp_map0(directions(200, 64, seed).float(), 1.0)
        for function in (lorentz.dist, lorentz.pairwise_dist, lorentz.exterior_angle):
            _, grads = gradients(function, x, x, torch.tensor(1.0))
            assert all(g.isfinite().all() for g in grads)


def test_exponential_is_the_identity_to_first_order_at_the_origin():
    _, (g,) = gradients(lambda v: lorentz.exp_map0(v, 4.0), torch.zeros(2, 3))
    assert torch.equal(g, torch.ones(2, 3))


# Precision under autocast, vmap and higher derivatives.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_autocast_changes_nothing(dtype):
    x, y = directions(8, 32, 0).to(dtype), directions(8, 32, 1).to(dtype)

    def values_and_gradients():
        c = torch.tensor(1.5)
        out = [*gradients(lorentz.exp_map0, x, c)[1], *gradients(lorentz.log_map0, x, c)[1]]
        for function in PAIRED.values():
            value, grads = gradients(function, x, y, c)
            out += [value, *grads]
        return out

    outside = values_and_gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = values_and_gradients()
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(outside, inside, strict=True))


def test_half_precision_points_are_taken_at_their_value():
    x, y = directions(4, 32, 0).bfloat16(), directions(4, 32, 1).bfloat16()
    expected = lorentz.pairwise_dist(x.double(), y.double(), 1.0).float()
    assert torch.equal(lorentz.pairwise_dist(x, y, 1.0), expected)


@pytest.mark.filterwarnings("error")
def test_many_runs_at_once():
    x, y = directions(6, 8, 0).view(2, 3, 8), directions(6, 8, 1).view(2, 3, 8)
    c = torch.tensor([0.5, 2.0], dtype=torch.float64)
    for function in PAIRED.values():

        def loss(x, y, c, function=function):
            return function(x, y, c).sum()

        batched = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1, 2)))(x, y, c)
        for i in range(2):
            _, expected = gradients(function, x[i], y[i], c[i])
            torch.testing.assert_close(tuple(g[i] for g in batched), expected)


def test_second_derivatives_are_refused():
    x = directions(2, 4, 0).requires_grad_()
    (g,) = torch.autograd.grad(lorentz.pairwise_dist(x, 2 * x, 1.0).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


# geoopt: distances at any curvature, cones at c = 1 (through the Poincare ball, which keeps angles).


@for_all(seeds, st.floats(0.1, 20), st.floats(0.1, 20), curvatures)
def test_geoopt_agrees_on_distances(seed, norm_x, norm_y, c):
    geoopt = pytest.importorskip("geoopt")
    x, y = norm_x * directions(4, 5, seed), norm_y * directions(4, 5, seed + 1)
    k = torch.tensor(1 / c, dtype=torch.float64)
    space = geoopt.Lorentz(k=k)
    full_x, full_y = (torch.cat([lorentz.time_component(p, c).unsqueeze(-1), p], -1) for p in (x, y))
    # geoopt measures in units of 1/sqrt(c).
    expected = geoopt.manifolds.lorentz.math.dist(full_x, full_y, k=k)
    torch.testing.assert_close(space.dist(full_x, full_y), expected)
    torch.testing.assert_close(lorentz.dist(x, y, c), expected, rtol=1e-6, atol=1e-6)


@for_all(seeds, st.floats(0.25, 20), st.floats(0.1, 20))
def test_geoopt_agrees_on_cones(seed, norm_x, norm_y):
    geoopt = pytest.importorskip("geoopt")
    x, y = norm_x * directions(4, 5, seed), norm_y * directions(4, 5, seed + 1)
    ball = geoopt.PoincareBall(c=1.0)
    ball_x, ball_y = (p / (1 + lorentz.time_component(p, 1.0)).unsqueeze(-1) for p in (x, y))
    torch.testing.assert_close(lorentz.dist(x, y, 1.0), ball.dist(ball_x, ball_y), rtol=1e-6, atol=1e-6)
    tangent = ball.logmap(ball_y, ball_x)
    cosine = (tangent * ball_y).sum(-1) / (tangent.norm(dim=-1) * ball_y.norm(dim=-1))
    torch.testing.assert_close(lorentz.exterior_angle(y, x, 1.0).cos(), cosine, rtol=1e-6, atol=1e-6)
    n = ball_y.norm(dim=-1)  # the cones of Ganea et al. 2018, in the ball
    expected = torch.asin((0.1 * (1 - n**2) / n).clamp_max(1 - lorentz.APERTURE_MARGIN))
    torch.testing.assert_close(lorentz.half_aperture(y, 1.0), expected, rtol=1e-6, atol=1e-6)
