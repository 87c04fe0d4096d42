"""Which slides validate a split that tests one slide: the next one, or several that are like the test slide.

A slide's counts have an offset of their own, which patients and sequencing runs bring. A validation slide of another
patient may differ in it from the train slides, and its MSE then follows the offset instead of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

ValidateOn = Literal["next", "alike"]

OTHERS_PER_VALIDATION = 5  # of all slides but the test slide, one in so many validates
LEAST_VALIDATION = 2  # or as many, where there are enough slides
MIN_SAME_PATIENT = 2  # other slides of the patient that are needed to validate on one and train on another


def validation_slides(
    test: str, slides: Sequence[str], patients: Mapping[str, str], validate_on: ValidateOn
) -> list[str]:
    """Choose the validation slides of the split that tests one slide; nothing is drawn at random.

    Args:
        test: ID of the test slide.
        slides: IDs of all slides, at least three, sorted.
        patients: Slide ID -> patient; slides without an entry are of unknown patients.
        validate_on: "next" takes the slide after the test slide, and the first after the last. "alike" takes
            `n_validation` slides: of the test slide's patient where it has at least two others, else of any patient.

    Returns:
        IDs, in the cyclic order after the test slide. At least one other slide remains to train on. Where the
        validation slides are of the test slide's patient, at least half of its other slides do.
    """
    if validate_on == "next":
        return _after(test, slides)[:1]
    others = _after(test, slides)
    same = _of_same_patient(test, others, patients)
    candidates, most = (same, len(same) // 2) if len(same) >= MIN_SAME_PATIENT else (others, len(others))
    return candidates[: min(n_validation(len(slides)), most)]


def n_validation(n: int) -> int:
    """Return how many of `n` slides validate: a fifth of those that are not tested, at least 2, and never over half."""
    return max(1, min((n - 1) // 2, max(LEAST_VALIDATION, round((n - 1) / OTHERS_PER_VALIDATION))))


def reason_for(test: str, slides: Sequence[str], patients: Mapping[str, str]) -> str:
    """Say why `validation_slides` takes the slides that it takes as being like the test slide."""
    others = _after(test, slides)
    same = _of_same_patient(test, others, patients)
    if len(same) >= MIN_SAME_PATIENT:
        return "same patient"
    if test not in patients:
        return f"any patient: that of {test} is not known"
    if not same:
        return f"other patients: {test} is the only slide of its patient"
    return f"any patient: {test} has only one other slide of its patient"


def _after(test: str, slides: Sequence[str]) -> list[str]:
    """The other slides in the cyclic order that begins after the test slide."""
    place = slides.index(test)
    return [*slides[place + 1 :], *slides[:place]]


def _of_same_patient(test: str, others: Sequence[str], patients: Mapping[str, str]) -> list[str]:
    return [s for s in others if test in patients and patients.get(s) == patients[test]]
