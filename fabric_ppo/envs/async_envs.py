"""Gymnasium environments in worker processes, one each, with data in shared memory."""

from __future__ import annotations

import json
import math
import os
import pickle
import sys
import time
from collections.abc import Sequence

import numpy as np

from fabric_ppo.envs.action_log import ActionLog
from fabric_ppo.envs.attributes import AttributeLog
from fabric_ppo.envs.contract import (
    Array,
    ArrayEnvs,
    EnvSettings,
    FinalObs,
    PastEpisode,
    UnwrittenVideoError,
)
from fabric_ppo.envs.episode_info import Ending
from fabric_ppo.envs.shared_arrays import array_fields, map_arrays, open_shared_file
from fabric_ppo.envs.spaces import EnvSpec
from fabric_ppo.envs.worker import CHECK, CLOSE, FAULT, MAKE, REBUILD, RESET, SET, SHARE, STATE, STEP, TRY
from fabric_ppo.envs.worker_process import WorkerProcess, registration_of, start_method, worker_context
from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import ConfigError, EnvironmentFault, first_line

_MOST_REPLACEMENTS = 3  # for one command to one environment
_CLOSE_SECONDS = 60.0  # a worker may have a video to write
_KILL_SECONDS = 1.0  # for workers that are closed in the middle of a command
_EXIT_SECONDS = 5.0  # for workers whose environments are closed, which may have started processes
_HINT_OF_FORK = "; threads of its module do not survive a fork: --env-start-method forkserver starts workers without"
"""Hint for a worker that never did anything."""


class _LostWorkerError(EnvironmentFault):
    """A worker that died or hangs."""


class AsyncEnvs(ArrayEnvs):
    """Environments that step at the same time, each in a process of its own.

    A worker waits on its pipe for one byte that names a command and answers with one byte; actions,
    observations, rewards and flags lie in memory that all processes share. No environment is made
    in this process: the first worker's says what its spaces are.
    """

    def __init__(self, settings: EnvSettings) -> None:
        """Start the workers.

        Raises:
            ConfigError: the environment cannot be made, or has a space that is not supported; or
                there is no room for so many processes.
        """
        self.num_envs, self.first_env, self.info_keys = settings.num_envs, settings.first_env, settings.info_keys
        self._settings = settings
        self._context = worker_context(settings)
        self._registration = registration_of(settings)
        self._workers: list[WorkerProcess] = []
        self._file = -1  # the shared memory's
        self._hint = _HINT_OF_FORK if start_method(settings) == "fork" else ""
        self._is_waiting = True  # for an answer that may never come
        self._has_states = True  # until a worker answers without one
        self._log: ActionLog | None = None
        self._attributes = AttributeLog(self.num_envs)
        self._last_obs = np.zeros(0)
        try:
            for index in range(self.num_envs):
                self._start_worker(index)
            self._share_memory([EnvSpec.from_json(answer.decode()) for answer in self._command(MAKE)])
        except BaseException as error:
            self.close()
            if isinstance(error, EnvironmentFault):
                raise ConfigError(first_line(error)) from error
            if isinstance(error, (OSError, EOFError)):
                reason = f"a process for each cannot be started ({first_line(error)})"
                raise ConfigError(f"--num-envs {self.num_envs}: {reason}") from error
            raise

    def _start_worker(self, index: int) -> None:
        worker = WorkerProcess(self._context, self._settings, index, self._registration, self._workers)
        self._workers[index : index + 1] = [worker]

    def _share_memory(self, specs: list[EnvSpec]) -> None:
        """Allocate the memory that all processes share, and hand it to the workers.

        Raises:
            ConfigError: environments differ in their spaces' shapes or types.
        """
        self.spec = specs[0]
        for index, spec in enumerate(specs):
            if array_fields(spec) != array_fields(self.spec):
                differing = f"environments {self.first_env} and {self.first_env + index} have different spaces"
                raise ConfigError(f"--env-id {self._settings.env_id}: {differing}; the same are expected")
        self._file = open_shared_file(self.spec, self.num_envs, len(self.info_keys))
        self._arrays = map_arrays(self._file, self.spec, self.num_envs, len(self.info_keys))
        self.lost_life = self._arrays["lost_life"] if self.spec.is_atari else None
        for worker in self._workers:
            worker.send(SHARE, self._file)
        self._collect_answers(SHARE)

    def reset(self, obs: Array) -> None:
        """See `ArrayEnvs.reset`."""
        self._command(RESET)
        self._attributes.begin()
        obs[:] = self._arrays["obs"]
        self._remember(ActionLog.empty(self.num_envs, self.spec.action.shape, self.spec.action.dtype))

    def step(
        self, actions: Array, obs: Array, rewards: Array, terminated: Array, truncated: Array, valid: Array
    ) -> list[FinalObs]:
        """See `ArrayEnvs.step`."""
        arrays = self._arrays
        arrays["actions"][:] = actions
        self._command(STEP)
        self._hint = ""
        obs[:], rewards[:], valid[:] = arrays["obs"], arrays["rewards"], True
        terminated[:], truncated[:] = arrays["terminated"], arrays["truncated"]
        has_ended = arrays["terminated"] | arrays["truncated"]
        if self._log is not None:
            self._log.append(arrays["actions"][None].copy(), has_ended[None])
            self._attributes.append(has_ended[None])
            self._remember(self._log)
        ended = np.flatnonzero(has_ended).tolist()
        self.endings = [Ending(index, arrays["info"][index].tolist()) for index in ended]
        return [FinalObs(index, arrays["final_obs"][index].copy()) for index in ended]

    def check_attributes(self, names: Sequence[str]) -> None:
        """See `VectorEnvs.check_attributes`."""
        if why := self._command(CHECK + json.dumps(names).encode())[0].decode(errors="surrogatepass"):
            raise ConfigError(why)

    def set_attributes(self, attributes: str) -> None:
        """See `VectorEnvs.set_attributes`."""
        self._command(SET + attributes.encode())
        self._attributes.current = attributes

    def try_repeating(self, seconds: float) -> str:
        """See `VectorEnvs.try_repeating`."""
        self._is_waiting = True
        # a trial's first reset and its last step may each take as long as any other
        answer = self._ask(0, TRY + pickle.dumps(seconds), seconds + 4 * self._settings.timeout)
        self._is_waiting = False
        return answer.decode(errors="surrogatepass")

    def rebuild(self, past: Sequence[PastEpisode], obs: Array, seconds: float = math.inf) -> list[str]:
        """See `ArrayEnvs.rebuild`."""
        self._is_waiting = True
        for worker, episode in zip(self._workers, past, strict=True):
            worker.send(REBUILD + pickle.dumps((episode, seconds)))
        answers = [self._answer(index, self._replay_seconds(episode)) for index, episode in enumerate(past)]
        failed = [answer.decode(errors="surrogatepass") for answer in answers]
        self._is_waiting = False
        obs[:] = self._arrays["obs"]
        nothing = np.zeros((0, *self.spec.action.shape), self.spec.action.dtype)
        self._attributes.rebuild([episode.attributes for episode in past], failed)
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
        states = self._command(STATE)
        self._has_states = all(states)
        return states if self._has_states else []

    def _remember(self, log: ActionLog) -> None:
        """Keep what a replaced worker is brought back to, if workers are replaced."""
        if self._settings.restart:
            self._log, self._last_obs = log, self._arrays["obs"].copy()

    def _command(self, command: bytes) -> list[bytes]:
        """Have all workers carry out a command at the same time; return their answers."""
        for worker in self._workers:
            worker.send(command)
        return self._collect_answers(command)

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
                    self._workers[index].send(command)
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
        worker = self._workers[index]
        try:
            answer = worker.receive(seconds)
        except EOFError:
            raise _LostWorkerError(f"{self._name(index)}: its worker died, exit code {worker.exit_code}") from None
        if answer is None:
            raise _LostWorkerError(f"{self._name(index)}: its worker did not answer within {seconds:g} s{self._hint}")
        if answer[:1] == FAULT:
            raise EnvironmentFault(answer[1:].decode(errors="surrogatepass"))
        return answer[1:]

    def _ask(self, index: int, command: bytes, seconds: float) -> bytes:
        """Have one worker carry out a command; return what it answers."""
        self._workers[index].send(command)
        return self._answer(index, seconds)

    def _replace(self, index: int, why: str) -> None:
        """Start a worker anew, and bring its episode back to before the step that failed.

        Raises:
            EnvironmentFault: the replacement is lost too, or cannot bring the episode back.
        """
        print_line(f"{why}; it is replaced", sys.stderr)
        self.restarts += 1
        self._workers[index].kill()
        try:
            self._start_worker(index)
        except (OSError, EOFError) as error:
            raise EnvironmentFault(
                f"{self._name(index)}: its worker cannot be replaced ({first_line(error)})"
            ) from None
        if self._file < 0:  # it was lost as it started
            return
        self._ask(index, MAKE, self._settings.timeout)
        self._workers[index].send(SHARE, self._file)
        self._answer(index, self._settings.timeout)
        self._ask(index, SET + self._attributes.current.encode(), self._settings.timeout)
        if self._log is None:
            return
        log = self._log.view()
        place = (self._last_obs[index], float("nan"), int(log.lengths[index]))
        began_with = self._attributes.of_episodes[index]
        episode = PastEpisode(int(log.numbers[index]), log.of(index), *place, attributes=began_with)
        command = REBUILD + pickle.dumps((episode, math.inf))
        if failed := self._ask(index, command, self._replay_seconds(episode)).decode(errors="surrogatepass"):
            raise EnvironmentFault(f"{self._name(index)}: its worker was replaced, but {failed}")

    def _replay_seconds(self, episode: PastEpisode) -> float:
        """Return the time that a worker has to rebuild an episode: for its reset and each step."""
        return self._settings.timeout * (1 if episode.actions is None else 1 + len(episode.actions))

    def _name(self, index: int) -> str:
        return f"{self._settings.env_id} environment {self.first_env + index}"

    def close(self) -> None:
        """See `VectorEnvs.close`."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.send(CLOSE)
        deadline = time.monotonic() + (_KILL_SECONDS if self._is_waiting else _CLOSE_SECONDS)
        closed = [worker.wait_until_closed(deadline) for worker in workers]
        deadline = time.monotonic() + _EXIT_SECONDS
        for worker, answer in zip(workers, closed, strict=True):
            if answer is not None:
                worker.join(max(0.0, deadline - time.monotonic()))
            worker.kill()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        for raised in dict.fromkeys(answer[1] for answer in closed if answer and answer[1]):
            print_line(f"warning: {self._settings.env_id}: close raised {raised}", sys.stderr)
        if unwritten := next((answer[0] for answer in closed if answer and answer[0]), ""):
            raise UnwrittenVideoError(unwritten)
