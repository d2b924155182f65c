"""One fixture: the folder with real keypoint data, which the repository does not carry."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder named by HANDLOOP_REAL_DATA; skips where it is unset or missing. Mark such tests `real`."""
    name = os.environ.get("HANDLOOP_REAL_DATA", "")
    if not name:
        pytest.skip("HANDLOOP_REAL_DATA is not set")
    folder = Path(name)
    if not folder.is_dir():
        pytest.skip(f"HANDLOOP_REAL_DATA names {name}, which is not a folder")
    return folder
