"""Contact sheets for looking at the hand: ``python -m tools.build_hand.render OUT.png [--model PATH] [--wire]``."""

import argparse
import json
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image, ImageDraw

from tools.build_hand.lbs import HandModel, load_model, pose_mesh
from tools.build_hand.skeleton import Array, Indices

DATA = Path(__file__).resolve().parents[2] / "handloop" / "hand" / "data"
SKIN = np.array([226.0, 182.0, 152.0])
# Two lights fixed to the viewer: a key light from the upper left and a weak one from the right.
LIGHTS = ((np.array([-0.45, 0.6, 0.66]), 0.75), (np.array([0.8, -0.1, 0.6]), 0.25))

# Name, direction from the hand to the viewer, up.
SIDES: tuple[tuple[str, tuple[float, float, float], tuple[float, float, float]], ...] = (
    ("back", (0, 1, 0), (-1, 0, 0)),
    ("palm", (0, -1, 0), (-1, 0, 0)),
    ("thumb side", (0, 0, 1), (-1, 0, 0)),
    ("little side", (0, 0, -1), (-1, 0, 0)),
    ("fingertips", (-1, 0.25, 0), (0, 1, 0)),
    ("wrist", (1, 0.25, 0), (0, 1, 0)),
    ("oblique back", (0.2, 0.8, 0.7), (-1, 0, 0)),
    ("oblique palm", (-0.3, -0.8, 0.6), (-1, 0, 0)),
)


def render(
    vertices: Array, faces: Indices, view: tuple[float, float, float], up: tuple[float, float, float], wire: bool
) -> Image.Image:
    """Orthographic ray cast, 23 cm wide, smooth or wire-over-flat shading."""
    size, width = 420, 0.23
    back = np.array(view, dtype=float) / np.linalg.norm(view)
    right = np.cross(np.array(up, dtype=float), back)
    right /= np.linalg.norm(right)
    camera = np.stack([right, np.cross(back, right), back])
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    centre = vertices.min(axis=0) / 2 + vertices.max(axis=0) / 2
    grid = (np.arange(size) + 0.5) / size * width - width / 2
    u, v = np.meshgrid(grid, -grid)
    origins = centre + u.reshape(-1, 1) * camera[0] + v.reshape(-1, 1) * camera[1] + 0.4 * back
    hits, rays, triangles = mesh.ray.intersects_location(
        origins, np.tile(-back, (len(origins), 1)), multiple_hits=False
    )
    corners = mesh.triangles[triangles]
    weights = trimesh.triangles.points_to_barycentric(corners, hits)  # type: ignore[no-untyped-call]
    normals = mesh.face_normals[triangles]
    facing = normals @ back
    if not wire:
        normals = (mesh.vertex_normals[faces[triangles]] * weights[:, :, None]).sum(axis=1)
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    shade = np.full(len(hits), 0.22)
    for light, strength in LIGHTS:
        shade += strength * np.maximum((normals @ camera.T) @ (light / np.linalg.norm(light)), 0.0)
    colour = SKIN * np.minimum(shade, 1.15)[:, None]
    # The inside of the skin, seen through the wrist's opening or where the surface is turned over, is blue.
    colour = np.where((facing < 0)[:, None], np.array([70.0, 80.0, 130.0]), colour)
    if wire:
        heights = weights * 2 * mesh.area_faces[triangles, None]
        opposite = np.linalg.norm(np.roll(corners, -1, axis=1) - np.roll(corners, 1, axis=1), axis=2)
        colour[(heights / opposite).min(axis=1) < 0.00025] *= 0.45
    image = np.full((size * size, 3), 255.0)
    image[rays] = np.clip(colour, 0, 255)
    return Image.fromarray(image.reshape(size, size, 3).astype(np.uint8))


def contact_sheet(tiles: list[tuple[str, Image.Image]], n_columns: int) -> Image.Image:
    """Named tiles in rows."""
    size = tiles[0][1].size[0]
    n_rows = -(-len(tiles) // n_columns)
    sheet = Image.new("RGB", (size * n_columns, size * n_rows), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, tile) in enumerate(tiles):
        corner = (size * (i % n_columns), size * (i // n_columns))
        sheet.paste(tile, corner)
        draw.text((corner[0] + 6, corner[1] + 4), name, fill=(40, 40, 40))
    return sheet


def rest_tiles(model: HandModel, wire: bool) -> list[tuple[str, Image.Image]]:
    """The resting hand from all sides."""
    return [(name, render(model.v_template, model.faces, view, up, wire)) for name, view, up in SIDES]


def posture_tiles(model: HandModel, postures: dict[str, list[float]]) -> list[tuple[str, Image.Image]]:
    """Every posture from the palm's thumb side and from the back."""
    tiles = []
    for name, pose in postures.items():
        vertices = pose_mesh(model, np.array(pose))
        for index in (7, 6):
            tiles.append((name, render(vertices, model.faces, SIDES[index][1], SIDES[index][2], False)))
    return tiles


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path, default=DATA / "embedded_right.npz")
    parser.add_argument("--wire", action="store_true")
    parser.add_argument("--postures", action="store_true", help="show the posture library instead of the resting hand")
    options = parser.parse_args()
    model = load_model(options.model)
    if options.postures:
        postures = json.loads((DATA / "postures.json").read_text())
        contact_sheet(posture_tiles(model, postures), 8).save(options.out)
    else:
        contact_sheet(rest_tiles(model, options.wire), 4).save(options.out)


if __name__ == "__main__":
    main()
