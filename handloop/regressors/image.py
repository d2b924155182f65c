"""The image regressor: crops of pictures to proposed hands; its file."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from handloop.core.errors import FileFormatError, InputError
from handloop.core.keypoints import Keypoints
from handloop.core.params import HandParams
from handloop.core.proposal import Proposal
from handloop.hand.kinematics import Kinematics
from handloop.hand.model import Hand, HandPair
from handloop.regressors.base import CropBatch
from handloop.regressors.image_heads import confidence
from handloop.regressors.image_network import ImageNetwork, ImageNetworkOptions, heatmaps_of

FORMAT = "handloop image regressor 1"
_CHUNK = 64
"""Crops regressed at a time."""


@dataclass(frozen=True, eq=False)
class Looked:
    """What a regressor makes of N crops."""

    proposal: Proposal
    """N hands, in the cameras of the pictures."""
    keypoints: Keypoints
    """Their points where the network sees them, px of the pictures; the confidence falls as they get unsure."""


@dataclass(frozen=True, eq=False)
class ImageRegressor:
    """A trained network and the hand model it belongs to. A `Regressor` of crops."""

    network: ImageNetwork
    hand: Hand
    """The right hand's model it was trained with."""
    kinematics: Kinematics
    """Of that hand, float64."""

    @classmethod
    def of(cls, network: ImageNetwork, hand: Hand) -> ImageRegressor:
        """A network trained with a right hand."""
        return cls(network.eval().requires_grad_(False), hand, Kinematics.from_hand(hand))

    def propose(self, batch: CropBatch) -> Proposal:
        """One hand per crop, in the camera of its picture; see `look`."""
        return self.look(batch).proposal

    def look(self, batch: CropBatch) -> Looked:
        """One hand per crop, and its points where the network sees them.

        Raises:
            InputError: crops of another size, left hands that are not mirrored, or keypoints are missing that the
                network wants as heat-maps.
        """
        if not bool(batch.view.sides(batch.is_right).all()):
            raise InputError("a crop shows a left hand; mirror exactly the crops of left hands.")
        rotations, betas, root, log_sd, located, located_sd = self._regress(batch)
        transl = root - self.kinematics.root_offset(betas)
        here = HandParams.from_rotation_matrices(rotations, betas, transl)
        back = batch.view.inverse()
        params = back.params(here, self.kinematics.root_offset(betas))
        sd = (log_sd + self.network.log_sd_scale.double().cpu()).exp()
        parts = (sd[:, :16], sd[:, 16:26], sd[:, 26], sd[:, 27])
        proposal = Proposal(params, batch.is_right, batch.view.camera_in, *parts, ids=batch.ids)
        px = back.pixels((self.network.options.size * (located + 1) - 1) / 2)
        points = torch.cat([px, confidence(located_sd)[..., None]], 2)
        return Looked(proposal, Keypoints.from_arrays(points, batch.is_right, batch.view.size_in, batch.ids))

    def _regress(self, batch: CropBatch) -> list[Tensor]:
        """Rotations, betas, wrist, logs of deviations, located points and their deviations, float64 on the CPU, in the
        frames of the crops."""
        size, device = self.network.options.size, self.network.usual.device
        found: list[tuple[Tensor, ...]] = []
        for start in range(0, max(len(batch), 1), _CHUNK):
            rows = slice(start, start + _CHUNK)
            maps = None
            if self.network.options.heatmaps:
                if batch.keypoints is None:
                    raise InputError("the network takes heat-maps, and the crops come without keypoints.")
                seen = batch.view.keypoints(batch.keypoints)
                maps = heatmaps_of(seen.xy[rows].float(), seen.conf[rows].float(), size).to(device)
            camera = batch.view.camera_out.select(torch.arange(len(batch))[rows])
            with torch.inference_mode():
                out = self.network(batch.crops[rows].to(device), camera, maps)
                part = (out.rotations, out.betas, out.root(camera, size), out.log_sd, out.located, out.located_sd)
            found.append(tuple(t.double().cpu() for t in part))
        return [torch.cat(part) for part in zip(*found, strict=True)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write PATH (safetensors, 32 bits) and its description beside it, PATH with the ending .json."""
        from safetensors.torch import save

        target = _checked_name(path)
        description = {
            "format": FORMAT,
            "network": asdict(self.network.options),
            "model_digest": self.hand.digest,
            "model_name": self.hand.name,
            "tip_set": self.hand.tip_set,
        }
        temporary = target.with_name(target.name + ".partial")
        temporary.write_bytes(save({name: t.cpu().contiguous() for name, t in self.network.state_dict().items()}))
        os.replace(temporary, target)
        target.with_suffix(".json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str], pair: HandPair) -> ImageRegressor:
        """Read what `save` wrote.

        Args:
            path: ends in .safetensors.
            pair: the hand models; the right one must be the one that it was trained with.

        Raises:
            FileFormatError: a file is missing, damaged or of another kind.
            InputError: it was trained with another model.
        """
        from safetensors.torch import load_file

        source = _checked_name(path)
        about = source.with_suffix(".json")
        data = read_description(source)
        if data.get("format") != FORMAT:
            raise FileFormatError(f'{about}: no image regressor; expected JSON with "format": "{FORMAT}".')
        hand = pair.right
        if data.get("model_digest") != hand.digest:
            raise InputError(
                f"{source} was trained with the hand model {data.get('model_name')!r} ({data.get('model_digest')}), "
                f"not with {hand.name!r} ({hand.digest}); train one for it: handloop train image --mano FILE."
            )
        try:
            options = ImageNetworkOptions.from_json(data["network"])  # type: ignore[arg-type]
            network = ImageNetwork(options, hand)
            network.load_state_dict(load_file(source))
        except InputError:
            raise
        except Exception as error:  # safetensors and torch raise many kinds for damaged files.
            raise FileFormatError(f"{source}: not the weights that {about.name} describes.") from error
        return cls.of(network, hand)


def read_description(weights: Path) -> dict[str, object]:
    """The JSON beside a file of weights.

    Raises:
        FileFormatError: missing or damaged.
    """
    about = weights.with_suffix(".json")
    try:
        data = json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{about}: the weights' description cannot be read ({error}).") from error
    if not isinstance(data, dict):
        raise FileFormatError(f"{about}: the weights' description is no table of entries.")
    return data


def _checked_name(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.suffix != ".safetensors":
        raise InputError(f"{target} does not end in .safetensors, the form that weights are kept in.")
    return target
