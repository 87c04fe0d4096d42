import re
import tomllib
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest

from extract.encoders.lora import LoraConfig
from hist_cache.errors import InputError
from hist_cache.fingerprint import CropRule
from hist_cache.options import option_fields
from tests.commands import REPOSITORY
from train.experiments.jobs import make_finetuning
from train.experiments.protocols import (
    PROTOCOLS_FILE,
    Protocol,
    check_crops,
    decided_by,
    get_protocol,
    protocol_options,
)
from train.fit.config import FitConfig
from train.models.configs import HistConfig
from train.models.variants import Variant, get_variant
from train.options import TrainOptions

KINDS = (HistConfig, FitConfig, TrainOptions)


def test_the_table() -> None:
    """As the method's comparison of the sources has it."""
    assert get_protocol("paper") == Protocol("paper", "all", "", "keep", "best", 1, (1, 1, 1, 1), 0)
    assert get_protocol("release") == Protocol("release", "all", "", "drop", "last", 2, (1.2, 1.2, 0.7, 0.7), 112)
    assert get_protocol("strict") == Protocol("strict", "train", "patient", "keep", "best", 1, (1, 1, 1, 1), 0)
    assert replace(get_protocol("reviewer"), name="strict", validate_on="next") == get_protocol("strict")
    literal = Protocol("literal", "all", "", "keep", "best", 1, (1, 1, 1, 1), 0, "mean_of_logs")
    assert get_protocol("literal") == literal
    with pytest.raises(
        InputError, match=r"--protocol papre \(did you mean paper\?\): there are paper, release, strict"
    ):
        get_protocol("papre")


def test_a_single_option_overrides_its_row() -> None:
    mine = get_protocol("strict").with_options(panel_from="all", edge_spots=None, tested="last")
    assert (mine.panel_from, mine.edge_spots, mine.tested, mine.split) == ("all", "keep", "last", "patient")


def test_reviewer_differs_from_strict_in_how_the_epoch_is_chosen() -> None:
    strict, reviewer = decided_by("strict"), decided_by("reviewer")
    assert {k for k in strict if strict[k] != reviewer[k]} == {"name", "select_by", "validate_on"}
    assert (strict["select_by"], reviewer["select_by"]) == ("mse", "centered_mse")
    assert (reviewer["split"], reviewer["panel_from"], reviewer["edge_spots"]) == ("patient", "train", "keep")


def lora_of(protocol: str, **given: object) -> LoraConfig:
    options = TrainOptions().with_values(given)
    return make_finetuning(11, options, protocol_options(protocol), "fp32").lora


def test_lora_is_the_protocols_unless_it_is_given() -> None:
    assert lora_of("paper") == lora_of("strict") == LoraConfig(11, 4, 8, 0.1)
    assert lora_of("release") == LoraConfig(11, 8, 16, 0.1)
    assert lora_of("literal") == LoraConfig(11, 4, 4, 0)  # the update of the text is BA, without a factor
    assert lora_of("release", lora_rank=4) == LoraConfig(11, 4, 16, 0.1)
    assert lora_of("literal", lora_dropout=0.1, lora_alpha=8.0) == LoraConfig(11, 4, 8, 0.1)


def test_what_a_protocol_sets_are_options_of_hist_train() -> None:
    rows = tomllib.loads(PROTOCOLS_FILE.read_text())
    known = {f.name: get_type_hints(kind)[f.name] for kind in KINDS for f in option_fields(kind)}
    for name in rows:
        for option, value in protocol_options(name).items():
            choices = get_args(known[option])
            assert value in choices if choices else isinstance(value, int | float), f"{name}: {option}"
            if option not in ("lora_rank", "lora_alpha", "lora_dropout"):
                later = {f.name for kind in KINDS for f in option_fields(kind) if f.metadata["since"]}
                assert option in later | {"decoder_space"}, f"{name}: {option} would rename finished runs"


def test_paper_leaves_variants_as_they_are() -> None:
    for name in ("full", "hycoclip", "meru"):
        assert get_protocol("paper").apply(get_variant(name)) == get_variant(name)


def test_crops_that_are_not_the_protocols_are_said() -> None:
    paper, release = get_protocol("paper"), get_protocol("release")
    assert check_crops(paper, CropRule()) is None
    assert check_crops(release, CropRule(112.0)) is None
    assert check_crops(release, CropRule()) == (
        "protocol release has spot crops of the spot's diameter, at least 112 um, the cache of the spot's diameter: "
        "run hist-extract --min-spot-um 112"
    )
    text = str(check_crops(paper, CropRule(112.0)))
    assert "at least 112" in text
    assert text.endswith(": run hist-extract")


def test_a_variant_survives_a_runs_configuration() -> None:
    import json

    for name in ("full", "hycoclip", "clip"):
        variant = get_protocol("release").apply(get_variant(name))
        again = Variant.from_dict(json.loads(json.dumps(variant.as_dict())))
        assert again.as_dict() == variant.as_dict()
        assert again.terms == variant.terms


def test_the_document_names_every_switch_and_no_other() -> None:
    """docs/method.md has each option of `literal`; all flags in it exist, with the value that stands there."""
    text = (REPOSITORY / "docs/method.md").read_text()
    known = {f.name: get_type_hints(kind)[f.name] for kind in KINDS for f in option_fields(kind)}
    for name, value in re.findall(r"(?<!-)--([a-z][a-z-]*)((?: [a-z_0-9.]+)?)", text):
        option = name.replace("-", "_")
        assert option in known, name
        choices = [
            c for kind in (known[option], *get_args(known[option])) for c in get_args(kind) if isinstance(c, str)
        ]
        assert not (value and choices) or value.strip() in choices, f"{name}{value}"
    for option in protocol_options("literal").keys() - {"lora_rank"}:
        assert f"--{option.replace('_', '-')} " in text, option
    assert "--niche-profile mean_of_logs" in text
