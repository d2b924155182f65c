"""The keypoint lifter: 21 points of a picture to a proposed hand in about 50 microseconds; its file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from handloop.core.errors import FileFormatError, InputError
from handloop.core.params import HandParams
from handloop.core.proposal import Proposal
from handloop.core.results import write_text
from handloop.hand.kinematics import Kinematics
from handloop.hand.model import Hand, HandPair
from handloop.regressors.base import KeypointBatch
from handloop.regressors.network import LifterNetwork, NetworkSize

if TYPE_CHECKING:
    from handloop.regressors.compiled_lifter import CompiledLifter

_FORMAT = "handloop lifter 1"
_SHIPPED = "data/lifter_embedded.safetensors"


@dataclass(frozen=True, eq=False)
class Lifter:
    """A trained network and the hand model it belongs to."""

    network: LifterNetwork
    model_digest: str
    """Digest of the right-hand model it was trained with."""
    model_name: str
    tip_set: str

    @classmethod
    def of(cls, network: LifterNetwork, hand: Hand) -> Lifter:
        """A network trained with a right hand."""
        return cls(network.eval().requires_grad_(False), hand.digest, hand.name, hand.tip_set)

    @cached_property
    def compiled(self) -> CompiledLifter:
        """The network as the kernel takes it."""
        from handloop.regressors.compiled_lifter import CompiledLifter

        return CompiledLifter.of(self.network)

    def knows(self, hand: Hand) -> bool:
        """Whether it was trained with this right hand."""
        return (hand.digest, hand.tip_set) == (self.model_digest, self.tip_set)

    def check_model(self, hand: Hand) -> None:
        """Refuse another model than the one it was trained with.

        Raises:
            InputError: the digest differs.
        """
        if hand.digest != self.model_digest:
            raise InputError(
                f"the lifter was trained with the hand model {self.model_name!r} ({self.model_digest}), not with "
                f"{hand.name!r} ({hand.digest}); train one for it: handloop train lifter --mano FILE --out W."
            )

    def for_pair(self, pair: HandPair) -> PairLifter:
        """The lifter of both sides: left hands are lifted in a mirror.

        Raises:
            InputError: it was trained with another model.
        """
        self.check_model(pair.right)
        return PairLifter(self, Kinematics.from_hand(pair.right))

    def save(self, path: str | os.PathLike[str], half: bool = False) -> None:
        """Write PATH (safetensors) and its description beside it, PATH with the ending .json.

        Args:
            path: ends in .safetensors.
            half: round to 16 bits: half the size, and an error far below the network's.
        """
        from safetensors.torch import save

        target = _checked_name(path)
        dtype = torch.float16 if half else torch.float32
        tensors = {name: t.to(dtype).contiguous() for name, t in self.network.state_dict().items()}
        description = {
            "format": _FORMAT,
            "size": asdict(self.network.size),
            "model_digest": self.model_digest,
            "model_name": self.model_name,
            "tip_set": self.tip_set,
        }
        temporary = target.with_name(target.name + ".partial")
        temporary.write_bytes(save(tensors))
        os.replace(temporary, target)
        write_text(target.with_suffix(".json"), json.dumps(description, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Lifter:
        """Read what `save` wrote.

        Raises:
            FileFormatError: a file is missing, damaged or of another kind.
        """
        from safetensors.torch import load_file

        source = _checked_name(path)
        about = source.with_suffix(".json")
        try:
            data = json.loads(about.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{about}: the lifter's description cannot be read ({error}).") from error
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise FileFormatError(f'{about}: not a lifter\'s description; expected JSON with "format": "{_FORMAT}".')
        try:
            network = LifterNetwork(NetworkSize(int(data["size"]["width"]), int(data["size"]["blocks"])))
            texts = [str(data[key]) for key in ("model_digest", "model_name", "tip_set")]
            network.load_state_dict({name: t.float() for name, t in load_file(source).items()})
        except Exception as error:  # safetensors and torch raise many kinds for damaged files.
            raise FileFormatError(f"{source}: not the weights that {about.name} describes.") from error
        return cls(network.eval().requires_grad_(False), *texts)

    @classmethod
    def shipped(cls) -> Lifter:
        """The one for the embedded hand."""
        with resources.as_file(resources.files("handloop.regressors").joinpath(_SHIPPED)) as path:
            return cls.load(path)


@dataclass(frozen=True, eq=False)
class PairLifter:
    """A `Regressor` of keypoints."""

    lifter: Lifter
    kinematics: Kinematics
    """Of the right hand, float64."""

    def propose(self, batch: KeypointBatch) -> Proposal:
        """See `Regressor.propose`. Hands without points come back as the network's idea of nothing: check `conf`.

        Raises:
            InputError: the layout belongs to another model.
        """
        layout = batch.layout
        layout.check_model(self.lifter.model_digest, self.lifter.tip_set)
        keypoints, camera = batch.keypoints, batch.camera
        from handloop.so3_kernel import rotation_vectors

        seen = camera.normalise(keypoints.xy).numpy()
        sign = np.where(keypoints.is_right.numpy(), 1.0, -1.0)[:, None]
        rays = torch.from_numpy(np.stack([seen[..., 0] * sign, seen[..., 1]], -1))
        lift = self.lifter.compiled.lift
        rotations, betas, root, sd = lift(rays, keypoints.conf, layout.offsets, layout.mean_betas)
        # Seen in a mirror, axis-angles keep their x, positions all but theirs (`HandParams.mirrored`).
        pose = rotation_vectors(rotations.numpy())
        pose[..., 1:] *= sign[..., None]
        transl = (root - self.kinematics.root_offset(betas)).numpy()
        transl[:, :1] *= sign
        turns = torch.from_numpy(pose.reshape(-1, 48))
        params = HandParams(turns[:, :3], turns[:, 3:], betas, torch.from_numpy(transl))
        parts = (sd[:, :16], sd[:, 16:26], sd[:, 26], sd[:, 27])
        # No camera of its own: it is given the keypoints' cameras.
        return Proposal(params, keypoints.is_right, None, *parts, ids=keypoints.ids, source="lifter")


def _checked_name(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.suffix != ".safetensors":
        raise InputError(f"{target} does not end in .safetensors, the form that a lifter's weights are kept in.")
    return target
