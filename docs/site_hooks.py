"""What mkdocs needs beside the pages: files of the repository's root and notebooks, as pages of the site."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
LINK = re.compile(r"\]\((?:\.\./)?(docs/[\w./-]+|CHANGELOG\.md|CONTRIBUTING\.md)(#[\w-]+)?\)")
ENDS_OF_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each notebook, and for the files of the root that are pages too."""
    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    for notebook in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        pictures: dict[str, bytes] = {}
        text = "\n\n".join(cell_text(cell, notebook.stem, pictures) for cell in cells)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links between the root and docs/ point to the pages of the site."""

    def moved(match: re.Match[str]) -> str:
        target = ROOT_PAGES.get(match[1], match[1].removeprefix("docs/"))
        return f"]({target}{match[2] or ''})"

    return LINK.sub(moved, markdown) if "/" not in page.file.src_uri else markdown


def cell_text(cell: dict[str, Any], notebook: str, pictures: dict[str, bytes]) -> str:
    """A notebook's cell with its outputs as Markdown; its pictures are added to `pictures`, by name of a file."""
    from base64 import b64decode

    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    parts = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        if output.get("name") == "stderr":
            continue
        data = output.get("data", {})
        if "image/png" in data:
            name = f"{notebook}-{len(pictures)}.png"
            pictures[name] = b64decode(data["image/png"])
            parts.append(f"![Output of the cell above]({name})")
        elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
            parts.append(f"```text\n{ENDS_OF_COLOURS.sub('', text)}\n```")
    return "\n\n".join(parts)
