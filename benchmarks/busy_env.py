"""CartPole whose step burns CPU for BUSY_MICROSECONDS: an environment as slow as one likes. Registers `Busy-v0`."""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium


class Busy(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Spins before each step."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        """Read the cost of a step."""
        super().__init__(env)
        self._seconds = float(os.environ["BUSY_MICROSECONDS"]) * 1e-6

    def step(self, action: Any) -> Any:
        """Burn CPU, then step."""
        end = time.perf_counter() + self._seconds
        while time.perf_counter() < end:
            pass
        return self.env.step(action)


gymnasium.register("Busy-v0", lambda **kwargs: Busy(gymnasium.make("CartPole-v1", **kwargs)))
