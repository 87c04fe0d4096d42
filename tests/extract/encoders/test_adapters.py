"""A saved adapter: peft's own format, tied to its encoder, merged without a trace."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from extract.encoders.adapters import (
    OWNER,
    SETTINGS,
    TENSORS,
    adapter_digest,
    find_adapter,
    load_adapter,
    merge_adapter,
    save_adapter,
)
from extract.encoders.encoder import Encoder, PooledEncoder
from extract.encoders.lora import LoraConfig, adapt, adapted_names
from hist_cache.errors import HistError, InputError
from tests.extract.encoders.test_encoder import crops, tiny
from tests.extract.encoders.test_lora import scrambled


def saved(folder: Path, layers: int = 2, seed: int = 0) -> torch.Tensor:
    """Write an adapter of the tiny encoder; returns what the adapted encoder makes of `crops()`."""
    adapted = adapt(tiny("uni"), LoraConfig(layers=layers))
    torch.manual_seed(seed)
    scrambled(adapted)
    save_adapter(adapted, folder)
    with torch.inference_mode():
        return adapted.encoder.module(crops())


def embed(module: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return module(crops())


def test_peft_itself_reads_it(tmp_path: Path) -> None:
    expected = saved(tmp_path / "a")
    assert sorted(os.listdir(tmp_path / "a")) == [SETTINGS, TENSORS, OWNER]
    module = tiny("uni").module
    model = peft.PeftModel.from_pretrained(module, tmp_path / "a").eval()
    assert torch.equal(embed(model), expected)
    saved(tmp_path / "b", seed=1)
    model.load_adapter(str(tmp_path / "b"), adapter_name="other")
    model.set_adapter("other")
    assert not torch.allclose(embed(model.eval()), expected)


def test_round_trip_frozen_or_trainable(tmp_path: Path) -> None:
    expected = saved(tmp_path / "a")
    for trainable in (False, True):
        adapted = load_adapter(tiny("uni"), tmp_path / "a", trainable)
        assert torch.equal(embed(adapted.encoder.module), expected)
        assert len(adapted.parameters) == (8 if trainable else 0)
        assert adapted.modules == adapted_names(adapted.encoder.module)
    save_adapter(adapted, tmp_path / "again")
    assert adapter_digest(tmp_path / "again") == adapter_digest(tmp_path / "a")
    assert (tmp_path / "again" / TENSORS).read_bytes() == (tmp_path / "a" / TENSORS).read_bytes()


def test_merged_it_is_the_same_without_peft(tmp_path: Path) -> None:
    expected = saved(tmp_path / "a")
    merged = merge_adapter(tiny("uni"), tmp_path / "a")
    assert type(merged.module) is PooledEncoder
    assert adapted_names(merged.module) == ()
    assert type(merged.module.backbone.blocks[3].attn.qkv) is torch.nn.Linear
    assert not merged.module.training
    assert not any(p.requires_grad for p in merged.module.parameters())
    scale = expected.abs().max()
    assert (embed(merged.module) - expected).abs().max() < 1e-6 * scale
    assert (embed(tiny("uni").module) - expected).abs().max() > 1e-2 * scale
    assert merged.lora == adapter_digest(tmp_path / "a")
    assert merged.digest == tiny("uni").digest


def test_the_digest_is_of_what_is_computed(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    saved(tmp_path / "b")
    first = adapter_digest(tmp_path / "a")
    assert first == adapter_digest(tmp_path / "b")
    settings = json.loads((tmp_path / "b" / SETTINGS).read_text())
    (tmp_path / "b" / SETTINGS).write_text(json.dumps(settings | {"peft_version": "9", "inference_mode": False}))
    assert adapter_digest(tmp_path / "b") == first
    (tmp_path / "b" / SETTINGS).write_text(json.dumps(settings | {"lora_alpha": 9}))
    assert adapter_digest(tmp_path / "b") != first
    saved(tmp_path / "b", seed=1)
    assert adapter_digest(tmp_path / "b") != first


@pytest.mark.parametrize("other", [{"name": "uni"}, {"digest": "f" * 64}])
def test_another_encoder_is_refused(tmp_path: Path, other: dict) -> None:
    saved(tmp_path / "a")
    encoder: Encoder = replace(tiny("uni"), **other)
    with pytest.raises(InputError, match="this adapter belongs to encoder tiny with weights 000000000000, not to"):
        merge_adapter(encoder, tmp_path / "a")
    assert adapted_names(encoder.module) == ()


def test_no_layer_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(HistError, match="no adapter to save"):
        save_adapter(adapt(tiny(), LoraConfig(layers=0)), tmp_path / "a")


def drop_owner(folder: Path) -> None:
    (folder / OWNER).unlink()


def drop_tensors(folder: Path) -> None:
    (folder / TENSORS).unlink()


def spoil_settings(folder: Path) -> None:
    (folder / SETTINGS).write_text("{")


def truncate(folder: Path) -> None:
    (folder / TENSORS).write_bytes((folder / TENSORS).read_bytes()[:-9])


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / TENSORS)


def adapt_the_convolution(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    save_file(
        tensors | {"base_model.model.backbone.patch_embed.proj.lora_A.weight": torch.zeros(4, 3)}, folder / TENSORS
    )


def another_rank(folder: Path) -> None:
    settings = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps(settings | {"r": 3}))


def replaced(file: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(text)


def changed(file: str, **values: object) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        *((replaced(SETTINGS, text), "adapter_config.json: not readable") for text in ("[]", "null", "5", '"a"')),
        *((replaced(OWNER, text), "unknown which encoder") for text in ("[]", "null", "5", '"a"', "{}", "[" * 9999)),
        (replaced(SETTINGS, "[" * 9999), "nested too deep"),
        (changed(OWNER, weights=5), "'weights' is 5"),
        (changed(OWNER, encoder=None), "'encoder' is None"),
        (changed(OWNER, pretrained="yes"), "'pretrained' is 'yes'"),
        (changed(OWNER, more=1), "unknown which encoder"),
        (changed(SETTINGS, lora_alpha=[]), "peft cannot load this adapter"),
        (drop_owner, "unknown which encoder"),
        (drop_tensors, "no whole adapter"),
        (spoil_settings, "not readable"),
        (truncate, "cannot be read as weights"),
        (lose_a_tensor, r"first odd: .*blocks\.2\.attn\.proj\.lora_A"),
        (adapt_the_convolution, r"first odd: .*patch_embed\.proj"),
        (another_rank, "peft cannot load this adapter"),
    ],
)
def test_damaged_adapters_are_refused(tmp_path: Path, damage: Callable[[Path], object], says: str) -> None:
    saved(tmp_path / "a")
    damage(tmp_path / "a")
    with pytest.raises(InputError, match=says) as caught:
        load_adapter(tiny("uni"), tmp_path / "a")
    assert len(str(caught.value).splitlines()) == 1


def test_an_adapter_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / TENSORS)
    save_file({key: tensor * float("nan") for key, tensor in tensors.items()}, tmp_path / "a" / TENSORS)
    saved(tmp_path / "b")
    changed(SETTINGS, lora_alpha=float("inf"))(tmp_path / "b")
    for name in "ab":
        with pytest.raises(InputError, match=f"{name}: peft cannot merge this adapter .*; train it again"):
            merge_adapter(tiny("uni"), tmp_path / name)


def test_a_failed_save_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "a")
    before = adapter_digest(tmp_path / "a")

    def full(*args: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="no space"):
        saved(tmp_path / "a", seed=1)
    assert adapter_digest(tmp_path / "a") == before
    assert sorted(os.listdir(tmp_path / "a")) == [SETTINGS, TENSORS, OWNER]


def test_where_a_runs_adapter_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, adapter = tmp_path / "run", tmp_path / "run/fold2/adapter"
    with pytest.raises(InputError, match="no adapter here"):
        find_adapter(run)
    saved(adapter)
    (run / "fold0").mkdir()
    assert find_adapter(run) == find_adapter(run / "fold2") == find_adapter(adapter) == adapter
    assert {r.levelname for r in caplog.records} == {"WARNING"}
    assert "fold2: this fold is not finished" in caplog.text
    caplog.clear()
    (run / "fold2/metrics.json").write_text("{}")
    assert find_adapter(run) == adapter
    assert caplog.text == ""
    saved(run / "fold3/adapter")
    with pytest.raises(InputError, match=r"2 folds have an adapter; give one of .*fold2, .*fold3"):
        find_adapter(run)
