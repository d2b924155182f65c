"""The learning rate of a step, and where the time of a step goes."""

from __future__ import annotations

import math
import time

from handloop.loop.config import LoopConfig


def learning_rate(step: int, config: LoopConfig) -> float:
    """Of a step, counted from 1: up in a line, then down with the cosine to a hundredth."""
    done, rising = step / config.steps, config.rising
    if done < rising:
        return config.learning_rate * done / rising
    fall = 0.5 * (1 + math.cos(math.pi * (done - rising) / max(1 - rising, 1e-9)))
    return config.learning_rate * (0.01 + 0.99 * fall)


class Clock:
    """Adds up where the time of a step goes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def stop(self, name: str) -> None:
        """What has passed since the last stop went to `name`."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
