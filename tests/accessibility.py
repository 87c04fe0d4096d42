"""What axe-core finds wrong with a page in a browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest


def serious_faults(page: Any, rules: Sequence[str] = ()) -> list[str]:
    """The faults of a page that axe-core calls serious or critical: what is asked for, and where it fails first.

    rules: the only ones that are checked (default: all).
    """
    package = pytest.importorskip("axe_playwright_python", reason="no axe-core (pip install axe-playwright-python)")
    page.evaluate("for (const box of document.querySelectorAll('details')) box.open = true")
    page.evaluate((Path(package.__file__).parent / "axe.min.js").read_text())
    options = {"resultTypes": ["violations"], **({"runOnly": list(rules)} if rules else {})}
    rows = "tbody:nth-of-type(n + 12)"  # look like those before, and a table may have hundreds
    found = page.evaluate("([rows, options]) => axe.run({exclude: [[rows]]}, options)", [rows, options])
    assert len(found["passes"]) >= (len(rules) or 10)  # it has looked at the page
    return [
        f"{fault['help']}: {fault['nodes'][0]['html'][:120]}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
