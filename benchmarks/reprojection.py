"""How closely do fits meet real keypoints? Reprojection error as a share of the hand's box, per input.

python -m benchmarks.reprojection FOLDER_OR_FILE ... [--image-size W H]
"""

from __future__ import annotations

import argparse

from handloop.api import fit
from handloop.core.camera import Camera
from handloop.formats import ReadOptions, read_keypoints


def main() -> None:
    """Print a line per input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--image-size", nargs=2, type=float, default=None)
    options = parser.parse_args()
    size = None if options.image_size is None else (options.image_size[0], options.image_size[1])
    for name in options.inputs:
        read = read_keypoints([name], ReadOptions(image_size=size))
        keypoints = read.keypoints
        if len(keypoints) == 0:
            print(f"{name}: no hands")
            continue
        camera = read.camera or Camera.assumed(keypoints.image_size, keypoints.box())
        result = fit(keypoints, camera)
        share = 100 * (result.rms_px / keypoints.box_size())[result.fitted()].double()
        print(
            f"{name}: {len(keypoints)} hands, {int(result.fitted().sum())} fitted, "
            f"median {float(share.quantile(0.5)):.2f} %, worst {float(share.max()):.2f} % of the box"
        )


if __name__ == "__main__":
    main()
