"""Time of a call, by the wall and of the process, and the memory and time of a call in a process of its own."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Time:
    """What a call took, s."""

    wall: float
    cpu: float
    """Process time of all threads: what carries over to a machine on which nothing else runs."""


def timed(call: Callable[[], object], repeats: int = 1) -> Time:
    """The least of so many calls, wall and process time each."""
    taken = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    return Time(min(w for w, _ in taken), min(c for _, c in taken))


def timed_command(command: Sequence[str], repeats: int = 3, environment: Mapping[str, str] | None = None) -> Time:
    """The least time of a command in a process of its own.

    Raises:
        subprocess.CalledProcessError: the command failed.
    """

    def call() -> None:
        subprocess.run(command, check=True, capture_output=True, env=environment)

    taken = []
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall = timed(call).wall
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append((wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime))
    return Time(min(w for w, _ in taken), min(c for _, c in taken))


def forget_peak() -> None:
    """Let `peak_mb` count from here, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mb() -> float:
    """The largest resident size of this process so far, MB."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1e3
    # Bytes on macOS, kilobytes elsewhere.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
