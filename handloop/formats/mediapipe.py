"""MediaPipe's results in any container: JSON, protocol-buffer text, npy."""

from __future__ import annotations

from pathlib import Path

from handloop.formats.arrays import array_hands
from handloop.formats.file_hands import FileHands
from handloop.formats.loading import check_file, read_json, read_npy, read_text
from handloop.formats.mediapipe_json import mediapipe_hands
from handloop.formats.prototext import parse_prototext


def read_mediapipe(path: Path) -> FileHands:
    """The hands of one file, its container told by its first bytes.

    Raises:
        FileFormatError: none of the three, or not hands.
    """
    check_file(path)
    with open(path, "rb") as file:
        start = file.read(64)
    if start.startswith(b"\x93NUMPY") or path.suffix.lower() == ".npy":
        return array_hands(read_npy(path))
    if path.suffix.lower() == ".json" or start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
        return mediapipe_hands(read_json(path))
    return mediapipe_hands(parse_prototext(read_text(path)))
