"""What must agree before two fits of a hand are compared: sample, keypoints, hand model, parts of the energy."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from handloop.core.errors import InputError, ScoreError
from handloop.loop.cached_fits import CachedFits, Origin
from handloop.loop.rows import Held

SCORE_TEXTS = ("noise_px_at_224", "energy_settings", "layout", "pose_prior")
"""Texts of a result that say what its energy is measured with: the same for all fits of one score version."""
CACHE_TEXTS = (
    *("hand_model", "hand_model_left", "hand_model_digest", "tip_set", "left_shapedirs"),
    *("flat_hand_mean", "joint_order", "joint_definition"),
)
"""Texts that say what the parameters and points mean: the same for the whole cache."""
MUST_AGREE = ("hand_model_digest", "tip_set", "left_shapedirs", "flat_hand_mean", "joint_order", "joint_definition")

_SAME_PX = 0.01
"""Keypoints that differ by more than this are another input; rounding to float32 stays far below."""
_SAME_CONFIDENCE = 1e-4
SAME_SUM = 1e-4
"""Relative difference between an energy and the sum of its parts, where fits were made in float32."""


def agree(db: sqlite3.Connection, path: Path, fits: CachedFits, version: int) -> tuple[str, ...]:
    """Whether fits may stand beside those of a shard; what the first ones say is settled for all later ones.

    Returns:
        The energy's parts in the order they are stored in.

    Raises:
        ScoreError: the energies have other parts, or were computed with other settings (noise, kernel, limits, ...).
        InputError: another hand model or other conventions.
    """
    terms, settings = db.execute("SELECT terms, settings FROM scores WHERE version=?", (version,)).fetchone()
    names = tuple(fits.energy_terms) if terms is None else tuple(json.loads(terms))
    if set(names) != set(fits.energy_terms):
        raise ScoreError(
            f"the energies consist of {', '.join(sorted(fits.energy_terms))}, those in {path} of "
            f"{', '.join(sorted(names))}; fit with the same terms, or re-score the cache."
        )
    given = {key: fits.conventions[key] for key in SCORE_TEXTS if key in fits.conventions}
    for key, held in json.loads(settings or "{}").items() if terms is not None else ():
        if given.get(key, held) != held:
            raise ScoreError(
                f"the fits have {key} {given[key]}, those in {path} {held}, so that their energies cannot be "
                "compared; fit with the same settings, or re-score the cache."
            )
    fixed = {key: fits.conventions[key] for key in CACHE_TEXTS if key in fits.conventions}
    present = json.loads(db.execute("SELECT value FROM meta WHERE key='conventions'").fetchone()[0])
    for key in MUST_AGREE:
        if present and fixed.get(key) != present.get(key):
            raise InputError(
                f"the fits have {key} {fixed.get(key)}, those in {path} {present.get(key)}; parameters of "
                "different hand models or conventions mean different hands and need separate caches."
            )
    if not present:
        db.execute("UPDATE meta SET value=? WHERE key='conventions'", (json.dumps(fixed),))
    if terms is None:
        row = (json.dumps(names), json.dumps(given), version)
        db.execute("UPDATE scores SET terms=?, settings=? WHERE version=?", row)
    return names


def stamped(fits: CachedFits, ids: tuple[str, ...], origin: Origin, step: int, version: int) -> CachedFits:
    """Fits from a cache, offered anew.

    Raises:
        ScoreError: an energy was computed under another score than `version`.
    """
    n = len(fits)
    if len(ids) != n:
        raise InputError(f"{len(ids)} ids were given for {n} fits, expected one per fit.")
    differ = (fits.found & (fits.score_version != version)).nonzero()[:, 0].tolist()
    if differ:
        raise ScoreError(
            f"the fit of {ids[differ[0]]!r} has score version {int(fits.score_version[differ[0]])}, not {version} as "
            "was said; its energy must be computed anew first."
        )
    steps = torch.full((n,), step)
    none = torch.zeros(n, dtype=torch.int64)
    known = {old: origin.completed(old.recipe, old.handloop_version) for old in set(fits.origin) if old is not None}
    origins = tuple(origin if old is None else known[old] for old in fits.origin)
    return replace(fits, ids=ids, origin=origins, step=steps, found_step=steps, improvements=none)


def check_sums(fits: CachedFits, usable: Tensor) -> None:
    """Refuse energies that are not the sum of their parts, in the usable rows."""
    total = torch.zeros(len(fits), dtype=torch.float64)
    for value in fits.energy_terms.values():
        total = total + value
    wrong = (usable & ((total - fits.energy).abs() > SAME_SUM * (1 + fits.energy.abs()))).nonzero()[:, 0].tolist()
    if wrong:
        row = wrong[0]
        raise InputError(
            f"the energy of {fits.ids[row]!r} is {float(fits.energy[row]):g}, but its parts add up to "
            f"{float(total[row]):g}; expected the whole energy, so that no part can be won by giving up another."
        )


def check_same_sample(offered: CachedFits, usable: Tensor, held: Held) -> None:
    """Refuse fits of other keypoints or another side than those held."""
    both = usable & held.standing.valid
    sides = both & (offered.is_right != held.is_right)
    move = (offered.keypoints_2d - held.keypoints_2d).abs()
    seen = offered.keypoints_2d[..., 2] > 0
    points = (move[..., 2] > _SAME_CONFIDENCE) | (seen & (move[..., :2] > _SAME_PX).any(-1))
    for wrong, what in ((sides, "is of the other side than"), (both & points.any(1), "has other keypoints than")):
        rows = wrong.nonzero()[:, 0].tolist()
        if rows:
            raise InputError(
                f"the fit of {offered.ids[rows[0]]!r} {what} the held one, so that their energies cannot be compared; "
                "expected fits in the original picture (not a crop or its mirror image) of unchanged data, or an "
                "empty cache."
            )


def rescored(old: CachedFits, new: CachedFits) -> CachedFits:
    """New energies, if they are of the same fits; an energy that is not finite becomes inf, and the fit implausible."""
    same = new.ids == old.ids and all(
        torch.equal(a, b) for a, b in zip(new.params.tensors(), old.params.tensors(), strict=True)
    )
    if not same:
        raise InputError("the scoring function gave back other fits than it was given; expected new energies only.")
    finite = torch.isfinite(new.energy)
    check_sums(new, finite)
    doubts = tuple(
        text if fine else "; ".join(filter(None, (text, "the present score gives no finite energy")))
        for text, fine in zip(new.doubts, finite.tolist(), strict=True)
    )
    energy = torch.where(finite, new.energy, torch.full_like(new.energy, float("inf")))
    return replace(new, energy=energy, plausible=new.plausible & finite, doubts=doubts)
