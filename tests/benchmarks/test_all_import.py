"""Every benchmark can still be started: they are run by hand, so that nothing else would notice."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from benchmarks.accuracy_cases import real

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__"))
def test_it_imports(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    tree = ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    # Imports inside functions, too.
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("handloop", "benchmarks")):
            there = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(there, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
    assert module.__doc__


@pytest.mark.real
def test_cases_that_others_pick_by_name_exist(real_data: Path) -> None:
    from benchmarks import anatomical_terms, self_penetration

    names = {case.name for case in real(real_data, 8, (1, 2), (3,))}
    assert set(anatomical_terms.CASES) <= names and set(self_penetration.CASES) <= names
