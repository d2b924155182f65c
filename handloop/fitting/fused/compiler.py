"""numba's settings for the fused engine, and where compiled code is kept.

numba's disk cache looks only at the file of the function it compiled, not at the functions called from other files. The
cache folder is therefore named by a hash of all kernel sources, so an edit anywhere compiles everything anew.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from numba import njit
from numba.core import config

_KERNELS = ("compiler.py", "records.py", "math.py", "points.py", "energy.py", "solve.py")

# Sums may be reordered and products fused, which is what lets loops use vector registers; NaN and infinity keep their
# meaning, because they end bad fits.
_FASTMATH = {"reassoc", "contract", "nsz", "arcp"}


def cache_folder() -> Path:
    """Folder of the compiled kernels for these sources: below HANDLOOP_CACHE, or the user's cache folder."""
    here = Path(__file__).parent
    digest = hashlib.sha256(b"".join((here / name).read_bytes() for name in _KERNELS)).hexdigest()[:16]
    base = os.environ.get("HANDLOOP_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache"), "handloop"
    )
    return Path(base) / f"kernels-{digest}"


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of the kernels' functions: compiled at the first call, without the interpreter's lock."""
    # numba reads the cache folder when it decorates; the setting is put back so that other code keeps its own.
    before = config.CACHE_DIR
    config.CACHE_DIR = str(cache_folder())
    try:
        return cast(
            Callable[..., Any],
            njit(cache=True, fastmath=_FASTMATH, error_model="numpy", boundscheck=False, nogil=True)(function),
        )
    finally:
        config.CACHE_DIR = before
