"""One picture: a hand with forearm, lit, before a background and perhaps behind objects."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from handloop.hand.model import N_FACES, Hand, HandPair
from handloop.synth.backgrounds import draw_background, find_backgrounds
from handloop.synth.body import Arm, Body, vertex_normals
from handloop.synth.lights import Lights, Surface, from_srgb, openness, to_srgb
from handloop.synth.occluders import Occluder, draw_occluders
from handloop.synth.picture import Picture, PictureOptions, Segment, Truth, Visibility, project
from handloop.synth.sampling import HandSource, wrist_rotation
from handloop.synth.scene import Hits, Scene, pixel_rays
from handloop.synth.skin import FEATURES, Skin, Tone

_LEAST_SEEN = 8
"""Keypoints that objects must leave in sight; else they are left out of the picture."""

_STEP = 0.006
"""m of depth between neighbouring pixels from which an outline lies between them: more than a slope makes."""

_SUBPIXELS = np.array([[-0.375, -0.125], [0.125, -0.375], [0.375, 0.125], [-0.125, 0.375]])
"""Where the rays of an outline's pixel go (rotated grid), px from its centre."""

_CLEAR = 0.10
"""m that the forearm's axis keeps from the camera."""

_NAIL = FEATURES.index("nail")


@dataclass(frozen=True, eq=False)
class _Look:
    """How one picture's surfaces look."""

    tone: Tone
    sleeve: np.ndarray
    """(3,) linear reflectance."""
    lights: Lights
    grain: float
    """Standard deviation of the sensor's noise, display values 0..1."""
    background: np.ndarray
    """(H, W, 3) display values 0..1."""


class _Parts:
    """Everything in one picture as one mesh."""

    def __init__(self, body: Body, truth: Truth, arm: Arm, occluders: list[Occluder]) -> None:
        skin = body.vertices(truth.vertices, wrist_rotation(truth), arm)
        vertices, faces, objects = [skin], [body.faces], [np.full(len(body.faces), -1)]
        for k, occluder in enumerate(occluders):
            faces.append(occluder.faces + sum(map(len, vertices)))
            vertices.append(occluder.vertices)
            objects.append(np.full(len(occluder.faces), k))
        self.scene = Scene(np.concatenate(vertices), np.concatenate(faces))
        self.object_of = np.concatenate(objects)
        self.segment_of = np.full(len(self.object_of), Segment.OCCLUDER, np.uint8)
        self.segment_of[: len(body.faces)] = Segment.FOREARM
        self.segment_of[:N_FACES] = Segment.HAND
        self.is_sleeve = np.zeros(len(self.object_of), bool)
        self.is_sleeve[: len(body.faces)] = body.is_sleeve & (arm.sleeve > 0)
        self.occluders = occluders
        self.n_skin = len(skin)
        self.skin_faces = body.faces

    def visibility(self, truth: Truth, size: int) -> np.ndarray:
        """(21,) `Visibility`."""
        pixels, depth = truth.keypoints_2d, truth.keypoints_3d[:, 2]
        seen = np.full(21, Visibility.VISIBLE, np.uint8)
        rays = pixel_rays(truth.K, pixels[:, 0], pixels[:, 1])
        first = self.scene.look(rays)
        before = (first.face >= 0) & (first.distance < depth - 1e-4)
        is_object = self.segment_of[first.face] == Segment.OCCLUDER
        # Where the ray leaves the skin again before the keypoint, it passed through another part.
        start = first.distance[:, None] + np.float32(2e-5)
        second = self.scene.cast(np.where(before[:, None], start, 0) * rays, rays)
        leaves = (second.face >= 0) & (start[:, 0] + second.distance < depth - 0.0015)
        seen[before & leaves] = Visibility.BEHIND_HAND
        seen[before & is_object] = Visibility.BEHIND_OCCLUDER
        seen[((pixels < -0.5) | (pixels > size - 0.5)).any(1)] = Visibility.OUTSIDE
        return seen


class Renderer:
    """Renders the pictures of one seed; picture i is the same whenever and wherever it is asked for."""

    def __init__(self, pair: HandPair, options: PictureOptions) -> None:
        """Bakes the skin of the sides, which takes seconds the first time.

        Raises:
            InputError: the folder of backgrounds holds no pictures.
            ModelError: a mesh that no forearm can be joined to.
        """
        self.options = options
        self.pair = pair
        self._hands = HandSource.of(pair)
        sides = {"both": (True, False), "right": (True,), "left": (False,)}[options.hand]
        self._bodies = {side: Body.of(pair.side(side)) for side in sides}
        self._skins = {side: _skin(pair.side(side)) for side in sides}
        self._backgrounds: tuple[Path, ...] = ()
        if options.backgrounds is not None:
            self._backgrounds = find_backgrounds(options.backgrounds)

    def render(self, index: int) -> Picture:
        """Picture number `index`."""
        truth = self._hands.draw(self._generator(index, 0), self.options)
        return self.render_truth(truth, index)

    def render_truth(self, truth: Truth, index: int) -> Picture:
        """A given hand with the light, skin, arm, objects and background of picture `index`."""
        shapes, looks = self._generator(index, 1), self._generator(index, 2)
        body = self._bodies[truth.is_right]
        arm = _draw_arm(shapes, body, truth)
        occluders = draw_occluders(shapes, truth, self.options.occluders)
        look = _draw_look(looks, self.options.size, self._backgrounds)
        parts = _Parts(body, truth, arm, occluders)
        visibility = parts.visibility(truth, self.options.size)
        seen = (visibility == Visibility.VISIBLE) | (visibility == Visibility.BEHIND_HAND)
        if occluders and seen.sum() < _LEAST_SEEN:
            parts = _Parts(body, truth, arm, [])
            visibility = parts.visibility(truth, self.options.size)
        segments, depth, display = _draw(parts, truth, look, self._skins[truth.is_right])
        grain = looks.integers(0, 256, display.shape, np.uint8).astype(np.float32) - np.float32(127.5)
        # Bytes have a standard deviation of 256 / sqrt(12).
        display += grain * np.float32(look.grain * np.sqrt(12) / 256)
        rgb = (np.clip(display, 0, 1) * 255 + 0.5).astype(np.uint8)
        mask = segments == Segment.HAND
        if self.options.forearm_in_mask:
            mask |= segments == Segment.FOREARM
        return Picture(index, rgb, segments, mask, depth, truth, visibility)

    def _generator(self, index: int, purpose: int) -> np.random.Generator:
        # One stream for the hand, one for the other shapes, one for looks: a change of one leaves the others.
        return np.random.default_rng([self.options.seed, index, purpose])


@lru_cache(maxsize=4)
def _skin(hand: Hand) -> Skin:
    return Skin.of(hand, Body.of(hand))


def _draw_arm(generator: np.random.Generator, body: Body, truth: Truth) -> Arm:
    has_sleeve = generator.random() < 0.4
    arm = Arm(
        length=float(generator.uniform(0.5, 0.75)),
        bare=float(np.exp(generator.uniform(np.log(0.012), np.log(0.15)))) if has_sleeve else 0.1,
        sleeve=float(generator.uniform(0.003, 0.009)) if has_sleeve else 0.0,
        girth=float(generator.uniform(0.9, 1.12)),
        flexion=float(generator.uniform(-0.7, 0.7)),
        deviation=float(generator.uniform(-0.2, 0.4)),
    )
    wrist = truth.keypoints_3d[0]
    direction = body.direction(wrist_rotation(truth), arm)
    nearest = float(-wrist @ direction)  # Where along the arm's axis the camera is nearest.
    if nearest > 0 and np.linalg.norm(wrist + nearest * direction) < _CLEAR:
        return Arm(
            max(min(arm.length, nearest - _CLEAR), 0.05),
            min(arm.bare, 0.03),
            arm.sleeve,
            arm.girth,
            arm.flexion,
            arm.deviation,
        )
    return arm


def _draw_look(generator: np.random.Generator, size: int, backgrounds: tuple[Path, ...]) -> _Look:
    return _Look(
        Tone.draw(generator),
        generator.uniform(0.02, 0.85, 3) * generator.uniform(0.3, 1),
        Lights.draw(generator),
        float(generator.uniform(0, 0.012)),
        draw_background(generator, size, backgrounds),
    )


def _draw(parts: _Parts, truth: Truth, look: _Look, skin: Skin) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segments (H, W), depth (H, W) m and display colours (H, W, 3)."""
    size = len(look.background)
    segments = np.zeros((size, size), np.uint8)
    depth = np.zeros((size, size), np.float32)
    display = look.background.copy()
    x0, y0, x1, y1 = _box(parts.scene.vertices, truth.K, size)
    if x1 <= x0 or y1 <= y0:
        return segments, depth, display
    part, shape = np.s_[y0:y1, x0:x1], (y1 - y0, x1 - x0)
    x, y = np.tile(np.arange(x0, x1), shape[0]), np.repeat(np.arange(y0, y1), shape[1])
    rays = pixel_rays(truth.K, x, y)
    hits = parts.scene.look(rays)
    met = hits.face >= 0
    segments[part] = np.where(met, parts.segment_of[hits.face], Segment.BACKGROUND).reshape(shape)
    depth[part] = np.where(met, hits.distance, 0).reshape(shape)
    edge = _outline(segments[part], depth[part]).ravel()
    # Inside, one ray gives the colour; on outlines, four do. All are shaded at once.
    inner = np.nonzero(met & ~edge)[0]
    outer = np.nonzero(edge)[0]
    fine = (np.stack([x, y], 1)[outer, None] + _SUBPIXELS).reshape(-1, 2)
    fine_rays = pixel_rays(truth.K, fine[:, 0], fine[:, 1])
    fine_hits = parts.scene.look(fine_rays)
    fine_met = np.nonzero(fine_hits.face >= 0)[0]
    one, four = hits.select(inner), fine_hits.select(fine_met)
    joined = Hits(*(np.concatenate([getattr(one, k), getattr(four, k)]) for k in ("face", "u", "v", "distance")))
    seen = np.concatenate([rays[inner], fine_rays[fine_met]])
    turn = _grain_angles(np.concatenate([x[inner], fine[fine_met, 0]]), np.concatenate([y[inner], fine[fine_met, 1]]))
    colours = _shade(parts, joined, seen, turn, look, skin)
    display[y[inner], x[inner]] = to_srgb(colours[: len(inner)])
    # Light adds up in linear values.
    mixed = np.repeat(from_srgb(look.background[y[outer], x[outer]]), len(_SUBPIXELS), axis=0)
    mixed[fine_met] = colours[len(inner) :]
    display[y[outer], x[outer]] = to_srgb(mixed.reshape(-1, len(_SUBPIXELS), 3).mean(1))
    return segments, depth, display


def _shade(parts: _Parts, hits: Hits, rays: np.ndarray, turn: np.ndarray, look: _Look, skin: Skin) -> np.ndarray:
    """(n, 3) float32 linear colours of n hits; `turn` (n,) see `Surface`."""
    if not len(rays):
        return np.zeros((0, 3), np.float32)
    scene = parts.scene
    corners = scene.faces[hits.face]
    weights = np.stack([1 - hits.u - hits.v, hits.u, hits.v], 1)
    is_object = parts.object_of[hits.face] >= 0
    smooth = vertex_normals(scene.vertices[: parts.n_skin], parts.skin_faces).astype(np.float32)
    open_skin = openness(scene, scene.vertices[: parts.n_skin], smooth)
    n_all = len(scene.vertices)
    smooth = np.concatenate([smooth, np.zeros((n_all - parts.n_skin, 3), np.float32)])
    open_all = np.concatenate([open_skin, np.ones(n_all - parts.n_skin, np.float32)])
    normals = np.einsum("nk,nkc->nc", weights, smooth[corners])
    if is_object.any():
        a, b, c = scene.vertices[corners[is_object]].transpose(1, 0, 2)
        normals[is_object] = np.cross(b - a, c - a)
    normals /= np.maximum(np.sqrt(np.einsum("nc,nc->n", normals, normals)), 1e-12)[:, None]
    # A rounded normal may look away at an outline, and an object's faces have no outside.
    away = np.einsum("nc,nc->n", normals, rays) > 0
    normals[away & is_object] *= -1
    features = skin.at(np.where(is_object, 0, hits.face), hits.u, hits.v)
    albedo = look.tone.albedo(features)
    gloss = 1 + 1.5 * features[:, _NAIL]
    cloth = parts.is_sleeve[hits.face]
    albedo[cloth] = look.sleeve * (1 + 0.25 * features[cloth, -1:])
    gloss[cloth] = 0.1
    for k, occluder in enumerate(parts.occluders):
        albedo[parts.object_of[hits.face] == k] = occluder.colour
    points = rays * hits.distance[:, None]
    surface = Surface(points, normals, albedo, gloss, np.einsum("nk,nk->n", weights, open_all[corners]), turn)
    return look.lights.shade(surface, scene)


def _grain_angles(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n,) float32 rad: interleaved gradient noise (Jimenez 2014), evenly spread among neighbouring pixels."""
    return np.asarray(2 * np.pi * ((52.9829189 * ((0.06711056 * x + 0.00583715 * y) % 1)) % 1), np.float32)


def _box(vertices: np.ndarray, K: np.ndarray, size: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the pixels that the mesh may cover."""
    if vertices[:, 2].min() < 0.02:
        return 0, 0, size, size
    pixels = project(K, vertices.astype(np.float64))
    low = np.clip(np.floor(pixels.min(0)) - 1, 0, size).astype(int)
    high = np.clip(np.ceil(pixels.max(0)) + 2, 0, size).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def _outline(segments: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """(h, w) bool: pixels beside one that sees something else."""
    edge = np.zeros(segments.shape, bool)
    for a, b in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:, :], np.s_[:-1, :])):
        jump = (segments[a] != segments[b]) | (np.abs(depth[a] - depth[b]) > _STEP)
        edge[a] |= jump
        edge[b] |= jump
    return edge
