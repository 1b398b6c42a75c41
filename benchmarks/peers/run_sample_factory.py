"""Sample Factory, with its own command line, on a Gymnasium environment; prints what it counted.

Its learner, a process of its own, counts transitions and gradient steps and names its last checkpoint after them.
The seconds go from its first update to the end of the last, which leaves out the start of its processes.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
from sample_factory.algo.runners.runner import AlgoObserver
from sample_factory.algo.utils.misc import ExperimentStatus
from sample_factory.cfg.arguments import parse_full_cfg, parse_sf_args
from sample_factory.envs.env_utils import register_env
from sample_factory.train import make_runner


class Clock(AlgoObserver):
    """When training began and ended."""

    started: float | None = None
    ended: float = 0.0

    def on_training_step(self, runner: Any, training_iteration_since_resume: int) -> None:
        """Note the time."""
        self.ended = time.perf_counter()
        self.started = self.started or self.ended


def make_env(name: str, cfg: Any = None, env_config: Any = None, render_mode: str | None = None) -> Any:
    """As Sample Factory wants it."""
    return gymnasium.make(name, render_mode=render_mode)


def make_pool(name: str, cfg: Any = None, env_config: Any = None, render_mode: str | None = None) -> Any:
    """A pool of `--env_agents` games, as its example has it, but with EnvPool's interface for Gymnasium."""
    import envpool
    from sf_examples.envpool.envpool_wrappers import BatchedRecordEpisodeStatistics, EnvPoolResetFixWrapper

    game, seed = name.removeprefix("ALE/"), env_config.env_id if env_config is not None else 0
    options = {"num_envs": cfg.env_agents, "seed": seed, "reward_clip": True, "episodic_life": True}
    envs = EnvPoolResetFixWrapper(envpool.make(game, env_type="gymnasium", **options))
    envs = BatchedRecordEpisodeStatistics(envs, cfg.env_agents)
    envs.num_agents = cfg.env_agents
    return envs


def main() -> None:
    """Train and print."""
    parser, known = parse_sf_args(sys.argv[1:])
    is_game = known.env.startswith("ALE/")
    register_env(known.env, make_pool if is_game else make_env)
    if is_game:
        parser.add_argument("--env_agents", type=int)
    cfg, runner = make_runner(parse_full_cfg(parser, sys.argv[1:]))
    clock = Clock()
    runner.register_observer(clock)
    if runner.init() != ExperimentStatus.SUCCESS or runner.run() != ExperimentStatus.SUCCESS:
        raise SystemExit("Sample Factory failed")
    names = [path.name for path in Path(cfg.train_dir, cfg.experiment, "checkpoint_p0").glob("checkpoint_*.pth")]
    counts = [tuple(map(int, re.findall(r"\d+", name))) for name in names]
    gradient_steps, env_steps = max(counts)
    seconds = clock.ended - clock.started if clock.started is not None else None
    print(json.dumps({"env_steps": env_steps, "gradient_steps": gradient_steps, "train_seconds": seconds}))


if __name__ == "__main__":
    main()
