"""The state of a run on disk: written whole or not at all, read without executing anything."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from handloop.core.errors import FileFormatError, InputError

_FORMAT = "handloop loop 1"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and texts; the former file stays until the new one is on the disk.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": _FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch's writer raises errors of its own while the disk's is under way.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        with suppress(OSError):
            temporary.unlink()
        text = f"{reason.strerror}; the former checkpoint is whole, free some space and go on from it"
        raise OSError(reason.errno, text, str(path)) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        FileFormatError: not a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Many kinds for damaged files.
        raise FileFormatError(f"{path}: not a readable checkpoint.") from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise FileFormatError(f"{path}: not a checkpoint of a training loop.")
    return state


def check_same_run(folder: Path, state: dict[str, Any], must_agree: dict[str, str]) -> None:
    """Refuse the checkpoint of another run.

    Args:
        folder: of the run.
        state: its checkpoint.
        must_agree: texts of the run that goes on, by key.

    Raises:
        InputError: one with other settings, data or hand model.
    """
    different = [key for key, text in must_agree.items() if state.get(key) != text]
    if different:
        raise InputError(
            f"{folder} holds a run with another {' and another '.join(different)}; go on with the same, or name "
            "another folder."
        )
