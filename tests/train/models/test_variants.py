"""The table of variants: the content of each row, and the errors for a wrong row or name."""

import dataclasses

import pytest

from hist_cache.errors import InputError
from train.models.alignment import Terms
from train.models.variants import Variant, get_variant, load_variants

QUARTERS = (0.25, 0.25, 0.25, 0.25)
NONE = (0.0, 0.0, 0.0, 0.0)
SPOTS = (0.5, 0.5, 0.0, 0.0)

# (terms, decoder, alpha_scale)
EXPECTED = {
    "full": (Terms(QUARTERS, QUARTERS), "both", 1),
    "no_gi_hea": (Terms(QUARTERS, (0.25, 0.25, 0, 0)), "both", 1),
    "no_hea": (Terms(QUARTERS, NONE), "both", 1),
    "no_hha": (Terms(QUARTERS, QUARTERS), "both", 0),
    "meru": (Terms(SPOTS, (0, 0, 1, 0)), "spot", 1),
    "clip": (Terms(SPOTS, NONE, geometry="euclidean"), "spot", 1),
    "euclidean": (Terms(QUARTERS, NONE, geometry="euclidean"), "both", 1),
    "euclidean_cones": (Terms(QUARTERS, QUARTERS, geometry="euclidean"), "both", 1),
    "hycoclip": (Terms(QUARTERS, QUARTERS, etas=(1.2, 1.2, 0.7, 0.7), main="niche"), "both", 1),
    "spot_only": (Terms(QUARTERS, QUARTERS), "spot", 1),
    "niche_only": (Terms(QUARTERS, QUARTERS), "niche", 1),
    "reverse_spot_niche": (Terms(QUARTERS, QUARTERS, reverse=(True, True, False, False)), "both", 1),
    "reverse_image_gene": (Terms(QUARTERS, QUARTERS, reverse=(False, False, True, True)), "both", 1),
}

ROW = 'description = "mine"\ncontrast = [1, 0, 0, 0]\nentail = [0, 0, 0, 0.5]\n'


def test_the_table():
    variants = load_variants()
    assert list(variants) == list(EXPECTED)
    for name, (terms, decoder, alpha_scale) in EXPECTED.items():
        row = variants[name]
        assert (row.name, row.terms, row.decoder, row.alpha_scale) == (name, terms, decoder, alpha_scale)
        assert row.description
        assert "\n" not in row.description


def test_a_variant_by_name():
    assert get_variant("no_hea") == load_variants()["no_hea"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_variant("full").decoder = "spot"  # type: ignore[misc]


def test_an_unknown_name_lists_the_known():
    with pytest.raises(InputError, match=r"'no_such'.*full, no_gi_hea.*reverse_image_gene"):
        get_variant("no_such")


def test_a_row_may_be_added(tmp_path):
    table = tmp_path / "mine.toml"
    table.write_text(f'[mine]\n{ROW}etas = [0.7, 1, 1, 1.2]\ndecoder = "niche"\nalpha_scale = 2\n')
    terms = Terms((1, 0, 0, 0), (0, 0, 0, 0.5), etas=(0.7, 1, 1, 1.2))
    assert load_variants(table) == {"mine": Variant("mine", "mine", terms, "niche", 2, own_etas=True)}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (ROW + "decodr = 'spot'", r"\[mine\]: unknown field decodr"),
        ("description = 'x'\ncontrast = [1, 1, 1, 1]", "no field entail"),
        (ROW + "geometry = 'flat'", "geometry is 'flat', not one of lorentz, euclidean"),
        (ROW + "decoder = 1", "decoder is 1, not one of both, spot, niche"),
        (ROW + "decoder = ['spot']", "decoder is .*, not one of"),
        (ROW + "etas = [1, 1, 1]", "etas is not four numbers"),
        (ROW + "etas = [1, 1, 1, -1]", "etas is not four numbers"),
        (ROW + "etas = [1, 1, 1, nan]", "etas is not four numbers"),
        (ROW + "etas = 1", "etas is not four numbers"),
        (ROW + "reverse = [1, 0, 0, 0]", "reverse is not four of true and false"),
        (ROW + "alpha_scale = true", "alpha_scale is not a number"),
        ("description = 1\ncontrast = [1, 1, 1, 1]\nentail = [1, 1, 1, 1]", "description is not a text"),
        ("contrast = [", "cannot read the table"),
    ],
)
def test_a_wrong_row_is_refused(tmp_path, row, problem):
    table = tmp_path / "mine.toml"
    table.write_text(f"[mine]\n{row}\n")
    with pytest.raises(InputError, match=problem):
        load_variants(table)


def test_what_is_not_a_table_of_rows_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        load_variants(tmp_path / "absent.toml")
    (tmp_path / "flat.toml").write_text("mine = 1")
    with pytest.raises(InputError, match=r"\[mine\]: not a section"):
        load_variants(tmp_path / "flat.toml")
