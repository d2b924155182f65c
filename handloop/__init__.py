"""handloop: fit MANO hands to 2D keypoints, in batches.

    result = handloop.fit(keypoints, K=K, is_right=is_right, image_size=(w, h))

Names are imported when first used, so that `import handloop` stays cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from handloop._version import __version__ as __version__

if TYPE_CHECKING:
    from handloop.api import fit as fit
    from handloop.api import fit_joints as fit_joints
    from handloop.api import predict as predict
    from handloop.core.camera import Camera as Camera
    from handloop.core.errors import FileFormatError as FileFormatError
    from handloop.core.errors import HandloopError as HandloopError
    from handloop.core.errors import InputError as InputError
    from handloop.core.errors import ModelError as ModelError
    from handloop.core.keypoints import Keypoints as Keypoints
    from handloop.core.layout import KeypointLayout as KeypointLayout
    from handloop.core.params import HandParams as HandParams
    from handloop.core.proposal import Proposal as Proposal
    from handloop.core.results import FitResult as FitResult
    from handloop.core.results import Status as Status
    from handloop.core.terms import AutoTerm as AutoTerm
    from handloop.fitting.recipes import RECIPES as RECIPES
    from handloop.fitting.recipes import Recipe as Recipe
    from handloop.formats import ReadOptions as ReadOptions
    from handloop.formats import read_keypoints as read_keypoints
    from handloop.hand.load import load_hand as load_hand
    from handloop.hand.model import Hand as Hand
    from handloop.hand.model import HandPair as HandPair
    from handloop.regressors.lifter import Lifter as Lifter

_HOMES = {
    "fit": "handloop.api",
    "fit_joints": "handloop.api",
    "predict": "handloop.api",
    "Camera": "handloop.core.camera",
    "FileFormatError": "handloop.core.errors",
    "HandloopError": "handloop.core.errors",
    "InputError": "handloop.core.errors",
    "ModelError": "handloop.core.errors",
    "Keypoints": "handloop.core.keypoints",
    "HandParams": "handloop.core.params",
    "Proposal": "handloop.core.proposal",
    "KeypointLayout": "handloop.core.layout",
    "FitResult": "handloop.core.results",
    "Status": "handloop.core.results",
    "AutoTerm": "handloop.core.terms",
    "RECIPES": "handloop.fitting.recipes",
    "Recipe": "handloop.fitting.recipes",
    "ReadOptions": "handloop.formats",
    "read_keypoints": "handloop.formats",
    "load_hand": "handloop.hand.load",
    "Hand": "handloop.hand.model",
    "HandPair": "handloop.hand.model",
    "Lifter": "handloop.regressors.lifter",
}

__all__ = [
    "RECIPES",
    "AutoTerm",
    "Camera",
    "FileFormatError",
    "FitResult",
    "Hand",
    "HandPair",
    "HandParams",
    "HandloopError",
    "InputError",
    "KeypointLayout",
    "Keypoints",
    "Lifter",
    "ModelError",
    "Proposal",
    "ReadOptions",
    "Recipe",
    "Status",
    "__version__",
    "fit",
    "fit_joints",
    "load_hand",
    "predict",
    "read_keypoints",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'handloop' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
