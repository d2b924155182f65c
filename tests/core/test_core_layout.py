"""`KeypointLayout`: its file, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from handloop.core.errors import FileFormatError, InputError
from handloop.core.layout import KeypointLayout


def _layout() -> KeypointLayout:
    g = torch.Generator().manual_seed(0)
    offsets = 0.02 * torch.randn(21, 3, dtype=torch.float64, generator=g)
    return KeypointLayout("rig", offsets, torch.linspace(-1, 1, 10, dtype=torch.float64), "abc", "smplx")


def test_comes_back_from_its_file(tmp_path: Path) -> None:
    layout = _layout()
    layout.save(tmp_path / "l.json")
    back = KeypointLayout.load(tmp_path / "l.json")
    assert (back.name, back.model_digest, back.tip_set) == ("rig", "abc", "smplx")
    assert float((back.offsets - layout.offsets).abs().max()) < 1e-7
    assert float((back.mean_betas - layout.mean_betas).abs().max()) < 1e-5


def test_identity_is_identity() -> None:
    assert KeypointLayout.identity().is_identity() and not _layout().is_identity()


def test_another_model_is_refused() -> None:
    _layout().check_model("abc", "smplx")
    KeypointLayout.identity().check_model("anything", "manopth")
    with pytest.raises(InputError, match="learned with the hand model abc, not with xyz"):
        _layout().check_model("xyz", "smplx")
    with pytest.raises(InputError, match="tip set 'smplx', not with 'freihand'"):
        _layout().check_model("abc", "freihand")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "not a readable layout file"),
        ({"format": "something else"}, "not a layout file; expected JSON with"),
        ({"offsets_mm": [[0, 0, 0]] * 20}, "21 x 3 offsets below 100 mm and 10 mean betas"),
        ({"offsets_mm": [[0, 0, 500]] * 21}, "21 x 3 offsets below 100 mm and 10 mean betas"),
        ({"offsets_mm": "many"}, "the layout file is damaged"),
        ({"mean_betas": [float("nan")] * 9}, "21 x 3 offsets below 100 mm and 10 mean betas"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, change: dict[str, object] | None, message: str) -> None:
    path = tmp_path / "l.json"
    _layout().save(path)
    text = path.read_text()
    path.write_text(text[:50] if change is None else json.dumps({**json.loads(text), **change}))
    with pytest.raises(FileFormatError, match=message):
        KeypointLayout.load(path)
