"""Renderers, made once: baking skin takes seconds."""

from __future__ import annotations

import pytest

from handloop.hand.load import load_hand
from handloop.hand.model import HandPair
from handloop.synth.picture import Picture, PictureOptions
from handloop.synth.render import Renderer


@pytest.fixture(scope="session")
def pair() -> HandPair:
    return load_hand("embedded")


@pytest.fixture(scope="session")
def renderer(pair: HandPair) -> Renderer:
    return Renderer(pair, PictureOptions(size=96, seed=5))


@pytest.fixture(scope="session")
def pictures(renderer: Renderer) -> list[Picture]:
    return [renderer.render(k) for k in range(30)]
