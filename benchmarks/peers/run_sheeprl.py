"""`sheeprl`, with its own command line; every rank prints what it counted.

The transitions are counted where a rank steps its vector environment, the gradient steps where an optimizer has
taken one. The seconds go from the first of the former to the last of either.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import gymnasium
from sheeprl.cli import run
from torch.optim.optimizer import register_optimizer_step_post_hook


@dataclass
class Count:
    """What this rank has done so far."""

    env_steps: int = 0
    gradient_steps: int = 0
    started: float | None = None
    ended: float = 0.0

    def add(self, env_steps: int, gradient_steps: int) -> None:
        """Count, and take the time."""
        self.ended = time.perf_counter()
        self.env_steps += env_steps
        self.gradient_steps += gradient_steps


def count_steps(count: Count) -> None:
    """Make the vector environment and every optimizer of this process report to `count`."""
    step = gymnasium.vector.SyncVectorEnv.step

    def counted(self: gymnasium.vector.SyncVectorEnv, actions: Any) -> Any:
        count.started = count.started or time.perf_counter()
        outcome = step(self, actions)
        count.add(self.num_envs, 0)
        return outcome

    gymnasium.vector.SyncVectorEnv.step = counted  # type: ignore[method-assign]
    register_optimizer_step_post_hook(lambda *_: count.add(0, 1))


def main() -> None:
    """Run and print."""
    count = Count()
    count_steps(count)
    run()
    seconds = count.ended - count.started if count.started is not None else None
    counted = {"env_steps": count.env_steps, "gradient_steps": count.gradient_steps, "train_seconds": seconds}
    sys.stdout.write("\n" + json.dumps(counted) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
