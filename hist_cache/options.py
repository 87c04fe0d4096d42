"""Command lines from dataclasses: a field is an option; `--config` and `--print_config` come with it."""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hist_cache.console import fail, show_logs
from hist_cache.errors import HistError

C = TypeVar("C")


def option(default: Any, help: str, metavar: str | None = None) -> Any:
    """A dataclass field that is also a command-line option."""
    return dataclasses.field(default=default, metadata={"help": help, "metavar": metavar})


def positional(help: str, metavar: str) -> Any:
    """A dataclass field, a tuple of texts, that takes the arguments without a flag: at least one."""
    return dataclasses.field(default=(), metadata={"help": help, "metavar": metavar, "positional": True})


def parse(config_class: type[C], prog: str, description: str, argv: Sequence[str] | None = None) -> C:
    """Read options into `config_class`; wrong ones exit with 2, as argparse does."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Help(DefaultHelpFormatter):
        def _expand_help(self, action: Any) -> str:
            return str(action.help or "") % {"default": action.default}

    parser = ArgumentParser(prog=prog, description=description, formatter_class=Help)
    parser.add_argument("--config", action="config", help="read options from a YAML FILE")
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        flag = "--" + field.name.replace("_", "-")
        text = field.metadata.get("help", "")
        if field.metadata.get("positional"):
            parser.add_argument(field.name, type=str, nargs="+", help=text, metavar=field.metadata["metavar"])
        elif hints[field.name] is bool:
            parser.add_argument(flag, action="store_true", default=field.default, help=text)
        else:
            if field.default is not None:
                text += " (default: %(default)s)"
            parser.add_argument(
                flag,
                type=hints[field.name],
                default=field.default,
                help=text,
                metavar=field.metadata.get("metavar"),
            )
    namespace = parser.parse_args(list(argv) if argv is not None else sys.argv[1:])
    return config_class(**{f.name: namespace[f.name] for f in dataclasses.fields(config_class)})  # type: ignore[arg-type]


def folder_option(given: str | None, variable: str, default: str) -> Path:
    """A folder as asked for, else from the environment, else below the current one."""
    return Path(given or os.environ.get(variable) or default)


def run(main: Callable[[C], int | None], config: C, debug: bool) -> int:
    """Call `main`; expected errors become one line and their exit code."""
    show_logs()
    try:
        return main(config) or 0
    except KeyboardInterrupt:
        fail("interrupted; what was finished is kept, the same command goes on from there")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (HistError, OSError) as error:
        if debug:
            traceback.print_exc()
        fail(str(error))
        return error.exit_code if isinstance(error, HistError) else 1
