"""One Gymnasium environment that seeds each of its episodes, and rebuilds one that was in progress.

This is the part that the backends over Gymnasium share, `SyncEnvs` and the workers of `AsyncEnvs`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from fabric_ppo.envs.attributes import Attributed, set_attributes, why_not_set
from fabric_ppo.envs.checked_env import CheckedEnv
from fabric_ppo.envs.contract import Array, EnvSettings, PastEpisode
from fabric_ppo.envs.frame_stack import frame_of
from fabric_ppo.envs.gymnasium_env import make_gymnasium_env
from fabric_ppo.envs.recorder import Recorder, record, unrecorded
from fabric_ppo.envs.repeatable import try_repeating
from fabric_ppo.process.errors import (
    USER_ERRORS,
    ConfigError,
    DoesNotRenderError,
    EnvironmentFault,
    describe_error,
    first_line,
)
from fabric_ppo.process.signals import pass_on_stop
from fabric_ppo.seeding import episode_seed


class Episodes(CheckedEnv):
    """One environment, episode after episode: the k-th starts with `reset(seed=episode_seed(...))`.

    Attributes:
        attributes: of the environment, as JSON, that are set before each reset; empty for none.
    """

    def __init__(self, settings: EnvSettings, index: int) -> None:
        """Make the rank's environment `index`, recorded if it is global environment 0.

        Raises:
            ConfigError: it cannot be made, or has a space that is not supported.
        """
        self._id = settings.first_env + index
        self._settings = settings
        records = settings.video_dir != "" and self._id == 0
        self.attributes = ""
        env = self._make()
        spec = settings.spec_of(env)
        self._offers_state = all(callable(getattr(env.unwrapped, name, None)) for name in ("get_state", "set_state"))
        try:
            env = record(env, settings.video_dir, None, self._make) if records else env
        except DoesNotRenderError as error:
            raise ConfigError(f"--capture-video: {error}") from None
        super().__init__(env, spec, f"environment {self._id}, episode", settings.info_keys)
        self._episode = -1

    def _make(self, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        """Make the environment, with its attributes."""
        settings = self._settings
        env = make_gymnasium_env(settings.env_id, settings.env_wrapper, render_mode, settings.env_kwargs)
        if self.attributes:  # a recorder makes another one in an episode's reset
            set_attributes(env, self.attributes)
        return env

    def begin_first(self) -> Array:
        """Start the first episode, and return its first observation; raises as `begin`."""
        self._go_to(0)
        return self.begin()

    def begin(self) -> Array:
        """Start the next episode, and return its first observation.

        Raises:
            EnvironmentFault: the environment failed.
        """
        self._episode += 1
        settings = self._settings
        seed = episode_seed(settings.seed, self._id, self._episode, settings.total_envs)
        if self.attributes:
            self._set_attributes(seed)
        return self.reset(seed)

    def _go_to(self, episode: int) -> None:
        """Have `begin` start the episode of this number."""
        self._episode = episode - 1
        if isinstance(self.env, Recorder):
            self.env.go_to(episode)

    def why_not_set(self, names: Sequence[str]) -> str:
        """Return why attributes of these names cannot be set; empty if they can."""
        return why_not_set(unrecorded(self.env), names)

    def _set_attributes(self, seed: int) -> None:
        """Set the attributes, before the reset with `seed`; raise an EnvironmentFault as `reset`."""
        try:
            set_attributes(unrecorded(self.env), self.attributes)
        except BaseException as error:
            pass_on_stop(error)
            self._seed, self.steps = seed, 0
            raise self._fault(f"setting {self.attributes} raised {describe_error(error)}", error) from error

    def state(self) -> bytes:
        """Return what `rebuild` takes instead of actions; empty where the environment has no state.

        That is what its own `get_state` gives, after the sums of `info` of its episode.
        """
        if not self._offers_state:
            return b""
        try:
            state = self.env.unwrapped.get_state()  # type: ignore[attr-defined]
        except USER_ERRORS:  # a method of that name that is something else
            state = None
        self._offers_state = isinstance(state, bytes) and state != b""
        return self._episode_info.state() + state if self._offers_state else b""

    def try_repeating(self, seconds: float) -> str:
        """See `VectorEnvs.try_repeating`."""
        # without the recorder: a trial is no episode of the run
        env: Any = self.env.env if isinstance(self.env, Recorder) else self.env
        env = Attributed(env, self.attributes) if self.attributes else env
        return try_repeating(env, frame_of(self.spec.observation), seconds)

    def rebuild(self, past: PastEpisode, seconds: float = math.inf) -> tuple[Array, str]:
        """Bring an episode back to where it was, or start the next one.

        Args:
            past: the episode.
            seconds: time for it, after which that fails.

        Returns:
            Where the environment is, and why the episode could not be brought back, or nothing.
        """
        try:
            why = self._replay(past, time.monotonic() + seconds)
        except EnvironmentFault as fault:
            why = first_line(fault)
        if not why:
            return past.obs, ""
        self._episode = past.number
        return self.begin(), why

    def _replay(self, past: PastEpisode, deadline: float) -> str:
        """Reset with the episode's seed and repeat its actions, or hand it its state.

        Returns:
            Why that did not bring the episode back; empty if it did.
        """
        self._go_to(past.number)
        current, self.attributes = self.attributes, past.attributes
        try:
            obs, ret = self.begin(), 0.0
        finally:
            self.attributes = current
        if past.state:
            return self._set_state(past)
        if past.actions is None:
            return "its episode was too long to keep its actions"
        for action in past.actions:
            if time.monotonic() > deadline:
                return (
                    f"its {len(past.actions)} steps take longer than there is time for; a greater --timeout allows more"
                )
            obs, reward, terminated, truncated = self.step(action.item() if action.ndim == 0 else action.copy())
            ret += float(np.float32(reward))
            if terminated or truncated:
                return f"its episode ended {len(past.actions) - self.steps} steps early"
        if np.asarray(obs).astype(past.obs.dtype, copy=False).tobytes() != past.obs.tobytes():
            return "its observation differs after the same actions"
        if not (math.isnan(past.ret) or math.isclose(ret, past.ret, rel_tol=1e-9, abs_tol=1e-9)):
            return "its rewards differ after the same actions"
        return ""

    def _set_state(self, past: PastEpisode) -> str:
        """Hand the environment its state; return why that failed, or nothing."""
        try:
            state = self._episode_info.restore(past.state)
            self.env.unwrapped.set_state(state)  # type: ignore[attr-defined]
        except USER_ERRORS as error:
            return f"set_state raised {describe_error(error)}".splitlines()[0]
        self.steps = past.length
        if self._stack is not None:
            self._stack.restore(past.obs)
        # the state is the innermost environment's: the time limit around it counts for itself
        env: Any = self.env
        while env is not env.unwrapped:
            if hasattr(env, "_elapsed_steps"):  # TimeLimit's
                env._elapsed_steps = self.steps
            env = env.env
        return ""

    def close(self) -> None:
        """Close the environment, which writes a video that is being recorded.

        Raises:
            UnwrittenVideoError: a video could not be written; all is closed nevertheless.
        """
        self.env.close()
