"""What skin looks like where: features baked on the rest pose, so that they move with the skin; and skin tones."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from handloop.hand.kinematics import CHAINS
from handloop.hand.load import mirror_hand
from handloop.hand.model import N_FACES, Hand
from handloop.priors.anatomy import anatomical_axes
from handloop.synth.body import Arm, Body, vertex_normals
from handloop.synth.noise import Noise
from handloop.synth.poses import Thickness

TEXELS = 12
"""Samples along each side of a face: 0.4 mm apart on a hand, less than a pixel at 224 px."""

FEATURES = ("palm", "knuckle", "tip", "nail", "rim", "crease", "vein", *(f"noise{k}" for k in range(6)))
"""Channels of the baked skin; noise in pairs of 22, 7 and 1.8 mm."""

_CELLS = (0.022, 0.022, 0.007, 0.007, 0.0018, 0.0018)


@dataclass(frozen=True, eq=False)
class Skin:
    """Features of one side's skin and forearm."""

    table: np.ndarray
    """(F * TEXELS^2, len(FEATURES)) float32."""

    @classmethod
    def of(cls, hand: Hand, body: Body) -> Skin:
        """Bake one side's model; the same model gives the same skin."""
        right = hand if hand.is_right else mirror_hand(hand)
        arm = Arm(0.3, 0.12, 0.0, 1.0, 0.0, 0.0)
        rest = body.vertices(hand.v_template, np.eye(3), arm)
        normals = vertex_normals(rest, body.faces)
        if not hand.is_right:
            rest, normals = rest * [-1.0, 1.0, 1.0], normals * [-1.0, 1.0, 1.0]
        i, j = (grid.ravel() for grid in np.indices((TEXELS, TEXELS)))
        # The other half of the square lies outside the face.
        used = np.nonzero(i + j <= TEXELS)[0]
        u, v = (i[used] + 0.5) / TEXELS, (j[used] + 0.5) / TEXELS
        weights = np.stack([1 - u - v, u, v], 1)
        points = np.einsum("tc,fcd->ftd", weights, rest[body.faces]).reshape(-1, 3)
        facing = np.einsum("tc,fcd->ftd", weights, normals[body.faces]).reshape(-1, 3)
        facing /= np.maximum(np.linalg.norm(facing, axis=1, keepdims=True), 1e-9)
        owner = np.zeros(len(body.faces), np.int64)
        owner[:N_FACES] = right.weights[right.faces].sum(1).argmax(1)
        table = np.zeros((len(body.faces), TEXELS**2, len(FEATURES)), np.float32)
        baked = _bake(right, points, facing, np.repeat(owner, len(u)))
        table[:, used] = baked.reshape(len(body.faces), len(used), -1)
        return cls(table.reshape(-1, len(FEATURES)))

    def at(self, face: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """(n, len(FEATURES)) at places on faces."""
        i = np.minimum((u * TEXELS).astype(np.int64), TEXELS - 1)
        j = np.minimum((v * TEXELS).astype(np.int64), TEXELS - 1)
        return self.table[(face.astype(np.int64) * TEXELS + i) * TEXELS + j]


@dataclass(frozen=True, eq=False)
class Tone:
    """One person's skin colour: the logarithm of linear reflectance is `base` plus features times `gains`."""

    base: np.ndarray
    """(3,) of the back of the hand."""
    gains: np.ndarray
    """(len(FEATURES), 3)."""

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Tone:
        """A tone from dark to light.

        The individual typology angle (Chardon et al. 1991), atan((L - 50) / b), is drawn evenly from -55 to 60 degrees,
        from "dark" to "very light", with the b and a that skin has there (Del Bino and Bernerd 2013).
        """
        angle = np.deg2rad(generator.uniform(-55, 60))
        b = generator.uniform(12, 19)
        lightness = float(np.clip(50 + b * np.tan(angle), 25, 80))
        a = 8 + 4 * np.exp(-(((lightness - 52) / 16) ** 2)) + generator.normal(0, 1)
        back = np.array([lightness, a, b])
        # A palm has little pigment whatever the skin: its lightness varies half as much.
        palm = np.array([lightness + 0.5 * (68 - lightness) + generator.normal(0, 1), a + 3, b - 1])
        nail = palm + [generator.uniform(0, 5), generator.uniform(-1, 3), -3]
        dark = generator.uniform(0.4, 1.0)
        log = {name: np.zeros(3) for name in FEATURES}
        base = np.log(_reflectance(back))
        log["palm"] = np.log(_reflectance(palm)) - base
        log["nail"] = np.log(_reflectance(nail)) - base
        log["knuckle"] = np.log(_reflectance(back + [-5, 3, 1])) - base
        log["tip"] = np.log(_reflectance(back + [-1, 4, 0])) - base
        log["rim"] = dark * np.array([-0.25, -0.4, -0.4])
        log["crease"] = dark * np.array([-0.28, -0.45, -0.45])
        log["vein"] = generator.uniform(0, 1) * np.array([-0.13, -0.07, -0.03])
        for k in range(6):
            size = (0.10, 0.10, 0.06, 0.06, 0.08, 0.08)[k]
            # Blood shows in green and blue: blotches change redness more than they change brightness.
            log[f"noise{k}"] = generator.normal(0, size) * np.array([0.4, 1.0, 0.9])
        return cls(base, np.stack([log[name] for name in FEATURES]))

    def albedo(self, features: np.ndarray) -> np.ndarray:
        """(n, 3) linear reflectance of features (n, len(FEATURES))."""
        return np.asarray(np.exp(features @ self.gains.astype(np.float32) + self.base.astype(np.float32)))


def _reflectance(lab: np.ndarray) -> np.ndarray:
    """CIELAB (D65) to linear sRGB, at least 0.01."""
    fy = (lab[0] + 16) / 116
    f = np.array([fy + lab[1] / 500, fy, fy - lab[2] / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9505, 1.0, 1.089]
    to_rgb = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.204, 1.057]])
    return np.clip(to_rgb @ xyz, 0.01, 0.95)


def _bake(hand: Hand, points: np.ndarray, normals: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """(n, len(FEATURES)) at points of a right hand's rest surface."""
    noise = Noise(np.random.default_rng(20240801))
    joints, tips = hand.joints_rest, hand.v_template[hand.tip_ids]
    radii = Thickness.of(hand).radii
    axes = anatomical_axes(hand)
    f = {name: np.zeros(len(points)) for name in FEATURES}
    for k, cell in enumerate(_CELLS):
        # Shifted, so that the two of a pair differ.
        f[f"noise{k}"] = noise.at(points + 0.37 * k, cell)
    wobble = noise.at(points + 0.11, 0.004)
    # The palm's own back is the middle finger's; a finger's is its joint's.
    dorsal = np.concatenate([axes[3:4, :, 1], axes[:, :, 1]])[owner]
    # The thumb's metacarpal lies in the palm's edge and looks with it.
    dorsal[owner == CHAINS[0][0]] = axes[3, :, 1]
    back = (normals * dorsal).sum(1)
    f["palm"] = _step(-0.45, 0.35, -back + 0.12 * f["noise2"])
    palm = np.nonzero((owner == 0) & (back < -0.5))[0]
    lines = _palm_lines(joints, points[palm], axes[3, :, 1], 0.0009 * wobble[palm])
    f["crease"][palm] = lines * _step(0.55, 0.9, -back[palm])
    for finger, chain in enumerate(CHAINS):
        ends = [*joints[list(chain)], tips[finger]]
        on_finger = np.isin(owner, chain)
        for k, joint in enumerate(chain):
            d, b = axes[joint - 1][:, 1], axes[joint - 1][:, 2]
            from_joint = points - ends[k]
            along = from_joint @ b
            away = np.linalg.norm(from_joint, axis=1)
            near = away < 2.2 * radii[finger, k] + 0.006
            on_back, on_front = _step(0.1, 0.7, normals @ d), _step(0.1, 0.6, -(normals @ d))
            width = 0.009 if k == 0 else 0.006
            around = _step(2.2, 1.0, away / radii[finger, k])
            f["knuckle"] += around * on_back * np.exp(-((along / width) ** 2)) * (1.0 if k else 0.7)
            if k == 0:
                # The fold at a finger's root lies two fifths along its first phalanx.
                along = along - (0.4 * np.linalg.norm(ends[1] - ends[0]) if finger else 0.0)
                near = np.linalg.norm(from_joint - b * (from_joint @ b)[:, None], axis=1) < 2.2 * radii[finger, k]
                near &= on_finger
            fold = np.exp(-(((along + 0.001 * wobble) / 0.0007) ** 2))
            f["crease"] += near * on_front * fold * (on_finger | (owner == chain[k - 1]))
            if k > 0:
                waves = 0.5 + 0.5 * np.cos(2 * np.pi * (along + 0.0012 * wobble) / 0.0024)
                f["crease"] += 0.55 * near * on_back * waves**2 * np.exp(-((along / 0.005) ** 2)) * on_finger
        _nail(f, points, normals, owner == chain[2], axes[chain[2] - 1], ends[2], ends[3], radii[finger, 2])
    ridge = 1 - np.abs(noise.at(points * [1.0, 1.0, 1.0] + 0.23, 0.016)) / 0.12
    f["vein"] = np.clip(ridge, 0, 1) * _step(0.5, 0.9, back) * (owner == 0)
    f["crease"] = np.clip(f["crease"], 0, 1.2) * (1 - f["nail"])
    f["knuckle"] *= 1 - f["nail"]
    f["palm"] *= 1 - f["nail"]
    return np.stack([f[name] for name in FEATURES], 1)


def _nail(
    f: dict[str, np.ndarray],
    points: np.ndarray,
    normals: np.ndarray,
    is_distal: np.ndarray,
    axes: np.ndarray,
    joint: np.ndarray,
    tip: np.ndarray,
    radius: float,
) -> None:
    """Add one finger's nail, its rim and the redness of its tip."""
    side, d, b = axes.T
    length = float(np.linalg.norm(tip - joint))
    s = ((points - joint) @ b / length - 0.74) / 0.25
    t = ((points - joint) @ side) / (0.78 * radius)
    out = (s**4 + t**4) ** 0.25
    above = is_distal * _step(0.05, 0.25, normals @ d)
    f["nail"] += above * _step(1.06, 0.98, out)
    f["rim"] += above * np.exp(-(((out - 1.04) / 0.07) ** 2))
    f["tip"] += is_distal * np.clip((points - joint) @ b / length, 0, 1) * _step(0.3, -0.2, normals @ d)


def _palm_lines(joints: np.ndarray, points: np.ndarray, dorsal: np.ndarray, wobble: np.ndarray) -> np.ndarray:
    """(n,) 0..1 on the palm's three main lines, drawn between the knuckles."""
    wrist, index, middle, pinky, ring, thumb = joints[[0, 1, 4, 7, 10, 13]]
    edge = pinky + 0.25 * (pinky - ring)
    lines = (
        # Heart, head and life line.
        (edge + 0.3 * (wrist - pinky), ring + 0.24 * (wrist - ring), 0.5 * (index + middle)),
        (index + 0.2 * (wrist - index), middle + 0.38 * (wrist - middle), pinky + 0.5 * (wrist - pinky)),
        (
            index + 0.2 * (wrist - index),
            index + 0.5 * (wrist - index) + 0.35 * (middle - index),
            wrist + 0.25 * (middle - wrist) + 0.2 * (thumb - wrist),
        ),
    )
    flat = points - (points @ dorsal)[:, None] * dorsal
    total = np.zeros(len(points))
    for first, second, third in lines:
        t = np.linspace(0, 1, 25)[:, None]
        curve = (1 - t) ** 2 * first + 2 * t * (1 - t) * (2 * second - 0.5 * (first + third)) + t**2 * third
        curve = curve - (curve @ dorsal)[:, None] * dorsal
        nearest = np.full(len(points), np.inf)
        for start, end in pairwise(curve):
            along = end - start
            share = np.clip((flat - start) @ along / (along @ along), 0, 1)
            nearest = np.minimum(nearest, np.linalg.norm(flat - start - share[:, None] * along, axis=1))
        total = np.maximum(total, np.exp(-(((nearest + wobble) / 0.0009) ** 2)))
    return total


def _step(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """Smooth step from 0 at `low` to 1 at `high`; falling where low > high."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))
