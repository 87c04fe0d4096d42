"""The identity of a cache: the crop rule as a number, and as version 0.1 wrote it."""

import hashlib
import json
import tarfile
from pathlib import Path

import pytest

from hist_cache.cache import Cache, open_cache
from hist_cache.fingerprint import (
    CropRule,
    Fingerprint,
    as_version_0_1,
    differences,
    from_version_0_1,
    identity_hash,
)
from hist_cache.slide_file import read_fingerprint
from hist_cache.verify import verify_slide

VERSION_0_1 = Path(__file__).resolve().parents[1] / "data/version_0_1.tar.xz"
ENCODER = {"encoder": "uni", "weights": "a" * 64, "mean": [0.5, 0.5, 0.5], "lora": None}
RULES = [  # um, the sentence of version 0.1, and the name that version 0.1 gave to a folder with it
    (0.0, "spot diameter", "237e71ea"),
    (112.0, "spot diameter, at least 112", "86817683"),
    (112.5, "spot diameter, at least 112.5", "0e684978"),
]


def old_form(sentence: str) -> dict[str, object]:
    return ENCODER | {"spot_crop_um": sentence, "niche_crop_um": "2 (m pitch + spot radius)"}


def new_form(min_spot_um: float) -> dict[str, object]:
    return ENCODER | {"crop_rule": {"min_spot_um": min_spot_um}}


@pytest.mark.parametrize(("min_spot_um", "sentence", "name"), RULES)
def test_both_forms_have_the_name_that_version_0_1_gave(min_spot_um: float, sentence: str, name: str) -> None:
    text = json.dumps(old_form(sentence), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest()[:8] == name
    assert identity_hash(old_form(sentence)) == identity_hash(new_form(min_spot_um)) == name


@pytest.mark.parametrize(("min_spot_um", "sentence", "name"), RULES)
def test_each_form_becomes_the_other(min_spot_um: float, sentence: str, name: str) -> None:
    old, new = old_form(sentence), new_form(min_spot_um)
    assert as_version_0_1(new) == as_version_0_1(old) == old
    assert from_version_0_1(old) == from_version_0_1(new) == new
    assert CropRule.from_identity(old) == CropRule.from_identity(new) == CropRule(min_spot_um)
    assert CropRule(min_spot_um).as_dict() == new["crop_rule"]


def test_a_file_of_version_0_1_is_read_and_written_anew() -> None:
    text = (
        '{"identity": {"encoder": "uni", "niche_crop_um": "2 (m pitch + spot radius)", "slide": {"image": "b"}, '
        '"spot_crop_um": "spot diameter, at least 112"}, "provenance": {"date": "today"}}'
    )
    fingerprint = Fingerprint.from_json(text)
    assert fingerprint.common == {"encoder": "uni", "crop_rule": {"min_spot_um": 112.0}}
    assert (fingerprint.slide, fingerprint.provenance) == ({"image": "b"}, {"date": "today"})
    assert fingerprint.to_json() == (
        '{"identity": {"crop_rule": {"min_spot_um": 112.0}, "encoder": "uni", "slide": {"image": "b"}}, '
        '"provenance": {"date": "today"}}'
    )
    assert Fingerprint.from_json(fingerprint.to_json()) == fingerprint


def test_a_rule_is_said_in_words() -> None:
    assert str(CropRule()) == "the spot's diameter"
    assert str(CropRule(112.0)) == "the spot's diameter, at least 112 um"


def test_numbers_that_version_0_1_shortened_are_still_the_same() -> None:
    new = ENCODER | {"crop_rule": CropRule(112.1234567).as_dict()}
    assert differences(old_form("spot diameter, at least 112.123"), new) == []
    assert from_version_0_1(as_version_0_1(new)) == new


def test_another_rule_is_spelled_out() -> None:
    expected = ['spot_crop_um "spot diameter" -> "spot diameter, at least 112"']
    assert differences(new_form(0.0), new_form(112.0)) == expected
    assert differences(old_form("spot diameter"), new_form(112.0)) == expected
    assert differences(old_form("spot diameter, at least 112"), new_form(112.0)) == []


def test_an_identity_without_a_rule_stays_as_it_is() -> None:
    assert as_version_0_1(ENCODER) == from_version_0_1(ENCODER) == ENCODER
    assert differences(ENCODER, ENCODER | {"lora": "c"}) == ['lora null -> "c"']


def unpack_version_0_1(folder: Path) -> Path:
    """Unpack what version 0.1 wrote: slides in `hest`, caches in `cache`, runs in `runs`."""
    with tarfile.open(VERSION_0_1) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def old_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack_version_0_1(tmp_path_factory.mktemp("version_0_1")) / "cache"


@pytest.mark.parametrize(("name", "min_spot_um"), [("timm-test_vit-466e3250", 112.0), ("timm-test_vit-6e440f51", 0.0)])
def test_caches_of_version_0_1_are_whole(old_root: Path, name: str, min_spot_um: float) -> None:
    cache = open_cache(old_root, "tiny", name)
    assert cache == Cache(old_root / "tiny" / name)
    assert cache.slides == ["TINY1", "TINY2", "TINY3"]
    common = cache.fingerprint().common
    assert common["crop_rule"] == {"min_spot_um": min_spot_um}
    assert not {"spot_crop_um", "niche_crop_um"} & common.keys()
    for slide in cache.slides:
        assert verify_slide(cache.path(slide)) == []
        assert read_fingerprint(cache.path(slide)).common == common
        assert cache.read(slide).attributes["side_um/spot"] == max(55.0, min_spot_um)
