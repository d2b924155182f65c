"""Counts in plain words."""

from __future__ import annotations


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """`1 hand`, `1,200 hands`; give the plural where an s does not make it."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
