"""The README's picture: some overlays of `make demo` side by side (`python -m tools.readme_picture`)."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

_HANDS = ("00_spread", "02_victory", "03_ok", "05_asl_y", "06_four", "17_rock", "tasks_00_thumbs", "07_cylinder")
_SIDE = 300


def main() -> None:
    """Paste the overlays in out/demo/overlays whose names begin so into docs/images/demo.jpg."""
    names = sorted(Path("out/demo/overlays").glob("*.png"))
    chosen = [next(name for name in names if name.name.startswith(prefix)) for prefix in _HANDS]
    sheet = Image.new("RGB", (4 * _SIDE, 2 * _SIDE), (236, 238, 242))
    for i, path in enumerate(chosen):
        with Image.open(path) as picture:
            tile = picture.convert("RGB")
            tile.thumbnail((_SIDE, _SIDE))
            left = (i % 4) * _SIDE + (_SIDE - tile.width) // 2
            sheet.paste(tile, (left, (i // 4) * _SIDE + (_SIDE - tile.height) // 2))
    sheet.save("docs/images/demo.jpg", quality=88)


if __name__ == "__main__":
    main()
