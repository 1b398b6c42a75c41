"""Gymnasium environments in this process, one after the other."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Sequence

import numpy as np

from fabric_ppo.envs.contract import Array, ArrayEnvs, EnvSettings, FinalObs, PastEpisode, UnwrittenVideoError
from fabric_ppo.envs.episode_info import Ending
from fabric_ppo.envs.episodes import Episodes
from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import ConfigError, describe_error
from fabric_ppo.process.signals import pass_on_stop


class SyncEnvs(ArrayEnvs):
    """Environments that step in turn, in this process."""

    def __init__(self, settings: EnvSettings) -> None:
        """Make the environments.

        Raises:
            ConfigError: the environment cannot be made, or has a space that is not supported.
        """
        self._envs: list[Episodes] = []
        try:
            while len(self._envs) < settings.num_envs:
                self._envs.append(Episodes(settings, len(self._envs)))
        except BaseException:
            with contextlib.suppress(UnwrittenVideoError):
                self.close()
            raise
        self.spec = self._envs[0].spec
        self.num_envs, self.first_env, self.info_keys = settings.num_envs, settings.first_env, settings.info_keys
        self.lost_life = np.zeros(self.num_envs, np.bool_) if self.spec.is_atari else None

    def reset(self, obs: Array) -> None:
        """See `ArrayEnvs.reset`."""
        for index, env in enumerate(self._envs):
            obs[index] = env.begin_first()

    def step(
        self, actions: Array, obs: Array, rewards: Array, terminated: Array, truncated: Array, valid: Array
    ) -> list[FinalObs]:
        """See `ArrayEnvs.step`."""
        finals: list[FinalObs] = []
        endings: list[Ending] = []
        # as Python numbers, scalar actions pass the environments' own checks faster
        each_action = actions.tolist() if actions.ndim == 1 else actions
        for index, (env, action) in enumerate(zip(self._envs, each_action, strict=True)):
            next_obs, rewards[index], terminated[index], truncated[index] = env.step(action)
            if terminated[index] or truncated[index]:
                # a copy, as the environment may reuse its memory
                finals.append(FinalObs(index, np.array(next_obs)))
                if (readings := env.ending()) is not None:
                    endings.append(Ending(index, readings))
                next_obs = env.begin()
            obs[index] = next_obs
        if self.lost_life is not None:
            self.lost_life[:] = [env.lost_life for env in self._envs]
        valid[:] = True
        self.endings = endings
        return finals

    def check_attributes(self, names: Sequence[str]) -> None:
        """See `VectorEnvs.check_attributes`."""
        if why := self._envs[0].why_not_set(names):
            raise ConfigError(why)

    def set_attributes(self, attributes: str) -> None:
        """See `VectorEnvs.set_attributes`."""
        for env in self._envs:
            env.attributes = attributes

    def try_repeating(self, seconds: float) -> str:
        """See `VectorEnvs.try_repeating`."""
        return self._envs[0].try_repeating(seconds)

    def rebuild(self, past: Sequence[PastEpisode], obs: Array, seconds: float = math.inf) -> list[str]:
        """See `ArrayEnvs.rebuild`."""
        failed, deadline = [], time.monotonic() + seconds
        for index, (env, episode) in enumerate(zip(self._envs, past, strict=True)):
            obs[index], why = env.rebuild(episode, deadline - time.monotonic())
            failed.append(why)
        return failed

    def states(self) -> list[bytes]:
        """See `VectorEnvs.states`."""
        states = [env.state() for env in self._envs]
        return states if all(states) else []

    def close(self) -> None:
        """See `VectorEnvs.close`."""
        envs, self._envs = self._envs, []
        unwritten: list[UnwrittenVideoError] = []
        warnings: list[str] = []
        for env in envs:
            try:
                env.close()
            except UnwrittenVideoError as error:
                unwritten.append(error)
            except BaseException as error:
                pass_on_stop(error)
                warnings.append(f"warning: {env.spec.env_id}: close raised {describe_error(error)}".splitlines()[0])
        for warning in dict.fromkeys(warnings):
            print_line(warning, sys.stderr)
        if unwritten:
            raise unwritten[0]
