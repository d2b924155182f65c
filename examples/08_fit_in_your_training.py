"""Fits as the labels of a network of your own, in your own training: a memory of fits beside a plain torch model."""

from pathlib import Path

import numpy as np
import torch

import handloop
from handloop.core.camera import Camera
from handloop.core.keypoints import Keypoints
from handloop.core.layout import KeypointLayout
from handloop.core.params import HandParams
from handloop.core.rotations import matrix_from_6d
from handloop.loop.cache import FitCache
from handloop.loop.memory import FitMemory, start_at

data = np.load(Path(__file__).resolve().parent / "data" / "hands.npz")
keypoints, camera = Keypoints.from_arrays(data["keypoints_2d"], data["is_right"]), Camera.from_matrix(data["K"], 24)
memory = FitMemory(FitCache.open("out/example_08"), handloop.load_hand(), KeypointLayout.identity(), prior=None)
memory.adopt(step=0)

seen = camera.normalise(keypoints.xy).flatten(1).float()  # Your network takes what it likes: pictures, say.
model = torch.nn.Sequential(torch.nn.Linear(42, 256), torch.nn.GELU(), torch.nn.Linear(256, 16 * 6 + 10 + 3))
optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
first = memory.cache.progress.written + 1  # Run again, it goes on with the fits it has.
for step in range(first, first + 60):
    rotations, betas, place = model(seen).split([96, 10, 3], 1)
    rotations = matrix_from_6d(rotations.reshape(-1, 16, 6) + torch.tensor([1.0, 0, 0, 0, 1, 0]))
    params = HandParams.from_rotation_matrices(*(t.detach().double() for t in (rotations, betas, place.exp())))
    fits = memory.visit(keypoints, camera, start_at(params, keypoints.is_right), step, epoch=0).fits
    good, true = fits.found & fits.plausible, fits.params
    loss = (rotations - true.rotation_matrices()).square()[good].mean() + (betas - true.betas)[good].square().mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    if step in (first, first + 59):
        print(f"step {step}: loss {float(loss.detach()):.3f}, {int(good.sum())} of 24 hands have a label")
