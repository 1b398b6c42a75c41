"""Trial of an environment: do the same seed and actions bring the same episode?"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from fabric_ppo.envs.gymnasium_env import make_gymnasium_env, renew_world
from fabric_ppo.envs.spaces import ACTION_MASK, Packer, env_spec

_TRIAL_STEPS = 200


def is_repeatable(env_id: str, wrapper: str = "") -> bool:
    """Return whether an episode follows from its seed and actions, as far as a trial shows.

    An episode is played twice, with another one between: what an environment or a wrapper remembers
    across `reset` (running statistics, for instance) makes a difference.

    Raises:
        ConfigError: the environment cannot be made.
    """
    env = make_gymnasium_env(env_id, wrapper)
    try:
        first, _, again = (_trial(env, seed) for seed in (1, 2, 1))
        return first == again
    finally:
        env.close()


def _trial(env: gymnasium.Env[Any, Any], seed: int) -> list[tuple[bytes, float]]:
    """Play an episode with random actions; return each observation's bytes and reward."""
    renew_world(env)
    env.action_space.seed(seed)
    pack = Packer(env_spec("", env.observation_space, env.action_space).observation)
    obs, _ = env.reset(seed=seed)
    seen = [(np.asarray(pack(obs)).tobytes(), 0.0)]
    for _ in range(_TRIAL_STEPS):
        obs, reward, terminated, truncated, _ = env.step(_random_action(env, obs))
        seen.append((np.asarray(pack(obs)).tobytes(), float(reward)))
        if terminated or truncated:
            break
    return seen


def _random_action(env: gymnasium.Env[Any, Any], obs: Any) -> Any:
    """Draw an action, among those that the observation's mask allows if it has one."""
    space: Any = env.action_space
    action = space.sample()
    if not isinstance(obs, dict) or ACTION_MASK[0] not in obs or isinstance(space, gymnasium.spaces.Box):
        return action
    mask = np.ravel(obs[ACTION_MASK[0]]) != 0
    if isinstance(space, gymnasium.spaces.MultiBinary):
        return action * mask.reshape(space.shape)
    # the mask of a MultiDiscrete is that of each of its entries, one after the other
    sizes = np.ravel(space.nvec if isinstance(space, gymnasium.spaces.MultiDiscrete) else space.n)
    possible = [np.flatnonzero(part) for part in np.split(mask, np.cumsum(sizes)[:-1])]
    chosen = [space.np_random.choice(each) if len(each) else 0 for each in possible]
    drawn = np.reshape(chosen, np.shape(space.start)) + space.start
    return drawn.astype(space.dtype) if drawn.ndim else int(drawn)
