"""Errors a user can act on. Each prints as one line: what, which file, what to do."""


class HistError(Exception):
    """An expected failure (exit 1)."""

    exit_code = 1


class InputError(HistError):
    """What was asked for cannot be done as asked: a wrong option, name or file (exit 2)."""

    exit_code = 2


class SlideError(HistError):
    """One slide cannot be used; the others can (exit 1 at the end)."""

    def __init__(self, slide: str, file: object, problem: str, advice: str = "") -> None:
        self.slide, self.file, self.problem, self.advice = slide, str(file), problem, advice
        super().__init__(f"{slide}: {file}: {problem}" + (f"; {advice}" if advice else ""))


class StaleCacheError(HistError):
    """A cache file was made from something else than what is asked for now."""
