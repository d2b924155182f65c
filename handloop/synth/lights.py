"""Light: a sun with soft shadows, a sky that corners see less of, and how skin answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from handloop.synth.scene import Scene

_SUN_RAYS, _FIRST = 6, 2
"""Directions towards the sun's disc, and how many of them settle a point that they agree on: the rest serve the soft
edges of shadows, which have that many steps."""
_SKY_RAYS = 16
"""Directions in which a vertex looks for the sky."""
_LIFT = 0.0015
"""m above the surface at which rays start, so that a coarse mesh does not shade itself."""

_WRAP = np.array([0.32, 0.16, 0.10], np.float32)
"""How far light creeps around an edge in red, green and blue: skin scatters red the farthest."""


@dataclass(frozen=True, eq=False)
class Surface:
    """n lit points."""

    points: np.ndarray
    """(n, 3) float32 m, camera frame."""
    normals: np.ndarray
    """(n, 3) float32 unit, towards the viewer's side."""
    albedo: np.ndarray
    """(n, 3) float32 linear reflectance."""
    gloss: np.ndarray
    """(n,) float32 strength of the highlight."""
    openness: np.ndarray
    """(n,) float32 0..1, share of the sky that is seen."""
    turn: np.ndarray
    """(n,) float32 rad, different from pixel to pixel: breaks the steps of soft shadows into grain."""


@dataclass(frozen=True, eq=False)
class Lights:
    """The light of one picture. Intensities are linear."""

    sun: np.ndarray
    """(3, 3) float32: unit direction to the sun's middle, and its disc's two radii at right angles to it."""
    sun_colour: np.ndarray
    """(3,)."""
    up: np.ndarray
    """(3,) unit, to the sky's brightest part."""
    sky_colour: np.ndarray
    """(3,) from above."""
    ground_colour: np.ndarray
    """(3,) from below."""
    sharpness: float
    """Exponent of the highlight."""
    shine: float
    """Its strength."""

    @classmethod
    def draw(cls, generator: np.random.Generator) -> Lights:
        """Indoor to outdoor light, on the side of the viewer or a little behind the hand."""
        towards = _unit(generator.standard_normal(3))
        while towards[2] > 0.35:
            towards = _unit(generator.standard_normal(3))
        radius = np.tan(np.deg2rad(generator.uniform(2, 16)))
        aside = _unit(np.cross(towards, [0.31, 0.87, 0.38]))
        across = np.cross(towards, aside)
        warmth = generator.normal(0, 0.10)
        sun = np.array([1 + warmth, 1.0, 1 - 1.3 * warmth])
        cool = generator.normal(0, 0.06) - 0.4 * warmth
        sky = np.array([1 + cool, 1.0, 1 - 1.3 * cool])
        share = generator.uniform(0.25, 0.8)
        # A white surface full in sun and sky has that share of full scale.
        exposure = np.exp(generator.uniform(np.log(0.9), np.log(1.9)))
        up = _unit(np.array([0.0, -1.0, -0.3]) + generator.normal(0, 0.4, 3))
        return cls(
            np.stack([towards, radius * aside, radius * across]).astype(np.float32),
            np.asarray(exposure * share * sun, np.float32),
            up.astype(np.float32),
            np.asarray(exposure * (1 - share) * sky, np.float32),
            np.asarray(exposure * (1 - share) * sky * generator.uniform(0.25, 0.8), np.float32),
            float(np.exp(generator.uniform(np.log(8), np.log(40)))),
            float(generator.uniform(0.02, 0.07)),
        )

    def shade(self, surface: Surface, scene: Scene) -> np.ndarray:
        """(n, 3) float32 linear colours."""
        normals = surface.normals
        middle = self.sun[0]
        cosine = (normals @ middle)[:, None]
        lit = self._sunlit(surface, cosine[:, 0], scene)
        diffuse = np.clip((cosine + _WRAP) / (1 + _WRAP), 0, 1) * lit[:, None]
        upward = 0.5 + 0.5 * (normals @ self.up)[:, None]
        ambient = (self.ground_colour + upward * (self.sky_colour - self.ground_colour)) * surface.openness[:, None]
        colour = surface.albedo * (diffuse * self.sun_colour + ambient)
        to_viewer = -surface.points / np.linalg.norm(surface.points, axis=1, keepdims=True)
        half = to_viewer + middle
        half /= np.maximum(np.linalg.norm(half, axis=1, keepdims=True), 1e-6)
        spark = np.clip((normals * half).sum(1), 0, 1) ** self.sharpness * np.clip(cosine[:, 0], 0, 1) * lit
        spark *= self.shine * surface.gloss * (self.sharpness + 8) / 8
        return np.asarray(colour + spark[:, None] * self.sun_colour, np.float32)

    def _sunlit(self, surface: Surface, cosine: np.ndarray, scene: Scene) -> np.ndarray:
        """(n,) float32 share of the sun's disc that is seen."""
        where = np.nonzero(cosine > -_WRAP[0])[0]
        origins = surface.points[where] + np.float32(_LIFT) * surface.normals[where]
        turn = surface.turn[where]
        count = self._count_free(scene, origins, turn, range(_FIRST))
        edge = np.nonzero((count > 0) & (count < _FIRST))[0]
        share = count / _FIRST
        rest = self._count_free(scene, origins[edge], turn[edge], range(_FIRST, _SUN_RAYS))
        share[edge] = (count[edge] + rest) / _SUN_RAYS
        lit = np.zeros(len(cosine), np.float32)
        lit[where] = share
        return lit

    def _count_free(self, scene: Scene, origins: np.ndarray, turn: np.ndarray, rays: range) -> np.ndarray:
        """(n,) how many of the rays' numbers reach the sun from each of the origins (n, 3)."""
        total = np.zeros(len(origins), np.float32)
        for k in rays:
            # Vogel's spiral fills a disc evenly; from the rim inward, so that the first ones span it.
            angle = turn + np.float32(2.39996 * k)
            out = np.float32(np.sqrt((_SUN_RAYS - 0.5 - k) / _SUN_RAYS))
            aside, across = (out * np.cos(angle))[:, None], (out * np.sin(angle))[:, None]
            total += scene.is_free(origins, self.sun[0] + aside * self.sun[1] + across * self.sun[2])
        return total


def openness(scene: Scene, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """(V,) float32 0..1: the share of its half-space in which each point sees the sky, nearer the normal counting more.

    Args:
        scene: what hides the sky.
        points: (V, 3) m.
        normals: (V, 3) unit.
    """
    k = np.arange(_SKY_RAYS)
    # A Fibonacci sphere moved by the normal gives directions of cosine-weighted density.
    z = 1 - (2 * k + 1) / _SKY_RAYS
    angle = 2.39996 * k
    sphere = np.stack([np.sqrt(1 - z * z) * np.cos(angle), np.sqrt(1 - z * z) * np.sin(angle), z], 1)
    directions = (normals[:, None] + 0.98 * sphere).reshape(-1, 3).astype(np.float32)
    origins = np.repeat(points + _LIFT * normals, _SKY_RAYS, axis=0).astype(np.float32)
    return np.asarray(scene.is_free(origins, directions).reshape(-1, _SKY_RAYS).mean(1), np.float32)


def to_srgb(linear: np.ndarray) -> np.ndarray:
    """Linear 0..1 to display values 0..1, brighter values bent towards 1 instead of cut."""
    knee = 0.8
    over = np.maximum(linear - knee, 0)
    bent = np.minimum(linear, knee) + (1 - knee) * (1 - np.exp(-over / (1 - knee)))
    clipped = np.clip(bent, 0, 1)
    return np.where(clipped <= 0.0031308, 12.92 * clipped, 1.055 * np.power(clipped, 1 / 2.4) - 0.055)


def from_srgb(values: np.ndarray) -> np.ndarray:
    """Display values 0..1 to linear 0..1."""
    return np.where(values <= 0.04045, values / 12.92, np.power((values + 0.055) / 1.055, 2.4))


def _unit(v: np.ndarray) -> np.ndarray:
    return np.asarray(v / np.linalg.norm(v))
