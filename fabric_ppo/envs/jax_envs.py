"""Environments that are pure functions of JAX, stepped by one compiled call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

Tree = Any
"""Arrays of JAX: one, or a tree of them."""


class JaxVectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """N copies of an environment that is two pure functions of JAX.

    A copy's next episode begins in the step that ends the one before, from a newly drawn state;
    `info["final_obs"]` has the observations from before that. Arrays stay on JAX's device.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        reset: Callable[[Any], tuple[Tree, Tree]],
        step: Callable[[Any, Tree, Any], tuple[Tree, Tree, Any, Any, Any]],
    ) -> None:
        """Compile the functions for N copies when they are first called.

        Args:
            num_envs: N.
            observation_space, action_space: Gymnasium's, of one copy.
            reset: of one copy; `reset(key)` returns `(observation, state)`.
            step: of one copy; `step(key, state, action)` returns `(observation, state, reward,
                terminated, truncated)`. It begins no episode: `reset` does.
        """
        import jax  # an optional library

        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._begin, self._advance = jax.jit(_begin_all(num_envs, reset)), jax.jit(_step_all(num_envs, reset, step))
        self._key, self._state = jax.random.PRNGKey(0), None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tree, dict[str, Any]]:
        """Begin new episodes everywhere; without a seed, the random numbers go on."""
        import jax

        if seed is not None:
            self._key = jax.random.PRNGKey(seed)
        self._key, obs, self._state = self._begin(self._key)
        return obs, {}

    def step(self, actions: Any) -> tuple[Tree, Any, Any, Any, dict[str, Any]]:
        """Take a step in each copy, and begin the next episode where one has ended."""
        self._key, (obs, self._state), (final_obs, *columns) = self._advance(self._key, self._state, actions)
        return obs, *columns, {"final_obs": final_obs}


def _begin_all(num_envs: int, reset: Callable[..., Any]) -> Callable[[Any], tuple[Any, Tree, Tree]]:
    """Return a function of a key that begins N episodes; it returns the next key, observations and states."""
    import jax

    def begin(key: Any) -> tuple[Any, Tree, Tree]:
        key, reset_key = jax.random.split(key)
        obs, state = jax.vmap(reset)(jax.random.split(reset_key, num_envs))
        return key, obs, state

    return begin


def _step_all(num_envs: int, reset: Callable[..., Any], step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of key, states and actions that steps N copies.

    It returns the next key, `(observations, states)` to go on with, and `(observations, rewards,
    terminated, truncated)` of the step itself.
    """
    import jax

    def where(mask: Any, new: Any, old: Any) -> Any:
        """Return the rows of `new` where the mask is true; an array without such rows is shared by all copies."""
        if not old.ndim or len(old) != num_envs:
            return old
        return jax.numpy.where(mask.reshape(num_envs, *[1] * (old.ndim - 1)), new, old)

    def advance(key: Any, state: Tree, actions: Any) -> tuple[Any, Any, Any]:
        key, step_key, reset_key = jax.random.split(key, 3)
        obs, state, rewards, *flags = jax.vmap(step)(jax.random.split(step_key, num_envs), state, actions)
        terminated, truncated = (flag.astype(bool) for flag in flags)
        # outside of vmap: physics of MuJoCo Warp have arrays that are not one row for each copy
        begun = jax.vmap(reset)(jax.random.split(reset_key, num_envs))
        over = terminated | truncated
        go_on = jax.tree.map(lambda new, old: where(over, new, old), begun, (obs, state))
        return key, go_on, (obs, rewards, terminated, truncated)

    return advance
