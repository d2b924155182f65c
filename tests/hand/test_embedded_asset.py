"""The embedded hand's file: layout, mesh, regressor, weights, shape, pose. By plain numpy and smplx."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

Array = NDArray[np.float64]
Faces = NDArray[np.int64]

DATA = Path(__file__).resolve().parents[2] / "handloop" / "hand" / "data"
ASSET = DATA / "embedded_right.npz"
PARENTS = [-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14]
FINGERS = ("index", "middle", "pinky", "ring", "thumb")
TIPS = {"index": 320, "middle": 443, "pinky": 671, "ring": 554, "thumb": 744}
OTHER_TIPS = {
    "index": (317, 333, 353),
    "middle": (444, 445, 442),
    "pinky": (672, 673, 694),
    "ring": (555, 556, 576),
    "thumb": (745, 728),
}
# Buryanov & Kotiuk 2010, mm: proximal and middle phalanx (thumb: metacarpal and proximal phalanx), distal phalanx,
# tip tissue.
BONES_MM = {
    "index": (39.78, 22.38, 15.82, 3.84),
    "middle": (44.63, 26.33, 17.40, 3.95),
    "pinky": (32.74, 18.11, 15.96, 3.73),
    "ring": (41.37, 25.65, 17.30, 3.95),
    "thumb": (46.22, 31.57, 21.67, 5.67),
}
LENGTH_SCALE = 1.04  # Brings the table's mean hand to the pooled ANSUR II hand length of 189.3 mm.


@pytest.fixture(scope="module")
def asset() -> dict[str, Array]:
    with np.load(ASSET, allow_pickle=False) as data:
        return {key: data[key] for key in data.files}


@pytest.fixture(scope="module")
def postures() -> dict[str, Array]:
    return {name: np.array(pose) for name, pose in json.loads((DATA / "postures.json").read_text()).items()}


def rotation(vector: Array) -> Array:
    angle = np.linalg.norm(vector)
    if angle < 1e-12:
        return np.eye(3)
    x, y, z = vector / angle
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.asarray(np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k)


def pose(asset: dict[str, Array], hand_pose: Array, betas: Array | None = None, correct: bool = True) -> Array:
    """Vertices (778, 3) of a flat-mean pose (45,), by SMPL's definition."""
    rotations = np.stack([rotation(v) for v in np.concatenate([np.zeros(3), hand_pose]).reshape(16, 3)])
    vertices = asset["v_template"] + asset["shapedirs"] @ (np.zeros(10) if betas is None else betas)
    joints = asset["J_regressor"] @ vertices
    if correct:
        vertices = vertices + asset["posedirs"] @ (rotations[1:] - np.eye(3)).ravel()
    world = [np.eye(4) for _ in PARENTS]
    for joint, parent in enumerate(PARENTS):
        local = np.eye(4)
        local[:3, :3] = rotations[joint]
        local[:3, 3] = joints[joint] - (joints[parent] if parent >= 0 else 0)
        world[joint] = world[parent] @ local if parent >= 0 else local
    relative = np.stack(world)
    relative[:, :3, 3] -= np.einsum("jab,jb->ja", relative[:, :3, :3], joints)
    blended = np.einsum("vj,jab->vab", asset["weights"], relative)
    return np.asarray(np.einsum("vab,vb->va", blended[:, :3, :3], vertices) + blended[:, :3, 3])


def bone_axes(asset: dict[str, Array], joint: int) -> Array:
    """Columns f, d, b of a finger's joint: flexion axis, dorsal direction, bone direction."""
    finger, bone = divmod(joint - 1, 3)
    end = asset["v_template"][TIPS[FINGERS[finger]]] if bone == 2 else asset["J"][joint + 1]
    b = (end - asset["J"][joint]) / np.linalg.norm(end - asset["J"][joint])
    dorsal = np.ones(3) if finger == 4 else np.array([0.0, 1.0, 0.0])
    d = dorsal - (dorsal @ b) * b
    d /= np.linalg.norm(d)
    return np.stack([np.cross(d, b), d, b], axis=1)


def euler_degrees(asset: dict[str, Array], joint: int, vector: Array) -> Array:
    """Flexion, abduction and twist of R = Rot(f, flexion) Rot(d, abduction) Rot(b, twist)."""
    axes = bone_axes(asset, joint)
    m = axes.T @ rotation(vector) @ axes
    return np.degrees(
        [np.arctan2(-m[1, 2], m[2, 2]), np.arcsin(np.clip(m[0, 2], -1, 1)), np.arctan2(-m[0, 1], m[0, 0])]
    )


def intersecting_pairs(vertices: Array, faces: Faces) -> Faces:
    """(n, 2) pairs of triangles without a common vertex that cut each other."""
    triangles = vertices[faces]
    low, high = triangles.min(axis=1), triangles.max(axis=1)
    first, second = np.triu_indices(len(faces), 1)
    near = ((low[first] <= high[second]) & (low[second] <= high[first])).all(axis=1)
    first, second = first[near], second[near]
    apart = (faces[first][:, :, None] != faces[second][:, None, :]).all(axis=(1, 2))
    first, second = first[apart], second[apart]
    cuts = np.zeros(len(first), dtype=bool)
    for one, other in ((first, second), (second, first)):
        a, b, c = np.moveaxis(triangles[other], 1, 0)
        for k in range(3):
            start, end = triangles[one][:, k], triangles[one][:, (k + 1) % 3]
            ray = end - start
            h = np.cross(ray, c - a)
            det = np.einsum("ni,ni->n", b - a, h)
            det = np.where(np.abs(det) < 1e-18, np.inf, det)
            u = np.einsum("ni,ni->n", start - a, h) / det
            q = np.cross(start - a, b - a)
            v = np.einsum("ni,ni->n", ray, q) / det
            t = np.einsum("ni,ni->n", c - a, q) / det
            cuts |= (u >= 0) & (v >= 0) & (u + v <= 1) & (t >= 0) & (t <= 1) & np.isfinite(det)
    return np.stack([first[cuts], second[cuts]], axis=1)


def directed_edges(faces: Faces) -> Faces:
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def enclosed_volume(vertices: Array, faces: Faces) -> float:
    """Volume of a patch whose one hole is closed by a fan around its centre."""
    present = {(int(a), int(b)) for a, b in directed_edges(faces)}
    rim = [(a, b) for a, b in present if (b, a) not in present]
    centre = vertices[sorted({a for a, _ in rim})].mean(axis=0)
    # The fan that closes the hole meets at the centre and has no volume about it.
    return float(np.linalg.det(vertices[faces] - centre).sum()) / 6


def finger_patch(asset: dict[str, Array], finger: int) -> Faces:
    """Faces of a finger from the middle of the proximal phalanx to its tip."""
    joint = 3 * finger + 1
    axis = bone_axes(asset, joint)[:, 2]
    half = asset["J"][joint] + 0.6 * (asset["J"][joint + 1] - asset["J"][joint])
    own = asset["weights"][:, joint : joint + 3].sum(axis=1) > 0.5
    beyond = own & ((asset["v_template"] - half) @ axis > 0)
    faces = asset["f"].astype(np.int64)
    return np.asarray(faces[beyond[faces].all(axis=1)])


def test_arrays_have_manos_shapes_and_types(asset: dict[str, Array]) -> None:
    shapes = {
        "v_template": (778, 3),
        "shapedirs": (778, 3, 10),
        "posedirs": (778, 3, 135),
        "J_regressor": (16, 778),
        "weights": (778, 16),
        "hands_mean": (45,),
        "hands_components": (45, 45),
        "J": (16, 3),
    }
    for key, shape in shapes.items():
        assert asset[key].shape == shape and asset[key].dtype == np.float64, key
        assert np.isfinite(asset[key]).all(), key
    assert asset["f"].shape == (1538, 3) and asset["f"].dtype == np.uint32
    assert asset["hands_coeffs"].shape[0] >= 1500 and asset["hands_coeffs"].shape[1] == 45
    assert asset["kintree_table"][0].tolist() == [2**32 - 1, *PARENTS[1:]]
    assert asset["kintree_table"][1].tolist() == list(range(16))
    assert str(asset["bs_style"]) == "lbs" and str(asset["bs_type"]) == "lrotmin"
    assert str(asset["handloop_model"]) == "embedded-hand v1"
    assert ASSET.stat().st_size < 3_000_000


def test_mesh_is_a_manifold_with_one_rim_of_16_edges(asset: dict[str, Array]) -> None:
    faces = asset["f"].astype(np.int64)
    edges = directed_edges(faces)
    present = {(int(a), int(b)) for a, b in edges}
    assert len(present) == len(edges), "two faces run along an edge in the same sense"
    rim = {a: b for a, b in present if (b, a) not in present}
    assert len(rim) == 16
    walk = [next(iter(rim))]
    while rim[walk[-1]] != walk[0]:
        walk.append(rim[walk[-1]])
    assert len(walk) == 16, "the rim is not one loop"
    n_edges = (len(edges) + 16) // 2
    assert 778 - n_edges + len(faces) == 1
    assert len(np.unique(faces)) == 778
    for vertex in range(778):
        fan = faces[(faces == vertex).any(axis=1)]
        # One fan per vertex: as many spokes as faces inside, one more on the rim.
        spokes = len(np.unique(fan)) - 1
        assert spokes == len(fan) + (vertex in rim)


def test_mesh_faces_outwards_and_is_well_shaped(asset: dict[str, Array]) -> None:
    faces = asset["f"].astype(np.int64)
    vertices = asset["v_template"]
    assert 2.5e-4 < enclosed_volume(vertices, faces) < 4.5e-4  # m^3 with the wrist's stump; men's hands are near 4e-4.
    corners = vertices[faces]
    sides = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)
    double_area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    assert (double_area / (sides.max(axis=1) ** 2)).min() > 0.3, "a sliver"
    assert sides.min() > 0.002 and sides.max() < 0.018
    # The palm faces -y, the fingers point along -x, the thumb is on +z.
    tips = {name: vertices[number] for name, number in TIPS.items()}
    assert tips["thumb"][2] > tips["index"][2] > tips["middle"][2] > tips["ring"][2] > tips["pinky"][2]
    assert tips["middle"][0] == min(tip[0] for tip in tips.values())
    assert abs(vertices.mean(axis=0)).max() < 0.03
    assert asset["J"][0, 0] == pytest.approx(0.09, abs=0.005)


def test_mesh_does_not_cut_itself_at_rest(asset: dict[str, Array]) -> None:
    assert len(intersecting_pairs(asset["v_template"], asset["f"].astype(np.int64))) == 0


def test_intersection_test_finds_a_cut() -> None:
    vertices = np.array([[0, 0, 0], [2, 0, 0], [0, 2, 0], [0.5, 0.5, -1], [0.5, 0.5, 1], [3, 3, 1]], dtype=float)
    assert len(intersecting_pairs(vertices, np.array([[0, 1, 2], [3, 4, 5]]))) == 1
    assert len(intersecting_pairs(vertices + 5 * (np.arange(6) > 2)[:, None], np.array([[0, 1, 2], [3, 4, 5]]))) == 0


def test_tip_vertices_sit_on_the_fingertips(asset: dict[str, Array]) -> None:
    for finger, name in enumerate(FINGERS):
        vertices, tip = asset["v_template"], asset["v_template"][TIPS[name]]
        axis = bone_axes(asset, 3 * finger + 3)[:, 2]
        own = asset["weights"][:, 3 * finger + 3] > 0.5
        assert (vertices[own] @ axis).max() <= tip @ axis + 3e-4
        for other in OTHER_TIPS[name]:
            assert np.linalg.norm(vertices[other] - tip) < 0.008
            assert asset["weights"][other, 3 * finger + 3] > 0.9


def test_bones_follow_the_tables(asset: dict[str, Array]) -> None:
    joints, vertices = asset["J"] * 1000, asset["v_template"] * 1000
    for finger, name in enumerate(FINGERS):
        chain = [*joints[3 * finger + 1 : 3 * finger + 4], vertices[TIPS[name]]]
        lengths = np.linalg.norm(np.diff(chain, axis=0), axis=1)
        table = BONES_MM[name]
        assert lengths == pytest.approx(LENGTH_SCALE * np.array([table[0], table[1], table[2] + table[3]]), abs=0.3)
    # Wrist to MCP of index, middle, ring, little: WebXR's reference hand has 91.9, 91.7, 86.7, 82.9.
    palm = np.linalg.norm(joints[[1, 4, 10, 7]] - joints[0], axis=1)
    assert palm == pytest.approx([91.9, 91.7, 86.7, 82.9], abs=1.5)


def test_proportions_of_the_whole_hand(asset: dict[str, Array]) -> None:
    joints, vertices = asset["J"] * 1000, asset["v_template"] * 1000
    assert joints[0, 0] - vertices[TIPS["middle"], 0] == pytest.approx(189.3, abs=2.0)  # ANSUR II, pooled.
    at_mcps = vertices[
        (asset["weights"][:, 13:].sum(axis=1) < 0.3) & (np.abs(vertices[:, 0] - joints[[1, 7], 0].mean()) < 9)
    ]
    assert np.ptp(at_mcps[:, 2]) == pytest.approx(83.3, abs=3.0)  # ANSUR II hand breadth, pooled.
    for finger in (0, 1, 3):
        pip = 3 * finger + 2
        axes = bone_axes(asset, pip)
        local = (vertices - joints[pip]) @ axes
        ring = (np.abs(local[:, 2]) < 6) & (asset["weights"][:, pip - 1 : pip + 2].sum(axis=1) > 0.99)
        assert 0.085 * 189 - 1 < np.ptp(local[ring, 0]) < 0.1 * 189 + 1
    # The wrist is an oval of ANSUR II's circumference (155 to 176 mm), not a circle.
    wrist = vertices[vertices[:, 0] > vertices[:, 0].max() - 0.01]
    assert len(wrist) == 16
    order = np.argsort(np.arctan2(*(wrist - wrist.mean(axis=0))[:, 1:].T))
    around = np.linalg.norm(wrist[order] - np.roll(wrist[order], 1, axis=0), axis=1).sum()
    assert 152 < around < 178
    assert 1.25 < np.ptp(wrist[:, 2]) / np.ptp(wrist[:, 1]) < 1.75


def test_regressor_is_local_convex_and_exact(asset: dict[str, Array]) -> None:
    regressor = asset["J_regressor"]
    assert regressor.min() >= 0
    assert regressor.sum(axis=1) == pytest.approx(1.0, abs=1e-9)
    assert np.abs(regressor @ asset["v_template"] - asset["J"]).max() < 1e-9
    for joint, row in enumerate(regressor):
        reach = np.linalg.norm(asset["v_template"][row > 0] - asset["J"][joint], axis=1).max()
        assert reach < (0.05 if joint in (0, 13) else 0.035)


def test_shape_directions_move_joints_as_meant(asset: dict[str, Array]) -> None:
    motion = np.einsum("jv,vck->jck", asset["J_regressor"], asset["shapedirs"])
    joints = asset["J"]
    offset = joints - joints[0]
    assert np.abs(motion[:, :, 0] - 0.061 * offset).max() < 1e-8
    assert np.abs(asset["shapedirs"][:, :, 0] - 0.061 * (asset["v_template"] - joints[0])).max() < 1e-8

    def stretch(joint: int, component: int) -> float:
        child, length = joint + 1, np.linalg.norm(joints[joint + 1] - joints[joint])
        moved = joints[child] + motion[child, :, component] - joints[joint] - motion[joint, :, component]
        return float(np.linalg.norm(moved) / length - 1)

    assert [stretch(j, 1) for j in (1, 2, 4, 5, 7, 8, 10, 11)] == pytest.approx([0.03] * 8, abs=1e-6)
    assert motion[4, 0, 1] > 0.001 and abs(motion[4, 2, 1]) < 1e-6  # A palm that is shorter, not narrower.
    assert motion[1, 2, 2] > 0.0009 and motion[7, 2, 2] < -0.0011  # Knuckles move apart.
    assert np.abs(motion[:13, :, 4]).max() < 1e-8 and stretch(14, 4) == pytest.approx(0.04, abs=1e-6)
    assert stretch(1, 5) == pytest.approx(0.0165, abs=1e-6) and stretch(10, 5) == pytest.approx(-0.0165, abs=1e-6)
    assert stretch(7, 6) == pytest.approx(0.045, abs=1e-6) and stretch(1, 6) == pytest.approx(0.0, abs=1e-6)
    assert stretch(4, 7) == pytest.approx(0.022, abs=1e-6) and stretch(5, 7) == pytest.approx(-0.03, abs=1e-6)
    assert np.abs(motion[1:, :, 8]).max() < 1e-8  # Girth moves no joint.
    flat = asset["shapedirs"].reshape(-1, 10)
    cosine = flat.T @ flat / np.outer(np.linalg.norm(flat, axis=0), np.linalg.norm(flat, axis=0))
    assert np.abs(cosine - np.eye(10)).max() < 0.7


def test_one_sd_of_size_is_6_percent_of_hand_length(asset: dict[str, Array]) -> None:
    for sd in (-1.0, 1.0):
        vertices = pose(asset, np.zeros(45), sd * np.eye(10)[0])
        joints = asset["J_regressor"] @ vertices
        length = np.linalg.norm(vertices[TIPS["middle"]] - joints[0])
        rest = np.linalg.norm(asset["v_template"][TIPS["middle"]] - asset["J"][0])
        assert length / rest == pytest.approx(1 + 0.061 * sd, abs=1e-6)


def test_shape_extremes_stay_sound(asset: dict[str, Array]) -> None:
    for component in range(10):
        for sd in (-2.5, 2.5):
            vertices = pose(asset, np.zeros(45), sd * np.eye(10)[component])
            assert len(intersecting_pairs(vertices, asset["f"].astype(np.int64))) == 0, (component, sd)


def test_weights(asset: dict[str, Array]) -> None:
    weights = asset["weights"]
    assert weights.min() >= 0
    assert weights.sum(axis=1) == pytest.approx(1.0, abs=1e-12)
    assert (weights > 0).sum(axis=1).max() <= 6
    by_finger = np.stack([weights[:, 3 * f + 1 : 3 * f + 4].sum(axis=1) for f in range(5)], axis=1)
    # Beyond the webs a vertex belongs to one finger alone.
    assert ((by_finger > 0).sum(axis=1)[by_finger.max(axis=1) > 0.95] == 1).all()
    edges = directed_edges(asset["f"].astype(np.int64))
    assert np.abs(weights[edges[:, 0]] - weights[edges[:, 1]]).max() < 0.9
    assert (weights[np.linalg.norm(asset["v_template"] - asset["J"][0], axis=1) < 0.02, 0] > 0.8).all()


def test_pose_blend_shapes_are_small_and_vanish_at_rest(asset: dict[str, Array], postures: dict[str, Array]) -> None:
    assert np.array_equal(pose(asset, np.zeros(45)), pose(asset, np.zeros(45), correct=False))
    for name, hand_pose in postures.items():
        rotations = np.stack([rotation(v) for v in hand_pose.reshape(15, 3)])
        shift = np.linalg.norm(asset["posedirs"] @ (rotations - np.eye(3)).ravel(), axis=1)
        assert shift.max() < 0.012, name


@pytest.mark.parametrize("finger", range(4))
def test_bent_finger_keeps_its_volume(asset: dict[str, Array], finger: int) -> None:
    hand_pose = np.zeros((15, 3))
    hand_pose[3 * finger + 1] = np.deg2rad(80) * bone_axes(asset, 3 * finger + 2)[:, 0]
    patch = finger_patch(asset, finger)
    rest = enclosed_volume(asset["v_template"], patch)
    corrected = enclosed_volume(pose(asset, hand_pose.ravel()), patch) / rest
    linear = enclosed_volume(pose(asset, hand_pose.ravel(), correct=False), patch) / rest
    assert 0.9 <= corrected <= 1.08
    assert abs(1 - corrected) < abs(1 - linear) and linear < corrected


@pytest.mark.parametrize("finger", range(5))
def test_fingers_are_independent(asset: dict[str, Array], finger: int) -> None:
    hand_pose = np.zeros((15, 3))
    for joint in range(3 * finger, 3 * finger + 3):
        hand_pose[joint] = 0.8 * bone_axes(asset, joint + 1)[:, 0]
    moved = np.linalg.norm(pose(asset, hand_pose.ravel()) - asset["v_template"], axis=1)
    for other in range(5):
        if other != finger:
            beyond = asset["weights"][:, 3 * other + 2 : 3 * other + 4].sum(axis=1) > 0.01
            assert moved[beyond].max() < 1e-9


def test_pose_space(asset: dict[str, Array]) -> None:
    components, coefficients = asset["hands_components"], asset["hands_coeffs"]
    assert np.abs(components @ components.T - np.eye(45)).max() < 1e-9
    variance = coefficients.var(axis=0)
    assert (np.diff(variance) <= 1e-12).all()
    assert np.abs(coefficients.mean(axis=0)).max() < 1e-9
    # Correlated fingers: few components carry most of the motion.
    assert variance[:12].sum() / variance.sum() > 0.8


def test_sampled_poses_respect_ranges_of_motion(asset: dict[str, Array]) -> None:
    poses = (asset["hands_mean"] + asset["hands_coeffs"] @ asset["hands_components"]).reshape(-1, 15, 3)
    assert np.linalg.norm(poses, axis=2).max() <= 2.8
    fingers = ((-25, 95, 25), (-5, 112, 0), (-15, 85, 0))
    thumb = ((-25, 55, 40), (-15, 60, 12), (-20, 80, 0))
    for joint in range(15):
        low, high, sideways = (thumb if joint // 3 == 4 else fingers)[joint % 3]
        angles = np.array([euler_degrees(asset, joint + 1, vector) for vector in poses[::4, joint]])
        assert angles[:, 0].min() > low - 0.1 and angles[:, 0].max() < high + 0.1, joint
        assert np.abs(angles[:, 1]).max() < sideways + 0.1, joint
        assert np.abs(angles[:, 2]).max() < 45.1, joint


def test_posture_library(asset: dict[str, Array], postures: dict[str, Array]) -> None:
    assert len(postures) >= 20 and {"flat", "rest", "fist", "pinch", "point"} <= set(postures)
    assert all(row.shape == (45,) for row in postures.values())
    fist = pose(asset, postures["fist"])
    for name in ("index", "middle", "ring", "pinky"):
        assert np.linalg.norm(fist[TIPS[name]] - asset["J"][0]) < 0.085, "a fist's fingertips lie in the palm"
    pinch = pose(asset, postures["pinch"])
    assert np.linalg.norm(pinch[TIPS["thumb"]] - pinch[TIPS["index"]]) < 0.02


@pytest.mark.parametrize("name", ["flat", "fist", "pinch"])
def test_smplx_gives_the_same_mesh(
    asset: dict[str, Array], postures: dict[str, Array], tmp_path: Path, name: str
) -> None:
    smplx = pytest.importorskip("smplx")
    torch = pytest.importorskip("torch")
    path = tmp_path / "MANO_RIGHT.npz"
    shutil.copy(ASSET, path)
    model = smplx.MANO(model_path=str(path), ext="npz", use_pca=False, flat_hand_mean=True, dtype=torch.float64)
    betas = np.linspace(-1.0, 1.0, 10)
    output = model(betas=torch.tensor(betas[None]), hand_pose=torch.tensor(postures[name][None]))
    assert model.is_rhand
    expected = pose(asset, postures[name], betas)
    assert np.abs(output.vertices[0].detach().numpy() - expected).max() < 1e-6
