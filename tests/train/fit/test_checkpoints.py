"""A checkpoint is what was written, for the run that asks for it, or it is refused in one line."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hist_cache.errors import HistError, InputError
from tests.fuzzing import fuzz
from tests.train.fit.test_loop import make_data, make_model
from train.fit.average import WeightAverage
from train.fit.checkpoints import Checkpoint, Progress, differing
from train.fit.config import FitConfig
from train.fit.step import make_optimizer

MADE_FOR = {"loop": {"lr": 0.1, "seed": 1}, "split": {"train": ["A"], "test": ["B"]}, "panel": ["G1", "G2"]}


def parts() -> tuple:  # type: ignore[type-arg]
    """What a checkpoint is written from and loaded into."""
    data = make_data(n=12, width=4, genes=3)
    model = make_model(data)
    optimizer = make_optimizer(model, data.inputs, FitConfig())
    return model, data.inputs, optimizer, torch.Generator().manual_seed(5), WeightAverage([], 0.0)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint.pt"
    Checkpoint(path, MADE_FOR).save(Progress(epoch=3, best_epoch=1, best_watched=0.5), *parts())
    return path


@pytest.fixture(scope="module")
def written_by_0_1(written: Path) -> Path:
    path = written.with_name("old.pt")
    stored = Checkpoint(written).read(torch.device("cpu"))
    assert stored is not None
    torch.save(stored[1], path)
    return path


def test_what_was_written(written: Path, written_by_0_1: Path) -> None:
    for checkpoint in (Checkpoint(written, MADE_FOR), Checkpoint(written_by_0_1, MADE_FOR)):
        model, *others = parts()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        progress = checkpoint.load(model, *others)
        assert progress is not None
        assert (progress.epoch, progress.best_epoch, progress.best_watched) == (3, 1, 0.5)
        expected = parts()[0].state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert Checkpoint(written, MADE_FOR).check()
    assert not Checkpoint(written_by_0_1, MADE_FOR).check(), "it does not say"
    stored = Checkpoint(written).read(torch.device("cpu"))
    assert stored is not None
    assert stored[1]["progress"]["best_mse"] == 0.5, "as version 0.1 named it"
    assert Checkpoint(written.with_name("none.pt")).load(*parts()) is None


def test_to_ask_what_a_checkpoint_was_made_for_reads_no_weights(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = written.read_bytes()
    cut = Checkpoint(written.with_name("cut.pt"), MADE_FOR)
    cut.path.write_bytes(content[:-100])
    assert cut.check(), "left to load"
    damaged = Checkpoint(written.with_name("other.pt"), MADE_FOR)
    damaged.path.write_bytes(content.replace(b'"seed": 1', b'"seed": 2', 1))
    assert damaged.check(), "left to load, though it names another seed"
    with pytest.raises(HistError, match="is damaged"):
        damaged.load(*parts())
    monkeypatch.setattr("train.fit.checkpoints._head_of", None)
    assert Checkpoint(written, MADE_FOR).check()


@pytest.mark.fuzz
@fuzz(120)
@given(st.integers(0, 10**6), st.integers(1, 255), st.sampled_from(["other", "cut", "doubled"]), st.booleans())
def test_damage_at_any_byte_is_found(
    written: Path, written_by_0_1: Path, at: int, change: int, how: str, old: bool
) -> None:
    content = bytearray((written_by_0_1 if old else written).read_bytes())
    at %= len(content)
    if how == "other":
        content[at] ^= change
    content = content[:at] if how == "cut" else content + content[: at + 1] if how == "doubled" else content
    damaged = Checkpoint(written.with_name("damaged.pt"), MADE_FOR)
    damaged.path.write_bytes(content)
    message, stored = "", None
    try:
        stored = damaged.read(torch.device("cpu"))
    except HistError as error:
        message = str(error)
    if message:
        assert message.startswith(f"{damaged.path}: ")
        assert "delete it to start over" in message
        assert "\n" not in message
    else:  # bytes of a ZIP archive that mean nothing, such as the padding between its files
        assert old
        assert stored is not None
        texts = [io.BytesIO(), io.BytesIO()]
        for text, path in zip(texts, (damaged.path, written_by_0_1), strict=True):
            torch.save(torch.load(path, weights_only=True), text)
        assert texts[0].getvalue() == texts[1].getvalue()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"split": {"train": ["B"], "test": ["A"]}}, "split.train A -> B; split.test B -> A"),
        ({"loop": {"lr": 0.2, "seed": 1}}, "loop.lr 0.1 -> 0.2"),
        ({"panel": [f"GENE{i}" for i in range(100)]}, "panel differs"),
        ({"digests": {"A": "1"}}, "digests None -> {'A': '1'}"),
    ],
)
def test_a_checkpoint_of_another_run(written: Path, change: dict, says: str) -> None:  # type: ignore[type-arg]
    checkpoint = Checkpoint(written, MADE_FOR | change)
    for use, kind in ((checkpoint.check, InputError), (lambda: checkpoint.load(*parts()), HistError)):
        with pytest.raises(kind) as caught:
            use()
        assert f"was made for another run: {says}; delete it to start over, or give another --runs" in str(caught.value)


def test_differences_are_named() -> None:
    assert differing(MADE_FOR, MADE_FOR) == []
    assert differing({}, MADE_FOR) == [], "version 0.1 did not write it"
    assert differing({"a": {"b": 1, "c": [1, 2]}}, {"a": {"b": 2, "c": [1, 3]}}) == ["a.b 1 -> 2", "a.c 1 2 -> 1 3"]
