"""Presets: their slides and patients against HEST-1k's own table; ids and ranges as people type them."""

import csv
from pathlib import Path

import pytest

from hist_cache.datasets import custom_dataset, dataset_names, get_dataset, parse_ids
from hist_cache.errors import InputError
from hist_cache.splits import published_splits

METADATA = Path(__file__).resolve().parents[3] / "shared" / "hest_metadata.csv"
SLIDES = {
    "kidney": 23,
    "colorectum": 14,
    "skin": 46,
    "lung": 16,
    "kidney_papilla": 1,
    "her2st": 36,
    "demo": 6,
}
SPOTS = {"kidney": 25_944, "colorectum": 20_733, "skin": 35_008, "lung": 31_445}


@pytest.fixture(scope="module")
def hest():
    if not METADATA.exists():
        pytest.skip(f"HEST-1k's table is not at {METADATA}")
    with METADATA.open(encoding="utf-8-sig", newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def test_presets_have_the_published_numbers_of_slides():
    assert {name: len(get_dataset(name).ids) for name in dataset_names()} == SLIDES


@pytest.mark.parametrize("name", sorted(SLIDES))
def test_patients_cover_all_slides_or_none(name):
    dataset = get_dataset(name)
    assert len(set(dataset.ids)) == len(dataset.ids)
    assert set(dataset.patients) in (set(), set(dataset.ids))
    assert dataset.title
    assert dataset.reference


@pytest.mark.parametrize("name", ["kidney", "colorectum", "skin", "lung"])
def test_published_splits_use_exactly_the_presets_slides(name):
    for kind in ("slide", "patient"):
        assert published_splits(name, kind)
        for split in published_splits(name, kind) or ():
            assert set(split.ids) == set(get_dataset(name).ids)


@pytest.mark.parametrize("name", sorted(set(SLIDES) - {"demo"}))
def test_a_presets_slides_are_one_study(name, hest):
    rows = [hest[slide] for slide in get_dataset(name).ids]
    assert len({row["dataset_title"] for row in rows}) == 1
    assert {row["species"] for row in rows} == {"Homo sapiens"}
    if name in SPOTS:
        assert sum(int(row["spots_under_tissue"]) for row in rows) == SPOTS[name]


@pytest.mark.parametrize("name", ["kidney", "colorectum", "her2st"])
def test_patients_are_those_of_the_table(name, hest):
    dataset = get_dataset(name)
    assert dataset.patients == {slide: hest[slide]["patient"] for slide in dataset.ids}


def test_skin_patients_are_those_of_the_subseries_text(hest):
    patients = get_dataset("skin").patients
    texts = {slide: hest[slide]["subseries"] for slide in patients}
    assert all(texts[slide].startswith((f"{p} lesional", f"{p} non lesional")) for slide, p in patients.items())


def test_skin_leaves_out_the_studys_slides_at_other_resolutions(hest):
    ids = get_dataset("skin").ids
    study = {i for i, row in hest.items() if row["dataset_title"] == hest[ids[0]]["dataset_title"]}
    assert {i for i in study if 0.51 < float(hest[i]["pixel_size_um_estimated"]) < 0.53} == set(ids)


def test_real_presets_train_at_the_papers_width_and_the_demo_small():
    assert get_dataset("kidney").training == {"width": 1024}
    assert get_dataset("kidney").encoder == "uni"
    assert get_dataset("demo").training == {"width": 128, "depth": 1, "lr": 1e-3, "epochs": 60}
    assert get_dataset("demo").encoder == "demo"


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match=r"did you mean kidney\?.*kidney_papilla.*--ids"):
        get_dataset("Kidny")
    with pytest.raises(InputError, match="no dataset 'default'; there are kidney"):
        get_dataset("default")


def test_a_changed_copy_does_not_change_the_preset():
    get_dataset("lung").patients.clear()
    get_dataset("lung").training["width"] = 1
    assert get_dataset("lung").patients["MISC17"] == "A37"
    assert get_dataset("lung").training == {"width": 1024}


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("SPA138,SPA139", ["SPA138", "SPA139"]),
        ("SPA138-140, NCBI563", ["SPA138", "SPA139", "SPA140", "NCBI563"]),
        ("SPA138-SPA139", ["SPA138", "SPA139"]),
        ("S008-010", ["S008", "S009", "S010"]),
        ("SPA139,SPA138-139,", ["SPA139", "SPA138"]),
        ("my-slide-1,TCGA-A1-2", ["my-slide-1", "TCGA-A1-2"]),
        ("A1-B3", ["A1-B3"]),
    ],
)
def test_ids_as_typed(text, ids):
    assert parse_ids(text) == ids


def test_a_known_name_is_not_read_as_a_range():
    assert parse_ids("P1-2,P3-4", existing_ids={"P1-2"}) == ["P1-2", "P3", "P4"]


@pytest.mark.parametrize("text", ["", " , ", "SPA141-138", "SPA1-99999999999"])
def test_ids_that_cannot_be_meant(text):
    with pytest.raises(InputError, match="SPA138"):
        parse_ids(text)


def test_a_custom_dataset_knows_the_patients_of_known_slides():
    assert set(custom_dataset(["SPA138", "SPA139"]).patients.values()) == {"her2st Patient C"}
    assert custom_dataset(["SPA138", "mine"]).patients == {}
    assert len(set(custom_dataset(["ZEN49", "NCBI714"]).patients.values())) == 2  # both are a 'Patient 1'
    assert custom_dataset(["a", "b", "a"], "my.slides-1").ids == ("a", "b")


def test_some_slides_of_a_preset_keep_its_defaults():
    few = custom_dataset(["DEMO1", "DEMO2"], "demo")
    assert (few.encoder, few.training["width"]) == ("demo", 128)
    assert custom_dataset(["SPA138"], "her2st").patients == {"SPA138": "Patient C"}


@pytest.mark.parametrize(("ids", "name"), [([], "custom"), (["a"], "../up"), (["a"], ""), (["a"], ".hidden")])
def test_custom_datasets_that_cannot_be(ids, name):
    with pytest.raises(InputError):
        custom_dataset(ids, name)


@pytest.mark.parametrize("wrong", ["../EVIL", "/etc/passwd", "a/b", "..", ".hidden", "a\0b", "a\nb", "a\\b"])
def test_slides_never_leave_their_folder(wrong):
    with pytest.raises(InputError, match="since it names files"):
        custom_dataset(["SPA138", wrong])


def test_slides_may_have_the_names_that_people_give():
    assert custom_dataset(["Größe 1", "a+b.c-d_e"]).ids == ("Größe 1", "a+b.c-d_e")
