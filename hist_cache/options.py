"""Command lines from dataclasses: a field is an option, a dataclass is a group of them.

Whatever is wrong with an option or a `--config` file ends in one line and exit code 2. A command has a dataclass of
its own options, and shows the fields of other dataclasses (of a model, of the training loop) as flat flags beside them.
What was given on the command line or in a `--config` file is kept apart from defaults, so that nothing has to be
decided by comparing a value with its default.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import signal
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

from hist_cache.config_files import read_config
from hist_cache.console import fail, show_logs
from hist_cache.errors import HistError, InputError, WriteError, one_line
from hist_cache.files import FULL, write_error
from hist_cache.parser import Parser
from hist_cache.passwords import mask_command, mask_passwords
from hist_cache.stopping import Terminated, sigterm_as_interrupt
from hist_cache.values import Interval, choices_of, number_kind, read_numbers, read_value

_O = TypeVar("_O", bound="CommandOptions")
_T = TypeVar("_T")
PRINT_CONFIG = "--print_config"
UNEXPECTED = "this should not have happened"  # begins the line for a fault of the program itself
SHARED = {"seed"}  # options of a command that a config dataclass has too


def option(
    default: Any,
    help: str,
    metavar: str | None = None,
    group: str | None = None,
    since: str | None = None,
    within: Interval | None = None,
    several: bool = False,
) -> Any:
    """Declare a dataclass field that is also a command-line option.

    Args:
        default: The field's default.
        help: One line; the default is appended to it.
        metavar: Name of the value in the help; literal types show their choices instead.
        group: Title of the group of options that this field begins; the fields after it belong to the same group.
        since: The version that added the field. Such a field is left out of a run's hash while it has its default, so
            that adding an option does not orphan finished runs.
        within: The numbers that it may be.
        several: Whether a command's own number may be several, as `1,2,3`; those of its `config_groups` always may.
    """
    metadata = {"help": help, "metavar": metavar, "group": group, "since": since, "within": within, "several": several}
    return field(default=default, metadata=metadata)


def positional(help: str, metavar: str) -> Any:
    """Declare a dataclass field, a tuple of texts, that takes the arguments without a flag: at least one."""
    return field(default=(), metadata={"help": help, "metavar": metavar, "positional": True})


@dataclass(frozen=True)
class CommandOptions:
    """Base of a command's options.

    Attributes:
        given: Names of all options that were given.
        config_values: The given options that belong to the dataclasses of `config_groups`, by name.
        command: The command line, without passwords.
    """

    given: frozenset[str] = field(default=frozenset(), kw_only=True)
    config_values: dict[str, Any] = field(default_factory=dict, kw_only=True)
    command: str = field(default="", kw_only=True, compare=False)

    @classmethod
    def config_groups(cls) -> list[tuple[str, type]]:
        """Title and dataclass of each further group of options, such as those of a model."""
        return []

    def with_values(self, values: Mapping[str, Any]) -> Self:
        """These options as if `values` had been given too."""
        own = {f.name for f in option_fields(type(self))}
        return dataclasses.replace(
            self,
            **{name: value for name, value in values.items() if name in own},
            given=self.given | set(values),
            config_values=self.config_values | {name: value for name, value in values.items() if name not in own},
        )

    def given_values(self) -> dict[str, Any]:
        """All options that were given, by name."""
        own = {f.name: getattr(self, f.name) for f in option_fields(type(self)) if f.name in self.given}
        return own | self.config_values

    def resolve(self, kind: type[_T], preset: Mapping[str, Any], **fixed: Any) -> _T:
        """Fill a dataclass from these options.

        A field is taken from `fixed`, else from what was given, else from the command's own option if they share it,
        else from `preset` (a dataset's defaults), else it has its default.
        """
        values = dict(fixed)
        own = {f.name for f in option_fields(type(self))}
        for name in (f.name for f in dataclasses.fields(kind) if f.name not in fixed):  # type: ignore[arg-type]
            if name in self.config_values:
                values[name] = self.config_values[name]
            elif name in own & SHARED:
                values[name] = getattr(self, name)
            elif name in preset:
                values[name] = preset[name]
        return kind(**values)


def option_fields(kind: type) -> list[dataclasses.Field[Any]]:
    """The fields of a dataclass that are options."""
    return [f for f in dataclasses.fields(kind) if "help" in f.metadata]


def all_option_names(kind: type[CommandOptions]) -> list[str]:
    """Names of a command's options and of those of its config groups, in the order of the help."""
    kinds = [kind, *(config for _, config in kind.config_groups())]
    return list(dict.fromkeys(f.name for k in kinds for f in option_fields(k)))


def number_lists(kind: type[CommandOptions]) -> dict[str, tuple[type, Interval | None]]:
    """Kind and range of the numbers of which a command takes several, a run for each, by the names of their options.

    The value of such an option is a number, or a text of several with commas.
    """
    return _number_lists((kind, *(config for _, config in kind.config_groups())))


@cache  # a study asks for each trial
def _number_lists(kinds: tuple[type, ...]) -> dict[str, tuple[type, Interval | None]]:
    lists: dict[str, tuple[type, Interval | None]] = {}
    for config in kinds:
        hints = typing.get_type_hints(config)
        for f in option_fields(config):
            number = number_kind(hints[f.name])
            if number is not None and f.name not in lists and (config is not kinds[0] or f.metadata.get("several")):
                lists[f.name] = number, f.metadata.get("within")
    own = {f.name for f in option_fields(kinds[0]) if not f.metadata.get("several")}
    return {name: value for name, value in lists.items() if name not in own}


def flag(name: str) -> str:
    """The flag of an option: `batch_size` -> `--batch-size`."""
    return "--" + name.replace("_", "-")


def check_ranges(config: Any) -> None:
    """`InputError`, which names the flag, where a field of a dataclass is no number of its range."""
    for f in option_fields(type(config)):
        if f.metadata.get("within") and (value := getattr(config, f.name)) is not None:
            f.metadata["within"].check(flag(f.name), value)


def parse(kind: type[_O], prog: str, description: str, argv: Sequence[str] | None = None) -> _O:
    """Read options into `kind`; wrong ones end in one line and exit with 2.

    Args:
        kind: The command's dataclass of options.
        prog: Name of the command.
        description: Head of its help.
        argv: Arguments; the process's own by default.
    """
    parser = Parser(prog, description)
    parser.add_argument("--config", help="read options from a YAML FILE", metavar="FILE")
    parser.add_argument(PRINT_CONFIG, action="store_true", help="print the options that were given, and exit")
    kinds = _add_options(parser, kind)
    places = [f.metadata["metavar"] for f in option_fields(kind) if f.metadata.get("positional")]
    parser.usage = " ".join([prog, "[options]", *places])  # a list of all options is below
    words = list(argv) if argv is not None else sys.argv[1:]
    try:
        parsed = vars(parser.parse_args(_with_config_files(words, kinds)))
    except InputError as error:
        fail(mask_passwords(str(error)))
        raise SystemExit(error.exit_code) from None
    show = parsed.pop(PRINT_CONFIG.strip("-"), False)
    given = {name: value for name, value in parsed.items() if value is not None}  # null is as good as left out
    if show:
        _print_config(given)
    own = {f.name for f in option_fields(kind)}
    return kind(
        **{name: value for name, value in given.items() if name in own},
        given=frozenset(given),
        config_values={name: value for name, value in given.items() if name not in own},
        command=mask_command([prog, *map(shlex.quote, words)]),
    )


def _print_config(given: Mapping[str, Any]) -> NoReturn:
    """Print the options that were given as a file for `--config`, and exit."""
    import yaml

    print(mask_passwords(yaml.safe_dump(dict(given), sort_keys=False)) if given else "{}\n", end="")
    raise SystemExit(0)


def _with_config_files(argv: Sequence[str], kinds: Mapping[str, Any]) -> list[str]:
    """Put the options of each `--config` file in its place."""
    words, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, file = word.partition("=")
        if name != "--config" or not (equals or rest):
            words.append(word)
            continue
        words += read_config(Path(file if equals else rest.pop(0)), kinds)
    return words


def _add_options(parser: argparse.ArgumentParser, kind: type[CommandOptions]) -> dict[str, Any]:
    """Add the options of a command and of its config groups; returns name -> type of all."""
    kinds: dict[str, Any] = {}
    lists = number_lists(kind)
    for title, config in [(None, kind), *kind.config_groups()]:
        own = {f.name for f in option_fields(kind)}
        if config is not kind and (clash := sorted({f.name for f in option_fields(config)} & own - SHARED)):
            raise ValueError(f"{config.__name__}.{clash[0]}: the command has an option of that name; rename the field")
        hints = typing.get_type_hints(config)
        place = parser.add_argument_group(title) if title else parser
        for f in option_fields(config):
            if f.name in kinds:
                continue
            kinds[f.name] = hints[f.name]
            if f.metadata.get("group"):
                place = parser.add_argument_group(f.metadata["group"])
            _add_option(place, f, hints[f.name], lists.get(f.name, (None, None))[0])
    return kinds


def _add_option(place: Any, f: dataclasses.Field[Any], hint: Any, several: type | None) -> None:
    """Add the option of a field.

    Args:
        place: The parser, or a group of it.
        f: The field.
        hint: Its type.
        several: The kind of its numbers, where there may be several.
    """
    text = f.metadata["help"].replace("%", "%%")
    is_positional = f.metadata.get("positional")
    if hint is bool:
        place.add_argument(flag(f.name), action="store_true", help=text)
        return

    def convert(word: str) -> Any:
        within = f.metadata.get("within")
        try:
            if several is None:
                return read_value(word, hint, within)
            numbers = read_numbers(word, several, within)
            return numbers[0] if len(numbers) == 1 else word
        except ValueError as error:
            raise InputError(f"{f.metadata['metavar'] if is_positional else flag(f.name)} {error}") from None

    if is_positional:
        place.add_argument(f.name, type=convert, nargs="+", help=text, metavar=f.metadata["metavar"])
        return
    if f.default is not None:
        text += f" (default: {f.default})"
    choices = choices_of(hint)
    metavar = f"{{{','.join(choices)}}}" if choices else f.metadata["metavar"]
    place.add_argument(flag(f.name), type=convert, help=text, metavar=metavar)


def folder_option(given: str | None, variable: str, default: str) -> Path:
    """A folder as asked for, else from an environment variable, else below the current one."""
    return Path(given or os.environ.get(variable) or default)


def _interrupted(error: KeyboardInterrupt) -> int:
    """Say that a command was stopped, and what is left if that is known; returns the exit code."""
    terminated = isinstance(error, Terminated)
    parts = ["stopped by SIGTERM" if terminated else "interrupted", *map(str, error.args)]
    fail("; ".join([*parts, "what was finished is kept, the same command goes on from there"]))
    return 128 + (signal.SIGTERM if terminated else signal.SIGINT)


def run(main: Callable[[_O], int | None], options: _O, debug: bool) -> int:
    """Call a command's `main`; an error becomes one line and its exit code, with a traceback before it if asked for."""
    show_logs()
    try:
        with sigterm_as_interrupt():
            return main(options) or 0
    except KeyboardInterrupt as error:
        return _interrupted(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (HistError, OSError) as error:
        if debug:
            sys.stderr.write(mask_passwords(traceback.format_exc()))
        if isinstance(error, OSError) and error.errno in FULL:
            error = write_error(error, error.filename or "standard output")
        more = f"; kept: {error.kept}; go on with: {options.command}" if isinstance(error, WriteError) else ""
        fail(mask_passwords(f"{error}{more}"))
        return error.exit_code if isinstance(error, HistError) else 1
    except Exception as error:
        if debug:
            sys.stderr.write(mask_passwords(traceback.format_exc()))
        problem = mask_passwords(f"{type(error).__name__}: {one_line(error)}")
        fail(f"{UNEXPECTED}: {problem}; --debug shows where, please report it")
        return 1
