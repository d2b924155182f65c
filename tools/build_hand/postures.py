"""Hand poses in anatomical angles: an authored posture library (not measured) and a random anatomical part."""

import numpy as np

from tools.build_hand.lbs import rotation_matrices
from tools.build_hand.skeleton import FINGERS, THUMB, Array, Skeleton

N_POSES = 2000
SHARE_LIBRARY = 0.35
MAX_ANGLE = 2.8

# Ranges of motion in degrees as (flexion, abduction, twist) of the three joints. Fingers: goniometric consensus with
# a little passive extension. Thumb: the CMC's ranges are about the rest pose, which is already half way out; its
# flexion and palmar abduction reach far enough for a pinch with every finger.
FINGER_RANGES = (((-25, 95), (-25, 25), (-10, 10)), ((-5, 112), (0, 0), (-5, 5)), ((-15, 85), (0, 0), (-5, 5)))
THUMB_RANGES = (((-25, 55), (-35, 40), (-30, 45)), ((-15, 60), (-12, 12), (-10, 10)), ((-20, 80), (0, 0), (-5, 5)))

Finger = tuple[float, float, float, float]
"""MCP flexion, MCP abduction (positive towards the thumb), PIP flexion, DIP flexion in degrees."""
Thumb = tuple[float, float, float, float, float]
"""CMC flexion, CMC palmar abduction, CMC twist, MCP flexion, IP flexion in degrees."""
Posture = tuple[Finger, Finger, Finger, Finger, Thumb]
"""Index, middle, ring, little finger, thumb."""

_STRAIGHT: Finger = (0, 0, 0, 0)
# The folded fingers' side angles keep neighbours from running into each other.
_FOLDED: tuple[Finger, Finger, Finger, Finger] = ((80, -3, 96, 55), (83, 0, 98, 57), (85, 0, 98, 57), (85, 2, 96, 55))

# Authored by eye and by contact search on the embedded hand; not measured on people.
LIBRARY: dict[str, Posture] = {
    "flat": (_STRAIGHT, _STRAIGHT, _STRAIGHT, _STRAIGHT, (0, 0, 0, 0, 0)),
    "rest": ((22, -2, 32, 14), (28, 0, 36, 16), (32, 0, 38, 17), (34, 2, 36, 16), (10, -8, 4, 12, 18)),
    "fist": (*_FOLDED, (26, 16, -28, 33, 34)),
    "point": (_STRAIGHT, *_FOLDED[1:], (35, 15, -29, 33, 42)),
    "pinch": ((37, -5, 51, 26), (36, 0, 42, 22), (34, 0, 38, 20), (32, 2, 34, 18), (30, -2, 20, 6, 5)),
    "ok": ((40, -4, 55, 28), (18, 0, 22, 10), (10, -2, 14, 6), (4, -6, 8, 4), (24, -7, 18, 3, 9)),
    "spread": ((-6, 10, 2, 0), (-6, 1, 2, 0), (-5, -8, 2, 0), (-6, -16, 2, 0), (-12, 6, 0, -4, -6)),
    "hook": ((4, 0, 88, 56), (4, 0, 90, 58), (4, 0, 90, 58), (4, 3, 86, 54), (2, -14, 0, 8, 12)),
    "thumbs_up": (*_FOLDED, (-10, -6, 0, -4, -6)),
    "four": ((0, 3, 2, 0), (0, 0, 2, 0), (0, -2, 2, 0), (0, -5, 4, 0), (27, -10, -28, 43, 42)),
    "victory": ((0, 8, 2, 0), (0, -8, 2, 0), *_FOLDED[2:], (49, 11, -21, 36, 38)),
    "call": (*_FOLDED[:3], (0, -14, 4, 0), (-16, 6, 0, -4, -6)),
    "rock": (_STRAIGHT, *_FOLDED[1:3], (0, -8, 2, 0), (32, 14, -29, 31, 40)),
    "asl_a": (*_FOLDED, (4, -21, -5, 14, 10)),
    "asl_b": ((0, -6, 0, 0), (0, 0, 0, 0), (0, 5, 0, 0), (0, 12, 0, 0), (28, -11, -28, 42, 40)),
    "asl_c": ((40, -4, 46, 26), (44, 0, 48, 28), (44, 3, 48, 28), (42, 8, 46, 26), (22, 12, 8, 8, 22)),
    "asl_d": (_STRAIGHT, (43, -2, 69, 34), (48, -2, 72, 36), (52, 0, 70, 36), (38, -3, 38, 2, 14)),
    "asl_l": (_STRAIGHT, *_FOLDED[1:], (-18, 2, 0, -4, -6)),
    "asl_v": ((0, 10, 2, 0), (0, -10, 2, 0), *_FOLDED[2:], (49, 11, -21, 36, 40)),
    "asl_y": (*_FOLDED[:3], (0, -18, 2, 0), (-18, 4, 0, -4, -8)),
    "cylinder_grasp": ((44, 0, 50, 28), (46, 0, 52, 30), (48, 2, 54, 30), (50, 6, 54, 30), (30, 10, 12, 14, 22)),
    "ball_grasp": ((28, 7, 40, 24), (30, 0, 42, 26), (30, -5, 42, 26), (28, -12, 42, 26), (20, 14, 10, 12, 22)),
    "tripod": ((38, -4, 58, 28), (40, -5, 64, 31), (54, 0, 64, 34), (56, 3, 62, 34), (40, -6, 44, 4, 12)),
    "key": ((62, -4, 66, 36), (70, 0, 74, 42), (74, 2, 78, 44), (76, 6, 76, 42), (12, -5, -12, 19, 22)),
    "table_top": ((76, 0, 4, 2), (80, 0, 4, 2), (80, 3, 4, 2), (78, 8, 4, 2), (12, -10, 6, 4, 6)),
}


def library_angles() -> Array:
    """(n_postures, 5, 3, 3) degrees: finger (in the order of ``FINGERS``), joint, (flexion, abduction, twist)."""
    result = np.zeros((len(LIBRARY), len(FINGERS), 3, 3))
    rows = [FINGERS.index(name) for name in ("index", "middle", "ring", "pinky")]
    for angles, posture in zip(result, LIBRARY.values(), strict=True):
        for row, (mcp, abduction, pip, dip) in zip(rows, posture[:4], strict=True):
            angles[row, :, 0] = mcp, pip, dip
            angles[row, 0, 1] = abduction
        flexion, abduction, twist, mcp, ip = posture[4]
        angles[THUMB, :, 0] = flexion, mcp, ip
        angles[THUMB, 0, 1:] = abduction, twist
    return result


def ranges() -> Array:
    """(5, 3, 3, 2) lower and upper limits in degrees."""
    return np.array([THUMB_RANGES if f == THUMB else FINGER_RANGES for f in range(len(FINGERS))], dtype=float)


def _about(axis: Array, degrees: Array) -> Array:
    return rotation_matrices(np.deg2rad(degrees)[..., None] * axis)


def _rotation_vectors(rotations: Array) -> Array:
    """Logarithm for angles below pi."""
    cosine = np.clip((np.trace(rotations, axis1=-2, axis2=-1) - 1) / 2, -1.0, 1.0)
    angle = np.arccos(cosine)
    skew = rotations - np.swapaxes(rotations, -1, -2)
    vector = np.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], axis=-1)
    small = angle < 1e-6
    factor = np.where(small, 0.5, angle / (2 * np.sin(np.where(small, 1.0, angle))))
    return np.asarray(factor[..., None] * vector)


def to_axis_angle(angles: Array, skeleton: Skeleton) -> Array:
    """Degrees (n, 5, 3, 3) to flat-mean axis-angle (n, 45): R = Rot(f, flexion) Rot(d, abduction) Rot(b, twist)."""
    vectors = np.zeros((len(angles), 15, 3))
    for joint in range(15):
        f, d, b = skeleton.axes[joint + 1].T
        flexion, abduction, twist = angles[:, joint // 3, joint % 3].T
        vectors[:, joint] = _rotation_vectors(_about(f, flexion) @ _about(d, abduction) @ _about(b, twist))
    return vectors.reshape(len(angles), 45)


def _random_angles(count: int, rng: np.random.Generator) -> Array:
    """The anatomical part: curls correlate between fingers, most between middle and ring; the DIP follows the PIP."""
    angles = np.zeros((count, len(FINGERS), 3, 3))
    # Loadings on a common curl, on a radial-ulnar gradient and on a coupling of middle and ring; the rest is each
    # finger's own.
    loadings = {
        "index": (0.55, 0.35, 0.0),
        "middle": (0.65, 0.1, 0.55),
        "ring": (0.65, -0.2, 0.55),
        "pinky": (0.6, -0.4, 0.2),
    }
    factors = {bone: rng.standard_normal((count, 3)) for bone in (0, 1)}
    for name, loading in loadings.items():
        finger = FINGERS.index(name)
        own = float(np.sqrt(1.0 - np.square(loading).sum()))
        curl = [factors[bone] @ np.array(loading) + own * rng.standard_normal(count) for bone in (0, 1)]
        angles[:, finger, 0, 0] = 30.0 + 20.0 * curl[0]
        angles[:, finger, 1, 0] = 42.0 + 28.0 * curl[1]
        angles[:, finger, 2, 0] = np.maximum(0.45 * angles[:, finger, 1, 0] + 12.0 * rng.standard_normal(count), -10.0)
        freedom = np.clip(1.0 - angles[:, finger, 0, 0] / 70.0, 0.0, 1.0)
        angles[:, finger, 0, 1] = 10.0 * freedom * rng.standard_normal(count)
        angles[:, finger, 0, 2] = 4.0 * rng.standard_normal(count)
    noise = rng.standard_normal((count, 5))
    angles[:, THUMB, 0] = np.array([14.0, -2.0, 6.0]) + noise[:, :3] * np.array([18.0, 15.0, 10.0])
    angles[:, THUMB, 1, 0] = 15.0 + 18.0 * noise[:, 3]
    angles[:, THUMB, 2, 0] = 20.0 + 25.0 * noise[:, 4]
    return angles


def _library_draws(count: int, rng: np.random.Generator) -> Array:
    """Postures mixed in pairs, with jitter."""
    library = library_angles()
    first, second = rng.integers(len(library), size=(2, count))
    # Half of the draws stay near one posture, the other half lie anywhere between two.
    mix = np.where(rng.random(count) < 0.5, rng.beta(1.0, 8.0, count), rng.random(count))[:, None, None, None]
    angles = (1 - mix) * library[first] + mix * library[second]
    jitter = np.zeros((len(FINGERS), 3, 3))
    jitter[:, :, 0] = 6.0
    jitter[:, 0, 1:] = 3.0
    return np.asarray(angles + jitter * rng.standard_normal(angles.shape))


def sample_angles(rng: np.random.Generator) -> Array:
    """(N_POSES, 5, 3, 3) degrees, within the ranges of motion: what lies outside is drawn again."""
    limits = ranges()
    n_library = int(SHARE_LIBRARY * N_POSES)
    parts = []
    for draw, count in ((_random_angles, N_POSES - n_library), (_library_draws, n_library)):
        kept = np.zeros((0, *limits.shape[:-1]))
        while len(kept) < count:
            angles = draw(4 * count, rng)
            # A tenth of the range may be clipped; whole-hand rejection on 45 limits would otherwise thin out the tails.
            slack = 0.1 * (limits[..., 1] - limits[..., 0])
            fits = (angles > limits[..., 0] - slack - 1e-9) & (angles < limits[..., 1] + slack + 1e-9)
            kept = np.concatenate([kept, angles[fits.all(axis=(1, 2, 3))]])
        parts.append(np.clip(kept[:count], limits[..., 0], limits[..., 1]))
    return np.concatenate(parts)
