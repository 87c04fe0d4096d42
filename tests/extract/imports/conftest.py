"""The made-up section of `sources`, and its image, for all tests of imports."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.extract.imports.sources import UM_PER_PX, Section, make_section, write_image


@pytest.fixture(scope="session")
def section() -> Section:
    return make_section()


@pytest.fixture(scope="session")
def image(section: Section, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TIFF that states its pixel size."""
    return write_image(tmp_path_factory.mktemp("images") / "scan.tif", section.pixels, UM_PER_PX)
