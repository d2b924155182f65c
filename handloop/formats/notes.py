"""Collecting sentences for the user, each once, with the files it concerns."""

from __future__ import annotations

_SHOWN = 3


class Notes:
    """Sentences in the order they first came up, with the files each concerns."""

    def __init__(self) -> None:
        self._files: dict[str, dict[str, None]] = {}

    def add(self, sentence: str, file: str = "") -> None:
        """`sentence` ends with a period; `file` is named behind it, "" for a sentence about the whole run."""
        files = self._files.setdefault(sentence, {})
        if file:
            files[file] = None

    def sentences(self) -> tuple[str, ...]:
        """The sentences, the first few files of each in brackets."""
        return tuple(_with_files(sentence, list(files)) for sentence, files in self._files.items())


def _with_files(sentence: str, files: list[str]) -> str:
    if not files:
        return sentence
    more = f" and {len(files) - _SHOWN} more files" if len(files) > _SHOWN else ""
    return f"{sentence} [{', '.join(files[:_SHOWN])}{more}]"
