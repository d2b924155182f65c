"""Files of hands to start a fit from: npz with MANO's names, another network's or handloop's own results."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from handloop.core.errors import FileFormatError
from handloop.formats.loading import read_npz


def read_start_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """All arrays of one npz; what they mean is for `regressors.adapters` to say.

    Raises:
        FileFormatError: missing, damaged, or another kind of file.
    """
    source = Path(path)
    if source.suffix in (".pkl", ".pt", ".pth", ".ckpt"):
        raise FileFormatError("this kind of file can run code when it is opened; save its arrays with numpy.savez.")
    return read_npz(source)
