"""The errors handloop raises: each message says what was given, what was expected and what to do."""

from __future__ import annotations


class HandloopError(Exception):
    """Base of every error raised on purpose by handloop."""


class InputError(HandloopError, ValueError):
    """Something the caller gave cannot be used (wrong shape, unit, value or option)."""


class FileFormatError(InputError):
    """A keypoint or camera file cannot be read as the format it claims to be."""


class ModelError(InputError):
    """A hand model file is missing, damaged or of another kind."""


class UnsafePickleError(ModelError):
    """A pickle names something outside the allow-list; nothing of it was executed."""


class CacheError(HandloopError):
    """A fit cache cannot be opened, read or written, or would be used in a way that spoils it."""


class ScoreError(CacheError):
    """Energies that were computed under different priors, layouts or noise levels were about to be compared."""


class RankError(HandloopError):
    """The processes of a run have lost each other."""


def check_shape(name: str, shape: tuple[int, ...], expected: tuple[int | None, ...]) -> None:
    """Raise `InputError` unless `shape` matches `expected`; `None` accepts any length.

    Args:
        name: what the array is called in the caller's words.
        shape: the shape that was given.
        expected: lengths per axis, `None` for a free axis.
    """
    if len(shape) == len(expected) and all(e is None or s == e for s, e in zip(shape, expected, strict=True)):
        return
    wanted = ", ".join("N" if e is None else str(e) for e in expected)
    raise InputError(f"{name} has shape {tuple(shape)}, expected ({wanted}).")
