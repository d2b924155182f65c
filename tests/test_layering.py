"""The layers of docs/design: each imports only what is named for it, read from the syntax tree of every file."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "handloop"

LAYERS: dict[str, set[str]] = {
    "compiler": set(),
    "so3_kernel": {"compiler"},
    "core": set(),
    "hand": {"core"},
    "formats": {"core", "hand"},
    "priors": {"core", "hand"},
    "losses": {"core", "hand", "priors"},
    "regressors": {"compiler", "core", "hand", "so3_kernel"},
    "synth": {"core", "hand", "priors"},
    "view": {"core", "hand"},
    "fitting": {"compiler", "core", "hand", "priors", "so3_kernel"},
    "evaluation": {"core", "hand", "formats"},
}
ALLOWED = LAYERS | {"loop": set(LAYERS), "api": {*LAYERS, "loop"}, "_version": set()}
"""What each layer or module of the package may import besides itself; `_version` is open to all."""
TOP = {
    "bulk",
    "cache_job",
    "cli",
    "commands",
    "doctor",
    "evaluation_job",
    "image_loop_job",
    "job",
    "job_messages",
    "layout_job",
    "limits",
    "picture_start",
    "prior_job",
    "synth_job",
    "train_commands",
    "train_image_job",
    "train_job",
    "__init__",
    "__main__",
}
"""The command, the modules behind its verbs, and the package's front: import everything; no layer imports them."""
BARE = {"fitting", "regressors", "priors"}
"""Links at the repository's top level; as import names they would load a second copy of the code."""
CORE_NEEDS = {"torch", "numpy"}

IMPORTERS = {"import_module", "__import__", "find_spec", "resolve_name", "run_module", "get_loader", "importorskip"}
MODULE_NAME = re.compile(rf"{PACKAGE}(\.\w+)+(:\w+)?")


def _docstrings(tree: ast.Module) -> set[int]:
    """Ids of string expressions that stand alone: docstrings and comments."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _absolute(package: list[str], level: int, name: str) -> str:
    """The absolute name of a relative import inside `package`."""
    base = package[: len(package) - (level - 1)]
    return ".".join([*base, *([name] if name else [])])


def imports_of(path: Path, package: list[str]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every module a file can load, at any depth, also through strings.

    Args:
        path: a Python file.
        package: names of the packages it lies in, for relative imports.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    importers = IMPORTERS | {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname and alias.name in IMPORTERS
    }
    dynamic = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(package, node.level, node.module or "") if node.level else node.module or ""
            # In `from handloop import hand` the layer is the name, not the module.
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in importers:
            dynamic = True
            for argument in node.args[:1]:
                text = _leading_text(argument)
                dots = len(text) - len(text.lstrip("."))
                yield node.lineno, _absolute(package, dots, text[dots:]) if dots else text
        elif isinstance(node, (ast.Name, ast.Attribute)):
            dynamic |= (node.id if isinstance(node, ast.Name) else node.attr) in importers
    if not dynamic:
        return
    # Names may reach an importer by way of a variable or a table: then every text that is a module's name counts.
    ignored = _docstrings(tree)
    for node in ast.walk(tree):
        text = _leading_text(node) if id(node) not in ignored else ""
        if text == f"{PACKAGE}." or MODULE_NAME.fullmatch(text.rstrip(".")):
            yield node.lineno, text.partition(":")[0].rstrip(".")


def _leading_text(node: ast.AST) -> str:
    """The constant text a string expression starts with; "" for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr) and node.values:
        return _leading_text(node.values[0])
    if isinstance(node, ast.BinOp):
        return _leading_text(node.left)
    return ""


def layer_violations(folder: Path) -> list[str]:
    """One line per import in the package at `folder` that its layer may not make."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        relative = path.relative_to(folder)
        unit = relative.parts[0].removesuffix(".py")
        if unit not in ALLOWED and unit not in TOP:
            found.append(f"{relative}: {unit!r} is in no layer; add it to ALLOWED with what it may import")
            continue
        for line, name in imports_of(path, [PACKAGE, *relative.parts[:-1]]):
            top, *rest = name.split(".")
            where = f"{relative}:{line}"
            if top in BARE:
                found.append(f"{where}: imports bare {top!r}; write {PACKAGE}.{top}")
            elif unit == "core" and top not in CORE_NEEDS | {PACKAGE} | set(sys.stdlib_module_names):
                found.append(f"{where}: core imports {top!r}, it may only need torch and numpy")
            elif top == PACKAGE and unit not in TOP:
                target = rest[0] if rest else ""
                if target not in {unit, "_version", *ALLOWED[unit]}:
                    found.append(f"{where}: {unit} imports {target or PACKAGE!r}")
    return found


def bare_imports(folder: Path) -> list[str]:
    """One line per import of a linked name without the package in front, anywhere below `folder`."""
    return [
        f"{path.relative_to(folder)}:{line}: {name}"
        for path in sorted(folder.rglob("*.py"))
        for line, name in imports_of(path, [])
        if name.split(".")[0] in BARE
    ]


def test_each_layer_imports_only_what_the_design_allows() -> None:
    assert len(list((ROOT / PACKAGE).rglob("*.py"))) > 10  # The files are found at all.
    assert layer_violations(ROOT / PACKAGE) == []


@pytest.mark.parametrize("folder", ["tests", "examples", "benchmarks", "tools", PACKAGE])
def test_nothing_imports_the_bare_names(folder: str) -> None:
    assert bare_imports(ROOT / folder) == []


def test_links_point_into_the_package() -> None:
    """The bare names exist for the eye only: relative links, never folders with code of their own."""
    for name in BARE:
        link = ROOT / name
        if link.exists() or link.is_symlink():
            assert link.is_symlink() and str(link.readlink()) == f"{PACKAGE}/{name}"


# The checker itself.

LEGAL = {
    "core/a.py": "import numpy as np\nimport os.path\nfrom torch import Tensor\nfrom . import b\nfrom .b import x\n",
    "core/b.py": '"""Used by handloop.fitting."""\nname = "handloop.fitting"\n',
    "hand/a.py": "from handloop.core import a\nfrom ..core.b import x\nfrom .. import core, _version\n",
    "fitting/deep/a.py": "from ...priors import gaussian\nfrom ..terms import t\nimport handloop.hand.model, scipy\n",
    "evaluation/a.py": "import importlib\nm = importlib.import_module('handloop.formats.npz')\n",
    "loop/a.py": "from handloop import regressors, view\n",
    "api.py": "from handloop.loop.train import t\ndef f():\n    from handloop import fitting\n",
    "cli.py": "import importlib\nimportlib.import_module(f'handloop.{name}')\nimport handloop\n",
    "__init__.py": "from handloop.api import fit\nfrom .core.a import x\n",
    "_version.py": "__version__ = '0'\n",
}

_BY_TABLE = "import importlib\nM = {'f': 'handloop.fitting.solver'}\nimportlib.import_module(M['f'])"
PLANTED = [
    ("core/x.py", "import handloop.hand.model", ":1: core imports 'hand'"),
    ("core/x.py", "from ..hand import model", ":1: core imports 'hand'"),
    ("core/x.py", "import scipy.linalg", ":1: core imports 'scipy', it may only need torch and numpy"),
    ("hand/x.py", "def f():\n    from handloop.priors import g", ":2: hand imports 'priors'"),
    ("hand/x.py", "if TYPE_CHECKING:\n    from handloop import api", ":2: hand imports 'api'"),
    ("losses/x.py", "from handloop.fitting.solver import s", ":1: losses imports 'fitting'"),
    ("fitting/deep/x.py", "from ... import losses", ":1: fitting imports 'losses'"),
    ("fitting/x.py", "from ..evaluation.metrics import m", ":1: fitting imports 'evaluation'"),
    ("fitting/x.py", "import importlib as i\ni.import_module('handloop.loop')", ":2: fitting imports 'loop'"),
    ("view/x.py", "__import__('handloop.fitting')", ":1: view imports 'fitting'"),
    ("synth/x.py", "from importlib import import_module as m\nm('..view', __package__)", ":2: synth imports 'view'"),
    (
        "synth/x.py",
        "from importlib import import_module\nimport_module('..view', __package__)",
        ":2: synth imports 'view'",
    ),
    ("view/x.py", _BY_TABLE, ":2: view imports 'fitting'"),
    ("view/x.py", "import importlib\nimportlib.import_module(f'handloop.{x}')", ":2: view imports 'handloop'"),
    ("view/x.py", "import importlib\nimportlib.import_module('handloop.' + x)", ":2: view imports 'handloop'"),
    ("loop/x.py", "from handloop.cli import main", ":1: loop imports 'cli'"),
    ("fitting/x.py", "from handloop.job import run_fit", ":1: fitting imports 'job'"),
    ("api.py", "from . import cli", ":1: api imports 'cli'"),
    ("regressors/x.py", "import handloop", ":1: regressors imports 'handloop'"),
    ("regressors/x.py", "from handloop import *", ":1: regressors imports '*'"),
    ("_version.py", "from handloop.core import a", ":1: _version imports 'core'"),
    ("cli.py", "from priors import gaussian", ":1: imports bare 'priors'; write handloop.priors"),
    ("cli.py", "import fitting.solver as s", ":1: imports bare 'fitting'; write handloop.fitting"),
    ("stuff/x.py", "", ": 'stuff' is in no layer; add it to ALLOWED with what it may import"),
]
"""(file, its text, what the checker says behind the file's name)."""


def _write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_checker_accepts_what_is_allowed(tmp_path: Path) -> None:
    assert layer_violations(_write(tmp_path / PACKAGE, LEGAL)) == []


@pytest.mark.parametrize(("name", "text", "expected"), PLANTED)
def test_checker_catches_a_planted_violation(tmp_path: Path, name: str, text: str, expected: str) -> None:
    found = layer_violations(_write(tmp_path / PACKAGE, LEGAL | {name: text}))
    assert set(found) == {name + expected}


def test_siblings_never_import_each_other(tmp_path: Path) -> None:
    """Every pair of units, so that a slip in the table of layers shows: what may be imported is ordered."""
    order = [
        "compiler",
        "core",
        "hand",
        "formats",
        "priors",
        "losses",
        "regressors",
        "synth",
        "view",
        "fitting",
        "evaluation",
        "loop",
    ]
    for importer in order:
        for target in order:
            folder = _write(tmp_path / importer / target, {f"{importer}/x.py": f"import handloop.{target}.y"})
            legal = layer_violations(folder) == []
            assert legal == (target == importer or target in ALLOWED[importer])
            assert not legal or order.index(target) <= order.index(importer)


@pytest.mark.parametrize(
    "text",
    [
        "import priors",
        "from regressors.lifter import Lifter",
        "def f():\n    import fitting.solver",
        "import importlib\nimportlib.import_module('priors.gaussian')",
        "import pytest\npytest.importorskip('fitting')",
    ],
)
def test_bare_names_are_caught_in_tests_too(tmp_path: Path, text: str) -> None:
    _write(tmp_path, {"a/test_x.py": text, "a/test_y.py": "from handloop import priors\nfitting = priors\n"})
    assert len(bare_imports(tmp_path)) == 1
