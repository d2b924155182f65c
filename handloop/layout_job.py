"""The job behind `handloop layout`: learn a keypoint layout and say how well it went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from handloop.core.errors import InputError
from handloop.core.joints import JOINT_NAMES
from handloop.core.layout import KeypointLayout
from handloop.fitting.learn_layout import learn_from_joints
from handloop.fitting.learn_layout_2d import learn_from_keypoints
from handloop.formats import ReadResult, read_camera, read_keypoints
from handloop.hand.load import load_hand

if TYPE_CHECKING:
    from handloop.commands import LayoutCommand


def run_layout(command: LayoutCommand) -> int:
    """Learn, write, report; returns 0, or 1 where the data cannot identify a layout."""
    console = Console(highlight=False)
    hand = load_hand(command.mano).right
    read = read_keypoints([command.source])
    for problem in read.problems:
        console.print(f"problem: {problem.path}: {problem.message}", style="red", markup=False)
    n = len(read.keypoints)
    if n == 0:
        raise InputError(f"{command.source} holds no hand that can be read.")
    if command.hands < 1:
        raise InputError(f"--hands is {command.hands}, expected a positive number.")
    rows = torch.tensor(np.unique(np.linspace(0, n - 1, min(n, command.hands)).round().astype(np.int64)))
    name = command.source.stem
    if command.from_2d:
        return _from_2d(command, console, read, rows, name)
    if read.truth_joints is None:
        raise InputError(
            f"{command.source} holds no joints_3d; give an npz with joints_3d (N,21,3) in m, or learn with --from-2d."
        )
    learned = learn_from_joints(hand, read.truth_joints[rows], read.keypoints.is_right[rows], name)
    console.print(
        f"{len(rows)} hands with 3D: the model's own points miss the source's by {learned.error_mm[0]:.1f} mm on "
        f"average, with the layout by {learned.error_mm[-1]:.1f} mm."
    )
    _write(command, console, learned.layout)
    return 0


def _from_2d(command: LayoutCommand, console: Console, read: ReadResult, rows: torch.Tensor, name: str) -> int:
    camera = read.camera
    if command.camera is not None:
        camera = read_camera(command.camera).select(torch.zeros(len(read.keypoints), dtype=torch.int64))
    if camera is None or not bool(camera.is_known()[rows].all()):
        raise InputError(
            "a layout from 2D needs known cameras, because a wrong focal length would be taken for a layout: "
            "give --camera, or K in the npz."
        )
    with console.status("learning the layout from 2D") as status:
        found = learn_from_keypoints(
            load_hand(command.mano).right,
            read.keypoints.select(rows),
            camera.select(rows),
            name,
            progress=lambda round_, energy: status.update(f"round {round_}: mean energy {energy:.1f}"),
        )
    if found.refused:
        console.print(f"no layout: {found.refused}", style="red", markup=False)
        return 1
    console.print(
        f"{len(rows)} hands in 2D: the mean energy fell from {found.energy[0]:.1f} to {found.energy[-1]:.1f} "
        f"in {len(found.energy) - 1} rounds."
    )
    _write(command, console, found.layout)
    return 0


def _write(command: LayoutCommand, console: Console, layout: KeypointLayout) -> None:
    command.out.parent.mkdir(parents=True, exist_ok=True)
    layout.save(command.out)
    table = Table(
        title="offsets of the source's points from the model's, mm (proximal, dorsal, radial in the rest pose)"
    )
    for column in ("point", "x", "y", "z", "distance"):
        table.add_column(column, justify="left" if column == "point" else "right")
    for point, offset in zip(JOINT_NAMES, 1000 * layout.offsets, strict=True):
        table.add_row(point, *(f"{v:.1f}" for v in offset.tolist()), f"{float(offset.norm()):.1f}")
    console.print(table)
    console.print(f"written to {command.out}; use it with: handloop fit ... --layout {command.out}", markup=False)
