"""Bulk fitting with Ray against the plain command: the same bytes, how fast, and what a shard costs beside its fits.

    python -m benchmarks.bulk --hands 20000 --shard-hands 2000 --workers 2

The hands are the bundled ones, jittered by 1.5 px. The plain command runs first, on one thread, which is what each
worker has. Processor time is printed beside the clock's, because a busy machine slows the latter only.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from handloop.cli import main as handloop
from handloop.compiler import ensure_compiled
from handloop.formats.result_shards import read_shards

DATA = Path(__file__).resolve().parents[1] / "examples" / "data" / "hands.npz"


def write_hands(path: Path, n: int, seed: int) -> None:
    """An npz of n hands."""
    bundled = np.load(DATA)
    times = -(-n // len(bundled["is_right"]))
    points = np.tile(bundled["keypoints_2d"], (times, 1, 1))[:n]
    points[..., :2] += np.random.default_rng(seed).normal(0, 1.5, points[..., :2].shape)
    sides = np.tile(bundled["is_right"], times)[:n]
    np.savez(path, keypoints_2d=points, is_right=sides, K=bundled["K"], image_size=bundled["image_size"])


def run(*args: str) -> tuple[float, float]:
    """Seconds of the clock, and of the processor for this process alone, of one command."""
    clock, used = time.monotonic(), time.process_time()
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = handloop(["fit", *args])
    if status != 0:
        raise SystemExit(said.getvalue())
    return time.monotonic() - clock, time.process_time() - used


def different(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> list[str]:
    """Keys whose bytes are not the same."""
    return sorted({*a} ^ {*b}) + [key for key in a if key in b and a[key].tobytes() != b[key].tobytes()]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hands", type=int, default=20000)
    parser.add_argument("--shard-hands", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.pop("HANDLOOP_MANO", None)
    ensure_compiled()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_hands(folder / "hands.npz", args.hands, args.seed)
        shared = (str(folder / "hands.npz"), "--device", "cpu", "--report-hands", "0")
        clock, used = run(*shared, "--out", str(folder / "plain"))
        print(f"plain, 1 thread: {args.hands} hands in {clock:.1f} s, {args.hands / used:.0f} per second of processor")
        plain = dict(np.load(folder / "plain" / "results.npz"))
        for kind in ("npz", "parquet"):
            out = folder / kind
            command = (*shared, "--out", str(out), "--engine", "ray", "--workers", str(args.workers))
            command = (*command, "--shard-hands", str(args.shard_hands), "--shards", kind, "--merge", "no")
            began = time.time()
            clock, driver = run(*command)
            paths = [path for path in (out / "shards").glob("*.json") if path.stem != "run"]
            shards = [json.loads(path.read_text()) for path in paths]
            ends = [path.stat().st_mtime for path in paths]
            first = min(end - shard["seconds"] for end, shard in zip(ends, shards, strict=True))
            inside, used = (sum(shard[key] for shard in shards) for key in ("seconds", "cpu_seconds"))
            between = args.workers * (max(ends) - first) - inside
            print(
                f"ray, {args.workers} workers, {len(shards)} shards of {kind}: {clock:.1f} s, of which "
                f"{first - began:.1f} s until the first shard began; workers were idle for "
                f"{between / len(shards):.2f} s per shard"
            )
            print(
                f"    {args.hands / used:.0f} hands per second of a worker's processor, reading and writing included; "
                f"{driver:.1f} s of the driver's; {sum(shard['size'] for shard in shards) / args.hands:.0f} bytes per "
                f"hand; at most {max(shard['peak_mb'] for shard in shards)} MB in a worker"
            )
            keys = different(plain, read_shards(out / "shards"))
            print(f"    the same bytes as the plain command: {'yes' if not keys else 'NO, ' + ', '.join(keys)}")
            clock, _ = run(*command)
            print(f"    once more, with nothing to do: {clock:.2f} s")


if __name__ == "__main__":
    main()
