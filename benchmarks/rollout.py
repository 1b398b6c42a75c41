"""How much of the environments' own speed is left when an agent acts in them: EnvPool's, or tensor code's.

    python benchmarks/rollout.py [ENV_ID ...] [--num-envs 64] [--num-steps 128] [--pairs 7] [--rollouts 3]

Each pair steps the environments with actions drawn beforehand, then collects rollouts (acting, values,
log-probabilities, episodes) in as many of them with as many threads; it gives a ratio of steps per second. EnvPool
counts every row as it does itself; collecting counts transitions, so rows that only start an episode lower its ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import Config
from fabric_ppo.envs.ids import TENSOR_ENVS, named_function
from fabric_ppo.envs.make import make_envs
from fabric_ppo.envs.tensor_contract import StepOutputs
from fabric_ppo.fast.compiled_actor import ActorChoice
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.launch import cores_per_rank
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from fabric_ppo.run.resolve import resolve

ENV_IDS = ("CartPole-v1", "LunarLander-v3", "HalfCheetah-v5")


def raw_speed(step: Callable[[Any], Any], actions: list[Any], rollouts: int) -> float:
    """Rows per second of the environments alone."""
    started = time.perf_counter()
    for _ in range(rollouts):
        for each in actions:
            step(each)
    return rollouts * len(actions) * len(actions[0]) / (time.perf_counter() - started)


def pool_alone(config: Config) -> tuple[Callable[[Any], Any], Any]:
    """The step of EnvPool, and the space of its actions."""
    import envpool

    threads = min(cores_per_rank(), config.num_envs)
    pool = envpool.make_gymnasium(config.env_id, num_envs=config.num_envs, num_threads=threads, seed=1)
    pool.reset()
    return pool.step, pool.action_space


def tensors_alone(config: Config) -> tuple[Callable[[Any], Any], Any]:
    """The step of environments that are tensor code, and the space of their actions."""
    envs: Any = make_envs(config, 0, 1)
    space = named_function(TENSOR_ENVS[config.env_id], "env_id")().action_space
    obs = torch.zeros(config.num_envs, *envs.spec.observation.shape)
    flags = [torch.zeros(config.num_envs, dtype=torch.bool) for _ in range(3)]
    outputs = StepOutputs(obs, torch.zeros(config.num_envs), *flags, torch.zeros_like(obs))
    envs.reset(obs)
    return lambda actions: envs.step(torch.from_numpy(actions), outputs), space


def measure(env_id: str, given: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Raw rows and collected transitions per second, of each pair."""
    flags = {"num_envs": given.num_envs, "num_steps": given.num_steps}
    backend, alone = ("vector", tensors_alone) if env_id in TENSOR_ENVS else ("envpool", pool_alone)
    config = resolve(Config(env_id=env_id, env_backend=backend, total_timesteps=2**40, **flags))
    envs = make_envs(config, 0, 1)
    agent = make_agent(envs.spec, config)
    buffer = RolloutBuffer(envs, agent, config.num_steps, ActorChoice(agent))
    step, space = alone(config)
    space.seed(1)
    actions = [np.stack([space.sample() for _ in range(given.num_envs)]) for _ in range(given.num_steps)]
    raw, collected = [], []
    for pair in range(-1, given.pairs):  # the first one warms up
        speed = raw_speed(step, actions, given.rollouts)
        started = time.perf_counter()
        steps = sum(collect(agent, buffer, 0, update).stats.env_steps for update in range(given.rollouts))
        if pair >= 0:
            raw.append(speed)
            collected.append(steps / (time.perf_counter() - started))
    envs.close()
    return raw, collected


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env_ids", nargs="*", default=ENV_IDS)
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--num-steps", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--rollouts", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("environment", "alone, rows/s", "collect, steps/s", "ratio", "from", "to")
    for env_id in given.env_ids:
        try:
            raw, collected = measure(env_id, given)
        except ConfigError as error:
            print(error)
            continue
        ratios = [ours / theirs for ours, theirs in zip(collected, raw, strict=True)]
        speeds = (f"{statistics.median(each):,.0f}" for each in (raw, collected))
        table.add_row(env_id, *speeds, *(f"{f(ratios):.2f}" for f in (statistics.median, min, max)))
    Console().print(f"{given.num_envs} environments, {torch.get_num_threads()} threads, median of {given.pairs} pairs")
    Console().print(table)


if __name__ == "__main__":
    main()
