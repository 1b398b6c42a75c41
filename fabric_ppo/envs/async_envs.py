"""Gymnasium environments in worker processes, one each, with data in shared memory."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import pickle
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from fabric_ppo.envs.action_log import ActionLog
from fabric_ppo.envs.contract import (
    Array,
    EnvSettings,
    FinalObs,
    PastEpisode,
    UnwrittenVideoError,
    VectorEnvs,
)
from fabric_ppo.envs.episodes import Episodes
from fabric_ppo.envs.gymnasium_env import make_gymnasium_env
from fabric_ppo.envs.spaces import EnvSpec
from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import ConfigError, EnvironmentFault, first_line
from fabric_ppo.process.launch import die_with_parent
from fabric_ppo.process.signals import ignore_in_child

_RESET, _STEP, _REBUILD, _TRY, _STATE, _CLOSE, _DONE, _FAULT = b"r", b"s", b"b", b"t", b"g", b"c", b"d", b"f"
_MOST_REPLACEMENTS = 3  # for one command to one environment
_CLOSE_SECONDS = 60.0  # a worker may have a video to write
_KILL_SECONDS = 1.0  # for workers that are closed in the middle of a command
_LONGEST_POLL = 1e6  # seconds; `poll` overflows with much more


class _LostWorkerError(EnvironmentFault):
    """A worker that died or hangs."""


class AsyncEnvs(VectorEnvs):
    """Environments that step at the same time, each in a process of its own.

    A worker waits on its pipe for one byte that names a command and answers with one byte; actions,
    observations, rewards and flags lie in memory that all processes share.
    """

    def __init__(self, settings: EnvSettings) -> None:
        """Start the workers.

        Raises:
            ConfigError: the environment cannot be made, or has a space that is not supported.
        """
        probe = make_gymnasium_env(settings.env_id, settings.env_wrapper)
        self.spec = settings.spec_of(probe)
        probe.close()
        self.num_envs, self.first_env = settings.num_envs, settings.first_env
        self._settings = settings
        # a fork shares what is loaded and takes milliseconds; outside of Linux it is not safe
        self._context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self._buffers = _allocate(self._context, self.spec, self.num_envs)
        self._arrays = _views(self._buffers, self.spec, self.num_envs)
        self.lost_life = self._arrays["lost_life"] if self.spec.is_atari else None
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        self._is_waiting = True  # for an answer that may never come
        self._has_states = True  # until a worker answers without one
        self._log: ActionLog | None = None
        self._last_obs = np.zeros(0)
        for index in range(self.num_envs):
            self._start_worker(index)
        try:
            self._collect_answers(b"")
        except EnvironmentFault as fault:
            self.close()
            raise ConfigError(first_line(fault)) from fault

    def _start_worker(self, index: int) -> None:
        ours, theirs = self._context.Pipe()
        args = (theirs, self._settings, index, self._buffers)
        process = self._context.Process(target=_work, args=args, daemon=True, name=f"environment-{index}")
        process.start()
        theirs.close()
        self._pipes[index : index + 1] = [ours]
        self._processes[index : index + 1] = [process]

    def reset(self, obs: Array) -> None:
        """See `VectorEnvs.reset`."""
        self._command(_RESET)
        obs[:] = self._arrays["obs"]
        self._remember(ActionLog.empty(self.num_envs, self.spec.action.shape, self.spec.action.dtype))

    def step(
        self, actions: Array, obs: Array, rewards: Array, terminated: Array, truncated: Array, valid: Array
    ) -> list[FinalObs]:
        """See `VectorEnvs.step`."""
        arrays = self._arrays
        arrays["actions"][:] = actions
        self._command(_STEP)
        obs[:], rewards[:], valid[:] = arrays["obs"], arrays["rewards"], True
        terminated[:], truncated[:] = arrays["terminated"], arrays["truncated"]
        has_ended = arrays["terminated"] | arrays["truncated"]
        if self._log is not None:
            self._log.append(arrays["actions"][None].copy(), has_ended[None])
            self._remember(self._log)
        return [FinalObs(int(index), arrays["final_obs"][index].copy()) for index in np.flatnonzero(has_ended)]

    def try_repeating(self, seconds: float) -> str:
        """See `VectorEnvs.try_repeating`."""
        self._send(0, _TRY + pickle.dumps(seconds))
        # a trial's first reset and its last step may each take as long as any other
        return self._answer(0, seconds + 4 * self._settings.timeout).decode()

    def rebuild(self, past: Sequence[PastEpisode], obs: Array, seconds: float = math.inf) -> list[str]:
        """See `VectorEnvs.rebuild`."""
        self._is_waiting = True
        for index, episode in enumerate(past):
            self._send(index, _REBUILD + pickle.dumps((episode, seconds)))
        failed = [self._answer(index, self._replay_seconds(episode)).decode() for index, episode in enumerate(past)]
        self._is_waiting = False
        obs[:] = self._arrays["obs"]
        nothing = np.zeros((0, *self.spec.action.shape), self.spec.action.dtype)
        numbers = [episode.number + bool(why) for episode, why in zip(past, failed, strict=True)]
        actions = [
            nothing if why or episode.actions is None else episode.actions
            for episode, why in zip(past, failed, strict=True)
        ]
        self._remember(ActionLog.of_episodes(numbers, actions))
        return failed

    def states(self) -> list[bytes]:
        """See `VectorEnvs.states`."""
        if not self._has_states:
            return []
        states = self._command(_STATE)
        self._has_states = all(states)
        return states if self._has_states else []

    def _remember(self, log: ActionLog) -> None:
        """Keep what a replaced worker is brought back to, if workers are replaced."""
        if self._settings.restart:
            self._log, self._last_obs = log, self._arrays["obs"].copy()

    def _command(self, command: bytes) -> list[bytes]:
        """Have all workers carry out a command at the same time; return their answers."""
        for index in range(self.num_envs):
            self._send(index, command)
        return self._collect_answers(command)

    def _send(self, index: int, command: bytes) -> None:
        with contextlib.suppress(OSError):  # a dead worker is noticed when its answer is awaited
            self._pipes[index].send_bytes(command)

    def _collect_answers(self, command: bytes) -> list[bytes]:
        """Wait for every worker; return what each answers."""
        self._is_waiting = True
        answers = [self._answer_or_replace(index, command) for index in range(self.num_envs)]
        self._is_waiting = False
        return answers

    def _answer_or_replace(self, index: int, command: bytes) -> bytes:
        """Return a worker's answer; with `restart`, that of a replacement where the worker is lost.

        Raises:
            EnvironmentFault: its environment failed, or it and all its replacements are lost.
        """
        most = _MOST_REPLACEMENTS if self._settings.restart else 0
        lost: _LostWorkerError | None = None
        for _ in range(1 + most):
            try:
                if lost is not None:
                    self._replace(index, str(lost))
                    self._send(index, command)
                return self._answer(index, self._settings.timeout)
            except _LostWorkerError as error:
                lost = error
        assert lost is not None
        raise lost

    def _answer(self, index: int, seconds: float) -> bytes:
        """Wait for one worker; return what it answers.

        Raises:
            _LostWorkerError: it died or took longer than `seconds`.
            EnvironmentFault: its environment failed.
        """
        pipe = self._pipes[index]
        try:
            if not pipe.poll(min(seconds, _LONGEST_POLL)):
                raise _LostWorkerError(f"{self._name(index)}: its worker did not answer within {seconds:g} s")
            answer = pipe.recv_bytes()
        except (EOFError, ConnectionError):
            self._processes[index].join(1.0)
            exit_code = self._processes[index].exitcode
            raise _LostWorkerError(f"{self._name(index)}: its worker died, exit code {exit_code}") from None
        if answer[:1] == _FAULT:
            raise EnvironmentFault(answer[1:].decode())
        return answer[1:]

    def _replace(self, index: int, why: str) -> None:
        """Start a worker anew, and bring its episode back to before the step that failed.

        Raises:
            EnvironmentFault: the replacement is lost too, or cannot bring the episode back.
        """
        print_line(f"{why}; it is replaced", sys.stderr)
        self.restarts += 1
        self._processes[index].kill()
        self._processes[index].join()
        self._pipes[index].close()
        self._start_worker(index)
        self._answer(index, self._settings.timeout)
        if self._log is None:
            return
        log = self._log.view()
        place = (self._last_obs[index], float("nan"), int(log.lengths[index]))
        episode = PastEpisode(int(log.numbers[index]), log.of(index), *place)
        self._send(index, _REBUILD + pickle.dumps((episode, math.inf)))
        if failed := self._answer(index, self._replay_seconds(episode)).decode():
            raise EnvironmentFault(f"{self._name(index)}: its worker was replaced, but {failed}")

    def _replay_seconds(self, episode: PastEpisode) -> float:
        """Return the time that a worker has to rebuild an episode: for its reset and each step."""
        return self._settings.timeout * (1 if episode.actions is None else 1 + len(episode.actions))

    def _name(self, index: int) -> str:
        return f"{self._settings.env_id} environment {self.first_env + index}"

    def close(self) -> None:
        """See `VectorEnvs.close`."""
        unwritten = ""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send_bytes(_CLOSE)
        deadline = time.monotonic() + (_KILL_SECONDS if self._is_waiting else _CLOSE_SECONDS)
        for process, pipe in zip(self._processes, self._pipes, strict=True):
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            elif not self._is_waiting:
                unwritten = _read_unwritten(pipe) or unwritten
            pipe.close()
        self._pipes, self._processes = [], []
        if unwritten:
            raise UnwrittenVideoError(unwritten)


def _read_unwritten(pipe: Connection) -> str:
    """Read from a worker that has closed why a video was not written; empty if none failed."""
    with contextlib.suppress(OSError, EOFError):
        if pipe.poll() and (answer := pipe.recv_bytes())[:1] == _DONE:
            return answer[1:].decode()
    return ""


def _fields(spec: EnvSpec) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return, by name, the dtype and shape of one environment's part of the shared memory."""
    obs, action = spec.observation, spec.action
    return {
        "actions": (action.dtype, action.shape),
        "obs": (obs.dtype, obs.shape),
        "final_obs": (obs.dtype, obs.shape),
        "rewards": ("float32", ()),
        "terminated": ("bool", ()),
        "truncated": ("bool", ()),
        "lost_life": ("bool", ()),
    }


def _allocate(context: Any, spec: EnvSpec, num_envs: int) -> dict[str, Any]:
    """Allocate memory that all processes share, as bytes; `_views` has it as arrays."""
    return {
        name: context.RawArray("B", num_envs * int(np.prod(shape)) * np.dtype(dtype).itemsize)
        for name, (dtype, shape) in _fields(spec).items()
    }


def _views(buffers: dict[str, Any], spec: EnvSpec, num_envs: int) -> dict[str, Array]:
    """Return the shared memory as arrays `[num_envs, ...]`."""
    return {
        name: np.frombuffer(buffers[name], dtype).reshape(num_envs, *shape)
        for name, (dtype, shape) in _fields(spec).items()
    }


def _work(pipe: Connection, settings: EnvSettings, index: int, buffers: dict[str, Any]) -> None:
    """Run a worker process: make the environment, and obey the pipe until that closes."""
    die_with_parent()
    ignore_in_child()
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # an OpenMP pool does not survive a fork
    try:
        env = Episodes(settings, index)
        arrays = {name: array[index] for name, array in _rows(buffers, env.spec, settings.num_envs).items()}
        pipe.send_bytes(_DONE)
        while (command := pipe.recv_bytes()) != _CLOSE:
            answer = b""
            if command == _STATE:
                answer = env.state()
            elif command[:1] == _REBUILD:
                arrays["obs"][...], why = env.rebuild(*pickle.loads(command[1:]))
                answer = why.encode()
            elif command[:1] == _TRY:
                answer = env.try_repeating(pickle.loads(command[1:])).encode()
            elif command == _RESET:
                arrays["obs"][...] = env.reset()
            elif command == _STEP:
                arrays["obs"][...] = _step(env, arrays)
            pipe.send_bytes(_DONE + answer)
        pipe.send_bytes(_DONE + _close(env).encode())
    except (EOFError, BrokenPipeError):
        pass  # the parent has gone, and this process goes too
    except (EnvironmentFault, ConfigError) as fault:
        pipe.send_bytes(_FAULT + str(fault).encode())


def _close(env: Episodes) -> str:
    """Close an environment; return why a video could not be written, or nothing."""
    try:
        env.close()
    except UnwrittenVideoError as error:
        return str(error)
    return ""


def _rows(buffers: dict[str, Any], spec: EnvSpec, num_envs: int) -> dict[str, Array]:
    """Return `_views` in which one environment's part is always an array, also of a scalar.

    A worker writes into its part; a scalar would be a copy.
    """
    return {name: view[:, None] if view.ndim == 1 else view for name, view in _views(buffers, spec, num_envs).items()}


def _step(env: Episodes, arrays: dict[str, Array]) -> Array:
    """Step a worker's environment and write what follows, but for the observation: return that.

    At an end, the episode's last observation is written, and the next one's first returned.
    """
    action = arrays["actions"].item() if env.spec.action.shape == () else arrays["actions"].copy()
    obs, arrays["rewards"][0], arrays["terminated"][0], arrays["truncated"][0] = env.step(action)
    arrays["lost_life"][0] = env.lost_life
    if arrays["terminated"][0] or arrays["truncated"][0]:
        arrays["final_obs"][...] = obs
        obs = env.reset()
    return obs
