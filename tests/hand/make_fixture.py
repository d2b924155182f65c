"""Hand models with made-up content in MANO's layout, and pickles of them typed as MANO's are, without chumpy.

The pickles come from stand-in classes that carry chumpy's names while they are written; Python 2's are written by a
pickler that stores text and bytes as Python 2 did and names numpy's and scipy's old modules.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import scipy.sparse

PARENTS = [4294967295, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14]

# A right hand in MANO's frame (m): wrist, then index, middle, pinky, ring, thumb from the knuckle outward.
JOINTS = np.array(
    [
        [0.095, 0.006, 0.006],
        *([0.007, 0.001, 0.027], [-0.026, 0.005, 0.029], [-0.049, 0.004, 0.028]),
        *([0.001, 0.005, 0.005], [-0.031, 0.008, 0.006], [-0.055, 0.008, 0.005]),
        *([0.027, -0.003, -0.035], [0.009, -0.001, -0.042], [-0.009, -0.002, -0.046]),
        *([0.012, 0.002, -0.016], [-0.017, 0.004, -0.019], [-0.041, 0.003, -0.020]),
        *([0.071, -0.008, 0.032], [0.047, -0.012, 0.055], [0.020, -0.015, 0.066]),
    ]
)


def hand_arrays(seed: int = 0) -> dict[str, np.ndarray]:
    """A right hand by MANO's keys: a cloud of vertices round each joint, everything well conditioned.

    The first shape direction is size, the poses bend the fingers towards the palm (-y), everything else is random.
    """
    rng = np.random.default_rng(seed)
    owner = np.arange(778) % 16
    own = np.eye(16)[owner]
    cloud = rng.normal(0, 0.006, (778, 3))
    cloud -= (own @ (own.T @ cloud)) / own.sum(0)[owner][:, None]
    template = JOINTS[owner] + cloud
    shapedirs = rng.normal(0, 0.001, (778, 3, 10))
    shapedirs[:, :, 0] = 0.05 * (template - template.mean(0))
    mean = np.zeros((15, 3))
    mean[:12, 2] = 0.4
    components = np.linalg.qr(rng.normal(size=(45, 45)))[0]
    return {
        "hands_components": components,
        "hands_mean": mean.ravel() + rng.normal(0, 0.02, 45),
        "hands_coeffs": rng.normal(0, 0.2, (40, 45)),
        "f": rng.integers(0, 778, (1538, 3)).astype(np.uint32),
        "J": JOINTS.copy(),
        "kintree_table": np.array([PARENTS, list(range(16))], dtype=np.int64),
        "J_regressor": (own / own.sum(0)).T,
        "weights": 0.7 * own + 0.3 * rng.dirichlet(np.ones(16), 778),
        "posedirs": rng.normal(0, 0.001, (778, 3, 135)),
        "v_template": template,
        "shapedirs": shapedirs,
    }


def mirrored_arrays(arrays: dict[str, np.ndarray], sign_error: bool = False) -> dict[str, np.ndarray]:
    """The left hand of `hand_arrays`; with the official file's wrong sign in the x part of `shapedirs`, if asked."""
    out = {key: value.copy() for key, value in arrays.items()}
    out["v_template"][:, 0] *= -1
    if "J" in out:
        out["J"][:, 0] *= -1
    if not sign_error:
        out["shapedirs"][:, 0] *= -1
    out["f"] = out["f"][:, [0, 2, 1]]
    for key in ("hands_mean", "hands_components"):
        out[key].reshape(-1, 3)[:, 1:] *= -1
    # Written out entry by entry, so as not to repeat the formula under test.
    for column in range(135):
        row, col = divmod(column % 9, 3)
        for axis in range(3):
            if (row == 0) + (col == 0) + (axis == 0) in (1, 3):
                out["posedirs"][:, axis, column] *= -1
    return out


class _Python2Pickler(pickle._Pickler):
    """Writes bytes, and text within latin1, as Python 2 wrote its `str`."""

    dispatch: ClassVar[dict[Any, Any]] = dict(pickle._Pickler.dispatch)

    def save_python2_str(self: Any, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        head = b"U" + bytes([len(raw)]) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))
        self.write(head + raw)
        self.memoize(value)

    dispatch[str] = save_python2_str
    dispatch[bytes] = save_python2_str


@contextmanager
def _chumpy_names() -> Iterator[tuple[type, type]]:
    """Classes that pickle as chumpy.ch.Ch and chumpy.reordering.Select, for as long as the block lasts."""
    modules = {name: types.ModuleType(name) for name in ("chumpy", "chumpy.ch", "chumpy.reordering")}
    ch = type("Ch", (), {"__module__": "chumpy.ch"})
    select = type("Select", (ch,), {"__module__": "chumpy.reordering"})
    modules["chumpy.ch"].Ch = ch  # type: ignore[attr-defined]
    modules["chumpy.reordering"].Select = select  # type: ignore[attr-defined]
    shadowed = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield ch, select
    finally:
        for name, module in shadowed.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


def mano_pickle(arrays: dict[str, np.ndarray], protocol: int = 2, python2: bool = False) -> bytes:
    """The bytes of a pickle typed like MANO_RIGHT.pkl.

    `shapedirs` is a chumpy Select of the first ten of twenty directions, `J_regressor` a scipy CSC matrix.
    """
    with _chumpy_names() as (ch, select):
        full = np.concatenate([arrays["shapedirs"], np.full_like(arrays["shapedirs"], 7.0)], 2)
        everything: Any = ch()
        everything.__dict__.update(x=full, _dirty_vars=set(), _itr=None, _depends_on_deps={}, _status="new")
        part: Any = select()
        indices = np.arange(full.size).reshape(full.shape)[:, :, :10].ravel()
        part.__dict__.update(a=everything, idxs=indices, preferred_shape=(778, 3, 10), _dirty_vars={"a"}, _itr=None)
        content: dict[str, Any] = dict(arrays)
        content.update(
            shapedirs=part,
            J_regressor=scipy.sparse.csc_matrix(arrays["J_regressor"]),
            bs_style="lbs",
            bs_type="lrotmin",
        )
        if not python2:
            return pickle.dumps(content, protocol)
        buffer = io.BytesIO()
        _Python2Pickler(buffer, 2).dump(content)
    # Protocol 2 writes module names as lines of text, so that they may change length.
    data = buffer.getvalue().replace(b"cnumpy._core.", b"cnumpy.core.")
    return data.replace(b"cscipy.sparse._csc\n", b"cscipy.sparse.csc\n")


def plain_pickle(arrays: dict[str, np.ndarray]) -> bytes:
    """A pickle of bare arrays, which smplx itself can load."""
    return pickle.dumps({**arrays, "bs_style": "lbs", "bs_type": "lrotmin"}, 4)
