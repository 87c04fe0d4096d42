"""The search space: rows of spaces.toml, of a file like it or of a space in the user's own file, read as parameters."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hist_cache.errors import InputError, one_line
from hist_cache.options import all_option_names, option_fields
from hist_cache.own_tables import own_rows, own_tables
from hist_cache.texts import did_you_mean, read_text
from hist_cache.values import LARGEST
from sweeps.options import PEER_SPACE, SPACE, SweepOptions
from train.models.registry import DEFAULT_MODEL
from train.options import TrainOptions

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

SPACES_FILE = Path(__file__).with_name("spaces.toml")
KEYS = ("low", "high", "log", "int", "choices", "also")
DIGITS = 4  # significant digits of a value: enough for any real difference, and the printed command stays readable


@dataclass(frozen=True)
class Parameter:
    """One option of hist-train that is searched: between low and high, or among choices."""

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def ends(self) -> tuple[Any, ...]:
        """All choices, or both ends of the range; hist-train accepts all values of the search if it accepts these."""
        return self.choices or (self.low, self.high)

    def holds(self, value: Any) -> bool:
        """Tell whether the search could draw this value."""
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    def suggest(self, trial: optuna.Trial) -> Any:
        """Return the trial's value, rounded to `DIGITS` digits; it is drawn where the trial does not have it yet."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.integer:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return rounded(trial.suggest_float(self.name, self.low, self.high, log=self.log))

    def as_dict(self) -> dict[str, Any]:
        """Return the parameter in the form of a row of spaces.toml."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.log, "int": self.integer}


def rounded(value: Any) -> Any:
    """Round a float to `DIGITS` significant digits; other values stay as they are."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def read_space(options: SweepOptions) -> tuple[Parameter, ...]:
    """Read the parameters to search, from --space or the default space.

    An option that is given on the command line holds for all trials and is not searched.

    Raises:
        InputError: For an unknown name or key, an empty range, an option that is given and also named in --space, and
            where nothing is left to search.
    """
    source = "--space"
    if options.space in own_rows("spaces"):
        source = own_tables().place("spaces", options.space)
    elif options.space is not None and _is_file(options.space):
        source = options.space
    default = SPACE if options.model == DEFAULT_MODEL else PEER_SPACE
    rows, named = _space_rows(default if options.space is None else options.space, source)
    parameters = [_parameter(name, row, source) for name, row in rows.items()]
    given = given_options(options)
    for p in parameters:
        if p.name in given and p.name in named and options.space is not None:
            raise InputError(f"--{p.name.replace('_', '-')} {given[p.name]}: also named in {source}; leave one out")
        if p.name in given:
            log.info(f"{p.name} is {given[p.name]}, as given: not searched")
    searched = tuple(p for p in parameters if p.name not in given)
    if not searched:
        raise InputError(f"{source}: nothing left to search; name an option that is not given")
    return searched


def check_own_spaces() -> None:
    """Check the parameters of all spaces in the user's own file, so that an error is found before one is used.

    Raises:
        InputError: A parameter has no range and no choices, or an option cannot be searched.
    """
    for name in own_rows("spaces"):
        place = own_tables().place("spaces", name)
        for parameter, row in _space_rows(name, place)[0].items():
            _parameter(parameter, row, place)


def _space_rows(space: str, source: str) -> tuple[dict[str, dict[str, Any]], set[str]]:
    """Read the rows of a space.

    Args:
        space: Names of parameters, a space of the user's own, or a file.
        source: What error messages call it.

    Returns:
        The rows in the order of spaces.toml, with those that come along with others, then a file's rows of other
        options; and the names in `space` itself.
    """
    all_rows = _read(SPACES_FILE)
    is_own = space in own_rows("spaces") or _is_file(space)
    if is_own:
        rows = own_rows("spaces")[space] if space in own_rows("spaces") else _read(Path(space))
        named = set(rows)
    else:
        named = {name.strip() for name in space.split(",") if name.strip()}
        rows = {name: all_rows.get(name, {}) for name in named}
    own = {f.name for _, kind in TrainOptions.config_groups() for f in option_fields(kind)} & set(rows) - {*all_rows}
    if unknown := sorted(named - set(all_rows) - (own if is_own else set())):
        near = did_you_mean(unknown[0], [*all_rows, *own])
        raise InputError(f"{source}: {', '.join(unknown)} cannot be searched{near}; there are {', '.join(all_rows)}")
    for name in named:
        companions = rows[name].get("also", ())
        if not isinstance(companions, list | tuple):
            raise InputError(f"{source}: {name}: also {companions}: must be a list of names")
        rows |= {also: all_rows[also] for also in companions if str(also) in all_rows and also not in rows}
    return {name: rows[name] for name in [*all_rows, *sorted(own)] if name in rows}, named


def given_options(options: SweepOptions) -> dict[str, Any]:
    """Return the options of hist-train that were given, with their values."""
    names = set(all_option_names(TrainOptions))
    return {name: value for name, value in options.given_values().items() if name in names}


def searchable_names() -> list[str]:
    """Names that --space knows."""
    return list(_read(SPACES_FILE))


def _is_file(space: str) -> bool:
    return space.endswith((".toml", ".yaml", ".yml")) or Path(space).is_file()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Read a file's rows; raises `InputError` where it has another form."""
    try:
        text = read_text(path)
        if path.suffix in (".yaml", ".yml"):
            import yaml

            rows = _with_numbers(yaml.safe_load(text))
        else:
            rows = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as a search space ({error})") from None
    except Exception as error:  # PyYAML's errors have a base class of their own
        raise InputError(f"{path}: not readable as a search space ({one_line(error)})") from None
    if not isinstance(rows, dict) or not rows or not all(isinstance(row, dict) for row in rows.values()):
        raise InputError(
            f"{path}: no search space; give names with low and high, or with choices, as {SPACES_FILE} has them"
        )
    return rows


def _with_numbers(rows: Any) -> Any:
    """Turn texts such as 1e-5, which YAML does not read as a number, into numbers."""
    if not isinstance(rows, dict):
        return rows
    return {
        str(name): {key: _number(value) for key, value in row.items()} if isinstance(row, dict) else row
        for name, row in rows.items()
    }


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _parameter(name: str, row: Mapping[str, Any], where: str) -> Parameter:
    for problem in _problems(row):
        raise InputError(f"{where}: {name}: {problem}")
    if "choices" in row:
        return Parameter(name, choices=tuple(row["choices"]))
    low, high = (int(row[k]) if row.get("int") else float(row[k]) for k in ("low", "high"))
    return Parameter(name, low, high, bool(row.get("log")), bool(row.get("int")))


def _problems(row: Mapping[str, Any]) -> Iterator[str]:
    """Describe what is wrong with a row; later problems make sense only where there are no earlier ones."""
    if unknown := [str(key) for key in row if key not in KEYS]:
        yield f"unknown key {', '.join(unknown)}; there are {', '.join(KEYS)}"
    yield from _choices_problems(row) if "choices" in row else _range_problems(row)


def _choices_problems(row: Mapping[str, Any]) -> Iterator[str]:
    choices = row["choices"]
    if any(key in row for key in ("low", "high", "log", "int")):
        yield "a range or choices, not both"
    if not isinstance(choices, list) or not all(_is_number(c) or isinstance(c, bool | str) for c in choices):
        yield "choices: give a list of numbers or texts"
    if len(set(map(str, choices))) < 2:
        yield f"choices {choices}: give a list of two or more"


def _range_problems(row: Mapping[str, Any]) -> Iterator[str]:
    for key in ("log", "int"):
        if not isinstance(row.get(key, False), bool):
            yield f"{key}: must be true or false"
    for key in ("low", "high"):
        if not _is_number(row.get(key)):
            yield f"needs {key}, a number (or choices)"
        if row.get("int") and row[key] != round(row[key]):
            yield f"{key} {row[key]}: must be a whole number"
    if row["low"] >= row["high"]:
        yield f"the range from {row['low']} to {row['high']} is empty"
    if row.get("log") and row["low"] <= 0:
        yield f"low {row['low']}: must be above 0 with log"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
