"""A parser for protocol-buffer text (pbtxt, prototxt) that needs no message definitions."""

from __future__ import annotations

import re
from collections.abc import Iterator

from handloop.core.errors import FileFormatError

_TOKEN = re.compile(
    r"""(?P<space>[\s,;]+|\#[^\n]*)
    |(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    |(?P<number>[-+]?(?:0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)[fF]?(?![\w.]))
    |(?P<name>-?[A-Za-z_][\w.]*|\[[\w./]+\])
    |(?P<sign>[{}<>:\[\]])""",
    re.VERBOSE,
)

_MAX_DEPTH = 50
_CLOSING = {"{": "}", "<": ">"}

_Token = tuple[str, str, int]


def parse_prototext(text: str) -> dict[str, object]:
    """A message as a dict: nested messages are lists of dicts; a scalar is itself, or a list when its field repeats.

    Raises:
        FileFormatError: not protocol-buffer text; the line is named.
    """
    root: dict[str, object] = {}
    stack: list[tuple[dict[str, object], str]] = [(root, "")]
    tokens = _tokens(text)
    for kind, word, line in tokens:
        message, closing = stack[-1]
        if kind == "sign" and word == closing:
            stack.pop()
            continue
        if kind != "name":
            raise _error(line, f"{word[:40]!r} stands where a field's name is expected")
        after_kind, after, line = next(tokens, ("end", "", line))
        colon = after == ":" and after_kind == "sign"
        if colon:
            after_kind, after, line = next(tokens, ("end", "", line))
        if after_kind == "sign" and after in _CLOSING:
            if len(stack) > _MAX_DEPTH:
                raise _error(line, "messages are nested too deeply")
            inner: dict[str, object] = {}
            _append_message(message, word, inner, line)
            stack.append((inner, _CLOSING[after]))
        elif colon and after_kind == "sign" and after == "[":
            for value in _list_values(tokens, line):
                _append_scalar(message, word, value, line)
        elif colon and after_kind in ("text", "number", "name"):
            _append_scalar(message, word, _scalar(after_kind, after), line)
        else:
            what = f"found {after[:40]!r}" if after else "the file ends"
            raise _error(line, f"the field {word!r} has no value: {what}")
    if len(stack) > 1:
        raise FileFormatError("the text ends inside a message; the file is truncated, write it again.")
    return root


def _tokens(text: str) -> Iterator[_Token]:
    """Kind, text and line number of each token; white space and comments are left out."""
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise _error(line, f"{text[at : at + 20].split(chr(10))[0]!r} cannot be read")
        kind, word = str(match.lastgroup), match.group()
        if kind != "space":
            yield kind, word, line
        line += word.count("\n")
        at = match.end()


def _list_values(tokens: Iterator[_Token], line: int) -> Iterator[object]:
    for kind, word, where in tokens:
        if kind == "sign" and word == "]":
            return
        if kind not in ("text", "number", "name"):
            raise _error(where, f"{word[:40]!r} stands inside a list of values")
        yield _scalar(kind, word)
    raise _error(line, "a list of values does not end")


def _scalar(kind: str, word: str) -> object:
    if kind == "text":
        # Escapes are left as they are: no text here is more than a label.
        return word[1:-1]
    if kind == "name":
        specials = {"inf": float("inf"), "infinity": float("inf"), "nan": float("nan")}
        number = specials.get(word.lstrip("-").lower())
        return word if number is None else -number if word.startswith("-") else number
    return float(int(word, 16)) if "x" in word.lower() else float(word.rstrip("fF"))


def _append_message(message: dict[str, object], name: str, inner: dict[str, object], line: int) -> None:
    field = message.setdefault(name, [])
    if not isinstance(field, list) or (field and not isinstance(field[0], dict)):
        raise _error(line, f"the field {name!r} is both a message and a value")
    field.append(inner)


def _append_scalar(message: dict[str, object], name: str, value: object, line: int) -> None:
    if name not in message:
        message[name] = value
        return
    field = message[name]
    if isinstance(field, list):
        if field and isinstance(field[0], dict):
            raise _error(line, f"the field {name!r} is both a message and a value")
        field.append(value)
    else:
        message[name] = [field, value]


def _error(line: int, what: str) -> FileFormatError:
    return FileFormatError(f"this is not protocol-buffer text: {what} in line {line}.")
