"""Pose priors as files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from handloop.core.errors import FileFormatError, InputError
from handloop.core.results import load_npz, save_npz
from handloop.priors.gaussian import GaussianPosePrior
from handloop.priors.mixture import MixturePosePrior, PosePriorModel

_FORMAT = "handloop pose prior"
_VERSION = 1
_AGAIN = "write it again with handloop prior"


def save_prior(prior: PosePriorModel, path: str | os.PathLike[str]) -> None:
    """Write an npz: its format and version, the prior's name and hand model, and the stacked components.

    Raises:
        InputError: the file cannot be written.
    """
    arrays = {
        "format": np.array(_FORMAT),
        "version": np.array(_VERSION),
        "name": np.array(prior.name),
        "model_digest": np.array(prior.model_digest),
        "means": prior.means.double().cpu().numpy(),
        "precision_factors": prior.precision_factors.double().cpu().numpy(),
        "offsets": prior.offsets.double().cpu().numpy(),
    }
    try:
        save_npz(Path(path), arrays)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}).") from error


def load_prior(path: str | os.PathLike[str]) -> PosePriorModel:
    """Read what `save_prior` wrote; one component comes back as a `GaussianPosePrior`.

    Raises:
        FileFormatError: another kind of file, a newer version, or damaged content.
    """
    arrays = load_npz(path)
    if str(arrays.get("format")) != _FORMAT:
        raise FileFormatError(f"{path}: not a file of a pose prior; expected what handloop prior writes.")
    version = str(arrays.get("version"))
    if version != str(_VERSION):
        raise FileFormatError(f"{path}: version {version} of the format, this handloop reads {_VERSION}.")
    lacking = [k for k in ("name", "model_digest", "means", "precision_factors", "offsets") if k not in arrays]
    if lacking:
        raise FileFormatError(f"{path}: {', '.join(lacking)} missing; {_AGAIN}.")
    means, factors, offsets = (arrays[key] for key in ("means", "precision_factors", "offsets"))
    k = len(means) if means.ndim == 2 else 0
    if k == 0 or means.shape != (k, 45) or factors.shape != (k, 45, 45) or offsets.shape != (k,):
        raise FileFormatError(
            f"{path}: means {means.shape}, precision_factors {factors.shape} and offsets {offsets.shape}, "
            f"expected (K, 45), (K, 45, 45) and (K,); {_AGAIN}."
        )
    if not all(a.dtype.kind == "f" and np.isfinite(a).all() for a in (means, factors, offsets)):
        raise FileFormatError(f"{path}: holds values that are not finite numbers; {_AGAIN}.")
    diagonal = np.diagonal(factors, axis1=1, axis2=2)
    if not ((diagonal > 0).all() and (np.triu(factors, 1) == 0).all() and offsets.min() == 0):
        raise FileFormatError(f"{path}: no factors of precisions with offsets from 0 up; {_AGAIN}.")
    name, digest = str(arrays["name"]), str(arrays["model_digest"])
    stacked = [torch.tensor(a, dtype=torch.float64) for a in (means, factors, offsets)]
    if k == 1:
        return GaussianPosePrior(stacked[0][0], stacked[1][0], name, digest)
    return MixturePosePrior(stacked[0], stacked[1], stacked[2], name, digest)
