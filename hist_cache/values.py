"""Values of options: from a word of the command line to a text, a number within its range, or one of some choices."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from hist_cache.errors import InputError
from hist_cache.texts import bad_name, did_you_mean, shortened

Precision = Literal["bf16", "fp32"]  # of matrix products
PRECISIONS: tuple[Precision, ...] = ("bf16", "fp32")
SelectBy = Literal["mse", "centered_mse", "pcc", "loss"]  # what an epoch or a penalty is selected by

MOST = 1e9  # larger whole numbers are typing errors: nothing here has as many
LARGEST = 1e30  # larger decimal numbers overflow float32 in the first step
MAX_TEXT = 100_000  # characters of a value; paths and lists of slides are shorter


@dataclass(frozen=True)
class Interval:
    """The numbers that an option may be.

    Attributes:
        least: The smallest one.
        most: The largest one.
        above: Whether `least` itself is too small.
        below: Whether `most` itself is too large.
    """

    least: float = 0
    most: float = MOST
    above: bool = False
    below: bool = False

    def __str__(self) -> str:
        """Say which numbers, for messages."""
        low = f"above {self.least:g}" if self.above else f"{self.least:g} or more"
        if self.most in (MOST, LARGEST):
            return low
        if self.above or self.below:
            return f"{low} and {'below' if self.below else 'at most'} {self.most:.10g}"
        return f"from {self.least:.10g} to {self.most:.10g}"

    def holds(self, value: object) -> bool:
        """Tell whether a value is such a number."""
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            return False
        low = value > self.least if self.above else value >= self.least
        return low and (value < self.most if self.below else value <= self.most)

    def check(self, name: str, value: object) -> None:
        """`InputError`, which begins with `name`, where a value is no such number."""
        if not self.holds(value):
            raise InputError(f"{name} {_shown(str(value))}: must be {self.wanted(value)}")

    def wanted(self, value: object) -> str:
        """Say what a value should have been. MOST and LARGEST are named only where the value is above them."""
        is_open = self.most in (MOST, LARGEST)
        return (
            f"{self}, {self.most:g} at most"
            if is_open and isinstance(value, int | float) and value > self.most
            else str(self)
        )


COUNT, INDEX = Interval(1), Interval(0)
NOT_NEGATIVE, POSITIVE, FRACTION = Interval(0, LARGEST), Interval(0, LARGEST, above=True), Interval(0, 1, below=True)


def read_value(word: str, hint: Any, within: Interval | None = None) -> Any:
    """Read a word as a value of a type.

    Args:
        word: As given on the command line.
        hint: Type of the option: a text, a whole or decimal number, choices, or one of these and None.
        within: The numbers that it may be.

    Returns:
        The value; None for `null` where the type has it.

    Raises:
        ValueError: The word is no such value; the message says what would be.
    """
    kinds = [kind for kind in _kinds(hint) if kind is not type(None)]
    if word == "null" and len(kinds) < len(_kinds(hint)):
        return None
    if not word.strip():
        raise ValueError("'': give a value or leave the option out")
    if choices := choices_of(hint):
        if word not in choices:
            raise ValueError(f"{_shown(word)}{did_you_mean(word, choices)}: one of {', '.join(choices)}")
        return word
    if str in kinds or tuple[str, ...] in kinds:
        if len(word) > MAX_TEXT:
            raise ValueError(f"{word[:40]}...: {len(word):,} characters, which is no name or path")
        if bad_name([word[i : i + 200] for i in range(0, len(word), 200)]):
            raise ValueError(f"{_shown(word)}: has control characters or is not UTF-8")
        return word
    number = _read_number(word, whole=int in kinds)
    if number is None:
        raise ValueError(f"{_shown(word)}: must be a {'whole ' if int in kinds else ''}number")
    if within is not None and not within.holds(number):
        raise ValueError(f"{_shown(word)}: must be {within.wanted(number)}")
    return number


def number_kind(hint: Any) -> type[int] | type[float] | None:
    """The kind of number that a type holds, also an optional one or one beside texts; None for another type."""
    return int if int in _kinds(hint) else float if float in _kinds(hint) else None


def read_numbers(value: object, kind: type, within: Interval | None = None) -> list[Any]:
    """Read the numbers of an option that may have several.

    Args:
        value: A number, or a text such as `1e-3,1e-4`.
        kind: int or float.
        within: The numbers that each may be.

    Raises:
        ValueError: One of them is no such number; the message says what would be.
    """
    return [read_value(word.strip(), kind, within) for word in str(value).split(",")]


def _read_number(word: str, whole: bool) -> int | float | None:
    """Return a finite number; None for anything else."""
    try:
        number = int(word) if whole else float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) and word.isascii() and "_" not in word else None


def choices_of(hint: Any) -> list[str]:
    """The values of a literal type, also an optional one; none of another type."""
    return [str(v) for kind in _kinds(hint) if typing.get_origin(kind) is Literal for v in typing.get_args(kind)]


def _kinds(hint: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if is_union else (hint,)


def _shown(word: str) -> str:
    shown = shortened(word, 40)
    return shown if not bad_name([shown]) else ascii(shown)
