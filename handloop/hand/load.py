"""Find the hand models to use: the user's MANO files, or the embedded hand; both sides of them."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from handloop.core.errors import InputError, ModelError
from handloop.core.joints import TIP_SETS
from handloop.hand.mano_file import WHERE_TO_GET_IT, LeftShapedirs, hand_from_arrays, read_mano, with_digest
from handloop.hand.model import Hand, HandPair
from handloop.hand.side import repair_left_shapedirs, side_of_name

ENVIRONMENT_VARIABLE = "HANDLOOP_MANO"
"""Names the MANO file or folder where no path is given."""

EMBEDDED = "embedded"
"""The path that asks for the embedded hand even where the environment variable is set."""

_LAYOUTS = (
    *("", "mano", "models", "models/mano", "mano/models"),  # the file's folder; smplx; manopth
    *("_DATA/data/mano", "data/mano", "mano_data"),  # HaMeR, WiLoR
    *("mano_v1_2/models", "mano/mano_v1_2/models"),  # the official archive
)
"""Folders that known tools keep the files in, below the folder they are given; upper and lower case are the same."""

_SUFFIXES = (".pkl", ".npz")


def load_hand(
    path: str | os.PathLike[str] | None = None, tip_set: str = "smplx", left_shapedirs: LeftShapedirs = "repair"
) -> HandPair:
    """The hand models of both sides.

    Args:
        path: a MANO file (its other side is the file beside it, else its mirror image); a folder in the layout of
            smplx, manopth, HaMeR or the official archive; "embedded" for handloop's own hand; None for what the
            environment variable HANDLOOP_MANO names, or the embedded hand where it is not set.
        tip_set: which vertices are fingertips, a key of `core.joints.TIP_SETS`.
        left_shapedirs: "repair" or "as-file", see `read_mano`.

    Raises:
        ModelError: no file there, a damaged one, or one of another kind.
        InputError: an unknown tip set or option.
    """
    if tip_set not in TIP_SETS:
        raise InputError(f"the tip set {tip_set!r} is unknown, expected one of {', '.join(TIP_SETS)}.")
    if left_shapedirs not in ("repair", "as-file"):
        raise InputError(f"left_shapedirs is {left_shapedirs!r}, expected 'repair' or 'as-file'.")
    origin = ""
    if path is None:
        path = os.environ.get(ENVIRONMENT_VARIABLE) or EMBEDDED
        origin = f" (from {ENVIRONMENT_VARIABLE})"
    if str(path) == EMBEDDED:
        return embedded_hand(tip_set)
    given = Path(path).expanduser()
    if given.is_dir():
        return _load_folder(given, tip_set, left_shapedirs, origin)
    if not given.is_file():
        raise ModelError(_missing(f"{given}{origin} does not exist", [given]))
    return _load_files([given, *_siblings(given)], tip_set, left_shapedirs)


def embedded_hand(tip_set: str = "smplx") -> HandPair:
    """handloop's own hand, which needs no licence; the left side is its mirror image.

    Raises:
        ModelError: the installation lacks the file.
    """
    asset = resources.files("handloop.hand").joinpath("data/embedded_right.npz")
    if not asset.is_file():
        raise ModelError(
            "the embedded hand (handloop/hand/data/embedded_right.npz) is missing from this installation; "
            "install handloop again, or run tools/build_hand in a source checkout."
        )
    with np.load(io.BytesIO(asset.read_bytes()), allow_pickle=False) as data:
        entries: dict[str, object] = {key: data[key] for key in data.files}
    right = with_digest(hand_from_arrays(entries, str(asset), str(entries.get("handloop_model", EMBEDDED)), tip_set))
    return HandPair(right, mirror_hand(right))


def mirror_hand(hand: Hand) -> Hand:
    """The same hand in a mirror (x negated): the model of the other side.

    Posed with mirrored parameters (`HandParams.mirrored`) it gives the mirrored vertices: positions change sign in x,
    rotations R become S R S with S = diag(-1, 1, 1), and betas and PCA coefficients stay.
    """
    s = np.array([-1.0, 1.0, 1.0])
    # The pose blend shapes multiply entries (a, b) of R - I, which change sign as s_a s_b.
    feature = np.tile(np.outer(s, s).ravel(), 15)
    turn = np.tile([1.0, -1.0, -1.0], 15)
    name = hand.name.removesuffix(" (mirrored)") if hand.name.endswith(" (mirrored)") else f"{hand.name} (mirrored)"
    mirrored = replace(
        hand,
        name=name,
        is_right=not hand.is_right,
        v_template=hand.v_template * s,
        shapedirs=hand.shapedirs * s[:, None],
        posedirs=hand.posedirs * s[:, None] * feature,
        faces=np.ascontiguousarray(hand.faces[:, [0, 2, 1]]),
        hands_mean=hand.hands_mean * turn,
        hands_components=hand.hands_components * turn,
    )
    return with_digest(mirrored)


def _load_folder(folder: Path, tip_set: str, left_shapedirs: LeftShapedirs, origin: str) -> HandPair:
    searched: list[Path] = []
    for layout in _LAYOUTS:
        place = _descend(folder, layout)
        if place is None:
            searched.append(folder / layout)
            continue
        searched.append(place)
        names = [item.name for item in _contents(place) if item.is_file()]
        found = [_pick(names, side) for side in ("right", "left")]
        if any(found):
            return _load_files([place / name for name in found if name is not None], tip_set, left_shapedirs)
    raise ModelError(_missing(f"no MANO_RIGHT.pkl or MANO_LEFT.pkl in {folder}{origin}", searched))


def _descend(folder: Path, layout: str) -> Path | None:
    """The folder below `folder` that matches `layout` but for upper and lower case."""
    place = folder
    for part in filter(None, layout.split("/")):
        exact = place / part
        if not exact.is_dir():
            matches = [item for item in _contents(place) if item.is_dir() and item.name.lower() == part.lower()]
            if not matches:
                return None
            exact = matches[0]
        place = exact
    return place


def _contents(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise ModelError(f"{folder}: the folder cannot be read ({error.strerror or error}).") from error


def _pick(names: Iterable[str], side: str) -> str | None:
    """The file called MANO_RIGHT.pkl or .npz (`side` "right") among `names`, whatever its case; pkl first."""
    by_name = {name.lower(): name for name in names}
    return next((by_name[f"mano_{side}{suffix}"] for suffix in _SUFFIXES if f"mano_{side}{suffix}" in by_name), None)


def _siblings(path: Path) -> list[Path]:
    """The other side's file in the same folder, if any: the same name with RIGHT and LEFT exchanged."""
    is_right = side_of_name(path)
    if is_right is None:
        return []
    old, new = ("right", "left") if is_right else ("left", "right")
    wanted = {re.sub(old, new, path.stem.lower()) + suffix: i for i, suffix in enumerate((path.suffix, *_SUFFIXES))}
    found = sorted(
        (wanted[item.name.lower()], item)
        for item in _contents(path.absolute().parent)
        if item.name.lower() in wanted and item.is_file()
    )
    return [path.parent / found[0][1].name] if found else []


def _load_files(paths: list[Path], tip_set: str, left_shapedirs: LeftShapedirs) -> HandPair:
    """One or two files, whatever their order; a missing side is the other's mirror image."""
    hands = [read_mano(path, "as-file", tip_set) for path in paths]
    if len(hands) == 2 and hands[0].is_right == hands[1].is_right:
        side = "right" if hands[0].is_right else "left"
        raise ModelError(
            f"{paths[0]} and {paths[1]} both hold a {side} hand. Put the true file in place of the wrong one, "
            "or remove it: the missing side will be the mirror image."
        )
    right = next((hand for hand in hands if hand.is_right), None)
    left = next((hand for hand in hands if not hand.is_right), None)
    if left is not None and left_shapedirs == "repair":
        left = with_digest(repair_left_shapedirs(replace(left, left_shapedirs="none"), right))
    if right is not None:
        return HandPair(right, left if left is not None else mirror_hand(right))
    assert left is not None
    return HandPair(replace(mirror_hand(left), left_shapedirs="none"), left)


def _missing(what: str, searched: list[Path]) -> str:
    places = "\n".join(f"  {place}" for place in searched)
    return (
        f"{what}. To get it, {WHERE_TO_GET_IT}, file MANO_RIGHT.pkl; then name the file or its folder with --mano or "
        f"the environment variable {ENVIRONMENT_VARIABLE}. Without them the embedded hand is used.\nSearched:\n{places}"
    )
