"""Passwords in the URLs of databases: none is ever shown or written, and files that hold one are cleaned."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from hist_cache.errors import WriteError
from hist_cache.files import write_text

log = logging.getLogger(__name__)

MASK = "***"
_SECRET = re.compile("passwd|password|pwd|secret|scram_")  # in the name of a parameter
# In a text only URLs of PostgreSQL are looked for: `http://localhost:80 for PCC@50` holds no password. One ends at a
# quote or bracket of the JSON or HTML around it, at the next option, or with the line. A password may hold white space,
# so rather too much of a line is masked than too little.
_URL = re.compile(r"""postgres(?:ql)?(?:\+\w+)?://(?:\\.|(?! --)[^\n"<>\\])*""", re.IGNORECASE)
_IN_TEXT = (
    re.compile(r"""(://[^:/?#@\s"'<>]*):(?:\\.|(?! --)[^\n"<>\\])*@"""),
    re.compile(r"""([?&][^=&\s"<>]*)=(?:(?! --)[^&\n"<>])*"""),
)
_IN_WORD = (re.compile(r"(://[^:/?#@]*):.*@", re.DOTALL), re.compile(r"([?&][^=&]*)=[^&]*"))


def mask_passwords(text: str) -> str:
    """Replace the passwords in the URLs of PostgreSQL in a text by ***, for everything that is written or shown.

    They may stand after the user's name, or in a parameter such as `?password=`, whose name may be percent-encoded.
    """
    return _URL.sub(lambda url: _masked(url[0], *_IN_TEXT), text)


def mask_command(words: Iterable[str]) -> str:
    """Return a command line without passwords in URLs of any kind; nothing but its end ends a URL in a word."""
    return " ".join(_masked(word, *_IN_WORD) if "://" in word else word for word in words)


def names_secret(parameter: str) -> bool:
    """Tell whether a parameter of a URL holds a secret, by its name."""
    return _SECRET.search(parameter.lower()) is not None


def _masked(text: str, after_user: re.Pattern[str], parameter: re.Pattern[str]) -> str:
    def masked(match: re.Match[str]) -> str:
        return f"{match[1]}={MASK}" if names_secret(unquote(match[1])) else match[0]

    return parameter.sub(masked, after_user.sub(rf"\1:{MASK}@", text))


def clean_files(paths: Iterable[Path]) -> None:
    """Mask the passwords in text files that earlier versions wrote.

    A file that cannot be read or written stays as it is: whoever needs it finds out why.
    """
    for path in paths:
        masked = _clean_text(path)
        if masked is None:
            continue
        try:
            write_text(path, masked)
        except (OSError, WriteError):
            continue
        log.warning(f"{path} held the password of a database: it is removed; choose another, others may have read it")


def holds_password(path: Path) -> bool:
    """Tell whether a text file holds the password of a database."""
    return _clean_text(path) is not None


def _clean_text(path: Path) -> str | None:
    """Return the text of a file without passwords; None where it holds none, or cannot be read."""
    try:
        if not path.is_file():  # a pipe, to which nobody may ever write
            return None
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    masked = mask_passwords(text)
    return None if masked == text else masked
