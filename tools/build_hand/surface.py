"""The skin at rest as a signed distance: finger sweeps, metacarpal rays and mounds, smoothly united.

Every finger is a sweep of elliptical sections along its straight axis, with its own breadth, dorsal and palmar depth at
each landmark. Breadths follow 0.085 to 0.1 of the hand's length at the PIP joints; the remaining numbers were shaped by
eye.
"""

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import PchipInterpolator

from tools.build_hand.skeleton import FINGERS, THUMB, Array, Skeleton

CUT_X = 104.0
"""Plane of the wrist's opening in mm: 14 mm proximal of the wrist's centre."""


@dataclass(frozen=True)
class Sweep:
    """Elliptical sections along a straight axis, closed by half ellipsoids."""

    origin: Array
    frame: Array
    """(3, 3) columns lateral, dorsal, along."""
    stations: Array
    """(n,) positions along the axis in mm."""
    profile: Array
    """(n, 3) half breadth, dorsal depth and palmar depth at the stations."""
    caps: tuple[float, float]
    """Length of the closing half ellipsoid at the first and at the last station."""

    def local(self, points: Array) -> Array:
        """(n, 3) lateral, dorsal, along."""
        return np.asarray((points - self.origin) @ self.frame)

    def distance(self, points: Array) -> Array:
        """First-order signed distance of points (n, 3)."""
        local = self.local(points)
        first, last = self.stations[0], self.stations[-1]
        along = np.clip(local[:, 2], first, last)
        breadth, dorsal, palmar = PchipInterpolator(self.stations, self.profile, axis=0)(along).T
        depth = np.where(local[:, 1] > 0, dorsal, palmar)
        beyond = local[:, 2] - along
        cap = np.where(beyond < 0, self.caps[0], self.caps[1])
        scaled = np.stack([local[:, 0] / breadth, local[:, 1] / depth, beyond / cap], axis=1)
        gradient = scaled / np.stack([breadth, depth, cap], axis=1)
        level = np.linalg.norm(scaled, axis=1)
        return np.asarray((level - 1.0) * level / np.maximum(np.linalg.norm(gradient, axis=1), 1e-9))


def _smooth_min(a: Array, b: Array, width: float) -> Array:
    """Polynomial smooth minimum; ``width`` is the distance difference (mm) over which the two blend."""
    overlap = np.maximum(width - np.abs(a - b), 0.0) / width
    return np.minimum(a, b) - overlap**2 * width / 4.0


def _segment(points: Array, start: Array, end: Array, radius: float) -> Array:
    """Distance to a capsule."""
    axis = end - start
    t = np.clip((points - start) @ axis / (axis @ axis), 0.0, 1.0)
    return np.asarray(np.linalg.norm(points - start - t[:, None] * axis, axis=1) - radius)


def _ellipsoid(points: Array, centre: Array, frame: Array, radii: tuple[float, float, float]) -> Array:
    scaled = (points - centre) @ frame / np.array(radii)
    level = np.linalg.norm(scaled, axis=1)
    return np.asarray((level - 1.0) * level / np.maximum(np.linalg.norm(scaled / np.array(radii), axis=1), 1e-9))


def _triangle(points: Array, corners: Array) -> Array:
    """Unsigned distance to a triangle (3, 3)."""
    a, b, c = corners
    normal = np.cross(b - a, c - a)
    best = np.full(len(points), np.inf)
    inside = np.ones(len(points), dtype=bool)
    for p, q in ((a, b), (b, c), (c, a)):
        inside &= (points - p) @ np.cross(normal, q - p) >= 0
        t = np.clip((points - p) @ (q - p) / ((q - p) @ (q - p)), 0.0, 1.0)
        best = np.minimum(best, np.linalg.norm(points - p - t[:, None] * (q - p), axis=1))
    plane = np.abs((points - a) @ normal) / np.linalg.norm(normal)
    return np.where(inside, plane, best)


# Sections of the fingers as (station, half breadth, dorsal depth, palmar depth). A station is (bone, fraction of the
# bone); the mm are for the index and middle finger and scaled by ``GIRTH`` for the others. PIP and DIP are a little
# broader than the shafts, and the palmar side is shallower at the creases than at the pads between them.
FINGER_SECTIONS: tuple[tuple[int, float, float, float, float], ...] = (
    (0, 0.00, 10.1, 10.2, 11.6),
    (0, 0.28, 9.8, 9.3, 11.3),
    (0, 0.50, 9.5, 8.8, 10.5),
    (0, 0.72, 8.9, 8.3, 9.7),
    (1, 0.00, 9.1, 8.5, 8.7),
    (1, 0.22, 8.7, 7.9, 8.8),
    (1, 0.55, 8.2, 7.2, 8.5),
    (2, 0.00, 7.9, 6.7, 7.2),
    (2, 0.25, 7.7, 6.0, 7.5),
    (2, 0.55, 7.5, 5.5, 7.5),
    (2, 0.72, 7.0, 5.0, 6.9),
)
THUMB_SECTIONS: tuple[tuple[int, float, float, float, float], ...] = (
    (0, 0.00, 12.0, 10.5, 12.0),
    (0, 0.45, 12.0, 10.3, 14.0),
    (0, 0.80, 11.5, 10.5, 13.5),
    (1, 0.00, 11.2, 10.6, 11.8),
    (1, 0.30, 10.2, 9.3, 11.0),
    (1, 0.70, 10.0, 8.7, 10.4),
    (2, 0.00, 10.8, 8.7, 9.2),
    (2, 0.25, 11.2, 7.6, 9.8),
    (2, 0.50, 11.0, 6.7, 9.8),
    (2, 0.68, 10.2, 6.0, 9.0),
)
GIRTH: dict[str, float] = {"index": 1.03, "middle": 1.05, "ring": 0.99, "pinky": 0.89, "thumb": 1.02}

# Where the metacarpal rays start, relative to the wrist: (distal, dorsal, radial) mm.
RAY_BASES: dict[str, tuple[float, float, float]] = {
    "index": (22.0, 1.0, 12.5),
    "middle": (22.0, 2.0, 3.5),
    "ring": (22.0, 1.5, -6.0),
    "pinky": (20.0, -0.5, -14.0),
}
# Half breadth, dorsal depth, palmar depth at fractions of a ray. The palmar depth dips in the middle: the hollow of
# the hand.
RAY_SECTIONS: tuple[tuple[float, float, float, float], ...] = (
    (0.0, 12.0, 15.0, 17.0),
    (0.35, 11.0, 11.8, 14.0),
    (0.7, 10.8, 10.3, 13.2),
    (1.0, 11.0, 10.3, 13.2),
)


def finger_sweeps(skeleton: Skeleton) -> list[Sweep]:
    """One sweep per finger in the order of ``FINGERS``; the thumb's begins at its MCP."""
    sweeps = []
    for finger, name in enumerate(FINGERS):
        sections = THUMB_SECTIONS if finger == THUMB else FINGER_SECTIONS
        first = 3 * finger + 1
        if finger == THUMB:
            sections = tuple(row for row in sections if row[0] > 0)
            first += 1
        starts = np.concatenate([[0.0], np.cumsum(skeleton.lengths[first : 3 * finger + 4])])
        bones = [row[0] - sections[0][0] for row in sections]
        stations = np.array(
            [starts[b] + row[1] * (starts[b + 1] - starts[b]) for b, row in zip(bones, sections, strict=True)]
        )
        profile = GIRTH[name] * np.array([row[2:] for row in sections])
        caps = (15.0, float(starts[-1] - stations[-1]))
        sweeps.append(Sweep(skeleton.joints[first], skeleton.axes[first], stations, profile, caps))
    return sweeps


class HandSurface:
    """Signed distance (mm, negative inside) of the resting hand's skin."""

    def __init__(self, skeleton: Skeleton) -> None:
        self._skeleton = skeleton
        self.fingers = finger_sweeps(skeleton)
        self._rays = self._metacarpal_rays()
        self._thumb_metacarpal = self._thumb_ray()

    def _place(self, distal: float, dorsal: float, radial: float) -> Array:
        return np.asarray(self._skeleton.joints[0] + np.array([-distal, dorsal, radial]))

    def _metacarpal_rays(self) -> list[Sweep]:
        rays = []
        for finger, name in enumerate(FINGERS[:THUMB]):
            base = self._place(*RAY_BASES[name])
            along = self._skeleton.joints[3 * finger + 1] - base
            length = float(np.linalg.norm(along))
            b = along / length
            lateral = np.cross(np.array([0.0, 1.0, 0.0]), b)
            lateral /= np.linalg.norm(lateral)
            frame = np.stack([lateral, np.cross(b, lateral), b], axis=1)
            sections = np.array(RAY_SECTIONS)
            profile = sections[:, 1:] * (0.4 + 0.6 * GIRTH[name])
            rays.append(Sweep(base, frame, sections[:, 0] * length, profile, (14.0, 17.0)))
        return rays

    def _thumb_ray(self) -> Sweep:
        joint = 3 * THUMB + 1
        sections = np.array([row[1:] for row in THUMB_SECTIONS if row[0] == 0] + [(1.0, *THUMB_SECTIONS[3][2:])])
        stations = sections[:, 0] * self._skeleton.lengths[joint]
        return Sweep(self._skeleton.joints[joint], self._skeleton.axes[joint], stations, sections[:, 1:], (13.0, 10.0))

    def _palm(self, points: Array) -> Array:
        """Wrist, metacarpal rays and the two mounds."""
        joints = self._skeleton.joints
        upright = np.eye(3)
        wrist = Sweep(
            self._place(-60.0, 0.0, 0.0),
            self._skeleton.axes[0],
            np.array([0.0, 45.0, 60.0, 82.0]),
            np.array([[31.5, 21.5, 22.5], [31.0, 20.5, 21.5], [30.0, 19.5, 20.5], [29.5, 14.5, 16.5]]),
            (30.0, 22.0),
        ).distance(points)
        palm = self._rays[0].distance(points)
        for ray in self._rays[1:]:
            palm = _smooth_min(palm, ray.distance(points), 7.0)
        palm = _smooth_min(palm, wrist, 16.0)
        hypothenar = _ellipsoid(points, self._place(42.0, -9.5, -22.5), upright, (31.0, 11.5, 12.0))
        palm = _smooth_min(palm, hypothenar, 9.0)
        cmc, mcp = joints[13], joints[14]
        along = self._skeleton.axes[13]
        thenar = _ellipsoid(points, 0.55 * cmc + 0.45 * mcp + np.array([-1.0, -6.5, -8.0]), along, (14.0, 13.0, 28.0))
        palm = _smooth_min(palm, thenar, 10.0)
        palm = _smooth_min(palm, self._thumb_metacarpal.distance(points), 9.0)
        web = np.stack([cmc + np.array([-8.0, 2.0, -6.0]), 0.25 * cmc + 0.75 * mcp, 0.3 * joints[0] + 0.7 * joints[1]])
        return _smooth_min(palm, _triangle(points, web) - 6.0, 14.0)

    def _finger_webs(self, palm: Array, points: Array) -> Array:
        """Folds of skin between neighbouring fingers, 40 % along the proximal phalanx."""
        joints, axes = self._skeleton.joints, self._skeleton.axes
        for a, b in ((1, 4), (4, 10), (10, 7)):
            # The pads below the MCPs fill the palmar grooves between the fingers' roots; the fold itself lies further
            # out.
            for fraction, depth, radius in ((0.06, -5.0, 7.6), (0.2, -2.5, 6.6)):
                shift = np.array([0.0, depth, 0.0])
                ends = [joints[j] + fraction * self._skeleton.lengths[j] * axes[j, :, 2] + shift for j in (a, b)]
                palm = _smooth_min(palm, _segment(points, ends[0], ends[1], radius), 6.0)
        return palm

    def distance(self, points: Array) -> Array:
        """Signed distance of points (n, 3)."""
        result = self._finger_webs(self._palm(points), points)
        for finger, sweep in enumerate(self.fingers):
            result = _smooth_min(result, sweep.distance(points), 8.0 if finger == THUMB else 4.5)
        return result

    def gradient(self, points: Array, step: float = 0.05) -> Array:
        """Central differences of the distance, (n, 3)."""
        columns = []
        for axis in np.eye(3) * step:
            columns.append((self.distance(points + axis) - self.distance(points - axis)) / (2 * step))
        return np.stack(columns, axis=1)

    def project(self, points: Array, n_steps: int = 4) -> Array:
        """Newton steps along the gradient onto the skin."""
        for _ in range(n_steps):
            gradient = self.gradient(points)
            squared = np.maximum((gradient**2).sum(axis=1, keepdims=True), 0.05)
            points = points - self.distance(points)[:, None] * gradient / squared
        return points
