"""Environments of a `gymnasium.vector.VectorEnv`, whose arrays are NumPy's, PyTorch's or JAX's."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from torch import Tensor

from fabric_ppo.envs.calls import call, close
from fabric_ppo.envs.contract import EnvSettings, PastEpisode
from fabric_ppo.envs.episode_info import ABSENT, PoolInfo, find_in
from fabric_ppo.envs.nested_actions import Unpacker
from fabric_ppo.envs.spaces import EnvSpec, Packer
from fabric_ppo.envs.tensor_contract import FinalPlace, StepOutputs, TensorEnvs
from fabric_ppo.envs.tensor_rows import RowMaker, as_tensor
from fabric_ppo.process.console import print_from_rank_zero
from fabric_ppo.process.errors import USER_ERRORS, ConfigError, EnvironmentFault, first_line
from fabric_ppo.seeding import episode_seed

_FINALS: dict[AutoresetMode, FinalPlace] = {
    AutoresetMode.NEXT_STEP: "next row",
    AutoresetMode.SAME_STEP: "given",
    AutoresetMode.DISABLED: "given",
}
_FINAL_OBS = ("final_obs", "final_observation")
"""Keys of `info` for final observations: today's, and that of Gymnasium before 1.0."""


class GymVectorEnvs(TensorEnvs):
    """The environments of a VectorEnv, on the device of its arrays.

    All are seeded by one number when they start, as `VectorEnv.reset` takes it. They start their next
    episodes by themselves, in the way that `metadata["autoreset_mode"]` says.
    """

    def __init__(self, env: Any, settings: EnvSettings, spec: EnvSpec | None = None) -> None:
        """Take N environments, and reset them once to see what their arrays are.

        Args:
            env: a VectorEnv, or what has its methods and attributes.
            settings: how many are expected, and their seed.
            spec: their spaces; None: as `env` has them.

        Raises:
            ConfigError: a space that no agent here can take, another number of environments, or an
                autoreset mode that is not told.
        """
        self._env, self._settings, self._name = env, settings, settings.env_id
        if env.num_envs != settings.num_envs:
            expected = f"--num-envs {env.num_envs} is expected, or a function that takes num_envs"
            raise ConfigError(
                f"--num-envs {settings.num_envs}: {self._name} made {env.num_envs} environments; {expected}"
            )
        spaces = {"observation_space": env.single_observation_space, "action_space": env.single_action_space}
        self.spec = spec or settings.spec_of(SimpleNamespace(**spaces))
        self.num_envs, self.first_env, self.info_keys = settings.num_envs, settings.first_env, settings.info_keys
        self._mode = _autoreset_mode(env, self._name)
        self.finals = _FINALS[self._mode]
        self._info = PoolInfo(self.info_keys, self.num_envs)
        self._rows = RowMaker(self.spec.observation)
        self._pack = Packer(self.spec.observation)
        self._unpack = Unpacker(self.spec.action) if self.spec.action.parts else None
        self.device = ""  # that of the first observations
        try:
            self._first, _ = self._reset(self._seed_of(0))
        except EnvironmentFault as fault:
            raise ConfigError(f"--env-id {first_line(fault)}") from fault
        self.device, self._kind = str(self._first.device), self._rows.kind
        # in the last step; where environments are reset by request, without their observation being another
        self._ended = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        self._lengths = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)

    def _seed_of(self, episode: int) -> int:
        settings = self._settings
        return episode_seed(settings.seed, self.first_env, episode, settings.total_envs)

    def reset(self, obs: Tensor) -> None:
        """See `TensorEnvs.reset`."""
        self._start(self._seed_of(0), obs)

    def begin(self, seeds: Sequence[int], obs: Tensor) -> None:
        """See `TensorEnvs.begin`; the first seed is that of all."""
        self._start(seeds[0], obs)

    def _start(self, seed: int, obs: Tensor) -> None:
        obs.copy_(self._reset(seed)[0])
        self._before = obs
        self._ended.zero_()
        self._lengths.zero_()
        self._info.clear()

    def _reset(self, seed: int | None, options: dict[str, Any] | None = None) -> tuple[Tensor, Any]:
        """Reset all, or those that `options` say; return the rows of observations, and `info`."""
        answer = self._call("reset", seed=seed, options=options)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise self._fault("reset returned something else than (observation, info)")
        return self._read(answer[0], "reset"), answer[1]

    def step(self, actions: Tensor, outputs: StepOutputs) -> None:
        """See `TensorEnvs.step`."""
        theirs = self._as_theirs(actions) if self._unpack is None else self._nested(self._unpack.tensors(actions))
        answer = self._call("step", theirs)
        if not isinstance(answer, tuple) or len(answer) != 5:
            raise self._fault("step returned something else than (observation, reward, terminated, truncated, info)")
        obs, *columns, info = answer
        outputs.obs.copy_(self._read(obs, "step"))
        names = ("rewards", "terminated", "truncated")
        for name, column in zip(names, columns, strict=True):
            getattr(outputs, name).copy_(self._column(column, name))
        outputs.valid.fill_(True)
        if self._mode is AutoresetMode.NEXT_STEP:
            torch.logical_not(self._ended, out=outputs.valid)
            # the rows of a reset end no episode, and give nothing
            outputs.terminated.logical_and_(outputs.valid)
            outputs.truncated.logical_and_(outputs.valid)
            outputs.rewards.masked_fill_(~outputs.valid, 0)
        ended = outputs.terminated | outputs.truncated
        self._read_info(info, outputs, ended)
        if self._mode is AutoresetMode.NEXT_STEP:
            self._ended = ended
        elif self._mode is AutoresetMode.SAME_STEP:
            self._keep_finals(info, outputs, ended)
        else:
            self._lengths += 1
            if bool(ended.any()):
                self._reset_some(outputs, ended)
        self._before = outputs.obs

    def _reset_some(self, outputs: StepOutputs, ended: Tensor) -> None:
        """Start the next episodes where some have `ended`, for environments that do not do it by themselves."""
        outputs.final_obs.copy_(outputs.obs)  # type: ignore[union-attr]
        first = self._reset(None, {"reset_mask": self._as_theirs(ended)})[0]
        is_other = (first != outputs.obs).flatten(1).any(1)
        if outputs.obs.is_floating_point():  # what is not a number is another one's fault, which is named later
            is_other &= outputs.obs.flatten(1).isfinite().all(1)
        if bool((is_other & ~ended).any()):
            env = int((is_other & ~ended).nonzero()[0])
            raise self._fault(
                f"reset with a reset_mask that is false for environment {self.first_env + env} has changed its "
                "observation; its episode goes on: the environments are expected to leave it as it is"
            )
        # an episode that ends in its first step, though the one before did not, and began as that had ended
        if bool((ended & self._ended & (self._lengths == 1)).any()):
            _say_not_reset(self._name)
        self._ended = torch.where(ended, ~is_other & (self._lengths > 1), self._ended)
        self._lengths.masked_fill_(ended, 0)
        outputs.obs.copy_(first)

    def _keep_finals(self, info: Any, outputs: StepOutputs, ended: Tensor) -> None:
        """Keep the final observations of episodes, where the environments were reset in the same step."""
        if self.finals == "hidden" or outputs.final_obs is None:
            return
        found = next((info[key] for key in _FINAL_OBS if isinstance(info, Mapping) and key in info), None)
        if found is None and bool(outputs.truncated.any()):
            self.finals = "hidden"
            _say_hidden(self._name)
        elif isinstance(found, np.ndarray) and found.dtype == object:
            if found.shape != (self.num_envs,):
                raise self._fault(
                    f"step returned final observations of shape {found.shape}; ({self.num_envs},) is expected, "
                    "an observation or None for each environment"
                )
            for env in ended.nonzero().squeeze(-1).tolist():
                outputs.final_obs[env] = self._final(found[env], env, bool(outputs.truncated[env]))
        elif found is not None:
            outputs.final_obs.copy_(self._read(found, "step", "final observations", ended))

    def _final(self, obs: Any, env: int, is_truncated: bool) -> Tensor:
        """Return one final observation as its row; the one before it where there is none."""
        if obs is None:
            if is_truncated:
                _say_hidden(self._name)
            return self._before[env]
        try:
            return torch.as_tensor(self._pack(obs))
        except ValueError as error:
            raise self._fault(f"step returned a final observation, in row {env}: {error}") from None

    def _read_info(self, info: Any, outputs: StepOutputs, ended: Tensor) -> None:
        """Read the numbers of `info`, where there are any."""
        arrays = [_numbers(info, key.key, ended) for key in self.info_keys]
        self.endings = ()
        if all(array is None for array in arrays):
            return
        self._info.add(arrays, outputs.valid.cpu().numpy())
        if bool(ended.any()):
            self.endings = self._info.endings(arrays, ended.cpu().numpy())

    def _read(self, obs: Any, by: str, what: str = "observations", where: Tensor | None = None) -> Tensor:
        """Return the rows of observations, on the device of the first ones; those `where` true count.

        Raises:
            EnvironmentFault: they are not those of the space, or on another device.
        """
        try:
            rows = self._rows(obs, self.num_envs, where)
        except ValueError as error:
            raise self._fault(f"{by} returned {what} {error}") from None
        self._require_device(rows, f"{by} returned {what}")
        return rows

    def _column(self, values: Any, name: str) -> Tensor:
        """Return rewards or flags, `[N]`; raises as `_read`."""
        try:
            column = as_tensor(values)
        except USER_ERRORS:
            raise self._fault(f"step returned {name} that are no numbers, {_kind_of(values)}") from None
        if column.shape != (self.num_envs,):
            raise self._fault(f"step returned {name} of shape {tuple(column.shape)}; ({self.num_envs},) is expected")
        self._require_device(column, f"step returned {name}")
        if name != "rewards" and column.is_floating_point() and not bool(((column == 0) | (column == 1)).all()):
            raise self._fault(f"step returned {name} with other numbers than 0 and 1")
        return column

    def _require_device(self, tensor: Tensor, what: str) -> None:
        if self.device and str(tensor.device) != self.device:
            raise self._fault(f"{what} on {tensor.device}; {self.device} is expected, where the first ones were")

    def _nested(self, actions: Any) -> Any:
        """Return dictionaries and tuples of tensors as those of arrays."""
        if isinstance(actions, dict):
            return {key: self._nested(each) for key, each in actions.items()}
        return tuple(map(self._nested, actions)) if isinstance(actions, tuple) else self._as_theirs(actions)

    def _as_theirs(self, tensor: Tensor) -> Any:
        """Return a tensor as an array of the kind that the environments return."""
        if self._kind == "torch":
            return tensor
        if self._kind == "numpy":
            return tensor.cpu().numpy()
        import jax

        # without x64 JAX has no integers of 64 bits
        return jax.dlpack.from_dlpack((tensor.int() if tensor.dtype == torch.int64 else tensor).contiguous())

    def _call(self, method: str, *args: Any, **options: Any) -> Any:
        """Call a method of the environments; raise an EnvironmentFault if it fails."""
        return call(self._place, self._env, method, *args, **options)

    @property
    def _place(self) -> str:
        return f"{self._name}: environments {self.first_env} to {self.first_env + self.num_envs - 1}"

    def _fault(self, what: str) -> EnvironmentFault:
        return EnvironmentFault(f"{self._place}: {what}")

    def render(self) -> NDArray[Any]:
        """See `TensorEnvs.render`."""
        frames = self._env.render()
        if frames is None or len(frames) == 0:
            raise NotImplementedError
        first = frames if np.ndim(frames) == 3 else frames[0]
        return np.asarray(as_tensor(first).cpu())

    def rebuild(self, past: Sequence[PastEpisode], obs: Tensor, seconds: float = math.inf) -> list[str]:
        """Start new episodes, with a seed of their own; see `TensorEnvs.rebuild`."""
        self._start(self._seed_of(max(episode.number for episode in past) + 1), obs)
        return ["a VectorEnv cannot bring an episode back"] * self.num_envs

    def close(self) -> None:
        """See `VectorEnvs.close`."""
        env, self._env = self._env, None
        if env is not None:
            close(env, self._name)


def _numbers(info: Any, key: str, ended: Tensor) -> NDArray[Any] | None:
    """Return the array at a key of `info`, with that of `final_info` where an episode ended; None without any."""
    last = find_in(info["final_info"], key) if isinstance(info, Mapping) and "final_info" in info else ABSENT
    found = [_array(each) for each in (last, find_in(info, key)) if each is not ABSENT]
    if len(found) == 2 and found[0].shape == found[1].shape == ended.shape:
        return np.where(ended.cpu().numpy(), *found)
    return found[0] if found else None


def _array(values: Any) -> NDArray[Any]:
    """Return numbers as an array; Gymnasium has objects where a number is missing somewhere."""
    array = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values)
    if array.dtype != object:
        return array
    is_number = [isinstance(each, (bool, int, float, np.number, np.bool_)) for each in array.ravel()]
    numbers = [float(each) if known else math.nan for each, known in zip(array.ravel(), is_number, strict=True)]
    return np.array(numbers).reshape(array.shape) if any(is_number) else array


@functools.lru_cache
def _say_hidden(name: str) -> None:
    """Print, once in a process, that final observations are missing."""
    print_from_rank_zero(
        f"{name}: final observations of truncated episodes are hidden; "
        "the value of the observation before each stands for its value"
    )


@functools.lru_cache
def _say_not_reset(name: str) -> None:
    """Print, once in a process, that environments seem to go on where they were to begin."""
    print_from_rank_zero(
        f"warning: {name}: an episode ended, reset with a reset_mask returned the observation that it had, and it "
        "ended again in its first step: do the environments start those where the mask is true?"
    )


def _kind_of(values: Any) -> str:
    """Return what values are, in a few words."""
    of = f" of {values.dtype}" if hasattr(values, "dtype") else ""
    return f"a {type(values).__name__}{of}"


def _autoreset_mode(env: Any, name: str) -> AutoresetMode:
    """Return when environments are reset; raise a ConfigError if they do not tell."""
    metadata = getattr(env, "metadata", None)
    told = metadata.get("autoreset_mode") if isinstance(metadata, Mapping) else None
    try:
        return told if isinstance(told, AutoresetMode) else AutoresetMode(told)
    except ValueError:
        modes = ", ".join(f"AutoresetMode.{mode.name}" for mode in AutoresetMode)
        raise ConfigError(
            f'--env-id {name}: metadata["autoreset_mode"] is {told!r}; one of {modes} is expected'
        ) from None
