"""What axe-core finds wrong with a page in a browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


def serious_faults(page: Any) -> list[str]:
    """The faults of a page that axe-core calls serious or critical: what is asked for, and where it fails first."""
    package = pytest.importorskip("axe_playwright_python", reason="no axe-core (pip install axe-playwright-python)")
    page.evaluate("for (const box of document.querySelectorAll('details')) box.open = true")
    page.evaluate((Path(package.__file__).parent / "axe.min.js").read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert len(found["passes"]) > 10  # it has looked at the page
    return [
        f"{fault['help']}: {fault['nodes'][0]['html'][:120]}"
        for fault in found["violations"]
        if fault["impact"] in ("serious", "critical")
    ]
