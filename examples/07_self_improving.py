"""A network and the fits of your own keypoints teach each other, without any 3D label. A tiny run, to see it work.

    python examples/07_self_improving.py [FOLDER_OF_KEYPOINTS]

A real run takes hundreds of hands and more, and is one command: handloop train loop KEYPOINTS --out RUN
"""

import sys
from dataclasses import replace
from pathlib import Path

import handloop
from handloop.core.camera import Camera
from handloop.formats import read_keypoints
from handloop.loop.config import LoopConfig
from handloop.loop.hand_data import HandData
from handloop.loop.log import read_log
from handloop.loop.run_report import write_run_report
from handloop.loop.train import LoopTraining
from handloop.regressors.lifter import Lifter

source = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent / "data" / "hands.npz"
read = read_keypoints(source)
camera = read.camera or Camera.assumed(read.keypoints.image_size, read.keypoints.box())
data = HandData.of(read.keypoints, camera, held_out=0.2)  # A fifth of the hands only judges.

config = replace(LoopConfig(), steps=40, batch=16, views=48, synthetic=16, log_every=10, save_every=10)
training = LoopTraining(Path("out/example_07"), data, handloop.load_hand(), config, Lifter.shipped())
lifter = training.run(lambda at: print(f"step {at.step}, loss {at.loss:.2f}", end="\r"))

lines = [line for line in read_log(training.folder) if "held_out_network_rms_percent" in line]
print(f"{len(data.train)} hands taught, {len(training.memory.cache)} have a fit")
for line in (lines[0], lines[-1]):
    missed = line["held_out_network_rms_percent"]
    print(f"after step {line['step']}: the network misses held-out keypoints by {missed:.1f} % of the hand's box")
print(f"{write_run_report(training)} shows the run; weights, prior and fits lie beside it")
training.close()
