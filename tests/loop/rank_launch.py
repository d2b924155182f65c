"""Starts the processes of a training on several."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def environment(**values: object) -> dict[str, str]:
    """Of a process that finds the tests and computes on one thread."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    given = {name: str(value) for name, value in values.items()}
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **given}


def launch(
    folder: Path, jobs: list[dict[str, Any]], n: int = 2, worker: str = "rank_worker"
) -> tuple[list[int], list[list[dict[str, Any]] | None]]:
    """Exit status of each process, and what it wrote; `worker` is a module beside this one."""
    folder.mkdir(parents=True)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    call = [sys.executable, "-m", f"tests.loop.{worker}", str(folder / "jobs.json")]
    common = {"WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        subprocess.Popen(call, cwd=ROOT, env=environment(RANK=rank, LOCAL_RANK=rank, **common)) for rank in range(n)
    ]
    try:
        status = [process.wait(600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    written = [folder / f"rank-{rank}.json" for rank in range(n)]
    return status, [json.loads(path.read_text()) if path.exists() else None for path in written]
