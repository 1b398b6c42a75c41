"""Observations on which an exported policy is compared: of real episodes, or drawn from a space."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.agents.policy import Policy
from fabric_ppo.envs.checked_env import CheckedEnv
from fabric_ppo.envs.gymnasium_env import make_gymnasium_env
from fabric_ppo.envs.ids import single_id
from fabric_ppo.envs.nested_actions import pack_batch
from fabric_ppo.envs.spaces import SpaceSpec, is_mask
from fabric_ppo.envs.torch_settings import torch_settings_kept
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.seeding import Stream, evaluation_seed, uniforms

_SEED = 0
_UNBOUNDED = 3.0
"""Standard deviation of numbers that are drawn where there are no bounds."""


@dataclass(frozen=True)
class Moment:
    """Something that an agent sees.

    Attributes:
        obs: as the agent takes it, packed if it is nested.
        noise: `[noise_size]`, uniform in (0, 1).
        memory: `[memory_size]`, a recurrent agent's after the step before.
    """

    obs: NDArray[Any]
    noise: NDArray[np.float64]
    memory: NDArray[Any]


def of_episodes(policy: Policy) -> Generator[Moment, None, None]:
    """Yield all that a policy sees in test episodes, without end.

    By turns, an episode's actions are sampled and the most probable ones.

    Raises:
        ConfigError: the environment cannot be made.
        EnvironmentFault: it failed.
    """
    spec = policy.spec
    if not (env_id := single_id(spec.env_id)):
        raise ConfigError(f"{spec.env_id} makes a batch, of which no single environment can be had")
    with torch_settings_kept():
        env = CheckedEnv(make_gymnasium_env(env_id, spec.wrapper, env_kwargs=spec.make_args), spec)
        try:
            for episode in itertools.count():
                env.place = f"test episode {episode},"
                yield from _episode(policy, env, episode)
        finally:
            env.env.close()


def _episode(policy: Policy, env: CheckedEnv, episode: int) -> Iterator[Moment]:
    """Yield what a policy sees in an episode."""
    obs, memory, has_ended = env.reset(evaluation_seed(_SEED, episode)), policy.new_memory(1), False
    for step in itertools.count():
        if has_ended:
            return
        noise = uniforms(_SEED, Stream.TEST_ACTION, (episode, step), 0, policy.noise_size)
        # copies: environments may share the array that they return
        row = np.array(obs)
        yield Moment(row, noise, memory[0].copy())
        actions = policy.act(row[None], None if episode % 2 else noise[None], memory)
        action = pack_batch(policy.spec.action, actions)[0]
        obs, _, terminated, truncated = env.step(action.item() if action.ndim == 0 else action)
        has_ended = terminated or truncated


def of_space(policy: Policy) -> Iterator[Moment]:
    """Yield observations that are drawn from their space, without end; a memory is drawn, too."""
    rng, space = np.random.default_rng(_SEED), policy.spec.observation
    for step in itertools.count():
        if space.parts:
            drawn = ((path, leaf, _draw(leaf, rng)) for path, leaf in space.parts)
            parts = [
                np.ones(leaf.shape, leaf.dtype) if is_mask(path, policy.spec.action) else part
                for path, leaf, part in drawn
            ]
            obs = np.concatenate([np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts])
        else:
            obs = _draw(space, rng)
        memory = np.tanh(rng.standard_normal(policy.memory_size)).astype(policy.new_memory().dtype)
        yield Moment(obs, uniforms(_SEED, Stream.TEST_ACTION, (0, step), 0, policy.noise_size), memory)


def _draw(space: SpaceSpec, rng: np.random.Generator) -> NDArray[Any]:
    """Draw an element of a space without parts."""
    if space.kind == "multi_binary":
        return rng.integers(0, 2, space.shape).astype(space.dtype)
    if space.kind in ("discrete", "multi_discrete"):
        drawn = rng.integers(space.start, np.add(space.start, space.sizes))
        return drawn.astype(space.dtype).reshape(space.shape)
    dtype = np.dtype(space.dtype)
    if dtype.kind == "f":
        return np.asarray(rng.standard_normal(space.shape) * _UNBOUNDED).astype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, space.shape).astype(dtype)
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    # one bound stands for all entries where they have it in common; none for those of the type
    lows = np.array([least if x is None else int(x) for x in space.low] or [least], object)
    highs = np.array([most if x is None else int(x) for x in space.high] or [most], object)
    shares = rng.random(space.size).astype(object)
    numbers = [min(int(low + x * (high - low)), high) for low, high, x in np.broadcast(lows, highs, shares)]
    return np.array(numbers, dtype).reshape(space.shape)
