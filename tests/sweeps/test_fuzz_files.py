"""hist-train and hist-sweep on split, gene, space and configuration files of any content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sweeps.cli
import train.cli
from hist_cache.options import all_option_names
from sweeps.options import SweepOptions
from tests.fuzzing import fuzz, outcome

TEXTS = ["", "TINY1", "TINY2", "TINY3", "TINY4", "GENE1", "GENE2", "$x_$", "[red]", "../x", "\x1b[31m", "A\nB", "a\0b",
         "\ud800", "X" * 400, "1e999", "nan", "-1", "1e5", "6,18", "null", "true"]  # fmt: skip
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 40), st.sampled_from([2**63, -(2**70), 10**400, 0.5, 1e300]),
    st.floats(), st.sampled_from(TEXTS), st.text(max_size=4),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(TEXTS), inner, max_size=3),
    max_leaves=8,
)
slides = st.lists(st.sampled_from(["TINY1", "TINY2", "TINY3", "TINY4", "", "TINY9", "a\nb"]), max_size=4)
splits = st.lists(
    st.dictionaries(st.sampled_from(["train", "val", "test", "more"]), st.one_of(slides, slides, values), max_size=4),
    max_size=3,
)
garbage = st.binary(max_size=60)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the files are written and the commands run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("files"))
        yield Path()


def write(name: str, content: Any) -> str:
    """Write texts and bytes as they are, and anything else as JSON, which is YAML too."""
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", errors="surrogatepass"))
    return name


def train_on(cache: Path, *more: object) -> None:
    outcome(train.cli.main, "--cache", cache, "--dataset", "tiny", "--width", 8, "--dry-run", *more)


@pytest.mark.fuzz
@fuzz(60)
@given(st.one_of(splits, splits, values, garbage, st.just("[" * 99_999), st.just("9" * 9999)))
def test_any_file_of_splits(place: Path, cache: Path, content: Any) -> None:
    train_on(cache, "--n-genes", 9, "--split", write("splits.json", content))


lines = st.lists(st.sampled_from(["sample_id", ",", "\n", "TINY1", "TINY2", "TINY3", "\0", '"', "\r", "\ufeff", "é"]))


@pytest.mark.fuzz
@fuzz(30)
@given(st.one_of(lines.map("".join), garbage), st.one_of(lines.map("".join), garbage))
def test_any_folder_of_splits(place: Path, cache: Path, train_slides: Any, test_slides: Any) -> None:
    Path("folder").mkdir(exist_ok=True)
    write("folder/train_0.csv", train_slides)
    write("folder/test_0.csv", test_slides)
    train_on(cache, "--n-genes", 9, "--split", "folder")


names = st.lists(st.sampled_from(["GENE1", "GENE2", "GENE3", "# no", "", "GENE1 # 1", *TEXTS]), max_size=6)


@pytest.mark.fuzz
@fuzz(60)
@given(st.one_of(names.map("\n".join), garbage, values, st.fixed_dictionaries({"genes": st.one_of(names, values)})),
       st.booleans())  # fmt: skip
def test_any_file_of_genes(place: Path, cache: Path, content: Any, is_json: bool) -> None:
    train_on(cache, "--split", "loso", "--genes", write("genes.json" if is_json else "genes.txt", content))


rows = st.dictionaries(
    st.sampled_from(["alpha", "lr", "width", "depth", "n_genes", "neighbors", "transform", "decoder_space", "nope"]),
    st.one_of(
        st.fixed_dictionaries({"low": scalars, "high": scalars}, optional={"log": scalars, "int": scalars}),
        st.fixed_dictionaries({"choices": st.one_of(st.lists(scalars, max_size=3), values)}, optional={"also": values}),
        st.dictionaries(st.sampled_from(["low", "high", "choices", "step", "log", "int", "also"]), values, max_size=4),
        values,
    ),
    max_size=3,
)


@pytest.mark.fuzz
@fuzz(80)
@given(st.one_of(rows, rows, values, garbage), st.sampled_from(["yaml", "toml"]))
def test_any_search_space(place: Path, cache: Path, content: Any, ending: str) -> None:
    if ending == "toml" and isinstance(content, dict):
        content = "\n".join(
            f"[{json.dumps(name)}]\n" + "\n".join(f"{k} = {json.dumps(v)}" for k, v in row.items())
            for name, row in content.items() if isinstance(row, dict)
        )  # fmt: skip
    space = write(f"space.{ending}", content)
    more = ("--width", 8, "--n-genes", 9, "--split", "loso", "--dry-run", "--space", space)
    outcome(sweeps.cli.main, "--cache", cache, "--dataset", "tiny", *more)


NAMES = [n for n in all_option_names(SweepOptions) if n not in ("cache", "dry_run", "debug", "storage")]
YAMLS = ["a: *b", "&a [*a]", "a: 2001-99-99", "? [1]\n: 2", "- 1", "epochs: !!python/object:os.system 1", "{", "\t",
         "epochs: 3\nepochs: [", "a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]", "epochs: 0b1_1", "lr: .inf"]  # fmt: skip


@pytest.mark.fuzz
@fuzz(60)
@given(st.one_of(st.dictionaries(st.sampled_from([*NAMES, "nope", "batch-size"]), values, min_size=1, max_size=2),
                 values, garbage, st.sampled_from(YAMLS)))  # fmt: skip
def test_any_configuration(place: Path, cache: Path, content: Any) -> None:
    for main in (train.cli.main, sweeps.cli.main):
        base = ("--cache", cache, "--dataset", "tiny", "--width", 8, "--n-genes", 9, "--split", "loso")
        outcome(main, *base, "--config", write("options.yaml", content), "--dry-run")
