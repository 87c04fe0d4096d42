"""The slides that an adapter was trained with, so that none of them is tested on its embeddings unnoticed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

UNKNOWN = "may test slides that the adapter was trained on: which these are is unknown"
Contents = Mapping[str, Collection[str]]
PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class AdapterSlides:
    """What is known of an adapter's slides."""

    dataset: str
    """Name of their dataset."""
    train: tuple[str, ...]
    """IDs of the slides that it was trained on."""
    val: tuple[str, ...]
    """IDs of the slides that chose its epoch."""
    test: tuple[str, ...]
    """IDs of the slides that it was tested on."""
    patients: dict[str, str]
    """Slide ID -> patient, by the names of `hist_cache.datasets.patient_names`, where he is known."""
    contents: dict[str, list[str]]
    """Slide ID -> digests of its counts, and of its image with its spots' places, which tell a slide under another
    name; {} where they were not recorded."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON reads them back."""
        return asdict(self) | {part: list(getattr(self, part)) for part in PARTS}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read back what `as_dict` gave; `KeyError`, `TypeError` or `ValueError` where it is something else."""
        if any(isinstance(values[part], str) for part in PARTS) or not values["train"]:
            raise ValueError("no lists of slides")
        train, val, test = (tuple(map(str, values[part])) for part in PARTS)
        patients = {str(slide): str(patient) for slide, patient in dict(values["patients"]).items()}
        contents = {str(slide): list(map(str, digests)) for slide, digests in dict(values["contents"]).items()}
        return cls(str(values["dataset"]), train, val, test, patients, contents)

    def trained_on(self, slides: Collection[str], contents: Contents) -> list[str]:
        """Those of the slides that the adapter was trained on, also under another name.

        Args:
            slides: IDs.
            contents: Slide ID -> digests like those of `AdapterSlides.contents`.
        """
        return self._among(self.train, slides, contents)

    def leaks(
        self, tested: Collection[str], patients: Mapping[str, str], contents: Contents, shared: Collection[str]
    ) -> list[str]:
        """Say what the adapter has seen of slides that are to be tested, a part of a sentence for each kind.

        Args:
            tested: IDs of the slides.
            patients: Slide ID -> patient, of all slides whose patient is known.
            contents: Slide ID -> digests like those of `AdapterSlides.contents`.
            shared: Patients that the fold's own train slides share with those tested: no fault of the adapter.
        """
        trained, chosen = self.trained_on(tested, contents), self._among(self.val, tested, contents)
        seen_patients = {self.patients[s] for s in (*self.train, *self.val) if s in self.patients} - set(shared)
        others = [s for s in tested if s not in (*trained, *chosen) and patients.get(s) in seen_patients]
        found = [(trained, "which the adapter was trained on"), (chosen, "which chose the adapter's epoch")]
        found += [(others, "of patients that the adapter was trained with")]
        return [f"tests {', '.join(slides)}, {what}" for slides, what in found if slides]

    def _among(self, part: Collection[str], slides: Collection[str], contents: Contents) -> list[str]:
        known = {digest for slide in part for digest in self.contents.get(slide, ())}
        return [slide for slide in slides if slide in part or not known.isdisjoint(contents.get(slide, ()))]
