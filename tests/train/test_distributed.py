"""Two processes with half a batch each give the results of one process with the whole batch."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from hist_cache.errors import HistError
from hist_cache.gang import run_local_gang
from tests.commands import fork_server
from tests.train.fit.test_loop import make_data, make_model
from train import distributed
from train.cli import jobs_left
from train.data import CachedEmbeddings, SpotData
from train.fit.average import WeightAverage
from train.fit.batches import read_batch
from train.fit.checkpoints import Checkpoint, trained_state
from train.fit.config import FitConfig
from train.fit.loop import fit
from train.fit.step import make_optimizer, step, trained_parameters
from train.models.hist import HistModel

CONFIG = FitConfig(epochs=3, batch_size=16, lr=1e-3, patience=50)


class EncodedEmbeddings(CachedEmbeddings):
    """Embeddings that pass through an encoder, which is trained with the model."""

    def encode(self, inputs: Tensor) -> Tensor:
        assert self.encoder is not None
        return self.encoder(inputs)


def tiny(variant: str, with_encoder: bool) -> tuple[HistModel, SpotData]:
    data = make_data()
    model = make_model(data, variant, dropout=0.0)
    if with_encoder:
        torch.manual_seed(5)
        inputs = EncodedEmbeddings(data.spot, data.niche, nn.Linear(12, 12))
        data = replace(data, encoder_inputs=inputs)
    return model, data


def train(variant: str, with_encoder: bool, folder: Path) -> dict[str, object]:
    """The logged loss and the weights of one step, then some epochs, on the rows of this process of every batch."""
    model, data = tiny(variant, with_encoder)
    optimizer = make_optimizer(model, data.inputs, FitConfig(lr=1e-2))
    micro_batch = 3 if with_encoder else None
    log = step(model, data.inputs, optimizer, read_batch(data, distributed.shard(torch.arange(20))), micro_batch)
    first_weights = {k: v.clone() for k, v in trained_state(model, data.inputs).items()}
    parameters = enumerate(trained_parameters(model, data.inputs))
    gradients = {i: p.grad.clone() for i, p in parameters if p.grad is not None}
    mse = distributed.all_reduce_sum(log["mse"].clone()) / distributed.world_size()
    model, data = tiny(variant, with_encoder)
    progress = fit(model, data, data.rows(("A", "C")), data.rows(("B",)), CONFIG, Checkpoint(folder / "checkpoint.pt"))
    return {
        "first_weights": first_weights,
        "gradients": gradients,
        "hca": log["hca"],
        "mse": mse,
        "history": [[row["val_mse"], row["hca"], row["hea"], row["mse"], row["c"]] for row in progress.history],
    }


def work(number: int, port: int, variant: str, with_encoder: bool, folder: Path) -> None:
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": str(number)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    assert distributed.init() == torch.device("cpu")
    torch.save(train(variant, with_encoder, folder), folder / f"rank{number}.pt")
    distributed.destroy()


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "with_encoder"), [("full", False), ("full", True), ("no_hha", False)])
def test_two_are_as_one(variant: str, with_encoder: bool, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork_server()  # which imports torch once for all
    mp.start_processes(work, (port, variant, with_encoder, tmp_path), nprocs=2, start_method="forkserver")
    a, b = (torch.load(tmp_path / f"rank{i}.pt", weights_only=True) for i in range(2))
    single = train(variant, with_encoder, tmp_path / "one")
    for name, weight in a["first_weights"].items():
        assert torch.equal(weight, b["first_weights"][name]), name
    for name, gradient in single["gradients"].items():  # type: ignore[attr-defined]
        torch.testing.assert_close(a["gradients"][name], gradient, rtol=1e-4, atol=1e-6)
    for key in ("hca", "mse"):
        torch.testing.assert_close(a[key], single[key], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.tensor(a["history"]), torch.tensor(single["history"]), rtol=1e-4, atol=1e-5)


def train_for(epochs: int, file: Path) -> int:
    """Go on with training until so many epochs are run; a checkpoint is left, which has the history."""
    distributed.init()
    model, data = tiny("full", with_encoder=True)
    torch.manual_seed(1 + distributed.rank())
    config = replace(CONFIG, epochs=epochs, batch_size=18)
    fit(model, data, data.rows(("A", "C")), data.rows(("B",)), config, Checkpoint(file, kept=True), tested="last")
    distributed.destroy()
    return 0


def history(file: Path) -> Tensor:
    stored = Checkpoint(file).read(torch.device("cpu"))
    assert stored is not None
    return torch.tensor(
        [[row[k] for k in ("val_mse", "hca", "hea", "mse", "c")] for row in stored[1]["progress"]["history"]]
    )


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_checkpoint_of_another_number_of_processes_is_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    by_one, by_two, on_one, on_three = (tmp_path / f"{name}.pt" for name in ("1", "2", "2-1", "2-3"))
    train_for(4, tmp_path / "unbroken.pt")
    train_for(2, by_one)
    run_local_gang(2, train_for, (4, by_one))
    run_local_gang(2, train_for, (2, by_two))
    shutil.copy(by_two, on_one)
    shutil.copy(by_two, on_three)
    run_local_gang(3, train_for, (4, on_three))
    with caplog.at_level(logging.INFO):
        train_for(4, on_one)
    assert caplog.messages == [f"{on_one}: by another number of processes (2, now 1): dropout is seeded anew"]
    expected = history(tmp_path / "unbroken.pt")
    assert len(expected) == 4
    for file in (by_one, on_one, on_three):
        torch.testing.assert_close(history(file), expected, rtol=1e-4, atol=1e-5)


def look_apart(folder: Path) -> int:
    """Begin a fold with what each process sees in a folder of its own; both write what they end with."""
    distributed.init()
    own = folder / str(distributed.rank())
    job: Any = SimpleNamespace(title="run fold 0", done=(own / "done").exists(), folder=own / "run/fold0")
    model, data = tiny("full", with_encoder=False)
    rest = make_optimizer(model, data.inputs, CONFIG), torch.Generator(), WeightAverage([], 0.0)
    texts = []
    for look in (lambda: jobs_left([job]), lambda: Checkpoint(own / "stopped.pt").load(model, data.inputs, *rest)):
        with pytest.raises(HistError) as raised:
            look()
        texts.append(str(raised.value))
    assert jobs_left([]) == []
    assert Checkpoint(own / "none.pt").load(model, data.inputs, *rest) is None
    (own / "says.txt").write_text("\n".join(texts))
    distributed.destroy()
    return 0


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_machines_that_see_other_folders_do_not_begin(tmp_path: Path) -> None:
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    (tmp_path / "1/done").touch()
    (tmp_path / "0/stopped.pt").write_bytes(b"what only process 0 has")
    assert run_local_gang(2, look_apart, (tmp_path,)) == 0
    for rank in range(2):
        left, checkpoint = (tmp_path / f"{rank}/says.txt").read_text().splitlines()
        assert left.startswith(f"process 1 finds other finished folds than process 0 in {tmp_path / str(rank)}; all ")
        assert f"{rank}/stopped.pt: is not the same for process 1 as for process 0; all machines must" in checkpoint


def test_random_draws_after_another_number_of_processes(tmp_path: Path) -> None:
    """They are not those of the first epochs again, and the same each time."""
    file = tmp_path / "checkpoint.pt"
    train_for(1, file)
    content = Checkpoint(file).read(torch.device("cpu"))
    assert content is not None
    written_by_two = content[1] | {"rng": content[1]["rng"] * 2}

    def draws(state: dict[str, Any], epoch: int) -> list[float]:
        torch.manual_seed(1)
        Checkpoint(file)._load_random_states(state, torch.device("cpu"), epoch)
        return torch.rand(3).tolist()

    torch.manual_seed(1)
    at_the_start = torch.rand(3).tolist()
    assert draws(content[1], 1) == at_the_start, "nothing was drawn before it was written"
    seen = [at_the_start, draws(written_by_two, 1), draws(written_by_two, 2)]
    assert len({tuple(values) for values in seen}) == 3
    assert draws(written_by_two, 1) == seen[1]


@pytest.mark.parametrize("n_rows", [1, 2, 7, 8])
def test_each_process_has_as_many_rows(n_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.distributed.world_size", lambda: 2)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr("train.distributed.rank", lambda rank=rank: rank)
        parts.append(distributed.equal_shard(torch.arange(n_rows)).tolist())
    assert len(parts[0]) == len(parts[1]) == n_rows // 2
    assert sorted(parts[0] + parts[1]) == list(range(n_rows // 2 * 2))


def test_one_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.init() is None
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    x = torch.randn(3, 2)
    assert distributed.all_gather(x) is x
    assert distributed.shard(x) is not None
    assert torch.equal(distributed.shard(x), x)
    assert distributed.any_rank(True)
    assert not distributed.any_rank(False)
