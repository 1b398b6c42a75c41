"""Counts transitions where a rank steps its vector environment, and gradient steps where an optimizer has taken one.

The seconds go from the first of the former to the last of either.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
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

    def start(self) -> None:
        """Note the time, where it is not yet noted."""
        self.started = self.started or time.perf_counter()

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


def count_calls(count: Count, envs: type, name: str, num_envs: Callable[[Any], int]) -> None:
    """Make the method `name` of a class of environments, which steps `num_envs` of them, report to `count`."""
    step = getattr(envs, name)

    def counted(self: Any, *args: Any, **options: Any) -> Any:
        count.start()
        outcome = step(self, *args, **options)
        count.add(num_envs(self), 0)
        return outcome

    setattr(envs, name, counted)


def count_optimizers(count: Count) -> None:
    """Make every optimizer of this process report to `count`."""
    register_optimizer_step_post_hook(lambda *_: count.add(0, 1))


def count_steps() -> Count:
    """Make Gymnasium's vector environment and every optimizer of this process report to the count that is returned."""
    count = Count()
    count_calls(count, gymnasium.vector.SyncVectorEnv, "step", lambda envs: envs.num_envs)
    count_optimizers(count)
    return count


def count_envpool(count: Count) -> None:
    """Make EnvPool's environments report to `count`: all rows, those after an episode's end included."""
    import envpool

    make, seen = envpool.make, set()

    def counted(*args: Any, num_envs: int, **options: Any) -> Any:
        envs = make(*args, num_envs=num_envs, **options)
        if type(envs) not in seen:
            seen.add(type(envs))
            count_calls(count, type(envs), "step", lambda _: num_envs)
        return envs

    envpool.make = counted
