"""File names made of hands' ids, which may hold anything."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

_LONGEST = 80
"""Characters kept of an id; file systems allow 255 bytes for the whole name."""

# Windows opens devices under these names, whatever follows the first dot.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?$", re.IGNORECASE)


def file_names(ids: Sequence[str]) -> list[str]:
    """A file name (without its ending) for each id: the id itself where that is safe on every system.

    Anything but ASCII letters, digits, dot, dash and underscore becomes an underscore. An id that had to be changed, or
    that differs from another one of `ids` in upper and lower case only, gets a short hash of itself, so that names are
    unique and stay the same from run to run.
    """
    cleaned = [_clean(text) for text in ids]
    often = Counter(name.casefold() for name in cleaned)
    return [
        name if name == text and often[name.casefold()] == 1 else f"{name}-{_digest(text)}"
        for name, text in zip(cleaned, ids, strict=True)
    ]


def _clean(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", text)[:_LONGEST].strip(".-")
    return f"hand_{name}" if not name or _RESERVED.match(name) else name


def _digest(text: str) -> str:
    # surrogatepass: file names that are not valid UTF-8 reach Python as lone surrogates.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
