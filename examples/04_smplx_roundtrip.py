"""The parameters are smplx's: `smplx.MANO` makes the same mesh from results.npz.

Needs the package smplx (`pip install smplx`). The hand is the embedded one, written as the file that smplx
reads; with MANO's own file, name that in both places.
"""

import pickle
import tempfile
from pathlib import Path

import numpy as np
import torch

import handloop

DATA = Path(__file__).resolve().parent / "data"


def main() -> None:
    try:
        import smplx
    except ImportError:
        print("smplx is not installed, nothing to compare with")
        return
    pair = handloop.load_hand("embedded")
    read = handloop.read_keypoints(DATA / "hands.npz")
    result = handloop.fit(read.keypoints, read.camera, hand=pair)
    saved = np.load(result.save("out/example_04"))

    worst = 0.0
    for is_right in (True, False):
        rows = saved["is_right"] == is_right
        with tempfile.TemporaryDirectory() as folder:
            path = write_for_smplx(pair.side(is_right), Path(folder) / "model.pkl")
            model = smplx.MANO(str(path), is_rhand=is_right, use_pca=False, flat_hand_mean=True, dtype=torch.float64)
        names = ("global_orient", "hand_pose", "betas", "transl")
        with torch.no_grad():
            mesh = model(**{name: torch.from_numpy(saved[name][rows]) for name in names}).vertices
        worst = max(worst, float((mesh - result.vertices()[torch.from_numpy(rows)]).abs().max()))
    print(f"{len(saved['id'])} hands: the meshes differ by at most {worst:.1e} m")
    if worst > 1e-5:
        raise SystemExit("smplx makes another mesh")


def write_for_smplx(hand: handloop.Hand, path: Path) -> Path:
    """A hand in the layout of MANO_RIGHT.pkl."""
    arrays = {
        "v_template": hand.v_template,
        "shapedirs": hand.shapedirs,
        "posedirs": hand.posedirs,
        "J_regressor": hand.j_regressor,
        "weights": hand.weights,
        "f": hand.faces.astype(np.uint32),
        "kintree_table": np.array([[2**32 - 1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14], range(16)]),
        "hands_components": hand.hands_components,
        "hands_mean": hand.hands_mean,
    }
    path.write_bytes(pickle.dumps(arrays))
    return path


if __name__ == "__main__":
    main()
