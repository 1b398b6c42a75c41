"""One Gymnasium environment whose every answer is checked, and whose faults say exactly where.

Training (`Episodes`) and tests (`rollouts/evaluate.py`) call environments through this class alone.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any

import gymnasium

from fabric_ppo.config_info_keys import ONLY_SUCCESS, InfoKey
from fabric_ppo.envs.actions import MaskCheck
from fabric_ppo.envs.contract import Array
from fabric_ppo.envs.episode_info import EpisodeInfo, Reading
from fabric_ppo.envs.frame_stack import FrameStack, num_frames
from fabric_ppo.envs.gymnasium_env import renew_world
from fabric_ppo.envs.nested_actions import Unpacker
from fabric_ppo.envs.reading import read_flag, read_reward, read_tuple
from fabric_ppo.envs.spaces import EnvSpec, Packer, reader_of
from fabric_ppo.process.errors import EnvironmentFault, describe_error
from fabric_ppo.process.signals import pass_on_stop


class CheckedEnv:
    """An environment, made already, that is reset with a seed and stepped.

    Attributes:
        spec: its spaces.
        env: the environment itself.
        lost_life: the last step cost a life in an Atari game.
        place: which environment and episode this is, for the text of faults.
        steps: since the reset.
        info: what the last step returned beside the rest.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        spec: EnvSpec,
        place: str = "",
        info_keys: Sequence[InfoKey] = ONLY_SUCCESS,
    ) -> None:
        """Take an environment with these spaces; `info_keys` are what `ending` reads."""
        self.env, self.spec, self.place = env, spec, place
        space = spec.observation
        self._stack = FrameStack(space) if num_frames(space) > 1 else None
        self._read = self._stack or (Packer(space) if space.parts else reader_of(space))  # no detour in each step
        mask = MaskCheck(spec)
        self._check_mask = mask if mask.has_mask else None
        self._unpack = Unpacker(spec.action).one if spec.action.parts else None
        self._counts_lives = spec.is_atari
        self._lives = 0
        self.lost_life = False
        self.steps = self._seed = 0
        self.info: Any = None
        self._episode_info = EpisodeInfo(info_keys)
        self._adds_info = self._episode_info.adds

    def reset(self, seed: int) -> Array:
        """Start an episode, and return its first observation as it is stored, packed if nested.

        Raises:
            EnvironmentFault: the environment failed, or its observation cannot be read.
        """
        self._seed, self.steps = seed, 0
        self._episode_info.clear()
        if self._stack is not None:
            self._stack.clear()
        try:
            renew_world(self.env)
            answer = self.env.reset(seed=seed)
        except BaseException as error:
            pass_on_stop(error)
            raise self._fault(f"reset raised {describe_error(error)}", error) from error
        try:
            obs, info = read_tuple(answer, ("observation", "info"))
            if self._counts_lives:
                self._lives = info["lives"]
            read = self._read(obs)
            if self._check_mask is not None:
                self._check_mask(read)
        except ValueError as error:
            raise self._fault(f"reset returned {error}") from None
        return read

    def step(self, action: Any) -> tuple[Array, float, bool, bool]:
        """Take a step.

        Args:
            action: as the environment takes it; a nested one as its row of bytes.

        Returns:
            Observation as it is stored, reward, terminated, truncated.

        Raises:
            EnvironmentFault: the environment failed, or something that it returned cannot be read.
        """
        self.steps += 1
        if self._unpack is not None:
            action = self._unpack(action)
        try:
            answer = self.env.step(action)
        except BaseException as error:
            pass_on_stop(error)
            raise self._fault(f"step raised {describe_error(error)}", error) from error
        try:
            if type(answer) is not tuple or len(answer) != 5:  # written out, as what follows: every step
                answer = read_tuple(answer, ("observation", "reward", "terminated", "truncated", "info"))
            obs, reward, terminated, truncated, info = answer
            self.info = info
            if self._adds_info:
                self._episode_info.add(info)
            reward = read_reward(reward)
            if type(terminated) is not bool or type(truncated) is not bool:
                terminated, truncated = read_flag(terminated, "terminated"), read_flag(truncated, "truncated")
            if self._counts_lives:
                self.lost_life, self._lives = info["lives"] < self._lives, info["lives"]
            read = self._read(obs)
            if self._check_mask is not None and not (terminated or truncated):
                self._check_mask(read)
        except ValueError as error:
            raise self._fault(f"step returned {error}") from None
        return read, reward, terminated, truncated

    def ending(self) -> list[Reading] | None:
        """Return the readings of `info` where the last step was an episode's; see `EpisodeInfo.ending`."""
        return self._episode_info.ending(self.info)

    def _fault(self, what: str, error: BaseException | None = None) -> EnvironmentFault:
        """Return a fault that names the environment, its episode and its step."""
        place = f"{self.spec.env_id} {self.place} seed {self._seed}, step {self.steps}"
        trace = "\n" + "".join(traceback.format_exception(error)).rstrip() if error else ""
        return EnvironmentFault(f"{place}: {what}{trace}")
