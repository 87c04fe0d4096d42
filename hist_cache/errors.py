"""Errors that a user can act on. Each is printed as one line: what is wrong, in which file, and what to do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class HistError(Exception):
    """An expected failure (exit code 1)."""

    exit_code = 1
    """Exit code of the command that fails with this error."""


class InputError(HistError):
    """A wrong option, name or file, so that the command cannot do what it was started for (exit code 2)."""

    exit_code = 2


class SlideError(HistError):
    """One slide cannot be used; the other slides can (exit code 1 at the end).

    Attributes:
        slide: ID of the slide.
        file: The file that is missing or wrong.
        problem: What is wrong with it.
        advice: What the user can do; empty where there is no advice.
    """

    def __init__(self, slide: str, file: object, problem: str, advice: str = "") -> None:
        self.slide, self.file, self.problem, self.advice = slide, str(file), problem, advice
        super().__init__(f"{slide}: {file}: {problem}" + (f"; {advice}" if advice else ""))

    def __reduce__(self) -> tuple[Any, ...]:
        return SlideError, (self.slide, self.file, self.problem, self.advice)  # for pickle


class FileProblemError(Exception):
    """What is wrong with a slide's file, for `slide_error`, which names slide and file.

    Attributes:
        problem: What is wrong with it.
        advice: What the user can do; empty where there is no advice.
    """

    def __init__(self, problem: str, advice: str = "") -> None:
        self.problem, self.advice = problem, advice
        super().__init__(problem)


def slide_error(slide: str, file: object, error: Exception, unreadable: str, during: str = "") -> SlideError:
    """Return the error of a slide for whatever was raised while one of its files was read.

    Args:
        slide: ID of the slide.
        file: The file.
        error: What was raised; of a `FileProblemError`, problem and advice are kept.
        unreadable: What is wrong with the file if another error was raised.
        during: What could not be done; empty if that was opening the file.
    """
    if isinstance(error, FileProblemError):
        return SlideError(slide, file, f"{during} ({error.problem})" if during else error.problem, error.advice)
    reason, advice = reading_advice(error)
    return SlideError(slide, file, f"{during or unreadable} ({reason})", advice)


class StaleCacheError(HistError):
    """A cache file was made from other inputs or with other settings than those of now."""


class WriteError(HistError):
    """A file cannot be written: the disk is full, the folder is read-only or the like (exit code 1).

    What comes after it could not be written either, so a command stops.

    Attributes:
        place: The folder that cannot be written to.
        reason: Why not.
        advice: What the user can do.
        kept: What was finished before, and is not lost.
    """

    def __init__(self, place: object, reason: str, advice: str, kept: str = "what was finished") -> None:
        super().__init__(str(place), reason, advice, kept)  # all of them, for pickle
        self.place, self.reason, self.advice, self.kept = str(place), reason, advice, kept

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}; {self.advice}"


@contextmanager
def keeping(describe: Callable[[], str]) -> Iterator[None]:
    """Say what is kept where a file cannot be written; `describe` is called then."""
    try:
        yield
    except WriteError as error:
        error.kept = describe()
        raise


class DamagedCacheError(HistError):
    """A cache file that nobody can use: cut off, with other bits than were written, or with values that mean nothing.

    Attributes:
        path: The file.
        problem: What is wrong, without the file's name.
    """

    def __init__(self, path: object, problem: str) -> None:
        super().__init__(str(path), problem)  # both, for pickle
        self.path, self.problem = str(path), problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}; delete it and extract again"


def one_line(error: BaseException, longest: int = 300) -> str:
    """Return the text of any exception in one line, shortened; its type where it has no text."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else f"{text[:longest]} ..."


def kind_and_text(error: BaseException) -> str:
    """Return an exception's type and text in one line; its type where it has no text."""
    return f"{type(error).__name__}: {one_line(error)}" if str(error) else type(error).__name__


def reading_advice(error: BaseException) -> tuple[str, str]:
    """Return why a file cannot be read, in one line, and what the user can do."""
    if isinstance(error, PermissionError):  # the texts of h5py are much longer
        return "permission denied", "let yourself read it"
    return one_line(error), "copy or download it again"


def slide_failure(slide: str, file: object, error: Exception) -> HistError:
    """Return what was raised for one slide as that slide's failure, so that the other slides go on.

    Args:
        slide: ID of the slide.
        file: The file that was worked on.
        error: Whatever was raised; an expected error stays as it is.
    """
    if isinstance(error, HistError):
        return error
    if isinstance(error, PermissionError):
        return SlideError(slide, error.filename or file, *reading_advice(error))
    failure = SlideError(slide, file, kind_and_text(error), "--debug shows where it happened")
    failure.__cause__ = error
    return failure
