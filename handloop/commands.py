"""The commands that fit, measure, learn and render: each a dataclass whose fields are its flags.

Only light imports: `handloop --help` must not wait for torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class KeypointCommand:
    """What `fit` and `predict` share."""

    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Keypoint files or folders of them: OpenPose, MediaPipe, mmpose, COCO, npz, CSV; or a picture data set."""
    out: Path
    """Folder for the results; made if missing."""
    mano: str | None = None
    """MANO file or folder. Without it: what HANDLOOP_MANO names, or the embedded hand."""
    camera: Path | None = None
    """Camera file with K and perhaps distortion (JSON, YAML, npz), for all hands."""
    focal: float | None = None
    """Focal length in px, for all hands; the principal point is the middle of the picture."""
    fov: float | None = None
    """Horizontal field of view in degrees, for all hands; needs the image size."""
    free_focal: float | None = None
    """Where the focal length is assumed, fit it too, with this relative deviation (0.3 is reasonable)."""
    hand: Literal["right", "left"] | None = None
    """Side of every hand, where the files do not say or are wrong."""
    hand_length: float | None = None
    """Known hand length in mm, wrist joint to middle fingertip: makes depth metric."""
    noise: float | None = None
    """Standard deviation of the keypoints in px of a hand whose box is 224 px; 2 covers detectors and the model."""
    joint_noise: Literal["uniform", "coco_wholebody"] | None = None
    """How exact the points are compared with each other: coco_wholebody for detectors trained on it; else all alike."""
    layout: Path | None = None
    """What the source means by its points, as learned by `handloop layout`; without it, the model's own points."""
    prior: Path | None = None
    """Which poses are likely, as learned by `handloop prior`; without it, the poses inside the hand model."""
    recipe: Literal["default", "fast", "careful", "spin", "smplify"] = "default"
    """How thoroughly to search; spin and smplify are the published methods, for comparison."""
    save: tuple[Literal["meshes", "overlays"], ...] = ()
    """Also write meshes/*.obj, or overlays/*.png of every hand."""
    report_hands: int = 60
    """Hands shown with picture and mesh in report.html, worst first; 0 writes no report."""
    format: Literal["openpose", "mediapipe", "npz", "csv", "coco", "mmpose", "interhand"] | None = None
    """Read all files as this format instead of looking at their content."""
    image_size: tuple[float, float] | None = None
    """Width and height of the pictures in px, where the files do not say."""
    images: Path | None = None
    """Folder of the pictures, paired by name; without it, pictures beside the keypoint files are used."""
    mediapipe_handedness: Literal["subject", "mirrored"] | None = None
    """What MediaPipe's left and right mean: the person's own side, or that of a mirrored (selfie) picture."""
    scale: Literal["pixels", "unit", "signed-unit"] | None = None
    """OpenPose's --keypoint_scale: pixels, 0..1 or -1..1; looked at when not given."""
    min_conf: float = 0.0
    """Points of lower confidence count as missing."""
    device: str = "auto"
    """auto, cpu or cuda."""
    resume: bool = False
    """Go on with an interrupted run in the same folder."""


@dataclass(frozen=True)
class FitCommand(KeypointCommand):
    """Fit MANO hands to keypoint files and write results.npz, summary.json and report.html."""

    start: Path | None = None
    """npz of another network's hands (HaMeR, WiLoR, MANO's names) to start from besides the usual starts; rows are
    matched by id, else by order."""
    engine: Literal["local", "ray"] = "local"
    """ray fits millions of hands in shards, with one process per CPU of this machine or of a cluster (docs/bulk.md);
    a rerun does only what is missing or has changed. Inputs may be text files with one path per line."""
    shards: Literal["npz", "parquet"] = "npz"
    """With --engine ray: what each shard is written as."""
    shard_hands: int = 20_000
    """With --engine ray: hands in a shard, at most and roughly."""
    merge: Literal["auto", "yes", "no"] = "auto"
    """With --engine ray: also join the shards into results.npz; auto does up to 200,000 hands in npz."""
    workers: int | None = None
    """With --engine ray: processes; without it, one per CPU."""
    address: str | None = None
    """With --engine ray: a running cluster's address, as `ray start` says it; else RAY_ADDRESS, or this machine."""


@dataclass(frozen=True)
class PredictCommand(KeypointCommand):
    """Lift keypoints or pictures to MANO hands with a network, without fitting; writes what `fit` writes."""

    weights: Path | None = None
    """A lifter made by `handloop train lifter`, or an image regressor by `handloop train image`, which looks at the
    pictures; without it, the package's own lifter, which knows the embedded hand."""
    boxes: Path | None = None
    """JSON or npz with the boxes of the hands, for an image regressor: pictures need no keypoints then, and the inputs
    are the folders that the pictures lie in. Without it, the keypoints say where the hands are."""
    refine: bool = False
    """Fit from the network's answer, from no other start; hands without keypoints keep the answer."""


@dataclass(frozen=True)
class LimitsCommand:
    """Learn biomechanical limits (bone lengths, palm, joint angles) from 3D hands, print them and write a JSON file."""

    source: Annotated[Path, tyro.conf.Positional]
    """npz with joints_3d (N, 21, 3) and is_right (N,), or a results.npz; at least 60 hands."""
    out: Path
    """JSON file for the limits."""
    trim: float = 0.005
    """Share of the hands left out at each end of every range, 0 to 0.2."""
    hand: Literal["right", "left"] | None = None
    """Side of every hand, where the file does not say or is wrong."""


@dataclass(frozen=True)
class EvalCommand:
    """Compare results with known 3D joints and print the errors; docs/evaluation.md explains the numbers."""

    results: Annotated[Path, tyro.conf.Positional]
    """results.npz, or the folder that holds it."""
    truth: Annotated[Path, tyro.conf.Positional]
    """npz with joints_3d (N, 21, 3) in m, or FreiHAND's training_xyz.json or its folder."""
    out: Path | None = None
    """Folder for eval.json, eval_hands.csv and eval_curves.html; without it the numbers are only printed."""
    joint_definition: Literal["skinning", "regressed"] = "skinning"
    """skinning compares keypoints_3d of the results; regressed compares joints regressed from the mesh (FreiHAND)."""
    tip_set: Literal["smplx", "freihand", "manopth", "manopth-left", "ho3d", "contactpose", "728"] | None = None
    """Take the fingertips from these vertices of the mesh instead."""
    mano: str | None = None
    """MANO file or folder that was fitted, for meshes. Without it: what HANDLOOP_MANO names, or the embedded hand."""
    vertices: bool = True
    """Compare meshes, too, where the truth has them."""
    seed: int = 0
    """Of the bootstrap intervals."""


@dataclass(frozen=True)
class ExportCommand:
    """Write results in the form that the servers of FreiHAND and HO-3D take."""

    results: Annotated[Path, tyro.conf.Positional]
    """results.npz, or the folder that holds it."""
    format: Literal["freihand", "ho3d"]
    """Whose server: axes, joint order, joint definition and fingertips follow."""
    out: Path
    """A .zip file with pred.json in it, or the .json alone."""
    order: Path | None = None
    """Text file with one id per line, the pictures in the server's order; hands not in the results become zeros."""
    joint_definition: Literal["skinning", "regressed"] | None = None
    """Another definition of the joints than the data set's own (FreiHAND regressed, HO-3D skinning)."""
    tip_set: Literal["smplx", "freihand", "manopth", "manopth-left", "ho3d", "contactpose", "728"] | None = None
    """Other fingertip vertices than the data set's own."""
    mano: str | None = None
    """The MANO file or folder that was fitted. Without it: what HANDLOOP_MANO names, or the embedded hand."""


@dataclass(frozen=True)
class LayoutCommand:
    """Learn what a source means by its 21 points, from hands with known 3D joints or from 2D keypoints alone."""

    source: Annotated[Path, tyro.conf.Positional]
    """npz with joints_3d (N,21,3) in m, or with --from-2d any keypoint file or folder that `fit` reads."""
    out: Path
    """Layout file to write (JSON), for `handloop fit --layout`."""
    from_2d: bool = False
    """Learn from 2D alone: needs cameras, hundreds of hands, and many people, poses and views; refuses otherwise."""
    camera: Path | None = None
    """Camera file for all hands, where the keypoint files hold none (with --from-2d)."""
    mano: str | None = None
    """MANO file or folder, as for `fit`. A layout belongs to the model it was learned with."""
    hands: int = 1000
    """Hands used at most, drawn evenly from the whole."""


@dataclass(frozen=True)
class PriorCommand:
    """Learn which poses are likely from MANO poses: a Gaussian or a mixture, whichever explains unseen poses best."""

    inputs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """npz files with hand_pose or pose (N, 45|48), axis-angle in rad; or results.npz, without its doubtful fits."""
    out: Path
    """npz to write, for `handloop fit --prior`."""
    components: Literal["auto"] | int = "auto"
    """Number of Gaussians; auto takes the number under which poses held out are most likely."""
    own_poses: bool = False
    """Learn from the poses inside the hand model, too."""
    hand: Literal["right", "left"] | None = None
    """Side of the poses in files that do not say."""
    mean_relative: bool = False
    """Files that do not say hold poses relative to MANO's mean pose (flat_hand_mean=False); needs --mano."""
    mano: str | None = None
    """MANO file or folder, as for `fit`. A prior from fits or from its own poses belongs to the model."""
    seed: int = 0
    """Of the first guesses and of which poses are held out."""


@dataclass(frozen=True)
class SynthCommand:
    """Render pictures of hands with exact labels, to train and test with; docs/synth.md explains the files."""

    out: Path
    """Folder for the pictures; made if missing. A run that was interrupted goes on in the same folder."""
    count: int
    """How many pictures; more than before adds to a folder."""
    size: int = 224
    """Width and height, px."""
    seed: int = 0
    """With a picture's number it decides everything about the picture."""
    workers: int = 2
    """Processes; one per core is best."""
    mano: str | None = None
    """MANO file or folder. Without it: what HANDLOOP_MANO names, or the embedded hand."""
    hand: Literal["both", "right", "left"] | None = None
    """Sides of the hands. Without it: both, or right for the freihand layout."""
    backgrounds: Path | None = None
    """Folder of pictures to cut backgrounds from; without it, plain and cloudy ones."""
    occluders: float = 0.35
    """Share of the pictures with objects before the hand."""
    forearm_in_mask: bool = False
    """Count the forearm as hand in the mask."""
    layout: Literal["sharded", "freihand"] = "sharded"
    """Tar files of 256 pictures each, or FreiHAND's folders and JSON lists."""
    sheet: bool = False
    """Also write sheet.png, to look at: 24 pictures and their labels."""


@dataclass(frozen=True)
class DoctorCommand:
    """Check this installation: versions, device, and the MANO file if there is one."""

    mano: str | None = None
    """MANO file or folder to check; without it, what HANDLOOP_MANO names."""


@dataclass(frozen=True)
class VersionCommand:
    """Print the version."""
