"""Splits: what is published, and the properties that every drawn split has."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hist_cache.datasets import get_dataset
from hist_cache.errors import InputError
from hist_cache.splits import (
    Split,
    from_files,
    kind_in_use,
    leave_one_slide_out,
    make_splits,
    published_splits,
    seeded_patient_splits,
    seeded_slide_splits,
    shared_patients,
)
from hist_cache.validation_slides import n_validation, reason_for

AUTHORS = Path(__file__).resolve().parents[3] / "shared" / "published_splits.json"
WITH_PUBLISHED = ["kidney", "colorectum", "skin", "lung"]

slide_ids = st.lists(st.from_regex(r"[A-Z]{1,3}[0-9]{1,3}", fullmatch=True), min_size=3, max_size=60, unique=True)
seeds = st.integers(0, 2**32)


def parts(split):
    return set(split.train), set(split.val), set(split.test)


def the_published(name, kind):
    splits = published_splits(name, kind)
    assert splits is not None
    return splits


@pytest.mark.parametrize("name", WITH_PUBLISHED)
@pytest.mark.parametrize("kind", ["slide", "patient"])
def test_published_splits_are_the_authors(name, kind):
    if not AUTHORS.exists():
        pytest.skip(f"the authors' splits are not at {AUTHORS}")
    rows = json.loads(AUTHORS.read_text())["splits"][name][kind]
    ours = the_published(name, kind)
    assert [parts(s) for s in ours] == [(set(r["train"]), set(r["val"]), set(r["test"])) for r in rows]


def test_published_splits_are_draws_not_folds():
    assert len({slide for split in the_published("kidney", "slide") for slide in split.test}) == 9
    assert published_splits("her2st", "slide") is None
    assert published_splits("mine", "patient") is None


@pytest.mark.parametrize("name", ["colorectum", "skin", "lung"])
def test_published_slide_splits_leak_every_tested_patient(name):
    patients = get_dataset(name).patients
    for split in the_published(name, "slide"):
        assert shared_patients(split, patients) == sorted({patients[i] for i in split.test})


@pytest.mark.parametrize(("name", "kind"), [("kidney", "slide"), *[(name, "patient") for name in WITH_PUBLISHED]])
def test_the_other_published_splits_leak_none(name, kind):
    patients = get_dataset(name).patients
    assert all(shared_patients(split, patients) == [] for split in the_published(name, kind))


@pytest.mark.slow
@given(slide_ids, seeds, st.integers(1, 6), st.randoms())
def test_slide_draws(ids, seed, n, random):
    splits = seeded_slide_splits(ids, n, seed)
    shuffled = random.sample(ids, len(ids))
    assert splits == seeded_slide_splits(shuffled, n, seed)
    assert splits[:1] == seeded_slide_splits(ids, 1, seed)
    for split in splits:
        assert sorted(split.ids) == sorted(ids)
        assert len(split.val) == len(split.test) == max(1, round(len(ids) / 10))


def test_slide_draws_differ_between_seeds_and_draws():
    ids = get_dataset("kidney").ids
    assert len({s.test for s in seeded_slide_splits(ids, 20, 42)}) > 10
    assert seeded_slide_splits(ids, 1, 1)[0].test != seeded_slide_splits(ids, 1, 2)[0].test


@given(slide_ids, seeds, st.integers(1, 4), st.data())
def test_patient_draws_keep_patients_whole(ids, seed, n, data):
    patients = {slide: data.draw(st.sampled_from("ABCDEFG")) for slide in ids}
    assume(len(set(patients.values())) >= 3)
    splits = seeded_patient_splits(ids, patients, n, seed)
    assert splits == seeded_patient_splits(list(reversed(ids)), patients, n, seed)
    for split in splits:
        assert sorted(split.ids) == sorted(ids)
        train, val, test = ({patients[i] for i in part} for part in parts(split))
        assert not train & val
        assert not (train | val) & test
        assert shared_patients(split, patients) == []


def test_patient_draws_stay_near_a_tenth():
    her2st = get_dataset("her2st")
    for split in seeded_patient_splits(her2st.ids, her2st.patients, 20, 0):
        assert len(split.test) in (3, 6)
        assert len(split.val) in (3, 6)


@given(slide_ids)
def test_leaving_one_out_tests_each_slide_once(ids):
    splits = leave_one_slide_out(ids)
    assert [split.test for split in splits] == [(i,) for i in sorted(ids)]
    assert sorted(i for split in splits for i in split.val) == sorted(ids)
    assert all(sorted(split.ids) == sorted(ids) for split in splits)
    assert splits[0].val == splits[1].test


def patients_drawn(ids, data):
    """A patient for each slide, or for some of them only."""
    drawn = {slide: data.draw(st.sampled_from(["A", "B", "C", "D", None])) for slide in ids}
    return {slide: patient for slide, patient in drawn.items() if patient}


@given(slide_ids, st.data())
def test_validation_slides_like_the_test_slide(ids, data):
    patients = patients_drawn(ids, data)
    splits = leave_one_slide_out(ids, patients, "alike")
    assert splits == leave_one_slide_out(list(reversed(ids)), dict(reversed(patients.items())), "alike")
    assert [(split.name, split.test) for split in splits] == [(f"loso-{i}-alike", (i,)) for i in sorted(ids)]
    others = len(ids) - 1
    usual = max(1, min(others // 2, max(2, round(others / 5))))
    for split in splits:
        assert sorted(split.ids) == sorted(ids)
        assert split.train
        [test] = split.test
        same = [i for i in ids if i != test and test in patients and patients.get(i) == patients[test]]
        if len(same) >= 2:
            assert set(split.val) < set(same), "half of the slides of the patient are trained on"
            assert len(split.val) == min(usual, len(same) // 2)
        else:
            assert len(split.val) == usual
        order = sorted(ids)
        order = order[order.index(test) + 1 :] + order[: order.index(test)]
        candidates = [i for i in order if i in same] if len(same) >= 2 else order
        assert set(split.val) == set(candidates[: len(split.val)]), "the first after the test slide"


@given(slide_ids)
def test_without_patients_the_next_slides_validate(ids):
    for alike, following in zip(leave_one_slide_out(ids, {}, "alike"), leave_one_slide_out(ids), strict=True):
        assert set(following.val) <= set(alike.val)
        assert following == leave_one_slide_out(ids, {}, "next")[sorted(ids).index(following.test[0])]


def test_why_slides_validate():
    slides, patients = list("abcdefg"), dict(zip("abcdef", "XXXYYZ", strict=True))
    assert [reason_for(slide, slides, patients) for slide in "adfg"] == [
        "same patient",
        "any patient: d has only one other slide of its patient",
        "other patients: f is the only slide of its patient",
        "any patient: that of g is not known",
    ]
    first = leave_one_slide_out(slides, patients, "alike")
    assert [(split.val, split.name) for split in first[:2]] == [(("b",), "loso-a-alike"), (("c",), "loso-b-alike")]
    assert [n_validation(n) for n in (3, 4, 5, 6, 11, 14, 36)] == [1, 1, 2, 2, 2, 3, 7]


def test_only_leaving_one_out_reads_the_rule():
    her2st = get_dataset("her2st")
    ids, patients = her2st.ids, her2st.patients
    assert make_splits("her2st", ids, patients, "loso", validate_on="alike") == leave_one_slide_out(
        ids, patients, "alike"
    )
    assert make_splits("her2st", ids, patients, validate_on="alike") == make_splits("her2st", ids, patients)
    few = ids[:4]
    assert make_splits("her2st", few, {}, "slide", validate_on="alike") == leave_one_slide_out(few, {}, "alike")
    assert [
        kind_in_use("her2st", some, patients, kind) for some, kind in ((ids, None), (few, None), (few, "slide"))
    ] == [*("patient", "loso", "loso")]
    assert kind_in_use("kidney", few, {}, None) == "slide"


@pytest.mark.parametrize(
    ("train", "val", "test", "message"),
    [
        (("a",), ("b",), ("a",), "a listed twice"),
        (("a", "a"), ("b",), ("c",), "a listed twice"),
        (("a",), (), ("c",), "no slides in val"),
        ((), ("b",), ("c",), "no slides in train"),
    ],
)
def test_a_wrong_split_is_refused(train, val, test, message):
    with pytest.raises(InputError, match=message):
        Split(train, val, test, "mine")


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(InputError, match="at least 3"):
        seeded_slide_splits(["a", "b"], 1, 0)
    with pytest.raises(InputError, match="at least 3"):
        leave_one_slide_out(["a", "b"])
    with pytest.raises(InputError, match=r"2 patients \(X, Y\)"):
        seeded_patient_splits(["a", "b", "c"], {"a": "X", "b": "X", "c": "Y"}, 1, 0)
    with pytest.raises(InputError, match="the patient of c is not known"):
        seeded_patient_splits(["a", "b", "c"], {"a": "X", "b": "Y"}, 1, 0)


def test_make_splits_prefers_the_published_ones():
    kidney = get_dataset("kidney")
    assert make_splits("kidney", kidney.ids, kidney.patients) == published_splits("kidney", "slide")
    assert make_splits("kidney", kidney.ids, kidney.patients, "patient") == published_splits("kidney", "patient")
    assert make_splits("kidney", kidney.ids, {}, "slide", folds=2) == the_published("kidney", "slide")[:2]


def test_make_splits_never_drops_a_missing_slide():
    kidney = get_dataset("kidney")
    with pytest.raises(InputError, match=r"2 slides that the cache lacks: NCBI692, NCBI693; extract them"):
        make_splits("kidney", kidney.ids[2:], kidney.patients)


def test_make_splits_draws_where_nothing_is_published():
    her2st = get_dataset("her2st")
    splits = make_splits("her2st", her2st.ids, her2st.patients, seed=7)
    assert splits == seeded_patient_splits(her2st.ids, her2st.patients, 5, 7)
    assert make_splits("her2st", her2st.ids, her2st.patients, "slide", 3, 7) == seeded_slide_splits(her2st.ids, 3, 7)
    assert make_splits("mine", list("abcdef"), {})[0].name == "slide-seed42-0"


def test_few_slides_are_left_out_in_turn_and_it_says_so(caplog):
    caplog.set_level("INFO")
    ids = ["SPA138", "SPA139", "SPA140", "SPA141"]
    assert make_splits("her2st", ids, get_dataset("her2st").patients) == leave_one_slide_out(ids)
    assert "only 4 slides: leaving one slide out" in caplog.text


def test_asking_for_more_folds_than_there_are_says_so(caplog):
    caplog.set_level("INFO")
    assert len(make_splits("mine", list("abcd"), {}, "loso", folds=9)) == 4
    assert "4 splits, not the 9 asked for" in caplog.text
    with pytest.raises(InputError, match="--folds 0"):
        make_splits("mine", list("abcd"), {}, "loso", folds=0)


def write_csv(folder, name, ids):
    folder.mkdir(parents=True, exist_ok=True)
    rows = "".join(f"{i},patches/{i}.h5,adata/{i}.h5ad\n" for i in ids)
    (folder / name).write_text("\ufeffsample_id,patches_path,expr_path\n" + rows, encoding="utf-8")


def test_hest_bench_folders(tmp_path):
    for i, test in enumerate("abcdefghijkl"):
        write_csv(tmp_path / "splits", f"train_{i}.csv", sorted(set("abcdefghijkl") - {test}))
        write_csv(tmp_path / "splits", f"test_{i}.csv", [test])
    write_csv(tmp_path / "splits", "val_2.csv", ["m"])
    splits = from_files(tmp_path)
    assert [s.test for s in splits] == [(i,) for i in "abcdefghijkl"]  # 10 after 9, not after 1
    assert (splits[0].val, splits[2].val) == (("l",), ("m",))
    assert from_files(tmp_path / "splits")[3].ids == splits[3].ids
    with pytest.raises(InputError, match="cache lacks: m;"):
        make_splits("mine", list("abcdefghijkl"), {}, tmp_path)


def test_wrong_hest_bench_folders(tmp_path):
    with pytest.raises(InputError, match=r"no train_0\.csv"):
        from_files(tmp_path)
    (tmp_path / "train_0.csv").write_text("slide\na\n")
    with pytest.raises(InputError, match="no column sample_id; its columns are slide"):
        from_files(tmp_path)
    write_csv(tmp_path, "train_0.csv", ["a", "b"])
    with pytest.raises(InputError, match=r"test_0\.csv: not there"):
        from_files(tmp_path)


def test_json_files(tmp_path):
    file = tmp_path / "mine.json"
    rows = [{"train": ["b", "a"], "val": ["c"], "test": ["d"]}, {"train": ["d", "c", "b"], "test": ["a"]}]
    file.write_text(json.dumps(rows))
    first, second = from_files(file)
    assert first == Split(("a", "b"), ("c",), ("d",), "mine-0")
    assert second == Split(("b", "c"), ("d",), ("a",), "mine-1")
    assert make_splits("mine", list("abcd"), {}, str(file), folds=1) == [first]


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"train": ["a"]}', '[{"train": ["a"]}]', '[{"train": "ab", "test": ["c"]}]', "[1]"]
)
def test_wrong_json_files(tmp_path, text):
    file = tmp_path / "mine.json"
    file.write_text(text)
    with pytest.raises(InputError, match=r"mine\.json"):
        from_files(file)


def test_a_kind_that_is_neither_word_nor_file():
    with pytest.raises(InputError, match="--split slides: neither slide, patient, loso, within nor a file"):
        make_splits("mine", list("abcde"), {}, "slides")


def test_leaks_pass_over_unknown_patients():
    split = Split(("a", "b"), ("c",), ("d", "e"), "mine")
    assert shared_patients(split, {"c": "X", "d": "X", "a": "Y"}) == ["X"]
    assert shared_patients(split, {}) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff", "not text in UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b"9" * 5000, "not JSON"),
        (b"null", "give a list of"),
        (b'[{"train": ["a", ""], "test": ["b"]}]', "an empty name in train"),
        (b'[{"train": ["a", "c"], "test": ["b\\u0000"]}]', "a name with control characters"),
        (b'[{"train": ["a", "c"], "test": ["\\ud800"]}]', "a name with control characters"),
    ],
)
def test_files_of_any_content(tmp_path, content, says):
    file = tmp_path / "mine.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(says)):
        from_files(file)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\xff", "not text in UTF-8"), (b'sample_id\n"' + b"x" * 200_000, "not CSV"), (b"", "its columns are none")],
)
def test_csv_files_of_any_content(tmp_path, content, says):
    (tmp_path / "train_0.csv").write_bytes(content)
    with pytest.raises(InputError, match=says):
        from_files(tmp_path)


def test_a_long_list_is_checked_at_once(tmp_path):
    rows = [{"train": [f"S{i}" for i in range(200_000)], "test": ["T"]}]
    (tmp_path / "mine.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"name 200000 slides that the cache lacks: S0, S1, .*, \.\.\.;"):
        make_splits("mine", ["T"], {}, tmp_path / "mine.json")
