"""What is searched: rows of spaces.toml, or of a file like it, as parameters with a range or choices."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import train.options
from hist_cache.console import say
from hist_cache.errors import InputError
from sweeps.options import SPACE, Config

if TYPE_CHECKING:
    import optuna

TABLE = Path(__file__).with_name("spaces.toml")
KEYS = ("low", "high", "log", "int", "choices", "also")
DIGITS = 4  # of a value that is tried: finer than what makes a difference, and a command that people can read


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
        """Every choice, or the two ends: where one of these is a wrong value, the search would come upon it."""
        return self.choices or (self.low, self.high)

    def holds(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        return isinstance(value, int | float) and self.low <= value <= self.high

    def suggest(self, trial: optuna.Trial) -> Any:
        """The trial's value, drawn now where it has none yet; the value that is tried, of `DIGITS` digits."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.integer:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return rounded(trial.suggest_float(self.name, self.low, self.high, log=self.log))

    def as_dict(self) -> dict[str, Any]:
        """As a row of the table."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.log, "int": self.integer}


def rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def read_space(config: Config) -> tuple[Parameter, ...]:
    """The parameters searched. An option that is given holds for all trials and is not searched.

    `InputError` for an unknown name or key, an empty range, and an option that is given and named in --space too.
    """
    known = _read(TABLE)
    asked, where = SPACE if config.space is None else config.space, "--space"
    if _is_file(asked):
        rows, named, where = _read(Path(asked)), set(_read(Path(asked))), asked
    else:
        named = {name.strip() for name in asked.split(",") if name.strip()}
        rows = {name: known.get(name, {}) for name in named}
    if unknown := sorted(named - set(known)):
        raise InputError(f"{where}: {', '.join(unknown)} cannot be searched; there are {', '.join(known)}")
    for name in list(named):
        rows |= {also: known[also] for also in rows[name].get("also", ()) if also in known and also not in rows}
    parameters = [_parameter(name, rows[name], where) for name in known if name in rows]
    given = given_options(config)
    for p in parameters:
        if p.name in given and p.name in named and config.space is not None:
            raise InputError(f"--{p.name.replace('_', '-')} {given[p.name]}: also named in {where}; leave one out")
        if p.name in given:
            say(f"{p.name} is {given[p.name]}, as given: not searched")
    found = tuple(p for p in parameters if p.name not in given)
    if not found:
        raise InputError(f"{where}: nothing left to search; name an option that is not given")
    return found


def given_options(config: Config) -> dict[str, Any]:
    """The options of hist-train that were given as something other than their default."""
    defaults = vars(train.options.Config())
    return {name: value for name, value in vars(config).items() if name in defaults and value != defaults[name]}


def _is_file(asked: str) -> bool:
    return asked.endswith((".toml", ".yaml", ".yml")) or Path(asked).is_file()


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """A file's rows; `InputError` where it cannot be read as such."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".yaml", ".yml"):
            import yaml

            rows = _with_numbers(yaml.safe_load(text))
        else:
            rows = tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as a search space ({error})") from None
    except Exception as error:  # PyYAML's have a base class of their own
        raise InputError(f"{path}: not readable as a search space ({' '.join(str(error).split())})") from None
    if not isinstance(rows, dict) or not rows or not all(isinstance(row, dict) for row in rows.values()):
        raise InputError(f"{path}: no search space; give names with low and high, or with choices, as {TABLE} has them")
    return rows


def _with_numbers(rows: Any) -> Any:
    """YAML takes 1e-5 for a text."""
    if isinstance(rows, dict):
        return {key: _with_numbers(value) for key, value in rows.items()}
    try:
        return float(rows) if isinstance(rows, str) else rows
    except ValueError:
        return rows


def _parameter(name: str, row: Mapping[str, Any], where: str) -> Parameter:
    for problem in _problems(row):
        raise InputError(f"{where}: {name}: {problem}")
    if "choices" in row:
        return Parameter(name, choices=tuple(row["choices"]))
    low, high = (int(row[k]) if row.get("int") else float(row[k]) for k in ("low", "high"))
    return Parameter(name, low, high, bool(row.get("log")), bool(row.get("int")))


def _problems(row: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a row, the plainest first."""
    if unknown := [str(key) for key in row if key not in KEYS]:
        yield f"unknown key {', '.join(unknown)}; there are {', '.join(KEYS)}"
    if "choices" in row:
        if any(key in row for key in ("low", "high", "log", "int")):
            yield "a range or choices, not both"
        if not isinstance(row["choices"], list) or len(set(map(str, row["choices"]))) < 2:
            yield f"choices {row['choices']}: give a list of two or more"
        return
    for key in ("low", "high"):
        if isinstance(row.get(key), bool) or not isinstance(row.get(key), int | float):
            yield f"needs {key}, a number (or choices)"
    if row["low"] >= row["high"]:
        yield f"the range from {row['low']} to {row['high']} is empty"
    if row.get("log") and row["low"] <= 0:
        yield f"low {row['low']}: must be above 0 with log"
