import pytest
import torch

from tests.train.fit.test_loop import make_data, make_model
from train.data import Images
from train.fit.batches import read_batch
from train.models.configs import HistConfig
from train.models.hist import HistModel
from train.models.variants import get_variant, load_variants


def test_the_paper_size_has_about_53_million_parameters() -> None:
    with torch.device("meta"):
        model = HistModel(HistConfig(1024, 200), get_variant("full"))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(53e6, rel=0.02)


def test_at_the_start_embeddings_lie_one_from_the_origin() -> None:
    data = make_data(width=64)
    torch.manual_seed(0)
    model = HistModel(HistConfig(64, 8, width=256), get_variant("full")).eval()
    _, log = model.loss(read_batch(data, torch.arange(len(data.row))))
    for name in ("image_spot", "image_niche", "gene_spot", "gene_niche"):
        assert log[f"radius_{name}"].item() == pytest.approx(1, abs=0.15)
    assert 0.1 < log["aperture"].item() < 0.25  # about 10 degrees
    assert 1.5 < log["hea"].item() < 3
    assert log["tau"].item() == pytest.approx(0.07)


@pytest.mark.parametrize("variant", sorted(load_variants()))
def test_every_variant_gives_a_finite_loss_and_gradients(variant: str) -> None:
    data = make_data()
    model = make_model(data, variant)
    loss, log = model.loss(read_batch(data, torch.arange(len(data.row))))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    weight = model.config.alpha * model.variant.alpha_scale
    expected = log["mse"] + weight * (log["hca"] + model.config.beta * log["hea"])
    torch.testing.assert_close(loss.detach(), expected)


@pytest.mark.parametrize(
    ("variant", "reads"), [("full", "both"), ("spot_only", "spot"), ("niche_only", "niche"), ("clip", "spot")]
)
def test_the_decoder_reads_what_the_variant_says(variant: str, reads: str) -> None:
    data = make_data()
    model = make_model(data, variant).eval()
    spot, niche, rows = data.spot.float(), data.niche.float(), torch.arange(len(data.row))
    base = model.predict(Images(spot, niche, rows))
    assert torch.equal(base, model.predict(Images(spot + 1, niche, rows))) == (reads == "niche")
    assert torch.equal(base, model.predict(Images(spot, niche + 1, rows))) == (reads == "spot")


def test_autocast_around_the_model_leaves_its_geometry_in_float32() -> None:
    data = make_data()
    model = make_model(data, dropout=0.0)
    batch = read_batch(data, torch.arange(len(data.row)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = model.embed(model.image_tangents(batch), model.gene_tangents(batch))
        loss, log = model.loss(batch)
    assert embeddings.image_spot.dtype == torch.float32
    assert log["hca"].dtype == torch.float32
    torch.testing.assert_close(loss, model.loss(batch)[0], rtol=0.05, atol=0.05)


def test_a_fixed_curvature_is_not_trained() -> None:
    model = make_model(make_data(), fixed_curvature=True, curvature=2.0)
    assert not model.log_c.requires_grad
    assert model.log_c.exp().item() == pytest.approx(2)


def test_the_hyperbolic_decoder_reads_points_of_the_hyperboloid() -> None:
    data = make_data()
    model = make_model(data, decoder_space="hyperbolic", dropout=0.0)
    loss, _ = model.loss(read_batch(data, torch.arange(len(data.row))))
    assert torch.isfinite(loss)
