"""Contract of the backends: N environments step together, and start their own next episodes.

`ArrayEnvs` write into NumPy's arrays; for tensors see `tensor_contract.TensorEnvs`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.config_info_keys import ONLY_SUCCESS, InfoKey
from fabric_ppo.envs.episode_info import Ending
from fabric_ppo.envs.frame_stack import with_frames
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.envs.spaces import EnvSpec, Fit
from fabric_ppo.process.errors import ConfigError

Array = NDArray[Any]
"""A NumPy array; a comment or docstring gives its shape."""


class UnwrittenVideoError(OSError):
    """A video that could not be written; its text is "a video in FOLDER (REASON)"."""


class FinalObs(NamedTuple):
    """The last observation of an episode that ended in this step, in local environment `env`."""

    env: int
    obs: Array


@dataclass(frozen=True)
class EnvSettings:
    """Everything that this rank's environments are made from.

    Attributes:
        env_id: as `gymnasium.make` takes it.
        seed: the run's seed.
        num_envs: environments on this rank.
        first_env: global id of the first of them.
        total_envs: environments on all ranks.
        video_dir: where environment 0 is recorded, if this rank has it; empty for no video.
        timeout: seconds that a worker process may take for one step or reset.
        restart: replace a worker process that died or hangs.
        start_method: how worker processes start, as `multiprocessing` has it; None for a fork on
            Linux, else spawn.
        num_threads: how many threads a backend that has its own may start.
        action_bounds: how Box actions meet their bounds (`actions.ActionConverter`).
        env_wrapper: what each environment is wrapped in, `module:function`, several with commas, or
            `ATARI`; empty for nothing.
        obs_keys: parts of a Dict observation that are taken, with commas; empty for all.
        critic_keys: parts that the value network alone takes, likewise; empty for none.
        env_kwargs: keyword arguments for the environment's constructor, as JSON; empty for none.
        frame_stack: last observations that make one, see `frame_stack.with_frames`.
        info_keys: numbers of `info` that are read of each episode.
    """

    env_id: str
    seed: int
    num_envs: int
    first_env: int
    total_envs: int
    video_dir: str = ""
    timeout: float = 60.0
    restart: bool = False
    start_method: str | None = None
    num_threads: int = 1
    action_bounds: Fit = "clip"
    env_wrapper: str = ""
    obs_keys: str = ""
    critic_keys: str = ""
    env_kwargs: str = ""
    frame_stack: int = 1
    info_keys: tuple[InfoKey, ...] = ONLY_SUCCESS

    def spec_of(self, env: Any) -> EnvSpec:
        """Describe an environment made with these settings.

        Raises:
            ConfigError: a space that no agent here can take, or keys that it lacks.
        """
        spaces, keys = (env.observation_space, env.action_space), (self.obs_keys, self.critic_keys)
        spec = env_spec(self.env_id, *spaces, self.action_bounds, self.env_wrapper, *keys)
        return with_frames(replace(spec, make_args=self.env_kwargs), self.frame_stack)


@dataclass(frozen=True)
class PastEpisode:
    """An episode in progress, to be brought back to where it was.

    Attributes:
        number: which of its environment's episodes it is; its seed follows.
        actions: `[steps, ...]` since its reset, as the environment takes them; None where they were
            not kept.
        obs: where it was.
        ret: its return until there, NaN where it is not known.
        length: its steps until there.
        discounted: its discounted return until there.
        memory: `[memory_size]`, what a recurrent agent remembers of it.
        state: from `VectorEnvs.states`; empty for none.
        attributes: that it began with (`VectorEnvs.set_attributes`), as JSON; empty for none.
    """

    number: int
    actions: Array | None
    obs: Array
    ret: float
    length: int
    discounted: float = 0.0
    memory: Array = field(default_factory=lambda: np.zeros(0))
    state: bytes = b""
    attributes: str = ""


class VectorEnvs(ABC):
    """N environments that step together.

    Attributes:
        spec: their spaces.
        num_envs: N.
        first_env: global id of the first of them; the others follow it.
        device: name of PyTorch's device where a rollout's data are collected.
        restarts: worker processes that had to be replaced so far.
        lost_life: `[N]`, where the last step cost a life, though the game may go on; None if that
            is not of interest.
        info_keys: numbers of `info` that are read of each episode.
        endings: what was read of the episodes that ended in the last step, in order of their
            environments; those that have none of the numbers may be left out.
    """

    spec: EnvSpec
    num_envs: int
    first_env: int
    device: str = "cpu"
    restarts: int = 0
    lost_life: Array | None = None
    info_keys: tuple[InfoKey, ...] = ONLY_SUCCESS
    endings: Sequence[Ending] = ()

    def check_attributes(self, names: Sequence[str]) -> None:
        """Check that the environments have attributes of these names that can be set.

        Raises:
            ConfigError: they have not, or the backend sets none; names what is wrong.
        """
        needed = "--env-backend sync or async is needed, whose environments have attributes to set"
        raise ConfigError(f"envs.set({', '.join(names)}): {needed}")

    def set_attributes(self, attributes: str) -> None:
        """Set attributes, as JSON, in each environment before its next reset, and each later one.

        Args:
            attributes: all that are to be set, in order, after `check_attributes` of their names.
        """
        raise AssertionError("a backend that sets attributes checks them first")

    def try_repeating(self, seconds: float) -> str:
        """Try in one environment whether the same seed and actions bring the same episode.

        Only `rebuild` may follow, or `reset`. It takes no longer than `seconds` and a step.

        Returns:
            Why an episode cannot be repeated exactly; empty if it can, as far as a trial shows.
        """
        return ""

    def states(self) -> list[bytes]:
        """Return for each environment what `rebuild` takes in `PastEpisode.state`; empty for none."""
        return []

    @abstractmethod
    def close(self) -> None:
        """Release everything; a second call does nothing.

        Raises:
            OSError: a video could not be written (its text: "a video in FOLDER (REASON)");
                everything is closed all the same.
        """


class ArrayEnvs(VectorEnvs):
    """N environments that write into NumPy's arrays, whose memory tensors on the CPU share."""

    @abstractmethod
    def reset(self, obs: Array) -> None:
        """Start every environment's first episode; write its first observation into `obs [N, ...]`.

        Raises:
            EnvironmentFault: an environment failed.
        """

    @abstractmethod
    def step(
        self, actions: Array, obs: Array, rewards: Array, terminated: Array, truncated: Array, valid: Array
    ) -> list[FinalObs]:
        """Take one step in each environment and write what follows into the arrays, `[N, ...]`.

        Where an episode ended, `obs` is already the next one's first observation, and its final one
        is returned. A backend that resets on the following call instead leaves the final
        observation in `obs` and returns nothing for it; the following call ignores the action,
        brings the next episode's first observation, and is marked as no transition: `valid` is
        false. `valid` being false and the end of an episode never come with the same row.

        Args:
            actions: as the environments take them (`actions.ActionConverter`), `[N, *shape]`.
            obs, rewards, terminated, truncated, valid: outputs.

        Raises:
            EnvironmentFault: an environment failed.
        """

    @abstractmethod
    def rebuild(self, past: Sequence[PastEpisode], obs: Array, seconds: float = math.inf) -> list[str]:
        """Bring every environment's episode back to where it was, instead of `reset`.

        Where that fails, the environment starts its next episode.

        Args:
            past: one for each environment.
            obs: `[N, ...]`, output: where the environments are.
            seconds: time for all of them, after which the rest fails.

        Returns:
            Why it failed, for each environment; empty where it did not.

        Raises:
            EnvironmentFault: an environment failed in its next episode too.
        """
