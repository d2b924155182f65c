"""`handloop doctor`: what is installed, where it runs, and whether the MANO file is what it should be."""

from __future__ import annotations

import platform
import time
from importlib import metadata

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from handloop._version import __version__
from handloop.api import fit
from handloop.core.errors import ModelError
from handloop.core.joints import FINGERS, TIP_SETS
from handloop.hand.load import load_hand
from handloop.hand.model import Hand, HandPair

_PACKAGES = ("torch", "numpy", "scipy", "numba", "trimesh", "embreex", "plotly", "tyro", "rich", "pillow", "smplx")


def run_doctor(mano: str | None) -> int:
    """Print the findings; returns 0, or 1 where a named MANO file cannot be used."""
    console = Console(highlight=False)
    console.print(
        f"handloop {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    console.print(", ".join(f"{name} {_version(name)}" for name in _PACKAGES))
    if torch.cuda.is_available():
        console.print(f"device: cuda ({torch.cuda.get_device_name()}) and cpu ({torch.get_num_threads()} threads)")
    else:
        console.print(f"device: cpu ({torch.get_num_threads()} threads); torch finds no CUDA device")
    try:
        pair = load_hand(mano)
    except ModelError as error:
        console.print(f"hand model: {error}", style="red", markup=False)
        return 1
    _describe(console, pair)
    started = time.monotonic()
    fit(np.zeros((1, 21, 2)) + np.arange(21)[:, None], hand=pair, device="cpu")
    console.print(f"the compiled fit is ready (first fit of this process: {time.monotonic() - started:.1f} s)")
    return 0


def tip_distances(hand: Hand) -> dict[str, np.ndarray]:
    """(5,) mm from the hand's own fingertip vertices to those of every tip set, on the rest mesh."""
    own = hand.v_template[hand.tip_ids]
    return {name: 1000 * np.linalg.norm(hand.v_template[list(ids)] - own, axis=1) for name, ids in TIP_SETS.items()}


def _describe(console: Console, pair: HandPair) -> None:
    for hand in (pair.right, pair.left):
        side = "right" if hand.is_right else "left"
        poses = len(hand.hands_coeffs)
        length = np.linalg.norm(np.diff(_middle_chain(hand), axis=0), axis=1).sum() * 1000
        console.print(
            f"{side}: {hand.name}, digest {hand.digest}, {poses} poses, wrist to middle fingertip {length:.0f} mm",
            markup=False,
        )
        for note in hand.notes:
            console.print(f"  note: {note}", style="yellow", markup=False)
    if not pair.right.licensed:
        console.print("  this is the embedded hand; name a MANO file with --mano or HANDLOOP_MANO to use that.")
    table = Table(title=f"fingertip vertices of other tools, mm from the tip set in use ({pair.right.tip_set})")
    table.add_column("tip set")
    for finger in FINGERS:
        table.add_column(finger, justify="right")
    for name, distances in tip_distances(pair.right).items():
        table.add_row(name, *(f"{d:.1f}" for d in distances))
    console.print(table)


def _middle_chain(hand: Hand) -> np.ndarray:
    return np.concatenate([hand.joints_rest[[0, 4, 5, 6]], hand.v_template[hand.tip_ids[2:3]]])


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"
