"""Arrays of another pipeline in, MANO parameters, joints and meshes out: one call."""

from pathlib import Path

import numpy as np

import handloop

detections = np.load(Path(__file__).resolve().parent / "data" / "hands.npz")

result = handloop.fit(
    detections["keypoints_2d"],  # (N, 21, 3): x, y in px and confidence, OpenPose order.
    K=detections["K"],  # (3, 3), or one per hand.
    is_right=detections["is_right"],
    image_size=detections["image_size"],  # (width, height).
)

print("hand_pose", tuple(result.params.hand_pose.shape), "axis-angle, rad, flat mean, smplx's order")
print("joints", tuple(result.joints.shape), "m, camera frame, OpenPose order")
print("vertices", tuple(result.vertices().shape), "m, camera frame")
print("status", {s.name.lower(): int((result.status == s).sum()) for s in handloop.Status})

# These hands are synthetic, so the truth is known: distances of the joints with the wrists laid upon each other.
found, truth = result.joints.numpy(), detections["joints_3d"]
error_mm = 1000 * np.linalg.norm((found - found[:, :1]) - (truth - truth[:, :1]), axis=-1).mean(1)
print(f"median joint error {np.median(error_mm):.1f} mm, median reprojection error {result.rms_px.median():.1f} px")
