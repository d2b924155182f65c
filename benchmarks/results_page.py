"""Renewing one benchmark's part of docs/results.md."""

from __future__ import annotations

from pathlib import Path

RESULTS = Path("docs/results.md")


def renew(name: str, text: str, page: Path = RESULTS) -> None:
    """Put the text between `<!-- NAME -->` and `<!-- end of NAME -->`; all else stays."""
    before = page.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    start, stop = before.index(begin), before.index(end)
    page.write_text(f"{before[:start]}{begin}\n\n{text}\n\n{before[stop:]}", encoding="utf-8")
