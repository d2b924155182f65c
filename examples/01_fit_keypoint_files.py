"""Fit the hands of keypoint files: read, fit, save, draw.

What `handloop fit examples/data/openpose --out out/example_01 --save overlays` does, in the library's own calls.
"""

from pathlib import Path

import handloop
from handloop.view.overlay import write_overlays

DATA = Path(__file__).resolve().parent / "data"
OUT = Path("out/example_01")


def main() -> None:
    # OpenPose's JSON gives the sides, the pictures beside the files give their sizes.
    read = handloop.read_keypoints(DATA / "openpose")
    for problem in read.problems:
        print(f"{problem.path}: {problem.message}")

    # Nothing says what the camera is, so a focal length is assumed: good poses, but depth is not metric.
    hand = handloop.load_hand()
    result = handloop.fit(read.keypoints, hand=hand)

    for id_, error, status in zip(read.keypoints.ids, result.rms_px.tolist(), result.status.tolist(), strict=True):
        print(f"{id_:<24} {error:4.1f} px  {handloop.Status(status).name.lower()}")
    print(f"saved {result.save(OUT)}")
    drawings = write_overlays(result, hand.right.faces, hand.left.faces, OUT / "overlays")
    print(f"drew {len(drawings)} overlays in {OUT / 'overlays'}")


if __name__ == "__main__":
    main()
