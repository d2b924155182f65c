"""Makes `make_fixture.py` available to the tests beside it as the fixture `make`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="session")
def make() -> ModuleType:
    """The module `make_fixture`."""
    spec = importlib.util.spec_from_file_location(
        "handloop_test_make_fixture", Path(__file__).parent / "make_fixture.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def arrays(make: ModuleType) -> dict[str, np.ndarray]:
    """A right hand by MANO's keys. Do not change it in a test."""
    return make.hand_arrays()


@pytest.fixture(autouse=True)
def no_mano_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests must not see the MANO files of whoever runs them."""
    monkeypatch.delenv("HANDLOOP_MANO", raising=False)
