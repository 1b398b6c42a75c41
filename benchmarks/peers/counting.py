"""Counts transitions where a rank steps its vector environment, and gradient steps where an optimizer has taken one.

The seconds go from the first of the former to the last of either.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import gymnasium
from torch.optim.optimizer import register_optimizer_step_post_hook


@dataclass
class Count:
    """Counts of this rank so far."""

    env_steps: int = 0
    gradient_steps: int = 0
    started: float | None = None
    ended: float = 0.0

    def add(self, env_steps: int, gradient_steps: int) -> None:
        """Count, and take the time."""
        self.ended = time.perf_counter()
        self.env_steps += env_steps
        self.gradient_steps += gradient_steps

    def tell(self) -> None:
        """Print it as `benchmarks.programs.read_counts` reads it."""
        seconds = self.ended - self.started if self.started is not None else None
        counted = {"env_steps": self.env_steps, "gradient_steps": self.gradient_steps, "train_seconds": seconds}
        sys.stdout.write("\n" + json.dumps(counted) + "\n")
        sys.stdout.flush()


def count_steps() -> Count:
    """Make the vector environment and every optimizer of this process report to the count that is returned."""
    count, step = Count(), gymnasium.vector.SyncVectorEnv.step

    def counted(self: gymnasium.vector.SyncVectorEnv, actions: Any) -> Any:
        count.started = count.started or time.perf_counter()
        outcome = step(self, actions)
        count.add(self.num_envs, 0)
        return outcome

    gymnasium.vector.SyncVectorEnv.step = counted  # type: ignore[method-assign]
    register_optimizer_step_post_hook(lambda *_: count.add(0, 1))
    return count
