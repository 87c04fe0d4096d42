import pytest

from hist_cache.errors import InputError
from hist_cache.fingerprint import CropRule
from train.experiments.protocols import Protocol, check_crops, get_protocol
from train.models.variants import Variant, get_variant


def test_the_table() -> None:
    """As the method's comparison of the sources has it."""
    assert get_protocol("paper") == Protocol("paper", "all", "", "keep", "best", 1, (1, 1, 1, 1), 0)
    assert get_protocol("release") == Protocol("release", "all", "", "drop", "last", 2, (1.2, 1.2, 0.7, 0.7), 112)
    assert get_protocol("strict") == Protocol("strict", "train", "patient", "keep", "best", 1, (1, 1, 1, 1), 0)
    with pytest.raises(InputError, match="--protocol papre: there are paper, release, strict"):
        get_protocol("papre")


def test_a_single_option_overrides_its_row() -> None:
    mine = get_protocol("strict").with_options(panel_from="all", edge_spots=None, tested="last")
    assert (mine.panel_from, mine.edge_spots, mine.tested, mine.split) == ("all", "keep", "last", "patient")


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
