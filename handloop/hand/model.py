"""`Hand`: a hand model in MANO's layout, as plain arrays with its provenance."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from handloop.core.errors import ModelError
from handloop.core.joints import MANO_PARENTS, TIP_SETS

N_VERTICES, N_FACES, N_JOINTS, N_BETAS = 778, 1538, 16, 10


@dataclass(frozen=True, eq=False, repr=False)
class Hand:
    """One side's hand model. All arrays are float64 (faces int64), metres, in the model's own rest frame."""

    name: str
    """What it is, for people: "embedded hand v1" or the file's name."""
    is_right: bool
    """Side, found from the content."""
    v_template: np.ndarray
    """(778, 3) rest vertices of the mean shape."""
    shapedirs: np.ndarray
    """(778, 3, 10) vertex displacement per unit of beta."""
    posedirs: np.ndarray
    """(778, 3, 135) vertex displacement per entry of (R - I) of the 15 finger joints, row-major."""
    j_regressor: np.ndarray
    """(16, 778) rest vertices to joints."""
    weights: np.ndarray
    """(778, 16) skinning weights."""
    faces: np.ndarray
    """(1538, 3) vertex ids, outward by the right-hand rule."""
    hands_mean: np.ndarray
    """(45,) the model's mean pose, flat-mean axis-angle."""
    hands_components: np.ndarray
    """(45, 45) principal components of the pose, one per row."""
    hands_coeffs: np.ndarray
    """(n, 45) coefficients of the poses the model was built from: poses = coeffs @ components + mean."""
    tip_set: str = "smplx"
    """Which vertices count as fingertips, a key of `core.joints.TIP_SETS`."""
    licensed: bool = False
    """True for a MANO file of the user's, False for the embedded hand."""
    digest: str = ""
    """Short hash of the arrays: names the model in results."""
    left_shapedirs: str = "none"
    """What was done to a left model's `shapedirs`: "none" (nothing was wrong), "repaired" (x negated) or "as-file"
    (left alone, because asked to or because the sign could not be told)."""
    notes: tuple[str, ...] = field(default=())
    """What was found and repaired while loading, in plain sentences."""

    def __repr__(self) -> str:
        return f"Hand({self.name!r}, {'right' if self.is_right else 'left'}, digest {self.digest})"

    def __post_init__(self) -> None:
        expected = {
            "v_template": (N_VERTICES, 3),
            "shapedirs": (N_VERTICES, 3, N_BETAS),
            "posedirs": (N_VERTICES, 3, 135),
            "j_regressor": (N_JOINTS, N_VERTICES),
            "weights": (N_VERTICES, N_JOINTS),
            "faces": (N_FACES, 3),
            "hands_mean": (45,),
            "hands_components": (45, 45),
        }
        for name, shape in expected.items():
            given = getattr(self, name).shape
            if given != shape:
                raise ModelError(f"{self.name}: {name} has shape {given}, expected {shape} as in MANO.")
        if self.tip_set not in TIP_SETS:
            raise ModelError(f"the tip set {self.tip_set!r} is unknown, expected one of {', '.join(TIP_SETS)}.")

    @property
    def parents(self) -> tuple[int, ...]:
        """Parent of each of the 16 joints."""
        return MANO_PARENTS

    @property
    def tip_ids(self) -> np.ndarray:
        """(5,) fingertip vertices: thumb, index, middle, ring, pinky."""
        return np.array(TIP_SETS[self.tip_set])

    @property
    def joints_rest(self) -> np.ndarray:
        """(16, 3) joints of the mean shape at rest."""
        joints: np.ndarray = self.j_regressor @ self.v_template
        return joints

    @property
    def joints_shapedirs(self) -> np.ndarray:
        """(16, 3, 10) joint displacement per unit of beta."""
        directions: np.ndarray = np.einsum("jv,vcs->jcs", self.j_regressor, self.shapedirs)
        return directions

    def poses(self) -> np.ndarray:
        """(n, 45) the poses the model was built from, flat-mean axis-angle."""
        poses: np.ndarray = self.hands_coeffs @ self.hands_components + self.hands_mean
        return poses


@dataclass(frozen=True, eq=False)
class HandPair:
    """The models of both sides. Where no left file was given, left is the mirrored right and says so."""

    right: Hand
    left: Hand

    @property
    def left_is_mirror(self) -> bool:
        """True where one model is the other in a mirror, so that both sides share one set of constants."""
        return any(hand.name.endswith("(mirrored)") for hand in (self.left, self.right))

    def side(self, is_right: bool) -> Hand:
        """The model of one side."""
        return self.right if is_right else self.left
