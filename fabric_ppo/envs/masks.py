"""Action masks that come with `info`, moved to where agents look for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


def action_mask_from_info(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Make of each observation a Dict with it and `info["action_mask"]`; for `--env-wrapper`.

    A mask has an entry for each choice, 0 where it is impossible; of a MultiDiscrete, one entry's
    choices after the other's, or a tuple of their arrays. Where actions are a Dict or Tuple, it has
    such a mask at the place of each choice, as the `mask` of the space's own `sample`. Where an
    episode has ended there is nothing to mask, and a mask may be missing.

    Raises:
        TypeError: the actions are neither Discrete nor MultiDiscrete, nor have such parts.
    """
    return _MaskedObservation(env)


class _MaskedObservation(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose observations are Dicts of `action_mask` and `observation`."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        actions = env.action_space
        if not num_choices(actions) or isinstance(actions, spaces.MultiBinary):
            expected = "masks are for Discrete and MultiDiscrete, and Dict and Tuple of them"
            raise TypeError(f"actions are {type(actions).__name__}; {expected}")
        self._actions, self._nothing_masked = actions, _of_choices(actions, lambda size: np.ones(size, np.int8))
        masks = _of_choices(actions, spaces.MultiBinary, spaces.Dict)
        self.observation_space = spaces.Dict({"action_mask": masks, "observation": env.observation_space})

    def _with_mask(self, obs: Any, info: dict[str, Any], has_ended: bool = False) -> dict[str, Any]:
        mask = info.get("action_mask", self._nothing_masked if has_ended else None)
        if mask is None:
            raise KeyError("info has no action_mask")
        return {"action_mask": _read(self._actions, mask), "observation": obs}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        obs, info = self.env.reset(seed=seed, options=options)
        return self._with_mask(obs, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._with_mask(obs, info, terminated or truncated), reward, terminated, truncated, info


def num_choices(space: gymnasium.Space[Any]) -> int:
    """Return the number of entries of a mask of these actions, as `SpaceSpec.num_choices`."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return sum(num_choices(each) for _, each in parts_of(space))
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return int(np.prod(space.shape)) if isinstance(space, spaces.MultiBinary) else 0


def parts_of(space: spaces.Dict | spaces.Tuple[Any]) -> list[tuple[Any, gymnasium.Space[Any]]]:
    """Return the parts of a space with their keys, or with their indices."""
    return list(space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces))


def _of_choices(space: gymnasium.Space[Any], leaf: Callable[[int], Any], container: Callable[[Any], Any] = dict) -> Any:
    """Return `leaf(size)` for actions without parts, else a container of them, for the parts that have choices."""
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        return leaf(num_choices(space))
    return container({key: _of_choices(each, leaf, container) for key, each in parts_of(space) if num_choices(each)})


def _read(space: gymnasium.Space[Any], mask: Any) -> Any:
    """Return a mask of actions, or those of the parts that have choices, as arrays of one axis."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return {key: _read(each, mask[key]) for key, each in parts_of(space) if num_choices(each)}
    whole = np.hstack(mask) if isinstance(mask, tuple) else mask
    return np.asarray(whole, np.int8).reshape(-1)
