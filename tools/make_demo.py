"""Write the bundled examples: ``python -m tools.make_demo [FOLDER]`` (examples/data by default).

Everything in them is made here, from the embedded hand and a fixed seed: OpenPose and MediaPipe files with pictures,
and an npz with cameras and true joints. Run it again whenever the embedded hand changes.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np

from handloop.core.results import save_npz
from handloop.hand.load import embedded_hand
from handloop.hand.model import HandPair
from tools.demo_scene import HEIGHT, WIDTH, SceneHand, camera, make_hand, picture, postures

SEED = 20240611
N_IN_NPZ = 24

# One posture per hand, "R" or "L" for its side; the first of two is on the picture's left.
OPENPOSE = (
    ("spread L",),
    ("point R",),
    ("victory L", "rest R"),
    ("ok R",),
    ("fist L",),
    ("asl_y R",),
    ("four L", "four R"),
    ("cylinder_grasp R",),
)
MEDIAPIPE = (
    ("tasks", ("thumbs_up R",)),
    ("tasks", ("flat L", "pinch R")),
    ("legacy", ("rock L",)),
    ("legacy", ("call L", "victory R")),
)

Json = dict[str, object]


def main(folder: Path) -> None:
    """Write everything afresh below `folder`."""
    pair = embedded_hand()
    rng = np.random.default_rng(SEED)
    for name in ("openpose", "mediapipe"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    for number, wanted in enumerate(OPENPOSE):
        hands = _scene(pair, wanted, rng)
        stem = folder / "openpose" / f"{number:02d}_{_name(hands)}"
        _write(stem.with_name(f"{stem.name}_keypoints.json"), openpose_json(hands))
        stem.with_suffix(".jpg").write_bytes(picture(hands, pair, rng))
    for number, (style, wanted) in enumerate(MEDIAPIPE):
        hands = _scene(pair, wanted, rng)
        stem = folder / "mediapipe" / f"{style}_{number:02d}_{_name(hands)}"
        _write(stem.with_suffix(".json"), tasks_json(hands) if style == "tasks" else legacy_json(hands))
        stem.with_suffix(".jpg").write_bytes(picture(hands, pair, rng))
    _write_npz(folder / "hands.npz", pair, rng)


def _scene(pair: HandPair, wanted: tuple[str, ...], rng: np.random.Generator) -> list[SceneHand]:
    """The hands of one picture, each in its own part of it."""
    edges = np.linspace(0, WIDTH, len(wanted) + 1)
    strips = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    asked = zip((text.split() for text in wanted), strips, strict=True)
    return [make_hand(pair, posture, side == "R", strip, rng) for (posture, side), strip in asked]


def _name(hands: list[SceneHand]) -> str:
    return "_".join(hand.name for hand in hands)


def openpose_json(hands: list[SceneHand]) -> Json:
    """OpenPose 1.3, `--hand --write_json`: one person, the body's points at zero but for the wrists."""
    body = np.zeros((25, 3))
    flat = {"left": np.zeros((21, 3)), "right": np.zeros((21, 3))}
    for hand in hands:
        # BODY_25 has the right wrist at 4 and the left one at 7.
        body[4 if hand.is_right else 7] = hand.keypoints[0]
        flat["right" if hand.is_right else "left"] = hand.keypoints
    person: Json = {
        "person_id": [-1],
        "pose_keypoints_2d": _six_digits(body),
        "face_keypoints_2d": [],
        "hand_left_keypoints_2d": _six_digits(flat["left"]),
        "hand_right_keypoints_2d": _six_digits(flat["right"]),
        **{f"{part}_keypoints_3d": [] for part in ("pose", "face", "hand_left", "hand_right")},
    }
    return {"version": 1.3, "people": [person]}


def _six_digits(points: np.ndarray) -> list[float]:
    """As many digits as C++ streams, and so OpenPose, write."""
    return [float(f"{value:.6g}") for value in points.ravel().tolist()]


def tasks_json(hands: list[SceneHand]) -> Json:
    """The Tasks API's HandLandmarkerResult as `json.dumps` of its dataclasses gives it; sides are the person's."""
    return {
        "handedness": [[_category(i, hand)] for i, hand in enumerate(hands)],
        "hand_landmarks": [
            [{**point, "visibility": 0.0, "presence": 0.0} for point in _normalised(hand)] for hand in hands
        ],
        "hand_world_landmarks": [_about_centre(hand) for hand in hands],
    }


def _category(index: int, hand: SceneHand) -> Json:
    side = "Right" if hand.is_right else "Left"
    score = round(float(hand.keypoints[:, 2].max()), 6)
    return {"index": index, "score": score, "display_name": side, "category_name": side}


def legacy_json(hands: list[SceneHand]) -> Json:
    """`mp.solutions.hands` through MessageToDict, from a program that swapped the labels as its documentation asks."""
    sides = [_category(i, hand) for i, hand in enumerate(hands)]
    return {
        "multi_hand_landmarks": [{"landmark": _normalised(hand)} for hand in hands],
        "multi_hand_world_landmarks": [{"landmark": _about_centre(hand)} for hand in hands],
        "multi_handedness": [
            {"classification": [{"index": s["index"], "score": s["score"], "label": s["category_name"]}]} for s in sides
        ],
    }


def _normalised(hand: SceneHand) -> list[Json]:
    """x, y of the picture counted from its outer edges, z from the wrist in the unit of x. No point is ever missing."""
    camera_ = camera()
    focal = float(camera_.focal[0, 0])
    true = hand.joints[:, :2] / hand.joints[:, 2:] * focal + camera_.princpt[0].numpy()
    xy = np.where(hand.keypoints[:, 2:] > 0, hand.keypoints[:, :2], true)
    z = (hand.joints[:, 2] - hand.joints[0, 2]) / hand.joints[0, 2] * focal / WIDTH
    return _points(np.column_stack([(xy + 0.5) / (WIDTH, HEIGHT), z]))


def _about_centre(hand: SceneHand) -> list[Json]:
    return _points(hand.joints - hand.joints.mean(0))


def _points(points: np.ndarray) -> list[Json]:
    return [{"x": x, "y": y, "z": z} for x, y, z in points.round(7).tolist()]


def _write_npz(path: Path, pair: HandPair, rng: np.random.Generator) -> None:
    """The arrays a script would save: keypoints, camera, sides, and the truth for whoever wants to compare."""
    names = list(postures())
    hands = []
    for i in range(N_IN_NPZ):
        posture = names[int(rng.integers(len(names)))]
        hands.append(make_hand(pair, posture, i % 2 == 0, (0.0, float(WIDTH)), rng))
    ids = [f"{i:02d}_{hand.name}_{'right' if hand.is_right else 'left'}" for i, hand in enumerate(hands)]
    save_npz(
        path,
        {
            "keypoints_2d": np.stack([hand.keypoints for hand in hands]).astype(np.float32),
            "is_right": np.array([hand.is_right for hand in hands]),
            "K": camera().matrix()[0].numpy(),
            "image_size": np.array([WIDTH, HEIGHT]),
            "id": np.array(ids),
            "joints_3d": np.stack([hand.joints for hand in hands]).astype(np.float32),
        },
    )


def _write(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    default = Path(__file__).resolve().parents[1] / "examples" / "data"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
