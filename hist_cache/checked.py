"""Values read from a file, compared with the annotations of what they are read into."""

from __future__ import annotations

import dataclasses
import sys
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hist_cache.texts import shortened

_LARGEST = sys.float_info.max


def is_of(value: object, hint: Any) -> bool:
    """Whether a value is of the type that an annotation names.

    A number must be finite, a whole number is a float too, and a list serves as a tuple, because JSON has no tuples.

    Args:
        value: From a file.
        hint: Of a field; of the forms that this package uses.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(is_of(value, argument) for argument in arguments)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin is tuple and arguments[-1:] != (...,):
        return isinstance(value, tuple | list) and len(value) == len(arguments) and all(map(is_of, value, arguments))
    if origin in (tuple, list):
        return isinstance(value, tuple | list) and all(is_of(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, Mapping) and all(
            is_of(k, arguments[0]) and is_of(v, arguments[1]) for k, v in value.items()
        )
    return _is_plain(value, hint)


def _is_plain(value: object, hint: Any) -> bool:
    if hint in (int, float):
        kinds = int if hint is int else (int, float)
        # Comparisons are exact for whole numbers of any size, and false for NaN.
        return isinstance(value, kinds) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST
    return isinstance(value, type(None) if hint is None else hint)


def check_fields(instance: Any) -> None:
    """Compare the fields of a dataclass, and of those in it, with their annotations.

    Raises:
        TypeError: Names the first field that holds something else.
    """
    hints = get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        if not is_of(value, hints[field.name]):
            raise TypeError(f"{field.name!r} is {shortened(repr(value))}")
        if dataclasses.is_dataclass(value):
            check_fields(value)


def check_entries(values: Mapping[str, Any], hints: Mapping[str, Any], optional: Mapping[str, Any]) -> None:
    """Compare the entries of an object read from JSON with annotations; entries that are not named may be anything.

    Raises:
        KeyError: Names an entry that is missing.
        TypeError: Names an entry that holds something else.
    """
    for name, hint in {**optional, **hints}.items():
        if name not in values and name not in hints:
            continue
        if not is_of(values[name], hint):
            raise TypeError(f"{name!r} is {shortened(repr(values[name]))}")
