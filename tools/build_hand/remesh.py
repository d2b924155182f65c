"""From the signed distance to 778 vertices: marching cubes, edge collapse by a size field, then isotropic remeshing."""

import heapq

import numpy as np
from skimage.measure import marching_cubes

from tools.build_hand.skeleton import FINGERS, THUMB, Array, Indices, Skeleton
from tools.build_hand.surface import CUT_X, HandSurface
from tools.build_hand.trimesh_edit import EditableMesh

N_VERTICES = 778
N_RIM = 16
VOXEL_MM = 1.8

# Wanted edge length (relative) against the distance from a finger's first joint, as a fraction of the finger's
# length: palm, web, PIP, DIP, tip. The tips and the bending zones get more vertices.
SIZE_STATIONS = (-0.35, 0.0, 0.25, 0.5, 0.75, 0.92, 1.0)
SIZE_FINGER = (10.5, 9.0, 7.0, 6.0, 5.7, 5.2, 4.4)
SIZE_THUMB = (10.5, 9.5, 8.0, 7.0, 6.3, 5.6, 4.8)
SIZE_PALM = 11.0


class SizeField:
    """Wanted edge length at a point, in mm before the common scale that makes the count come out."""

    def __init__(self, skeleton: Skeleton, surface: HandSurface) -> None:
        self._surface = surface
        self._lengths = [
            float(np.linalg.norm(skeleton.tips[f] - surface.fingers[f].origin)) for f in range(len(FINGERS))
        ]

    def __call__(self, points: Array) -> Array:
        """Sizes (n,) at points (n, 3)."""
        sizes = np.full(len(points), SIZE_PALM)
        for finger, sweep in enumerate(self._surface.fingers):
            local = sweep.local(points)
            table = SIZE_THUMB if finger == THUMB else SIZE_FINGER
            size = np.interp(local[:, 2] / self._lengths[finger], SIZE_STATIONS, table)
            # The finger's size fades to the palm's within 14 mm outside the finger's own section.
            outside = np.clip((np.linalg.norm(local[:, :2], axis=1) - 13.0) / 14.0, 0.0, 1.0)
            sizes = np.minimum(sizes, size + outside * (SIZE_PALM - size))
        return sizes


def march(skeleton: Skeleton, surface: HandSurface) -> EditableMesh:
    """The dense skin, open at the wrist's plane."""
    nodes = np.concatenate([skeleton.joints, skeleton.tips])
    low, high = nodes.min(axis=0) - (15, 28, 25), nodes.max(axis=0) + (0, 26, 25)
    # Counted down from the cut, so that the last slice lies exactly in it.
    x = np.arange(CUT_X, low[0], -VOXEL_MM)[::-1]
    y, z = np.arange(low[1], high[1], VOXEL_MM), np.arange(low[2], high[2], VOXEL_MM)
    grid = np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1).reshape(-1, 3)
    volume = np.concatenate([surface.distance(part) for part in np.array_split(grid, 16)])
    vertices, faces, _, _ = marching_cubes(  # type: ignore[no-untyped-call]
        volume.reshape(len(x), len(y), len(z)), 0.0, spacing=3 * (VOXEL_MM,)
    )
    vertices = vertices.astype(np.float64) + np.array([x[0], y[0], z[0]])
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    # Outward winding: the signed volume about an inner point is positive although the wrist is open.
    centre = vertices.mean(axis=0)
    signed = np.einsum("ni,ni->", a - centre, np.cross(b - centre, c - centre))
    return EditableMesh(vertices, faces if signed > 0 else faces[:, ::-1])


def _collapse_target(mesh: EditableMesh, a: int, b: int) -> Array:
    if (a in mesh.rim) == (b in mesh.rim):
        return (mesh.points[a] + mesh.points[b]) / 2
    return mesh.points[a] if a in mesh.rim else mesh.points[b]


def decimate(mesh: EditableMesh, size: SizeField, n_vertices: int) -> None:
    """Collapse the relatively shortest edges until ``n_vertices`` are left or none is fair; the rim keeps ``N_RIM``."""
    sizes = size(np.array(mesh.points))
    rim_length = sum(
        float(np.linalg.norm(mesh.points[a] - mesh.points[b])) for a, b in mesh.edges() if mesh.is_rim_edge(a, b)
    )

    def cost(a: int, b: int) -> float:
        length = float(np.linalg.norm(mesh.points[a] - mesh.points[b]))
        return length / (rim_length / N_RIM if mesh.is_rim_edge(a, b) else (sizes[a] + sizes[b]) / 2)

    heap = [(cost(a, b), a, b) for a, b in mesh.edges()]
    heapq.heapify(heap)
    n_left, n_rim = mesh.n_vertices, len(mesh.rim)
    while heap and n_left > n_vertices:
        old_cost, a, b = heapq.heappop(heap)
        if not mesh.around[a] or not mesh.around[b] or b not in mesh.neighbours(a):
            continue
        if cost(a, b) > old_cost + 1e-9:
            heapq.heappush(heap, (cost(a, b), a, b))
            continue
        on_rim = mesh.is_rim_edge(a, b)
        if on_rim and n_rim == N_RIM:
            continue
        if b in mesh.rim and not on_rim:
            a, b = b, a
        if not mesh.collapse(a, b, _collapse_target(mesh, a, b)):
            continue
        n_left -= 1
        n_rim -= on_rim
        for v in mesh.neighbours(a):
            heapq.heappush(heap, (cost(a, v), min(a, v), max(a, v)))


def _relative_lengths(mesh: EditableMesh, size: SizeField, scale: float) -> list[tuple[float, int, int]]:
    """Inner edges with their length over the wanted length, deterministic order."""
    edges = [(a, b) for a, b in mesh.edges() if not mesh.is_rim_edge(a, b)]
    first, second = np.array(edges).T
    points = np.array(mesh.points)
    lengths = np.linalg.norm(points[first] - points[second], axis=1)
    wanted = scale * size((points[first] + points[second]) / 2)
    return [(float(r), a, b) for r, (a, b) in zip(lengths / wanted, edges, strict=True)]


def _split_long(mesh: EditableMesh, size: SizeField, scale: float, limit: float, most: int) -> None:
    for ratio, a, b in sorted(_relative_lengths(mesh, size, scale), reverse=True)[:most]:
        if ratio > limit and b in mesh.neighbours(a):
            mesh.split(a, b, (mesh.points[a] + mesh.points[b]) / 2)


def _collapse_short(mesh: EditableMesh, size: SizeField, scale: float, limit: float, most: int) -> None:
    done = 0
    for ratio, a, b in sorted(_relative_lengths(mesh, size, scale)):
        if ratio > limit or done == most:
            return
        if mesh.around[a] and mesh.around[b] and b in mesh.neighbours(a):
            if b in mesh.rim:
                a, b = b, a
            done += mesh.collapse(a, b, _collapse_target(mesh, a, b))


def _flip_all(mesh: EditableMesh, need_valence: bool) -> None:
    for a, b in mesh.edges():
        if b in mesh.neighbours(a):
            mesh.flip(a, b, need_valence)


def _relax(mesh: EditableMesh, surface: HandSurface, size: SizeField, rate: float) -> None:
    """Move every inner vertex along the skin towards the area-weighted centre of its neighbours."""
    points = np.array(mesh.points)
    sizes = size(points)
    moving = [v for v in range(len(points)) if mesh.around[v] and v not in mesh.rim and v not in mesh.pinned]
    normals = surface.gradient(points[moving])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    moved = points[moving].copy()
    for row, v in enumerate(moving):
        # Faces pull with their area over the square of the wanted size, so that the size field is kept.
        total, pull = 0.0, np.zeros(3)
        for face in mesh.around[v]:
            corners = mesh.corners(face)
            weight = float(np.linalg.norm(mesh.normal(corners))) / float(np.mean([sizes[c] for c in corners])) ** 2
            total += weight
            pull += weight * (points[list(corners)].mean(axis=0) - points[v])
        step = rate * 1.5 * pull / total
        moved[row] += step - (step @ normals[row]) * normals[row]
    moved = surface.project(moved, 2)
    for row, v in enumerate(moving):
        mesh.points[v] = moved[row]


def _space_rim(mesh: EditableMesh, surface: HandSurface) -> None:
    """Spread the rim's vertices evenly along the wrist's outline."""
    centre = np.mean([mesh.points[v] for v in sorted(mesh.rim)], axis=0)
    rim = sorted(mesh.rim, key=lambda v: float(np.arctan2(*(mesh.points[v] - centre)[1:])))
    angles = np.linspace(0, 2 * np.pi, 361)
    outline = centre + 25.0 * np.stack([0 * angles, np.sin(angles), np.cos(angles)], axis=1)
    for _ in range(8):
        gradient = surface.gradient(outline) * (0, 1, 1)
        outline -= surface.distance(outline)[:, None] * gradient / (gradient**2).sum(axis=1, keepdims=True)
    length = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(outline, axis=0), axis=1))])
    here = [float(np.argmin(np.linalg.norm(outline - mesh.points[v], axis=1))) for v in rim]
    steps = np.arange(len(rim)) * length[-1] / len(rim)
    # The order around the wrist may start anywhere and run either way; the mean offset moves the vertices least.
    arc = np.interp(here, np.arange(361), length)
    run = np.unwrap(arc * 2 * np.pi / length[-1]) * length[-1] / (2 * np.pi)
    steps = steps if run[-1] > run[0] else -steps
    target = np.mod(steps + np.mean(run - steps), length[-1])
    for v, at in zip(rim, target, strict=True):
        mesh.points[v] = np.array([np.interp(at, length, outline[:, k]) for k in range(3)])


def _pin_tips(mesh: EditableMesh, skeleton: Skeleton) -> None:
    """Put the vertex nearest to each fingertip exactly there, for good."""
    points = np.array([p if mesh.around[v] else np.full(3, np.inf) for v, p in enumerate(mesh.points)])
    for tip in skeleton.tips:
        nearest = int(np.argmin(np.linalg.norm(points - tip, axis=1)))
        mesh.points[nearest] = tip
        mesh.pinned.add(nearest)


def remesh(skeleton: Skeleton, surface: HandSurface) -> tuple[Array, Indices]:
    """(778, 3) vertices in mm and (1538, 3) faces, wound outwards."""
    size = SizeField(skeleton, surface)
    mesh = march(skeleton, surface)
    # In stages with relaxation between them: slivers of the marching cubes would block the collapses otherwise.
    for n_vertices in (12000, 6000, 3000, 1800, 1200, N_VERTICES):
        decimate(mesh, size, n_vertices)
        _flip_all(mesh, need_valence=False)
        _relax(mesh, surface, size, 0.5)
        _space_rim(mesh, surface)
    scale = float(np.median([r for r, _, _ in _relative_lengths(mesh, size, 1.0)]))
    for _ in range(25):
        _split_long(mesh, size, scale, 1.36, most=60)
        _collapse_short(mesh, size, scale, 0.7, most=60)
        _flip_all(mesh, need_valence=True)
        _relax(mesh, surface, size, 0.6)
        _relax(mesh, surface, size, 0.6)
        scale *= float(np.sqrt(mesh.n_vertices / N_VERTICES))
    excess = mesh.n_vertices - N_VERTICES
    while excess:
        if excess > 0:
            _collapse_short(mesh, size, scale, np.inf, most=min(excess, 8))
        else:
            _split_long(mesh, size, scale, 0.0, most=min(-excess, 8))
        _flip_all(mesh, need_valence=True)
        _relax(mesh, surface, size, 0.5)
        excess = mesh.n_vertices - N_VERTICES
    _pin_tips(mesh, skeleton)
    for _ in range(12):
        _relax(mesh, surface, size, 0.6)
        _flip_all(mesh, need_valence=False)
    vertices, faces = mesh.compact()
    return vertices, faces
