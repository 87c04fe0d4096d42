"""Figures made small enough to travel inside a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

AS_IT_IS = 120_000  # bytes: a smaller PNG is embedded as it is
WIDEST = 1500  # px
QUALITY = 82


@dataclass(frozen=True)
class Picture:
    name: str
    """Of the file when downloaded, without its ending."""
    title: str
    caption: str
    alt: str
    uri: str
    width: int
    height: int
    ending: str


def picture(file: Path, title: str, caption: str, alt: str, name: str = "", widest: int = WIDEST) -> Picture:
    """The PNG `file` as a data URI: itself where it is small, else WebP of at most `widest` px."""
    from PIL import Image

    with Image.open(file) as image:
        width, height = image.size
        data, kind = file.read_bytes(), "png"
        if len(data) > AS_IT_IS:
            if width > widest:
                width, height = widest, round(height * widest / width)
            text = io.BytesIO()
            image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).save(
                text, "WEBP", quality=QUALITY, method=5
            )
            data, kind = text.getvalue(), "webp"
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Picture(name or file.stem, title, caption, alt, uri, width, height, kind)
