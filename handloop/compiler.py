"""numba's settings for the kernels, where compiled code is kept, and how hands are shared out among threads.

numba's disk cache looks only at the file of the function it compiled, not at the functions called from other files. The
cache folder is therefore named by a hash of all kernel sources, so an edit anywhere compiles everything anew.
"""

from __future__ import annotations

import getpass
import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from numba import njit
from numba.core import config
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import NativeLowering

_PACKAGE = Path(__file__).parent

_KERNELS = (
    "compiler.py",
    "so3_kernel.py",
    *sorted(f"fitting/fused/{f.name}" for f in (_PACKAGE / "fitting/fused").glob("*.py") if f.name != "engine.py"),
    "regressors/lifter_kernel.py",
    "regressors/network.py",
    "regressors/view.py",
)
"""Sources of the compiled functions and of the constants they take over."""

# Sums may be reordered and products fused, which is what lets loops use vector registers; NaN and infinity keep their
# meaning, because they end bad fits.
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


def _cache_folder() -> Path:
    """Folder of the compiled kernels for these sources: below HANDLOOP_CACHE, or the user's cache folder, or, where
    that cannot be written, a temporary one for this user."""
    digest = hashlib.sha256(b"".join((_PACKAGE / name).read_bytes() for name in _KERNELS)).hexdigest()[:16]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    wanted = os.environ.get("HANDLOOP_CACHE") or os.path.join(cache, "handloop")
    temporary = os.path.join(tempfile.gettempdir(), f"handloop-{getpass.getuser() if os.name == 'nt' else os.getuid()}")
    for base in (wanted, temporary):
        folder = Path(base) / f"kernels-{digest}"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:
            continue
        if os.access(folder, os.W_OK) and (os.name == "nt" or folder.stat().st_uid == os.getuid()):
            return folder
    return Path(tempfile.mkdtemp(prefix="handloop-"))


_FOLDER = _cache_folder()


_HERE = hashlib.sha256(f"{_PACKAGE} {sys.version}".encode()).hexdigest()[:16]
_MARKER = _FOLDER / f"compiled-{_HERE}"
"""Left when these sources, at this place and for this Python, have been compiled: numba's cache is by place as well."""

WARM_UP = "import numpy as np, handloop; handloop.fit(np.arange(42.0).reshape(1, 21, 2), hand='embedded', device='cpu')"
"""A fit that calls every kernel."""


@lru_cache(maxsize=1)
def ensure_compiled() -> None:
    """Fill the cache in a process of its own, once, so that every run works with code loaded from it.

    Code that a process has just compiled and code it has loaded differ in the last bits: numba links them in another
    order. A process that cannot be started only costs that guarantee, not the fit.
    """
    if _MARKER.exists() or os.environ.get("HANDLOOP_COMPILING"):
        return
    logging.getLogger("handloop").warning("compiling the fit, once per installation (about a minute) ...")
    environment = {**os.environ, "HANDLOOP_COMPILING": "1"}
    try:
        done = subprocess.run([sys.executable, "-c", WARM_UP], env=environment, capture_output=True, check=False)
        if done.returncode == 0:
            _MARKER.touch()
    except OSError:
        pass


class _PartLibrary(JITCodeLibrary):
    """Code that only its callers take in: optimised and turned into machine code with them, not by itself as well."""

    def finalize(self) -> None:
        """Link in the functions called from here, and no more."""
        for library in dict.fromkeys(self._linking_libraries):
            self._reload_init.update(library._reload_init)
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True


@cast(Any, register_pass)(mutates_CFG=True, analysis_only=False)
class _PartLowering(NativeLowering):
    """numba's, without wrappers for Python: to take the large tuples apart they have more code than the functions."""

    _name = "part_lowering"

    def run_pass(self, state: Any) -> bool:
        """See numba's `LoweringPass`."""
        flags = state.flags
        flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True
        state.library = cast(Any, _PartLibrary)(state.targetctx.codegen(), state.func_id.func_qualname)
        cast(Any, super()).run_pass(state)
        # Compiled callers find a function by its entry point from Python, which must be a built-in one of its own; this
        # one answers every call with a TypeError.
        entry = object().__format__
        state.targetctx.insert_user_function(entry, state.cr.fndesc, [state.library])
        state.cr = state.cr._replace(cfunc=entry)
        return True


class _PartCompiler(CompilerBase):
    """numba's compiler with `_PartLowering`."""

    def define_pipelines(self) -> list[Any]:
        """See numba's `CompilerBase`."""
        manager = cast(Any, DefaultPassBuilder).define_nopython_pipeline(self.state)
        manager.passes = [(_PartLowering if p is NativeLowering else p, why) for p, why in manager.passes]
        manager.finalize()
        return [manager]


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of the functions called from Python: compiled at the first call, without the interpreter's lock."""
    # numba reads the cache folder when it decorates; the setting is put back so that other code keeps its own.
    before = config.CACHE_DIR  # type: ignore[attr-defined]
    config.CACHE_DIR = str(_FOLDER)  # type: ignore[attr-defined]
    try:
        return _jit(function, cache=True)
    finally:
        config.CACHE_DIR = before  # type: ignore[attr-defined]


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of the functions that those call; from Python they cannot be called."""
    return _jit(function, pipeline_class=_PartCompiler)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for small functions, and those of the large tuples, whose passing would cost more than their work."""
    return _jit(function, pipeline_class=_PartCompiler, forceinline=True)


def _jit(function: Callable[..., Any], **options: object) -> Callable[..., Any]:
    decorate = cast(Any, njit)(
        fastmath=_FASTMATH,
        error_model="numpy",
        boundscheck=False,
        nogil=True,
        # No counting of references: the kernels allocate nothing, and the locked increments took half their time.
        _nrt=False,
        **options,
    )
    return cast(Callable[..., Any], decorate(function))


def share_out(work: Callable[[int, int], None], n: int, run: int) -> None:
    """Call `work` with ranges (first, last) of 0 .. n - 1, `run` long, on as many threads as torch uses.

    Plain threads, because the kernels release the interpreter's lock: numba's own pools abort when two threads enter
    them at once, or hang after a fork.
    """

    def one(first: int) -> None:
        work(first, min(n, first + run))

    threads = min(torch.get_num_threads(), -(-n // run))
    if threads <= 1:
        for first in range(0, n, run):
            one(first)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(0, n, run)))
