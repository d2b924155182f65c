"""A small editable triangle mesh: collapse, split and flip with the checks that keep it a manifold."""

import numpy as np

from tools.build_hand.skeleton import Array, Indices

Edge = tuple[int, int]


class EditableMesh:
    """Vertices, faces and the faces around every vertex. Dead vertices and faces stay as gaps until :meth:`compact`."""

    def __init__(self, vertices: Array, faces: Indices) -> None:
        self.points: list[Array] = [np.array(p) for p in vertices]
        self.faces: list[tuple[int, int, int] | None] = [(int(a), int(b), int(c)) for a, b, c in faces]
        self.around: list[set[int]] = [set() for _ in vertices]
        for index, (a, b, c) in enumerate(faces):
            for vertex in (int(a), int(b), int(c)):
                self.around[vertex].add(index)
        self.rim: set[int] = set()
        """Vertices on the open boundary."""
        self.pinned: set[int] = set()
        """Vertices that relaxation leaves in place."""
        for a, b in self.edges():
            if len(self.around[a] & self.around[b]) == 1:
                self.rim.update((a, b))

    @property
    def n_vertices(self) -> int:
        """Vertices in use."""
        return sum(1 for faces in self.around if faces)

    def corners(self, face: int) -> tuple[int, int, int]:
        """The corners of a living face."""
        corners = self.faces[face]
        assert corners is not None
        return corners

    def edges(self) -> list[Edge]:
        """All edges, sorted, smaller index first."""
        found: set[Edge] = set()
        for face in self.faces:
            if face is not None:
                a, b, c = face
                found.update((min(e), max(e)) for e in ((a, b), (b, c), (c, a)))
        return sorted(found)

    def neighbours(self, vertex: int) -> set[int]:
        """Vertices that share an edge with this one."""
        return {v for f in self.around[vertex] for v in self.corners(f)} - {vertex}

    def normal(self, corners: tuple[int, int, int], moved: int = -1, to: Array | None = None) -> Array:
        """Twice the area vector, with vertex ``moved`` put at ``to``."""
        a, b, c = (to if v == moved and to is not None else self.points[v] for v in corners)
        u, w = b - a, c - a
        return np.array([u[1] * w[2] - u[2] * w[1], u[2] * w[0] - u[0] * w[2], u[0] * w[1] - u[1] * w[0]])

    def is_rim_edge(self, a: int, b: int) -> bool:
        """Whether only one face has this edge."""
        return len(self.around[a] & self.around[b]) == 1

    def _stays_fair(self, vertex: int, dropped: set[int], to: Array) -> bool:
        """Moving ``vertex`` turns no remaining face over and makes none a sliver."""
        for face in self.around[vertex] - dropped:
            corners = self.corners(face)
            before, after = self.normal(corners), self.normal(corners, vertex, to)
            size_before, size_after = np.sqrt(before @ before), np.sqrt(after @ after)
            if before @ after < 0.5 * size_before * size_after:
                return False
            quality = size_after / self._longest_squared(corners, vertex, to)
            # Marching cubes leaves slivers behind: those may only get better.
            if quality < 0.25 and quality < size_before / self._longest_squared(corners, vertex, self.points[vertex]):
                return False
        return True

    def _longest_squared(self, corners: tuple[int, int, int], moved: int, to: Array) -> float:
        points = [to if v == moved else self.points[v] for v in corners]
        return max(1e-12, *(float((points[i] - points[i - 1]) @ (points[i] - points[i - 1])) for i in range(3)))

    def collapse(self, a: int, b: int, to: Array) -> bool:
        """Merge ``b`` into ``a`` at ``to``; False, and nothing done, where that would harm the mesh."""
        shared = self.around[a] & self.around[b]
        if a in self.rim and b in self.rim and len(shared) != 1:
            return False
        if len(self.neighbours(a) & self.neighbours(b)) != len(shared):
            return False
        if not self._stays_fair(a, shared, to) or not self._stays_fair(b, shared, to):
            return False
        for face in shared:
            for vertex in self.corners(face):
                self.around[vertex].discard(face)
            self.faces[face] = None
        for face in self.around[b]:
            x, y, z = self.corners(face)
            self.faces[face] = (a if x == b else x, a if y == b else y, a if z == b else z)
            self.around[a].add(face)
        self.around[b] = set()
        self.points[a] = to
        self.rim.discard(b)
        return True

    def split(self, a: int, b: int, at: Array) -> int:
        """Put a new vertex on an inner edge."""
        new = len(self.points)
        self.points.append(at)
        self.around.append(set())
        for face in sorted(self.around[a] & self.around[b]):
            x, y, z = self.corners(face)
            kept, added = ((v if v != b else new for v in (x, y, z)), (v if v != a else new for v in (x, y, z)))
            self.faces[face] = tuple(kept)  # type: ignore[assignment]
            self.around[b].discard(face)
            self.faces.append(tuple(added))  # type: ignore[arg-type]
            index = len(self.faces) - 1
            opposite = next(v for v in (x, y, z) if v not in (a, b))
            self.around[new].update((face, index))
            self.around[b].add(index)
            self.around[opposite].add(index)
        return new

    def flip(self, a: int, b: int, need_valence: bool = True) -> bool:
        """Turn an inner edge if that brings the valences nearer to 6 (4 on the rim), or the angles to Delaunay's."""
        shared = sorted(self.around[a] & self.around[b])
        if len(shared) != 2:
            return False
        first = self.corners(shared[0])
        c = next(v for v in first if v not in (a, b))
        d = next(v for v in self.corners(shared[1]) if v not in (a, b))
        if d in self.neighbours(c):
            return False
        if need_valence:
            deviation = {v: len(self.neighbours(v)) - (4 if v in self.rim else 6) for v in (a, b, c, d)}
            before = sum(x * x for x in deviation.values())
            after = sum((deviation[v] + s) ** 2 for v, s in ((a, -1), (b, -1), (c, 1), (d, 1)))
            if after >= before:
                return False
        elif self._angle(c, a, b) + self._angle(d, a, b) <= np.pi + 0.05:
            return False
        # The face c-a-b may run a -> b or b -> a: keep its sense.
        runs_forward = first[(first.index(a) + 1) % 3] == b
        one, two = ((a, d, c), (d, b, c)) if runs_forward else ((d, a, c), (b, d, c))
        old = self.normal(first) / np.linalg.norm(self.normal(first))
        for corners in (one, two):
            normal = self.normal(corners)
            size = np.linalg.norm(normal)
            if normal @ old < 0.3 * size or size < 0.3 * self._longest_squared(corners, a, self.points[a]):
                return False
        for face in shared:
            for v in self.corners(face):
                self.around[v].discard(face)
        for face, corners in zip(shared, (one, two), strict=True):
            self.faces[face] = corners
            for v in corners:
                self.around[v].add(face)
        return True

    def _angle(self, apex: int, a: int, b: int) -> float:
        u, w = self.points[a] - self.points[apex], self.points[b] - self.points[apex]
        return float(np.arccos(np.clip(u @ w / np.sqrt((u @ u) * (w @ w)), -1.0, 1.0)))

    def compact(self) -> tuple[Array, Indices]:
        """Vertices and faces without gaps."""
        used = [v for v, faces in enumerate(self.around) if faces]
        renumber = {v: i for i, v in enumerate(used)}
        faces = [[renumber[v] for v in face] for face in self.faces if face is not None]
        return np.array([self.points[v] for v in used]), np.array(faces)
