"""SMPL's forward pass in numpy: rotations, skeleton chain, blend shapes, linear skinning."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.build_hand.skeleton import PARENTS, Array, Indices


@dataclass(frozen=True)
class HandModel:
    """The arrays of the asset that posing needs, in metres."""

    v_template: Array
    faces: Indices
    weights: Array
    joints: Array
    posedirs: Array
    """(778, 3, 135)"""
    shapedirs: Array
    """(778, 3, 10)"""
    joint_shapedirs: Array
    """(16, 3, 10)"""


def load_model(path: Path) -> HandModel:
    """Read an asset written by ``python -m tools.build_hand``."""
    with np.load(path, allow_pickle=False) as data:
        regressor = data["J_regressor"]
        return HandModel(
            v_template=data["v_template"],
            faces=data["f"].astype(np.int64),
            weights=data["weights"],
            joints=regressor @ data["v_template"],
            posedirs=data["posedirs"],
            shapedirs=data["shapedirs"],
            joint_shapedirs=np.einsum("jv,vck->jck", regressor, data["shapedirs"]),
        )


def rotation_matrices(vectors: Array) -> Array:
    """Axis-angle (..., 3) to matrices (..., 3, 3)."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    safe = np.where(angle < 1e-12, 1.0, angle)
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*x.shape, 3, 3)
    return np.asarray(np.eye(3) + np.sin(angle) / safe * cross + (1 - np.cos(angle)) / safe**2 * (cross @ cross))


def joint_transforms(rotations: Array, joints: Array) -> tuple[Array, Array]:
    """World rotations (..., 16, 3, 3) and joint positions (..., 16, 3) of local rotations; the wrist stays."""
    world = [rotations[..., 0, :, :]]
    position = [np.broadcast_to(joints[0], world[0].shape[:-1]) + 0.0]
    for joint in range(1, 16):
        parent = PARENTS[joint]
        position.append(position[parent] + (world[parent] @ (joints[joint] - joints[parent])[:, None])[..., 0])
        world.append(world[parent] @ rotations[..., joint, :, :])
    return np.stack(world, axis=-3), np.stack(position, axis=-2)


def skin(vertices: Array, weights: Array, world: Array, position: Array, joints: Array) -> Array:
    """Linear blend skinning; ``vertices`` (..., n, 3)."""
    rotation = np.einsum("vj,...jab->...vab", weights, world)
    offset = position - np.einsum("...jab,jb->...ja", world, joints)
    return np.asarray(
        np.einsum("...vab,...vb->...va", rotation, vertices) + np.einsum("vj,...ja->...va", weights, offset)
    )


def pose_feature(rotations: Array) -> Array:
    """vec(R - I) of joints 1..15, (..., 135)."""
    return (rotations[..., 1:, :, :] - np.eye(3)).reshape(*rotations.shape[:-3], 135)


def pose_mesh(model: HandModel, hand_pose: Array, betas: Array | None = None, correct: bool = True) -> Array:
    """Posed vertices of a flat-mean axis-angle pose (45,); ``correct=False`` leaves the pose blend shapes out."""
    rotations = rotation_matrices(np.concatenate([np.zeros(3), hand_pose]).reshape(16, 3))
    shape = np.zeros(10) if betas is None else betas
    vertices = model.v_template + model.shapedirs @ shape
    joints = model.joints + model.joint_shapedirs @ shape
    if correct:
        vertices = vertices + model.posedirs @ pose_feature(rotations)
    world, position = joint_transforms(rotations, joints)
    return skin(vertices, model.weights, world, position, joints)
