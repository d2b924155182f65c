"""``python -m tools.build_hand [--out PATH]``: write the embedded hand and the posture library."""

import argparse
import json
import os
from pathlib import Path

import numpy as np

from tools.build_hand.numbering import number_vertices
from tools.build_hand.postures import LIBRARY, MAX_ANGLE, library_angles, sample_angles, to_axis_angle
from tools.build_hand.remesh import remesh
from tools.build_hand.shape_space import joint_regressor, shape_directions
from tools.build_hand.skeleton import PARENTS, build_skeleton
from tools.build_hand.skinning import pose_blend_shapes, skinning_weights
from tools.build_hand.surface import HandSurface

DATA = Path(__file__).resolve().parents[2] / "handloop" / "hand" / "data"
SEED = 20260211
MM = 1e-3
ROOT_PARENT = 2**32 - 1
"""MANO's kintree_table marks the root's parent with the largest uint32."""


def build() -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """All arrays of the asset, and the posture library as flat-mean axis-angle."""
    skeleton = build_skeleton()
    surface = HandSurface(skeleton)
    vertices, faces = number_vertices(*remesh(skeleton, surface), skeleton)
    vertices = np.round(vertices, 4)
    weights = skinning_weights(vertices, faces, skeleton, surface)
    by_vertex, by_joint = shape_directions(vertices, weights, skeleton)
    regressor, by_vertex = joint_regressor(vertices, weights, skeleton, by_vertex, by_joint)

    poses = to_axis_angle(sample_angles(np.random.default_rng(SEED)), skeleton)
    if np.linalg.norm(poses.reshape(-1, 3), axis=1).max() > MAX_ANGLE:
        raise ValueError(f"a sampled joint turns by more than {MAX_ANGLE} rad")
    mean = poses.mean(axis=0)
    _, _, components = np.linalg.svd(poses - mean, full_matrices=False)
    # The sign of a principal direction is free: make the largest entry positive, whatever the linear algebra library
    # does.
    largest = components[np.arange(45), np.abs(components).argmax(axis=1)]
    components = components * np.sign(largest)[:, None]
    posedirs = pose_blend_shapes(vertices, weights, skeleton.joints, poses, ridge=1e-3)

    table = np.array([[p if p >= 0 else ROOT_PARENT for p in PARENTS], range(16)], dtype=np.int64)
    asset = {
        "v_template": vertices * MM,
        "f": faces.astype(np.uint32),
        "shapedirs": by_vertex * MM,
        "posedirs": np.round(posedirs * MM, 6),
        "J_regressor": regressor,
        "weights": weights,
        "J": skeleton.joints * MM,
        "kintree_table": table,
        "hands_mean": mean,
        "hands_components": components,
        "hands_coeffs": (poses - mean) @ components.T,
        "bs_style": np.array("lbs"),
        "bs_type": np.array("lrotmin"),
        "handloop_model": np.array("embedded-hand v1"),
    }
    library = to_axis_angle(library_angles(), skeleton)
    return asset, {name: np.round(row, 4).tolist() for name, row in zip(LIBRARY, library, strict=True)}


def write(out: Path) -> None:
    """Build and write both files; each appears whole or not at all, because others may be reading."""
    asset, postures = build()
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, allow_pickle=False, **asset)
    os.replace(temporary, out)
    temporary = out.with_name("postures.tmp.json")
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in postures.items())
    temporary.write_text("{\n" + lines + "\n}\n")
    os.replace(temporary, out.with_name("postures.json"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=DATA / "embedded_right.npz", help="postures.json goes beside it")
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
