"""Steps, predictions and batches on a GPU without values: nothing waits for it, nothing is on the wrong side."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from extract.encoders.encoder import Encoder, PooledEncoder, blocks_before
from extract.encoders.lora import LoraConfig, adapt
from extract.encoders.tuned_forward import tuned_forward
from extract.pipeline import Pipeline
from extract.slides.batches import CropTransform, GpuBatch
from tests.commands import fork_server
from tests.fake_gpu import counted_values, run_checks, to_fake_gpu
from tests.gpu import moved
from tests.train.fit.test_loop import make_data, make_model
from train.data import CachedEmbeddings, Images, SpotData
from train.finetune.crop_inputs import dihedral
from train.fit.batches import encode_rows, read_batch
from train.fit.config import FitConfig
from train.fit.loop import predict, train_epoch, validation_loss, validation_scores
from train.fit.step import make_optimizer, step
from train.models.baselines import KnnModel, RidgeModel
from train.models.configs import KnnConfig, RidgeConfig, StemConfig, StevsConfig, TriplexConfig
from train.models.hist import HistModel
from train.models.slide_spots import OneSlide, SlideSpots
from train.models.stem import StemModel
from train.models.stevs import StevsModel
from train.models.triplex import TriplexModel


class EncodedEmbeddings(CachedEmbeddings):
    """Embeddings that pass through an encoder, which is trained with the model."""

    def encode(self, inputs: Tensor) -> Tensor:
        assert self.encoder is not None
        return self.encoder(inputs.float())


def on_fake_gpu(device: torch.device, variant: str = "full", **config: object) -> tuple[HistModel, SpotData, Tensor]:
    """A model and data on the device, and the rows of a batch there."""
    data = moved(make_data(), device)
    model = make_model(data, variant, **config)
    to_fake_gpu(model)
    return model, data, torch.arange(16, device=device)


def values_are_noticed(device: torch.device) -> None:
    """The fake device itself: what must be an error is one."""
    x = torch.ones(4, device=device)
    faults: list[Callable[[], object]] = [x.sum().item, x.nonzero, lambda: x[x > 0], lambda: x + torch.ones(4)]
    faults += [lambda: torch.tensor([1.0, 2.0], device=device), lambda: bool(x.sum() > 0), lambda: x.numpy()]
    for number, fault in enumerate(faults):
        with pytest.raises(Exception, match=r".") as caught:
            fault()
        assert not isinstance(caught.value, pytest.fail.Exception), number


def steps(device: torch.device) -> None:
    """The ordinary step, in both precisions and geometries."""
    for variant, precision in (("full", "bf16"), ("euclidean", "fp32")):
        model, data, rows = on_fake_gpu(device, variant)
        model.precision = precision  # type: ignore[assignment]
        model.train()
        optimizer = make_optimizer(model, data.inputs, FitConfig())
        log = step(model, data.inputs, optimizer, read_batch(data, rows))
        assert all(value.device == device for value in log.values()), log
        assert all(p.grad is None or p.grad.device == device for p in model.parameters())


def steps_of_stevs(device: torch.device) -> None:
    """What is drawn and counted in a step stays on the device; predictions with and without coordinates."""
    data, rows = moved(make_data(), device), torch.arange(16, device=device)
    model = StevsModel(StevsConfig(12, 8, experts="both", niche_expert=True))
    to_fake_gpu(model)
    model.places = torch.empty(len(data.slide), 2, device=device)
    model.train()
    optimizer = make_optimizer(model, data.inputs, FitConfig())
    for precision in ("fp32", "bf16"):
        model.precision = precision  # type: ignore[assignment]
        log = step(model, data.inputs, optimizer, read_batch(data, rows))
        assert all(value.device == device for value in log.values()), log
    predicted = predict(model, data, rows)
    assert (predicted.shape, predicted.device) == ((16, 8), device)


def stem_steps(device: torch.device) -> None:
    """Its times and noise are drawn on the device, and all of its parameters are trained."""
    data = moved(make_data(), device)
    for precision in ("bf16", "fp32"):
        model = StemModel(StemConfig(12, 8, width=16, depth=2, heads=2, standardize_genes=True))
        to_fake_gpu(model)
        model.precision = precision  # type: ignore[assignment]
        log = step(model, data.inputs, make_optimizer(model, data.inputs, FitConfig()), read_batch(data, data.row[:16]))
        assert all(value.device == device for value in log.values()), log
        assert all(p.grad is not None and p.grad.device == device for p in model.parameters())


def steps_with_encoder(device: torch.device) -> None:
    """A step that trains an encoder too, whole."""
    model, data, rows = on_fake_gpu(device)
    encoder = nn.Linear(12, 12)
    to_fake_gpu(encoder)
    data = replace(data, encoder_inputs=EncodedEmbeddings(data.spot, data.niche, encoder))
    optimizer = make_optimizer(model, data.inputs, FitConfig())
    step(model, data.inputs, optimizer, read_batch(data, rows))
    assert encoder.weight.grad is not None
    encode_rows(data, rows, 4)


def steps_of_triplex(device: torch.device) -> None:
    """Where the slide of a batch is known before, a step with attention to all of that slide reads no value."""
    data = moved(make_data(), device)
    model = TriplexModel(TriplexConfig(12, 8, width=16, heads=2))
    to_fake_gpu(model)
    spots = SlideSpots.__new__(SlideSpots)  # it reads the numbers of slides
    own, nowhere = torch.arange(32, device=device), torch.full((96, 8), -1, device=device)
    spots.embeddings, spots.slide, spots.place = data.spot, data.slide, torch.arange(96, device=device) % 32
    spots.slides = {0: OneSlide(own, torch.full((32, 8), 32, device=device))}
    model._spots, model._around = spots, torch.cat([nowhere, torch.arange(96, device=device).unsqueeze(1)], 1)
    model._places = torch.tensor([*range(8), 24]).to(device)
    optimizer = make_optimizer(model, data.inputs, FitConfig())
    for precision in ("bf16", "fp32"):
        model.precision = precision  # type: ignore[assignment]
        model.train()
        model._drawn.append(0)
        log = step(model, data.inputs, optimizer, read_batch(data, own[:16]))
        assert all(value.device == device for value in log.values()), log
        assert all(p.grad is not None and p.grad.device == device for p in model.parameters())


def an_epoch_reads_once(device: torch.device) -> None:
    """The logged means are all that an epoch waits for, and validation for one number."""
    model, data, _ = on_fake_gpu(device)
    optimizer = make_optimizer(model, data.inputs, FitConfig())
    rows = torch.arange(32, device=device)
    with counted_values() as read:
        row = train_epoch(model, optimizer, data, rows, 16, torch.Generator().manual_seed(0))
        assert read == ["tolist"]
        assert row["mse"] == 1 / 2
        validation_scores(model, data, rows, "mse")
        assert read == ["tolist", "item"]
        validation_loss(model, data, rows, 16)
        assert read == ["tolist", "item", "item"]


def predictions(device: torch.device) -> None:
    """HiST's and the baselines'."""
    model, data, rows = on_fake_gpu(device)
    assert predict(model, data, rows).shape == (16, 8)
    images = Images(data.spot[rows].float(), data.niche[rows].float(), rows)
    ridge, knn = RidgeModel(RidgeConfig(12, 8)), KnnModel(KnnConfig(12, 8))
    weight = torch.empty(24, 8, dtype=torch.float64, device=device)
    ridge.keep(weight=weight, bias=weight[0])
    knn.prepare(data, rows, rows, 0)
    for baseline in (ridge, knn):
        predicted = baseline.predict(images)
        assert (predicted.shape, predicted.device) == ((16, 8), device)


class Mean(PooledEncoder):
    """The mean colour of a crop, as an encoder."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), "cls")

    def forward(self, crops: Tensor) -> Tensor:
        """Mean over height and width."""
        return crops.mean((2, 3))


def crops_become_inputs(device: torch.device) -> None:
    """Raw pixels are resized and normalised on the device, and encoded there, in bf16."""
    half = (0.5, 0.5, 0.5)
    encoder = Encoder("mean", Mean(), 3, 32, half, half, "bicubic", False, "random", "")
    transform = CropTransform(encoder, torch.device("cpu"), torch.bfloat16)
    transform.device, transform._normalize._scale, transform._normalize._shift = (
        device,
        *(torch.empty(96, device=device) for _ in range(2)),
    )
    batch = GpuBatch(transform, 5)
    batch._chunks = [(i, torch.empty((n, 48, 48, 3), dtype=torch.uint8)) for i, n in ((0, 2), (2, 3))]
    inputs = batch.take()
    assert (inputs.shape, inputs.dtype, inputs.device) == ((5, 3, 32, 32), torch.bfloat16, device)
    pipeline = Pipeline.__new__(Pipeline)
    pipeline.batch_size, pipeline._module, pipeline.device = 2, encoder.module, device
    assert pipeline.encode(inputs).shape == (5, 3)


def an_encoder_is_tuned(device: torch.device) -> None:
    """Adapters on the last block, from crops through tokens: forward and backward."""
    from timm.models.vision_transformer import VisionTransformer

    half = (0.5, 0.5, 0.5)
    with unset_fake_temporarily():  # timm draws weights and reads numbers
        backbone = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
        encoder = Encoder("vit", PooledEncoder(backbone, "cls"), 32, 32, half, half, "bicubic", False, "random", "")
        adapted = adapt(encoder, LoraConfig(layers=1))
    to_fake_gpu(encoder.module)
    encoder.module.train()
    trained = [p for p in encoder.module.parameters() if p.requires_grad]
    tokens = blocks_before(encoder.module, torch.empty((3, 3, 32, 32), device=device), 1)
    embeddings = tuned_forward(encoder.module, tokens, 1)
    assert (embeddings.shape, embeddings.device) == ((3, 32), device)
    assert len(torch.autograd.grad(embeddings.square().sum(), trained)) == len(adapted.modules) * 2


def crops_are_turned(device: torch.device) -> None:
    """Draws of the CPU reach the device."""
    crops = torch.empty((4, 8, 8, 3), dtype=torch.uint8, device=device)
    assert dihedral(crops, torch.zeros(4, dtype=torch.int64)).device == device


CHECKS = {
    check.__name__: check
    for check in (
        *(values_are_noticed, steps, steps_of_stevs, stem_steps, steps_with_encoder, steps_of_triplex),
        an_epoch_reads_once,
        *(predictions, crops_become_inputs, crops_are_turned, an_encoder_is_tuned),
    )
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Results of all checks, from one process: a device that torch was told of stays."""
    path = tmp_path_factory.mktemp("fake") / "results.json"
    fork_server()
    mp.start_processes(run_checks, (CHECKS, path), nprocs=1, start_method="forkserver")
    return json.loads(path.read_text())


@pytest.mark.parametrize("check", CHECKS)
def test_on_a_gpu_without_values(check: str, results: dict[str, str]) -> None:
    assert not results[check], results[check]
