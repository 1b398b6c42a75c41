"""Trial of an environment: do the same seed and actions bring the same episode?"""

from __future__ import annotations

import copy
import time
from typing import Any

import gymnasium
import numpy as np

from fabric_ppo.envs.gymnasium_env import renew_world
from fabric_ppo.envs.masks import num_choices, parts_of
from fabric_ppo.envs.reading import read_flag, read_reward
from fabric_ppo.envs.spaces import ACTION_MASK, Packer, SpaceSpec
from fabric_ppo.envs.torch_settings import torch_settings_kept
from fabric_ppo.process.errors import describe_error
from fabric_ppo.process.signals import pass_on_stop

_TRIAL_STEPS = 200


def try_repeating(env: gymnasium.Env[Any, Any], space: SpaceSpec, seconds: float) -> str:
    """Try whether an episode follows from its seed and actions.

    It is played twice, with another one between: what an environment or a wrapper remembers across
    `reset` (running statistics, for instance) makes a difference.

    Args:
        env: the environment; its episode in progress is lost.
        space: its observations.
        seconds: time for the trial, which shortens the episodes.

    Returns:
        Why it does not, or cannot be tried; empty if it does.
    """
    pack = Packer(space)
    try:
        with torch_settings_kept():
            first = _play(env, pack, 1, _TRIAL_STEPS, seconds / 3)
            _play(env, pack, 2, _TRIAL_STEPS, seconds / 3)
            again = _play(env, pack, 1, len(first) - 1, seconds)
    except BaseException as error:
        pass_on_stop(error)
        return f"an episode could not be tried ({describe_error(error)})".splitlines()[0]
    return "" if first == again else "an episode does not follow from its seed and actions alone"


def _play(
    env: gymnasium.Env[Any, Any], pack: Packer, seed: int, steps: int, seconds: float
) -> list[tuple[bytes, float]]:
    """Play an episode with random actions; return each observation's bytes and reward."""
    deadline = time.monotonic() + seconds
    renew_world(env)
    # a copy: the environment may draw from its own space
    actions = copy.deepcopy(env.action_space)
    actions.seed(seed)
    obs, _ = env.reset(seed=seed)
    seen = [(np.asarray(pack(obs)).tobytes(), 0.0)]
    while len(seen) <= steps and time.monotonic() < deadline:
        obs, reward, terminated, truncated, _ = env.step(_random_action(actions, obs))
        seen.append((np.asarray(pack(obs)).tobytes(), read_reward(reward)))
        if read_flag(terminated, "terminated") or read_flag(truncated, "truncated"):
            break
    return seen


def _random_action(space: Any, obs: Any) -> Any:
    """Draw an action, among those that the observation's mask allows if it has one."""
    action = space.sample()
    if not isinstance(obs, dict) or ACTION_MASK[0] not in obs or not num_choices(space):
        return action
    return _allowed(space, action, obs[ACTION_MASK[0]])


def _allowed(space: Any, action: Any, mask: Any) -> Any:
    """Return an action with other choices, drawn among those that a mask allows."""
    if isinstance(space, (gymnasium.spaces.Dict, gymnasium.spaces.Tuple)):
        parts = parts_of(space)
        if isinstance(mask, np.ndarray):  # one for all parts
            ends = np.cumsum([num_choices(each) for _, each in parts])
            mask = dict(zip([key for key, _ in parts], np.split(mask, ends[:-1]), strict=True))
        made = {
            key: _allowed(each, action[key], mask[key]) if num_choices(each) else action[key] for key, each in parts
        }
        return made if isinstance(space, gymnasium.spaces.Dict) else tuple(made.values())
    mask = np.ravel(mask) != 0
    if isinstance(space, gymnasium.spaces.MultiBinary):
        return action * mask.reshape(space.shape)
    # the mask of a MultiDiscrete is that of each of its entries, one after the other
    sizes = np.ravel(space.nvec if isinstance(space, gymnasium.spaces.MultiDiscrete) else space.n)
    possible = [np.flatnonzero(part) for part in np.split(mask, np.cumsum(sizes)[:-1])]
    chosen = [space.np_random.choice(each) if len(each) else 0 for each in possible]
    drawn = np.reshape(chosen, np.shape(space.start)) + space.start
    return drawn.astype(space.dtype) if drawn.ndim else int(drawn)
