"""Each switch of the text's letter, and all at once, against a model written out in float64 from the text.

Nothing of the package's model or geometry is used: only the weights are taken from it.
"""

import numpy as np
import pytest
import torch
from scipy.special import erf

from tests.train.fit.test_loop import make_data, make_model
from tests.train.models.test_variant_losses import HCA, HEA, align, entail, lift
from train.data import Batch
from train.experiments.protocols import get_protocol, protocol_options
from train.fit.batches import read_batch
from train.fit.config import FitConfig
from train.fit.loop import fit, validation_loss
from train.fit.step import make_optimizer, step
from train.models.configs import HistConfig
from train.models.hist import HistModel
from train.models.variants import get_variant

ALPHA, BETA = 0.2, 0.4
SWITCHES = (
    {"decoder_space": "points"},
    {"decoder_space": "hyperbolic"},
    {"image_network": "none"},
    {"gene_network": "shared"},
    {"map_scale": "one"},
    {"limits": "none", "curvature": 30.0, "temperature": 0.005},
)
LITERAL = {k: v for k, v in protocol_options("literal").items() if k in HistConfig.__dataclass_fields__}


def layer_norm(x, weights, name):
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return normal * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)


def residual_mlp(x, weights, name):
    x = linear(layer_norm(x, weights, f"{name}.enter.0"), weights, f"{name}.enter.1")
    hidden = linear(layer_norm(x, weights, f"{name}.blocks.0.0"), weights, f"{name}.blocks.0.1")
    x = x + linear(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, weights, f"{name}.blocks.0.3")
    return layer_norm(x, weights, f"{name}.leave")


def stream(x, weights, name):
    return residual_mlp(linear(x, weights, f"{name}.enter"), weights, f"{name}.encode")


def written_out(config, weights, batch):
    """Predictions and loss of the variant `full`."""
    c, tau = config.curvature, config.temperature
    images = {"Is": batch.spot, "In": batch.niche}
    genes = {"Gs": batch.expression, "Gn": batch.niche_expression}
    v = {name: x.double().numpy() for name, x in images.items()}
    if config.image_network == "own":
        for name, of_level in (("Is", "image_spot"), ("In", "image_niche")):
            v[name] = linear(stream(v[name], weights, of_level), weights, "project_image")
    for name, x in genes.items():
        network = "gene_niche" if name == "Gn" and config.gene_network == "own" else "gene_spot"
        v[name] = linear(stream(x.double().numpy(), weights, network), weights, "project_gene")
    scale = 1.0 if config.map_scale == "one" else config.width**-0.5
    scaled = {name: x * scale for name, x in v.items()}
    read = [v[name] for name in images]
    if config.decoder_space != "tangent":
        points = [[lift(row, c) for row in scaled[name]] for name in images]
        with_time = config.decoder_space == "points"
        read = [np.array([[*[time][: int(with_time)], *space] for space, time in level]) for level in points]
    predicted = linear(residual_mlp(np.concatenate(read, 1), weights, "decoder.0"), weights, "decoder.1")
    hca = sum(w * align(scaled[a], scaled[b], c, tau, "lorentz") for (a, b), w in HCA.items())
    hea = sum(w * entail(scaled[y], scaled[x], c, 1.0, "lorentz") for (y, x), w in HEA.items())
    mse = ((predicted - batch.expression.double().numpy()) ** 2).mean()
    return predicted, mse + ALPHA * (hca + BETA * hea)


def float64_weights(model):
    return {name: value.double().numpy() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("switches", [{}, *SWITCHES, LITERAL], ids=lambda s: "-".join(map(str, s)) or "default")
def test_predictions_and_loss(switches):
    given = {"curvature": 1.7, "temperature": 0.3} | switches
    config = HistConfig(12, 7, width=16, depth=1, dropout=0.0, **given)
    torch.manual_seed(3)
    model = HistModel(config, get_variant("full"))
    spot, niche = torch.randn(2, 9, 12)
    profiles = torch.rand(2, 9, 7) * 5
    batch = Batch(spot, niche, torch.arange(9), *profiles, profiles[0])
    predicted, expected = written_out(config, float64_weights(model), batch)
    loss, log = model.loss(batch)
    np.testing.assert_allclose(model.predict(batch).detach().numpy(), predicted, rtol=1e-4, atol=1e-4)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert (log["c"].item(), log["tau"].item()) == pytest.approx((config.curvature, config.temperature), rel=1e-5)
    loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert any(name.startswith("image_") for name in trained) == (config.image_network == "own")
    assert any(name.startswith("gene_niche") for name in trained) == (config.gene_network == "own")
    assert ("log_scale_image" in trained) == (config.map_scale == "learned")


@pytest.mark.parametrize("decoder_space", ["points", "tangent"])
def test_without_hyperbolic_space_the_decoder_reads_the_scaled_vectors(decoder_space):
    config = HistConfig(12, 7, width=16, depth=1, dropout=0.0, map_scale="one", decoder_space=decoder_space)
    torch.manual_seed(3)
    model = HistModel(config, get_variant("euclidean"))
    read = []
    model.decoder[0].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    images, profiles = torch.randn(2, 9, 12), torch.rand(2, 9, 7)
    batch = Batch(*images, torch.arange(9), *profiles, profiles[0])
    model.predict(batch)
    assert torch.equal(read[0], torch.cat(model.image_tangents(batch), dim=1))


def test_limits_are_kept_or_not_there():
    for limits, expected in (("kept", (10, 1, 100)), ("none", (np.exp(5), np.exp(5), np.exp(5)))):
        model = make_model(make_data(), limits=limits)
        with torch.no_grad():
            for p in model.geometry_parameters():
                p.fill_(5.0)
        model.after_step()
        found = [p.exp().item() for p in (model.log_c, model.log_scale_gene, model.log_inverse_tau)]
        assert found == pytest.approx(expected, rel=1e-5), limits
        assert bool(model.warnings({"c": 50.0, "hea": 1.0, "radius_image_spot": 0.1})) == (limits == "kept")


def test_embeddings_at_the_greatest_radius_are_said():
    data = make_data()
    for scale, is_said in (("learned", False), ("one", True)):
        model = make_model(data, map_scale=scale)
        with torch.no_grad():
            model.project_gene.weight.mul_(5)  # as long as those of a wide model
        _, log = model.loss(read_batch(data, torch.arange(32)))
        warnings = model.warnings({name: value.item() for name, value in log.items()})
        assert any("at the greatest radius" in text for text in warnings) == is_said


def test_gradients_are_not_clipped():
    """Three steps of AdamW written out in float64, from the gradients that autograd gives."""
    data = make_data()
    data.expression.mul_(100)  # a norm far above the usual limit, and another one at each step
    model = make_model(data, dropout=0.0)
    optimizer = make_optimizer(model, data.inputs, FitConfig(lr=1e-3))
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    state = {name: (p.detach().double(), 0.0, 0.0) for name, p in model.named_parameters()}
    for i in range(1, 4):
        batch = read_batch(data, torch.arange(16) + i)
        batch.expression.mul_(i)
        model.zero_grad()
        model.loss(batch)[0].backward()
        for name, p in model.named_parameters():
            value, mean, square = state[name]
            gradient = p.grad.double()
            mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
            value = value * (1 - 1e-3 * decays[id(p)])
            value = value - 1e-3 * (mean / (1 - 0.9**i)) / ((square / (1 - 0.999**i)).sqrt() + 1e-8)
            state[name] = (value, mean, square)
        assert step(model, data.inputs, optimizer, batch, clip_norm=0.0)["gradient_norm"] > 5
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.double(), state[name][0], rtol=1e-5, atol=2e-6, msg=name)


def test_the_validation_loss_is_the_whole_loss(tmp_path):
    data = make_data(n=96)
    rows = data.rows(("B",))
    torch.manual_seed(0)
    model = HistModel(HistConfig(12, 8, width=16, depth=1), get_variant("full"))
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    parts = [rows[order[:16]], rows[order[16:]]]  # two batches of 15 or more
    weights = float64_weights(model)
    losses = [written_out(model.config, weights, read_batch(data, part))[1] for part in parts]
    assert validation_loss(model, data, rows, 15) == pytest.approx(np.mean(losses), rel=1e-4)
    one = written_out(model.config, weights, read_batch(data, rows[order]))[1]
    assert validation_loss(model, data, rows, 128) == pytest.approx(one, rel=1e-4)


def test_early_stopping_watches_what_it_is_told():
    data, histories = make_data(), {}
    for select_by in ("mse", "loss"):
        model = make_model(data, alpha=3.0)
        config = FitConfig(epochs=12, batch_size=16, lr=1e-2, patience=50, select_by=select_by)
        torch.manual_seed(1)
        progress = fit(model, data, data.rows(("A",)), data.rows(("B",)), config, None)
        watched = [config.watched(row) for row in progress.history]
        assert progress.best_epoch == int(np.argmin(watched))
        assert progress.best_watched == min(watched)
        histories[select_by] = progress
        if select_by == "loss":
            again = validation_loss(model, data, data.rows(("B",)), config.batch_size)
            assert again == pytest.approx(min(watched), rel=1e-6), "the weights are not those of the best epoch"
    assert [r["val_mse"] for r in histories["mse"].history] == [r["val_mse"] for r in histories["loss"].history]
    assert histories["mse"].best_epoch != histories["loss"].best_epoch
    assert "val_loss" not in histories["mse"].history[0]


def test_the_row_of_the_table():
    assert get_protocol("literal").niche_profile == "mean_of_logs"
    fit_options = {k: v for k, v in protocol_options("literal").items() if k in FitConfig.__dataclass_fields__}
    assert fit_options == {"select_by": "loss", "clip_norm": 0}
    assert set(LITERAL) == {"decoder_space", "image_network", "gene_network", "map_scale", "limits"}
