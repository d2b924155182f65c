"""`open_pictures`: a folder in, the hands of whichever data set it is out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from handloop.core.errors import FileFormatError, InputError
from handloop.formats.datasets import coco_set, freihand, hiu, ho3d, interhand_set, onehand10k, panoptic, rhd, stb
from handloop.formats.datasets.gather import Gathered
from handloop.formats.picture_set import PictureSet


@dataclass(frozen=True)
class Layout:
    """How a data set's folder looks and is read."""

    name: str
    found: Callable[[Path], bool]
    """Whether a folder is one; looks at names and at the start of files only."""
    read: Callable[[Gathered], None]
    expected: str
    """The files that make it one, for messages."""


# The general layout comes last: it would take mmpose's JSON of the others.
LAYOUTS = tuple(
    Layout(name, module.found, module.read, module.EXPECTED)
    for name, module in (
        ("FreiHAND", freihand),
        ("InterHand2.6M", interhand_set),
        ("HO-3D", ho3d),
        ("RHD", rhd),
        ("STB", stb),
        ("OneHand10K", onehand10k),
        ("CMU Panoptic hands", panoptic),
        ("HIU-DMTL", hiu),
        ("COCO-style hands", coco_set),
    )
)


def recognise(folder: Path, layouts: Sequence[Layout] = LAYOUTS) -> Layout | None:
    """Which data set a folder is, None for none of `layouts`."""
    for layout in layouts:
        try:
            if layout.found(folder):
                return layout
        except OSError:
            continue
    return None


def read_layout(folder: Path, layout: Layout) -> PictureSet:
    """All hands of a recognised folder; files that cannot be used are named in `problems`."""
    gathered = Gathered(folder)
    with gathered.naming(folder):
        layout.read(gathered)
    return PictureSet.from_samples(
        layout.name, gathered.samples, gathered.mean_relative, gathered.problems, gathered.notes
    )


def open_pictures(folder: str | Path, split: str | None = None) -> PictureSet:
    """The hands of a data set in its published folder layout; pictures are loaded when asked for.

    Args:
        folder: the data set's own folder, or one that holds nothing but it.
        split: only this part, in the data set's own word ("training", "evaluation", "train", "test", "val", ...).

    Returns:
        All hands in canonical order, px, m and OpenCV camera axes; damaged files are named in its `problems`.

    Raises:
        InputError: no folder, no known data set, or no such part.
        FileFormatError: a known data set, none of whose files can be read.
    """
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{path}: there is no such folder; give the folder of a data set of pictures.")
    layout = recognise(path)
    if layout is None:
        inside = [(p, recognise(p)) for p in sorted(path.iterdir()) if p.is_dir()]
        known = [(p, found) for p, found in inside if found is not None]
        if len(known) > 1:
            names = ", ".join(f"{p.name} ({found.name})" for p, found in known)
            raise InputError(f"{path}: it holds several data sets, {names}; give one of them.")
        if not known:
            wanted = "; ".join(f"{layout.name}: {layout.expected}" for layout in LAYOUTS)
            raise InputError(f"{path}: this is no known data set of pictures; expected one of: {wanted}.")
        path, layout = known[0]
    pictures = read_layout(path, layout)
    if not len(pictures) and pictures.problems:
        first = pictures.problems[0]
        raise FileFormatError(f"{path}: no hand of {layout.name} could be read; {first.path}: {first.message}")
    return pictures if split is None else pictures.only(split)
