"""Passwords of databases in texts, commands and files."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import sqlalchemy
from hypothesis import given
from hypothesis import strategies as st

from hist_cache.fingerprint import provenance
from hist_cache.passwords import clean_files, mask_command, mask_passwords
from tests.fuzzing import fuzz
from tests.small import files_up_to


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (
            "hist-sweep --storage postgresql://me:secret@host/db --trials 3",
            "hist-sweep --storage postgresql://me:***@host/db --trials 3",
        ),
        ("postgresql+psycopg://me:p%40:ss@word@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("postgresql://:pa/ss?w#d@host", "postgresql://:***@host"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("postgresql://host/db?pass%77ord=secret", "postgresql://host/db?pass%77ord=***"),
        ("postgresql://host/db?passwd=secret&x=1", "postgresql://host/db?passwd=***&x=1"),
        ("postgresql://host/db?sslPassword=secret", "postgresql://host/db?sslPassword=***"),
        ("<p>postgresql://h/d?user=me&amp;password=secret</p>", "<p>postgresql://h/d?user=me&amp;password=***</p>"),
        (json.dumps({"a": 'postgresql://me:s"e\\t@h/d', "b": "c@d"}), '{"a": "postgresql://me:***@h/d", "b": "c@d"}'),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("hist-train --cache a:b@c", "hist-train --cache a:b@c"),
        ("postgres://me:s1@h/d", "postgres://me:***@h/d"),
        ("see http://localhost:6006 for PCC@50", "see http://localhost:6006 for PCC@50"),
        ("{src: url('http://a.b:80/x')} @page {}", "{src: url('http://a.b:80/x')} @page {}"),
        ('{"url": "http://localhost:80/x", "by": "me@host"}', '{"url": "http://localhost:80/x", "by": "me@host"}'),
    ],
)
def test_passwords_are_masked(text: str, masked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mask_passwords(text) == masked
    if "<" not in text and "{" not in text:
        monkeypatch.setattr("sys.argv", ["/bin/x", *text.split(" ")])
        assert provenance()["command"] == f"x {masked}"


@pytest.mark.fuzz
@fuzz(200)
@given(st.text(st.characters(codec="utf-8"), max_size=8), st.booleans())
def test_no_password_is_left_in_a_command_nor_in_a_file(rest: str, in_query: bool) -> None:
    password = f"{rest[:3]}S3CRET{rest[3:]}"
    place = {"query": {"password": password}} if in_query else {"password": password}
    url = sqlalchemy.URL.create("postgresql", "me", host="h", database="d", **place)  # type: ignore[arg-type]
    text = url.render_as_string(hide_password=False)
    assert "S3CRET" in text
    for written in (text, f"x --storage {text} --y", json.dumps({"command": text}), f'<a href="{text}">{text}</a>'):
        assert "S3CRET" not in mask_passwords(written)
    as_typed = f"postgresql://me:{password}@h/d"
    assert "S3CRET" not in mask_command(["hist-sweep", "--storage", as_typed, f"--storage={text}"])


def test_a_file_that_cannot_be_written_stays_as_it_is(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    text = json.dumps({"command": "hist-sweep --storage postgresql://me:secret@h/d"})
    config.write_text(text)
    with files_up_to(0):
        clean_files([config])
    assert config.read_text() == text


def test_files_of_earlier_versions_are_cleaned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, other, page = tmp_path / "config.json", tmp_path / "other.json", tmp_path / "report.html"
    config.write_text(json.dumps({"command": "hist-sweep --storage postgresql://me:secret@h/d"}))
    page.write_text("<code>--storage postgresql://h/d?user=me&amp;password=secret</code>")
    other.write_bytes(b"\xff not a text")
    with caplog.at_level(logging.WARNING):
        clean_files([config, other, page, tmp_path / "missing.json"])
    assert json.loads(config.read_text()) == {"command": "hist-sweep --storage postgresql://me:***@h/d"}
    assert "secret" not in page.read_text()
    assert other.read_bytes() == b"\xff not a text"
    assert [r.message.split(" held")[0] for r in caplog.records] == [str(config), str(page)]
    assert "secret" not in caplog.text
