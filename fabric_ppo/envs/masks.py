"""Action masks that come with `info`, moved to where agents look for them."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


def action_mask_from_info(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Make of each observation a Dict with it and `info["action_mask"]`; for `--env-wrapper`.

    A mask has an entry for each choice, 0 where it is impossible; of a MultiDiscrete, one entry's
    choices after the other's. Where an episode has ended there is nothing to mask, and a mask may
    be missing.

    Raises:
        TypeError: the actions are neither Discrete nor MultiDiscrete.
    """
    return _MaskedObservation(env)


class _MaskedObservation(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose observations are Dicts of `action_mask` and `observation`."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        actions = env.action_space
        if isinstance(actions, spaces.Discrete):
            size = int(actions.n)
        elif isinstance(actions, spaces.MultiDiscrete):
            size = int(actions.nvec.sum())
        else:
            raise TypeError(f"actions are {type(actions).__name__}; masks are for Discrete and MultiDiscrete")
        self._size = size
        self.observation_space = spaces.Dict(
            {"action_mask": spaces.MultiBinary(size), "observation": env.observation_space}
        )

    def _with_mask(self, obs: Any, info: dict[str, Any], has_ended: bool = False) -> dict[str, Any]:
        mask = info.get("action_mask", np.ones(self._size, np.int8) if has_ended else None)
        if mask is None:
            raise KeyError("info has no action_mask")
        return {"action_mask": np.asarray(mask, np.int8).reshape(-1), "observation": obs}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._with_mask(obs, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._with_mask(obs, info, terminated or truncated), reward, terminated, truncated, info
