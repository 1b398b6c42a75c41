"""Gymnasium environments in worker processes, one each, with data in shared memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from fabric_ppo.envs.base import (
    Array,
    EnvironmentFault,
    EnvSettings,
    Episodes,
    FinalObs,
    VectorEnvs,
    make_gymnasium_env,
)
from fabric_ppo.launch import ConfigError, die_with_parent
from fabric_ppo.spaces import EnvSpec, env_spec

_RESET, _STEP, _CLOSE, _DONE, _FAULT = b"r", b"s", b"c", b"d", b"f"
_CLOSE_SECONDS = 60.0  # a worker may have a video to write
_KILL_SECONDS = 1.0
_LONGEST_POLL = 1e6


class AsyncEnvs(VectorEnvs):
    """Environments that step at the same time, each in a process of its own.

    A worker waits on its pipe for one byte that says what to do and answers with one byte; actions, observations,
    rewards and flags lie in memory that all processes share.
    """

    def __init__(self, settings: EnvSettings) -> None:
        """Start the workers.

        Raises:
            ConfigError: the environment cannot be made, or has a space that is not supported.
        """
        probe = make_gymnasium_env(settings.env_id)
        self.spec = env_spec(settings.env_id, probe.observation_space, probe.action_space)
        probe.close()
        self.num_envs = settings.num_envs
        self._settings = settings
        # a fork shares what is loaded and takes milliseconds; elsewhere than on Linux it is not safe
        self._context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._buffers = _allocate(self._context, self.spec, self.num_envs)
        self._arrays = _views(self._buffers, self.spec, self.num_envs)
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        self._is_waiting = True  # for an answer that may never come
        for index in range(self.num_envs):
            self._start_worker(index)
        try:
            self._collect_answers()
        except EnvironmentFault as fault:
            self.close()
            raise ConfigError(str(fault).splitlines()[0]) from fault

    def _start_worker(self, index: int) -> None:
        ours, theirs = self._context.Pipe()
        args = (theirs, self._settings, index, self._buffers)
        process = self._context.Process(target=_work, args=args, daemon=True, name=f"environment-{index}")
        process.start()
        theirs.close()
        self._pipes.append(ours)
        self._processes.append(process)

    def reset(self, obs: Array) -> None:
        """See `VectorEnvs.reset`."""
        self._command(_RESET)
        obs[:] = self._arrays["obs"]

    def step(
        self, actions: Array, obs: Array, rewards: Array, terminated: Array, truncated: Array, valid: Array
    ) -> list[FinalObs]:
        """See `VectorEnvs.step`."""
        arrays = self._arrays
        arrays["actions"][:] = actions
        self._command(_STEP)
        obs[:], rewards[:], valid[:] = arrays["obs"], arrays["rewards"], True
        terminated[:], truncated[:] = arrays["terminated"], arrays["truncated"]
        ended = np.flatnonzero(arrays["terminated"] | arrays["truncated"])
        return [FinalObs(int(index), arrays["final_obs"][index].copy()) for index in ended]

    def _command(self, command: bytes) -> None:
        for index, pipe in enumerate(self._pipes):
            try:
                pipe.send_bytes(command)
            except OSError:
                raise self._dead(index) from None
        self._collect_answers()

    def _collect_answers(self) -> None:
        """Wait for every worker's byte."""
        self._is_waiting = True
        timeout = min(self._settings.timeout, _LONGEST_POLL)
        for index, pipe in enumerate(self._pipes):
            try:
                if not pipe.poll(timeout):
                    seconds = f"{self._settings.timeout:g} s"
                    raise EnvironmentFault(f"{self._name(index)}: its worker did not answer within {seconds}")
                answer = pipe.recv_bytes()
            except (EOFError, ConnectionError):
                raise self._dead(index) from None
            if answer[:1] == _FAULT:
                raise EnvironmentFault(answer[1:].decode())
        self._is_waiting = False

    def _dead(self, index: int) -> EnvironmentFault:
        self._processes[index].join(1.0)
        return EnvironmentFault(f"{self._name(index)}: its worker died, exit code {self._processes[index].exitcode}")

    def _name(self, index: int) -> str:
        return f"{self._settings.env_id} environment {self._settings.first_env + index}"

    def close(self) -> None:
        """See `VectorEnvs.close`."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send_bytes(_CLOSE)
        deadline = time.monotonic() + (_KILL_SECONDS if self._is_waiting else _CLOSE_SECONDS)
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()
        self._pipes, self._processes = [], []


def _fields(spec: EnvSpec) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> dtype and shape of one environment's part of the shared memory."""
    obs, action = spec.observation, spec.action
    return {
        "actions": (action.dtype, action.shape),
        "obs": (obs.dtype, obs.shape),
        "final_obs": (obs.dtype, obs.shape),
        "rewards": ("float32", ()),
        "terminated": ("bool", ()),
        "truncated": ("bool", ()),
    }


def _allocate(context: Any, spec: EnvSpec, num_envs: int) -> dict[str, Any]:
    return {
        name: context.RawArray("B", num_envs * int(np.prod(shape)) * np.dtype(dtype).itemsize)
        for name, (dtype, shape) in _fields(spec).items()
    }


def _views(buffers: dict[str, Any], spec: EnvSpec, num_envs: int) -> dict[str, Array]:
    return {
        name: np.frombuffer(buffers[name], dtype).reshape(num_envs, *shape)
        for name, (dtype, shape) in _fields(spec).items()
    }


def _work(pipe: Connection, settings: EnvSettings, index: int, buffers: dict[str, Any]) -> None:
    """A worker process: make the environment, then do what the pipe says until it closes."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # an OpenMP pool does not survive a fork
    try:
        env = Episodes(settings, index)
        arrays = {name: array[index] for name, array in _rows(buffers, env.spec, settings.num_envs).items()}
        pipe.send_bytes(_DONE)
        while (command := pipe.recv_bytes()) != _CLOSE:
            arrays["obs"][...] = env.reset() if command == _RESET else _step(env, arrays)
            pipe.send_bytes(_DONE)
        env.close()
    except EOFError:
        pass
    except (EnvironmentFault, ConfigError) as fault:
        pipe.send_bytes(_FAULT + str(fault).encode())


def _rows(buffers: dict[str, Any], spec: EnvSpec, num_envs: int) -> dict[str, Array]:
    """`_views` in which indexing one environment always gives an array, also where it is a scalar."""
    return {name: view[:, None] if view.ndim == 1 else view for name, view in _views(buffers, spec, num_envs).items()}


def _step(env: Episodes, arrays: dict[str, Array]) -> Array:
    action = arrays["actions"].item() if env.spec.action.shape == () else arrays["actions"].copy()
    obs, arrays["rewards"][0], arrays["terminated"][0], arrays["truncated"][0] = env.step(action)
    if arrays["terminated"][0] or arrays["truncated"][0]:
        arrays["final_obs"][...] = obs
        obs = env.reset()
    return obs
