"""hist.toml: found in its places, read, and checked as a whole; what is wrong ends in one line with file and key."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest

from extract.encoders.encoder import Interpolation, Pooling
from extract.encoders.registry import EncoderEntry, encoder_names, find_entry
from extract.encoders.weights import LAYOUTS
from extract.imports.dataset_entry import add_to_dataset
from hist_cache.cached_dataset import DATASET_FILE, keep_dataset, use_kept_dataset
from hist_cache.datasets import Dataset, dataset_named, dataset_names, get_dataset
from hist_cache.errors import InputError
from hist_cache.own_file import FORMS, check_own_row, read_own_file, use_own_tables
from hist_cache.own_tables import OwnTables, own_rows, set_own_tables
from sweeps.space import check_own_spaces
from tests.commands import REPOSITORY
from train.experiments.own_rows import use_own_rows
from train.experiments.protocols import Protocol
from train.models import variants
from train.options import TrainOptions
from train.recipes.table import ROW_KEYS

GOOD = """
[datasets.mine]
ids = ["A1-2", "NCBI692-694"]
title = "Mine"
split = "patient"
encoder = "small"
training = { lr = 1e-3 }
patients = { "P 1" = ["A1-2"], "P 2" = ["NCBI692-694"] }

[datasets.shared]
ids = ["NCBI693"]

[encoders.small]
architecture = "vit_tiny_patch16_224"
arguments = { img_size = 64, num_classes = 0, act_layer = "SiLU" }
input_size = 64
weights = "random"

[variants.half]
description = "half of the contrast"
contrast = [0.125, 0.125, 0.125, 0.125]
entail = [0, 0, 0, 0]

[protocols.last]
tested = "last"
options = { clip_norm = 0 }

[recipes.centred]
options = { targets = "centered" }

[spaces.rates.lr]
low = 1e-4
high = 1e-3
"""


@pytest.fixture(autouse=True)
def no_tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HIST_TOML", raising=False)
    yield
    set_own_tables(OwnTables())


def written(folder: Path, text: str = GOOD) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "hist.toml").write_text(text)
    return folder / "hist.toml"


def test_the_keys_are_those_of_the_programs_own_tables() -> None:
    assert set(FORMS["encoders"].keys) == {f.name for f in fields(EncoderEntry)} - {"unsupported", "place"}
    assert set(FORMS["datasets"].keys) == {f.name for f in fields(Dataset)} - {"name"}
    assert set(FORMS["variants"].keys) == {*variants._REQUIRED, *variants._OPTIONAL}
    assert FORMS["variants"].required == variants._REQUIRED
    assert set(FORMS["protocols"].keys) == {f.name for f in fields(Protocol)} - {"name"} | {"description", "options"}
    assert set(FORMS["recipes"].keys) == set(ROW_KEYS)
    encoders: Any = FORMS["encoders"].keys
    assert set(get_args(encoders["layout"])) == set(LAYOUTS)
    assert get_args(encoders["interpolation"]) == get_args(Interpolation)
    assert set(get_args(encoders["pooling"])) == set(get_args(Pooling)) - {"timm"}


@pytest.mark.parametrize("table", [name for name in FORMS if name != "spaces"])
def test_every_row_of_the_program_would_pass_under_another_name(table: str, tmp_path: Path) -> None:
    rows = tomllib.loads((REPOSITORY / FORMS[table].file).read_text())
    default = rows.pop("default", {})
    for name, row in rows.items():
        if "unsupported" not in row and not (table == "datasets" and name == "default"):
            check_own_row(table, f"my-{name}", default | row, "here")


def test_places_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def used(given: str | None = None) -> list[str]:
        use_own_tables(given, tmp_path / "data")
        return list(own_rows("recipes"))

    caplog.set_level(logging.INFO)
    here = tmp_path / "here"
    for folder in ("here", "data", "variable", "option"):
        written(tmp_path / folder, f"[recipes.{folder}]")
    monkeypatch.chdir(here)
    assert used() == ["data"]
    assert caplog.messages == [f"{tmp_path}/data/hist.toml: recipes data (not read: {here}/hist.toml)"]
    (tmp_path / "data/hist.toml").unlink()
    assert used() == ["here"]
    monkeypatch.setenv("HIST_TOML", str(tmp_path / "variable/hist.toml"))
    assert used() == ["variable"]
    assert used(str(tmp_path / "option/hist.toml")) == ["option"]
    with pytest.raises(InputError, match=r"--own nowhere\.toml: no such file"):
        used("nowhere.toml")
    monkeypatch.setenv("HIST_TOML", "gone.toml")
    with pytest.raises(InputError, match=r"\$HIST_TOML gone.toml: no such file"):
        used()
    monkeypatch.delenv("HIST_TOML")
    (here / "hist.toml").unlink()
    assert used() == []


def test_datasets_and_encoders_of_the_file_stand_beside_those_of_the_program(tmp_path: Path) -> None:
    use_own_tables(str(written(tmp_path)), tmp_path)
    assert dataset_names()[-2:] == ["mine", "shared"]
    mine = get_dataset("mine")
    assert mine.ids == ("A1-2", "NCBI692", "NCBI693", "NCBI694")  # a range only of slides of HEST-1k
    assert mine.patients == {"A1-2": "P 1", "NCBI692": "P 2", "NCBI693": "P 2", "NCBI694": "P 2"}
    assert (mine.split, mine.encoder, mine.training) == ("patient", "small", {"lr": 1e-3})
    shared = get_dataset("shared")
    assert shared.patients == {"NCBI693": "kidney Patient 21"}
    assert (shared.split, shared.encoder, shared.training) == ("slide", "uni", {})
    assert encoder_names()[-1] == "small"
    assert find_entry("small").mean == find_entry("uni").mean  # of [default]
    with pytest.raises(InputError, match=r"no dataset 'mime' \(did you mean mine"):
        get_dataset("mime")
    use_own_tables(None, tmp_path / "nowhere")
    assert "mine" not in dataset_names()


ERRORS = {
    "[datsets.a]": "no key [datsets], did you mean datasets?",
    "datasets = 3": "datasets is no table; give [datasets.NAME]",
    "[datasets]\na = 3": "[datasets.a]: is no table but 3",
    "[datasets.a]": "[datasets.a]: has no ids; needed is ids",
    '[datasets.a]\nids = ["x"]\nslides = 1': "[datasets.a]: no key slides, did you mean ids?",
    '[datasets.a]\nids = ["x"]\ntilte = "t"': "[datasets.a]: no key tilte, did you mean title?",
    "[datasets.a]\nids = 'x'": "[datasets.a]: ids is 'x'; give a list of texts",
    "[datasets.a]\nids = []": "[datasets.a]: ids is empty",
    '[datasets.a]\nids = ["../x"]': "[datasets.a]: slide '../x'",
    '[datasets.a]\nids = ["x"]\nsplit = "spot"': "split is 'spot'; give 'slide' or 'patient' or 'loso'",
    '[datasets.a]\nids = ["x"]\npatients = { P = ["y"] }': "patients has slides that ids lacks: y",
    '[datasets.a]\nids = ["x", "y"]\npatients = { P = ["y"] }': "patients lacks slides of ids: x",
    '[datasets.a]\nids = ["x"]\npatients = { P = ["x"], Q = ["x"] }': "patients has slides twice: x",
    '[datasets.kidney]\nids = ["x"]': "[datasets.kidney]: this program has one of that name",
    '[datasets.default]\nids = ["x"]': "and is not all or default",
    '[variants."a,b"]': "a name has letters, digits",
    "[encoders.uni]\narchitecture = 'x'": "[encoders.uni]: this program has one of that name",
    "[encoders.a]\nwidth = 3": "[encoders.a]: has no architecture",
    "[encoders.a]\narchitecture = 'hf-hub:x/y'": "architecture 'hf-hub:x/y' is no name of a timm model",
    "[encoders.a]\narchitecture = 'x'\narguments = { checkpoint_path = 'x.bin' }": "arguments.checkpoint_path is not",
    "[encoders.a]\narchitecture = 'x'\narguments = { a = { b = 1 } }": "arguments.a is {'b': 1}; give a text",
    "[encoders.a]\narchitecture = 'x'\npooling = 'timm'": "pooling is 'timm'; give 'cls' or 'cls+mean'",
    "[encoders.a]\narchitecture = 'x'\nstd = [0.1, 0, 0.1]": "give numbers above 0",
    "[encoders.a]\narchitecture = 'x'\nmean = [0.1]": "mean is [0.1]; give 3 numbers",
    "[encoders.a]\narchitecture = 'x'\ninput_size = 0": "input_size is 0; give 1 or more",
    "[encoders.a]\narchitecture = 'x'\ngated = 1": "gated is 1; give true or false",
    "[variants.a]\ndescription = 'x'\ncontrast = [1, 2]\nentail = [0, 0, 0, 0]": "contrast is [1, 2]; give 4 numbers",
    "[protocols.a]\nmin_spot_um = inf": "min_spot_um is inf; give a number",
    "[protocols.paper]": "this program has one of that name",
    "[recipes.strong]": "this program has one of that name",
    "[spaces.lr]\nlr = {}": "this program has one of that name",
    "[spaces.a]": "[spaces.a]: a space has tables of options, such as [spaces.a.lr]",
    "[a": "not TOML (",
    f"a = {'[' * 5000}": "nested too deep",
}


@pytest.mark.parametrize(("text", "says"), ERRORS.items())
def test_what_is_wrong_is_one_line_with_file_and_key(text: str, says: str, tmp_path: Path) -> None:
    file = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_own_file(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_cache_keeps_the_row_of_a_dataset(tmp_path: Path) -> None:
    file = written(tmp_path / "data")
    use_own_tables(None, tmp_path / "data")
    wanted = get_dataset("mine")
    keep_dataset(tmp_path, "mine")
    keep_dataset(tmp_path, "kidney")
    assert not (tmp_path / "kidney").exists()
    set_own_tables(OwnTables())
    assert dataset_named("mine").patients == {}
    use_kept_dataset(tmp_path, "mine")
    assert dataset_named("mine") == wanted
    file.write_text(GOOD.replace('split = "patient"', 'split = "loso"'))  # the file is asked before the cache
    use_own_tables(None, tmp_path / "data")
    use_kept_dataset(tmp_path, "mine")
    assert dataset_named("mine").split == "loso"
    for text in ("no JSON", '{"ids": 3}', "[]"):
        (tmp_path / "mine" / DATASET_FILE).write_text(text)
        set_own_tables(OwnTables())
        with pytest.raises(InputError, match=rf"{tmp_path}/mine/{DATASET_FILE}: "):
            use_kept_dataset(tmp_path, "mine")


def test_what_hist_import_writes_is_read(tmp_path: Path) -> None:
    file = written(tmp_path)
    for ids in (["S1-2"], ["S1-3"]):
        add_to_dataset(tmp_path, "tümör", ids)
    use_own_tables(None, tmp_path)
    assert get_dataset("tümör").ids == ("S1-2", "S1-3")
    assert file.read_text().startswith(GOOD)


def test_the_example_of_the_documentation_is_a_good_file(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs/own-tables.md").read_text().split("```toml\n")[1].split("```")[0]
    tables = read_own_file(written(tmp_path, text))
    assert set(tables.rows) == set(FORMS)
    use_own_rows(TrainOptions(own=str(tmp_path / "hist.toml")))
    check_own_spaces()
