"""A user's own dataset, encoder, variant, protocol, recipe and space, through the commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import extract.cli
import sweeps.cli
import train.cli
from hist_cache import load_run, open_cache
from hist_cache.errors import InputError
from hist_cache.own_tables import OwnTables, set_own_tables
from tests.conftest import write_slide

Run = Callable[..., tuple[int, str]]
SLIDES = ("S1-2", "S1-3", "S2-1", "S2-2")  # names that look like ranges
SMALL = ("--n-genes", 20, "--width", 8, "--depth", 1, "--epochs", 1, "--jobs", 1)
ENCODER = """
[encoders.small]
architecture = "test_vit"
arguments = { num_classes = 0 }
pooling = "cls"
input_size = 160
weights = "random"
"""
DATASET = """
[datasets.mine]
ids = ["S1-2", "S1-3", "S2-1", "S2-2"]
encoder = "small"
split = "patient"
training = { lr = 1e-3, batch_size = 16 }

[datasets.mine.patients]
"P 1" = ["S1-2", "S1-3"]
"P 2" = ["S2-1"]
"P 3" = ["S2-2"]
"""
SETTINGS = """
[variants.mine]
description = "{contrast}"
contrast = [{contrast}, 0, 0, 0]
entail = [0, 0, 0, 0]

[protocols.kept]
tested = "{tested}"

[protocols.kept.options]
clip_norm = {clip}

[recipes.softer]
options = {{ smooth = {smooth} }}

[spaces.rates.lr]
low = 1e-4
high = 1e-2
log = true
"""


def settings(contrast: float = 1, tested: str = "last", clip: float = 0.5, smooth: float = 0.5) -> str:
    return SETTINGS.format(contrast=contrast, tested=tested, clip=clip, smooth=smooth)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with hest/, its hist.toml, and the cache of its dataset."""
    folder = tmp_path_factory.mktemp("own")
    for i, slide in enumerate(SLIDES):
        write_slide(folder / "hest", slide, seed=i)
    (folder / "hest/hist.toml").write_text(DATASET + ENCODER)
    argv = ("--dataset", "mine", "--data-root", folder / "hest", "--cache", folder / "cache", "--precision", "fp32")
    assert extract.cli.main([str(a) for a in argv]) == 0
    yield folder
    set_own_tables(OwnTables())


def test_training_needs_no_file_beside_the_slides(root: Path, run_command: Run, tmp_path: Path) -> None:
    """Patients, split and defaults of the dataset are in the cache, and so is what the encoder is built from."""
    code, text = run_command(
        train.cli.main, "--cache", root / "cache", "--model", "ridge", "--n-genes", 20, "--fold", 0
    )
    assert code == 0, text
    assert f"mine: patients and defaults as {root}/cache/mine/dataset.json has them" in text
    (run,) = (tmp_path / "runs/mine").iterdir()
    config = load_run(run).folds[0].config
    assert config["split_kind"] == "patient"
    assert config["cache"]["encoder"] == "small"
    assert config["cache"]["entry"]["architecture"] == "test_vit"
    patients = {"S1-2": "P 1", "S1-3": "P 1", "S2-1": "P 2", "S2-2": "P 3"}
    parts = [{patients[slide] for slide in config["split"][part]} for part in ("train", "val", "test")]
    assert sorted(p for part in parts for p in part) == ["P 1", "P 2", "P 3"], "no patient in two parts"
    code, text = run_command(
        train.cli.main, "--cache", root / "cache", "--n-genes", 20, "--fold", 0, "--finetune-lora", "--dry-run",
        "--width", 8, "--depth", 1,
    )  # fmt: skip
    assert code == 0, text
    assert "small" in text


def test_another_row_of_the_same_name_is_another_cache_or_another_run(
    root: Path, run_command: Run, tmp_path: Path
) -> None:
    """Also where the weights are the same: they do not say how tokens are pooled."""
    (folder,) = (root / "cache/mine").glob("small-*")
    other = DATASET + ENCODER.replace('pooling = "cls"', 'pooling = "cls+mean"')
    (tmp_path / "hist.toml").write_text(other)
    argv = ("--dataset", "mine", "--data-root", root / "hest", "--cache", root / "cache", "--precision", "fp32")
    code, text = run_command(extract.cli.main, *argv, "--own", "hist.toml", "--dry-run")
    assert code == 0, text
    assert "4 to extract" in text
    assert f"not used: {folder} (4 slides) was made otherwise: entry" in text

    names = set()
    for changed in ({}, {"contrast": 0.5}, {"tested": "best"}, {"clip": 0.25}, {"smooth": 0.25}):
        (tmp_path / "hist.toml").write_text(settings(**changed))
        which = ("--ablation", "mine", "--protocol", "kept", "--recipe", "softer", "--split", "loso", "--fold", 0)
        code, text = run_command(train.cli.main, "--cache", root / "cache", *which, *SMALL, "--dry-run")
        assert code == 0, text
        assert "hist.toml: variants mine; protocols kept; recipes softer; spaces rates" in text
        names |= {word for word in text.split() if "/mine-" in word}
    assert len(names) == 5


def test_all_kinds_of_rows_in_one_run_and_its_model_in_a_notebook(
    root: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.toml").write_text(settings())
    monkeypatch.setenv("HIST_TOML", "own.toml")
    which = ("--ablation", "mine", "--protocol", "kept", "--recipe", "softer", "--fold", 0)
    code, text = run_command(train.cli.main, "--cache", root / "cache", *which, *SMALL)
    assert code == 0, text
    (folder,) = (tmp_path / "runs/mine").iterdir()
    run = load_run(folder)
    config = run.folds[0].config
    assert config["variant"]["terms"]["contrast"] == [1, 0, 0, 0]
    assert config["protocol"]["tested"] == "last"
    assert (config["loop"]["clip_norm"], config["loop"]["lr"], config["recipe"]["smooth"]) == (0.5, 1e-3, 0.5)

    cache = open_cache(root / "cache")
    slide = cache.read(config["split"]["test"][0])
    assert repr(cache) == f"Cache of mine: small (fp32), 4 slides, 120 spots, niches of 6\n  {cache.folder}"
    assert repr(slide) == f"{config['split']['test'][0]}: 30 spots, embeddings of 64, niches of 6, 30 genes"
    assert repr(run).startswith(f"Run {folder.name}: mine, small, 20 genes, 1 fold, PCC@10 ")
    with pytest.raises(InputError, match=r"looks at the spots around each spot, .* use hist-predict"):  # it smooths
        run.model().predict(slide.embeddings, slide.niches[6])


def test_a_model_in_a_notebook_predicts_what_hist_train_has_written(
    root: Path, run_command: Run, tmp_path: Path
) -> None:
    argv = ("--cache", root / "cache", "--fold", 0, *SMALL, "--targets", "centered", "--standardize", "slide")
    for model in ("hist", "ridge"):
        more = argv if model == "hist" else argv[:6]
        assert run_command(train.cli.main, *more, "--model", model)[0] == 0
    for folder in (tmp_path / "runs/mine").iterdir():
        run = load_run(folder)
        table = run.folds[0].predictions
        model = run.model()
        assert model.genes == list(table.var_names)
        assert model.unit == table.uns["expression"]
        for name in table.obs["slide"].unique():
            slide = open_cache(root / "cache").read(name)
            predicted = model.predict(slide.embeddings, slide.niches[6])
            assert predicted.dtype == np.float32
            np.testing.assert_allclose(predicted, table[table.obs["slide"] == name].X, atol=1e-5)
        as_float = model.predict(slide.embeddings.astype(np.float64).tolist(), slide.niches[6])
        np.testing.assert_array_equal(as_float, predicted)
        for wrong in (slide.embeddings[:, :3], slide.embeddings[:0], slide.embeddings[:2], slide.embeddings * np.nan):
            with pytest.raises(InputError, match=r"embeddings|niche"):
                model.predict(wrong, slide.niches[6])
        with pytest.raises(InputError, match="no finished fold 7; there are 0"):
            run.model(7)
        shutil.rmtree(folder)


WRONG = {
    "[variants.a]\ndescription = ''\ncontrast = [-1, 0, 0, 0]\nentail = [0, 0, 0, 0]": "[variants.a]: contrast is not",
    "[protocols.a.options]\nlrr = 1": "[protocols.a.options]: no option lrr, did you mean lr?",
    "[protocols.a.options]\nlora_rank = 0": "[protocols.a.options]: lora_rank is 0; give from 1 to",
    "[protocols.a.options]\nseed = 1.5": "[protocols.a.options]: seed is 1.5",
    "[recipes.a.options]\nlr = 'fast'": "[recipes.a.options]: lr is 'fast'; give above 0",
    "[recipes.a.options]\ntargets = 'none'": "[recipes.a.options]: targets is 'none'; give 'raw' or 'centered'",
    "[datasets.a]\nids = ['x']\ntraining = { lora_rank = 2 }": "[datasets.a.training]: no option lora_rank",
}


@pytest.mark.parametrize(("text", "says"), WRONG.items())
def test_wrong_options_in_the_file_end_in_one_line(text: str, says: str, run_command: Run, tmp_path: Path) -> None:
    (tmp_path / "hist.toml").write_text(text)
    for main in (train.cli.main, sweeps.cli.main):
        code, printed = run_command(main, "--cache", "nowhere")
        assert code == 2
        (line,) = printed.strip().splitlines()[-1:]
        assert line.startswith("error: hist.toml: [")
        assert says in line


def test_a_space_of_ones_own(root: Path, run_command: Run, tmp_path: Path) -> None:
    (tmp_path / "hist.toml").write_text(settings() + "[spaces.bad.lr]\nlow = 1\nhigh = 0.5\n")
    argv = ("--cache", root / "cache", "--split", "loso", *SMALL[:6], "--space", "rates", "--trials", 2, "--dry-run")
    code, text = run_command(sweeps.cli.main, *argv)
    assert code == 2
    assert "hist.toml: [spaces.bad]: lr: the range from 1 to 0.5 is empty" in text
    (tmp_path / "hist.toml").write_text(settings())
    code, text = run_command(sweeps.cli.main, *argv)
    assert code == 0, text
    assert "search lr: 0.0001 to 0.01 (log)" in text


def test_an_encoder_that_timm_cannot_build(root: Path, run_command: Run, tmp_path: Path) -> None:
    argv = ("--dataset", "mine", "--data-root", root / "hest", "--own", "hist.toml", "--dry-run")
    for change, says in (
        ('architecture = "test_vitt"', "hist.toml: [encoders.small]: timm cannot build it (Unknown model (test_vitt))"),
        ('architecture = "test_vit"\nwidth = 63', "hist.toml: [encoders.small]: width is 63, and the model gives 64"),
    ):
        (tmp_path / "hist.toml").write_text(DATASET + ENCODER.replace('architecture = "test_vit"', change))
        code, text = run_command(extract.cli.main, *argv)
        assert code == 2, text
        assert says in text
    for argument in ("act_layer = 'init'", "mlp_layer = 'Nothing'", "nothing = 1"):
        (tmp_path / "hist.toml").write_text(
            DATASET + ENCODER.replace("num_classes = 0", f"num_classes = 0, {argument}")
        )
        code, text = run_command(extract.cli.main, *argv)
        assert code == 2, text
        assert "[encoders.small]: timm cannot build it" in text


def test_the_kept_row_follows_the_file(root: Path, run_command: Run, tmp_path: Path) -> None:
    kept = root / "cache/mine/dataset.json"
    before = kept.read_text()
    assert json.loads(before)["split"] == "patient"
    argv = ("--dataset", "mine", "--data-root", root / "hest", "--cache", root / "cache", "--precision", "fp32")
    (tmp_path / "hist.toml").write_text((DATASET + ENCODER).replace('split = "patient"', 'split = "loso"'))
    assert run_command(extract.cli.main, *argv, "--own", "hist.toml")[0] == 0
    assert json.loads(kept.read_text())["split"] == "loso"
    assert run_command(extract.cli.main, *argv)[0] == 0
    assert kept.read_text() == before
