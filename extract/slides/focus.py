"""stub"""

from __future__ import annotations

from typing import Any


def check_focus(name: str, image: Any, coords: Any, um: float) -> None: ...
