"""Values of spots as whole numbers of 8 or 16 bits, as pages with maps hold them; `map_codes.js` reads them again."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

CODES_SCRIPT = "map_codes.js"
COLOR_MAP = "viridis"


class Codes(NamedTuple):
    """Values of genes, each in steps of its own.

    Attributes:
        low: `(G,)` the value of code 0.
        high: `(G,)` the value of the highest code but one.
        codes: `(G, N)` unsigned whole numbers; the highest one is that of a value that is not there.
    """

    low: np.ndarray
    high: np.ndarray
    codes: np.ndarray


def to_codes(values: np.ndarray, bits: Literal[8, 16]) -> Codes:
    """Divide what the values of each gene span into equal steps, 254 or 65,534 of them.

    Args:
        values: `(N, G)`; those that are not finite count as not there.
        bits: of a code.

    Returns:
        The codes; but for rounding, none is further than half a step from its value.
    """
    there = np.isfinite(values)
    some = there.any(axis=0)
    low = np.where(some, np.where(there, values, np.inf).min(axis=0, initial=np.inf), 0.0).astype(np.float64)
    high = np.where(some, np.where(there, values, -np.inf).max(axis=0, initial=-np.inf), 0.0).astype(np.float64)
    missing = 2**bits - 1
    span = np.where(high > low, high - low, 1.0)
    share = (np.where(there, values, low) - low) / span
    codes = np.where(there, np.rint(share * (missing - 1)), missing)
    return Codes(low, high, np.ascontiguousarray(codes.T.astype(f"<u{bits // 8}")))


def to_base64(data: bytes | np.ndarray) -> str:
    """Bytes, or those of an array, as text."""
    return base64.b64encode(data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes()).decode()


def palette() -> bytes:
    """256 colours, RGB, from the lowest value to the highest."""
    from matplotlib import colormaps

    return np.ascontiguousarray(colormaps[COLOR_MAP](np.arange(256), bytes=True)[:, :3]).tobytes()


def script_hash(text: str) -> str:
    """What a page's security policy names a style or a script by."""
    return f"sha256-{to_base64(hashlib.sha256(text.encode()).digest())}"


def map_script() -> str:
    """The script that such pages begin with."""
    return (Path(__file__).parent / CODES_SCRIPT).read_text(encoding="utf-8")
