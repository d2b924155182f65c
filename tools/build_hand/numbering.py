"""Vertex ids: the fingertip vertices of the sets in use get their ids."""

import numpy as np

from tools.build_hand.skeleton import FINGERS, Array, Indices, Skeleton

# The first id is smplx's, at the most distal point; the others are manopth's, FreiHAND's, HO-3D's and further sets in
# use.
TIP_IDS: dict[str, tuple[int, ...]] = {
    "thumb": (744, 745, 728),
    "index": (320, 317, 333, 353),
    "middle": (443, 444, 445, 442),
    "ring": (554, 555, 556, 576),
    "pinky": (671, 672, 673, 694),
}


def number_vertices(vertices: Array, faces: Indices, skeleton: Skeleton) -> tuple[Array, Indices]:
    """Permute so that tips have their ids and the other vertices run from the wrist to the fingertips."""
    taken: dict[int, int] = {}
    for finger, name in enumerate(FINGERS):
        tip = vertices[np.argmin(np.linalg.norm(vertices - skeleton.tips[finger], axis=1))]
        order = np.argsort(np.linalg.norm(vertices - tip, axis=1), kind="stable")
        for vertex, number in zip(order, TIP_IDS[name], strict=False):
            taken[int(vertex)] = number
    free = sorted(set(range(len(vertices))) - set(taken.values()))
    rest = [int(v) for v in np.argsort(-vertices[:, 0], kind="stable") if int(v) not in taken]
    new_number = np.zeros(len(vertices), dtype=np.int64)
    for vertex, number in [*taken.items(), *zip(rest, free, strict=True)]:
        new_number[vertex] = number
    numbered = np.zeros_like(vertices)
    numbered[new_number] = vertices
    renamed = new_number[faces]
    # A fixed starting corner and order of the faces: the file doesn't depend on the history of the mesh.
    first = renamed.argmin(axis=1)
    renamed = np.stack([renamed[np.arange(len(renamed)), (first + k) % 3] for k in range(3)], axis=1)
    return numbered, renamed[np.lexsort(renamed.T[::-1])]
