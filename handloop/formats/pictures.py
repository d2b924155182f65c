"""Pairing keypoint files with pictures by name, and the pictures' sizes."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

# EXIF's orientation tag; its values 5 to 8 turn the picture by a quarter.
_ORIENTATION = 0x0112


class Pictures:
    """Finds pictures and their sizes; each folder is listed once and each picture opened once."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: where to look; None looks beside each keypoint file."""
        self._folder = folder
        self._listing = cache(_list_pictures)
        self.size = cache(picture_size)

    def pair(self, path: Path) -> str:
        """The picture of a keypoint file ("" for none): NAME_keypoints.json or NAME.json to NAME.jpg."""
        listing = self._listing(str(self._folder if self._folder is not None else path.parent))
        for stem in (base_stem(path.name), path.stem):
            if stem in listing:
                return listing[stem]
        return ""

    def resolve(self, name: str, path: Path) -> str:
        """A picture as written inside the file `path`: relative to it, or in the folder, or as it stands."""
        if not name:
            return ""
        places = [path.parent / name]
        if self._folder is not None:
            places += [self._folder / name, self._folder / Path(name).name]
        return next((str(p) for p in places if _is_file(p)), name)


def base_stem(name: str) -> str:
    """A file name without its last suffix and without OpenPose's "_keypoints"."""
    return os.path.splitext(name)[0].removesuffix("_keypoints")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # Names from files can be too long or hold a zero byte.
        return False


def _list_pictures(folder: str) -> dict[str, str]:
    """Picture paths by stem; {} for a folder that cannot be listed."""
    try:
        names = sorted(os.listdir(folder), reverse=True)
    except OSError:
        return {}
    pairs = ((os.path.splitext(name), name) for name in names)
    return {stem: os.path.join(folder, name) for (stem, end), name in pairs if end.lower() in PICTURE_SUFFIXES}


def picture_size(path: str) -> tuple[float, float] | None:
    """Width and height in px as tools that honour EXIF's orientation see it; None when it cannot be read."""
    try:
        from PIL import Image
    except ImportError:
        return None
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            # Only JPEG carries it in practice, and other kinds would be decoded in full to look.
            turned = picture.format == "JPEG" and picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # Damaged pictures raise many kinds; a size that cannot be read is unknown.
        return None
    return (float(height), float(width)) if turned else (float(width), float(height))
