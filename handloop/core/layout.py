"""`KeypointLayout`: what a source of keypoints means by its 21 points."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from handloop.core.errors import FileFormatError, InputError

_FORMAT = "handloop keypoint layout 1"


@dataclass(frozen=True, eq=False)
class KeypointLayout:
    """Offsets from a hand model's points to a source's, as marker layouts in motion capture.

    A detector's or data set's "wrist" or "thumb base" can lie centimetres from the model's joint of that name. Each of
    the 21 points gets an offset in the frame of the joint that starts at it (tips: the distal joint; wrist: the root),
    which grows with the hand: p = x + s G o.
    """

    name: str
    """What it was learned from; written into results."""
    offsets: Tensor
    """(21, 3) float64 m, for the mean hand, in the model's right-hand rest frame."""
    mean_betas: Tensor
    """(10,) float64, the mean shape of the source's hands."""
    model_digest: str = ""
    """Digest of the right-hand model it was learned with; "" fits any."""
    tip_set: str = ""
    """Fingertip vertices it was learned with; "" fits any."""

    @classmethod
    def identity(cls) -> KeypointLayout:
        """The source's points are the model's."""
        return cls("identity", torch.zeros(21, 3, dtype=torch.float64), torch.zeros(10, dtype=torch.float64))

    def is_identity(self) -> bool:
        """True where nothing is offset."""
        return not bool((self.offsets != 0).any())

    def check_model(self, digest: str, tip_set: str) -> None:
        """Refuse another model than the one the offsets belong to.

        Raises:
            InputError: the digest or the tip set differs.
        """
        if self.model_digest and self.model_digest != digest:
            raise InputError(
                f"the layout {self.name!r} was learned with the hand model {self.model_digest}, not with {digest}; "
                "learn it again for this model or use the model it was made for."
            )
        if self.tip_set and self.tip_set != tip_set:
            raise InputError(
                f"the layout {self.name!r} was learned with the tip set {self.tip_set!r}, not with {tip_set!r}."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON."""
        text = {
            "format": _FORMAT,
            "name": self.name,
            "model_digest": self.model_digest,
            "tip_set": self.tip_set,
            "offsets_mm": [[round(1000 * v, 4) for v in row] for row in self.offsets.tolist()],
            "mean_betas": [round(v, 5) for v in self.mean_betas.tolist()],
        }
        Path(path).write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KeypointLayout:
        """Read a file written by `save`.

        Raises:
            FileFormatError: not such a file, or values that cannot be offsets of a hand.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{path}: not a readable layout file ({error}).") from error
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise FileFormatError(f'{path}: not a layout file; expected JSON with "format": "{_FORMAT}".')
        try:
            offsets = torch.tensor(np.array(data["offsets_mm"], dtype=np.float64) / 1000)
            betas = torch.tensor(np.array(data["mean_betas"], dtype=np.float64))
            texts = [str(data[key]) for key in ("name", "model_digest", "tip_set")]
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path}: the layout file is damaged ({error}).") from error
        if offsets.shape != (21, 3) or betas.shape != (10,) or not bool(offsets.abs().max() < 0.1):
            raise FileFormatError(f"{path}: a layout has 21 x 3 offsets below 100 mm and 10 mean betas.")
        return cls(texts[0], offsets, betas, texts[1], texts[2])
