"""The parser of a command line: what is wrong is one line, `--version`, and completion of options in a shell."""

from __future__ import annotations

import argparse
import platform
from typing import Any, NoReturn

from hist_cache.errors import InputError, one_line
from hist_cache.texts import did_you_mean

SHELLS = ("bash", "zsh", "tcsh")
UNRECOGNIZED = "unrecognized arguments: "  # begins argparse's message
FOLDER_VALUES, FILE_VALUES = ("D", "DIR", "RUN"), ("F", "FILE", "PATH", "RUNS")  # metavars that a shell completes


class Parser(argparse.ArgumentParser):
    """Raises `InputError` where argparse would print the usage of all options."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        self.add_argument("--version", action=_Version, nargs=0, help="print the versions of what computes, and exit")
        self.add_argument(
            *("--print-completion",),
            action=_Completion,
            choices=SHELLS,
            help="print a script by which this shell completes the command's options, and exit",
        )

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print, with the option that may have been meant."""
        text = one_line(ValueError(message.removeprefix("argument ")))
        near = ""
        if message.startswith(UNRECOGNIZED):
            word = message.removeprefix(UNRECOGNIZED).strip().partition(" ")[0].partition("=")[0]
            known = [name.removeprefix("--") for name in self._option_string_actions]
            near = did_you_mean(word.removeprefix("--"), known).replace("mean ", "mean --")
        raise InputError(f"{text}{near} ({self.prog} --help shows all)")


def version_text() -> str:
    """This program's version and those of what computes, read without importing it."""
    from hist_cache.fingerprint import versions

    found = versions()
    rest = ", ".join(f"{name} {found.get(name, 'not installed')}" for name in ("torch", "timm"))
    return f"hist-cache {found.get('hist-cache', 'not installed')} (Python {platform.python_version()}, {rest})"


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *more: Any) -> NoReturn:
        print(version_text())
        raise SystemExit(0)


class _Completion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None) -> NoReturn:
        import shtab

        for action in parser._actions:
            kind = action.metavar if isinstance(action.metavar, str) else ""
            if kind in FOLDER_VALUES + FILE_VALUES:
                action.complete = shtab.DIRECTORY if kind in FOLDER_VALUES else shtab.FILE  # type: ignore[attr-defined]
            elif kind.startswith("{"):
                action.choices = kind.strip("{}").split(",")
        print(shtab.complete(parser, shell=values))
        raise SystemExit(0)
