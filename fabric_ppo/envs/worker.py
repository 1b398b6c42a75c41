"""Work of a process that has one environment of `AsyncEnvs`: it obeys the commands of its pipe.

A command is a byte and what it needs after that, and so is an answer. Actions, observations,
rewards and flags lie in memory that the process shares with its parent.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import sys
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle

import gymnasium

from fabric_ppo.envs.contract import Array, EnvSettings, UnwrittenVideoError
from fabric_ppo.envs.episode_info import MISSING
from fabric_ppo.envs.episodes import Episodes
from fabric_ppo.envs.shared_arrays import map_arrays
from fabric_ppo.process.errors import USER_ERRORS, ConfigError, EnvironmentFault, describe_error, first_line
from fabric_ppo.process.launch import end_group_with_parent
from fabric_ppo.process.signals import ignore_in_worker

MAKE, SHARE, RESET, STEP, STATE, TRY, REBUILD, CLOSE = b"m", b"h", b"r", b"s", b"g", b"t", b"b", b"c"
CHECK, SET = b"k", b"a"
"""Commands; the parent sends MAKE and SHARE first, then the others as it likes."""
DONE, FAULT, CLOSED = b"d", b"f", b"x"
"""Answers: a command is carried out, it failed, the environment is closed."""


def work(
    pipe: Connection,
    settings: EnvSettings,
    index: int,
    registration: bytes,
    inherited: Sequence[Connection],
    environ: Mapping[str, str],
) -> None:
    """Run a worker process: obey the pipe until it closes.

    Args:
        pipe: commands and answers.
        settings: of the rank's environments.
        index: which of them this one is.
        registration: from `registration_of`; empty for none.
        inherited: the parent's ends of pipes, in a process that is forked.
        environ: environment variables of the parent, in one that is not.
    """
    os.environ.update(environ)
    for each in inherited:
        each.close()
    end_group_with_parent()
    ignore_in_worker()
    multiprocessing.current_process().daemon = False  # or its environment could not start processes
    # many workers share the cores; and an OpenMP pool does not survive a fork
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
    else:
        os.environ["OMP_NUM_THREADS"] = "1"
    worker = _Worker(pipe, settings, index, registration)
    try:
        while (command := pipe.recv_bytes()) != CLOSE:
            pipe.send_bytes(worker.answer(command))
        pipe.send_bytes(CLOSED + worker.close())
    except (EOFError, OSError):
        pass  # the parent has gone, and this process goes too


class _Worker:
    """The environment of a worker process, and its part of the shared memory."""

    def __init__(self, pipe: Connection, settings: EnvSettings, index: int, registration: bytes) -> None:
        """Make nothing yet; see `work` for the arguments."""
        self._pipe, self._settings, self._index, self._registration = pipe, settings, index, registration
        self._env: Episodes
        self._arrays: dict[str, Array] = {}

    def answer(self, command: bytes) -> bytes:
        """Carry out a command, and return the answer; whatever is raised is one too."""
        try:
            return DONE + self._obey(command)
        except (EnvironmentFault, ConfigError) as fault:
            text = str(fault)
        except BaseException as error:  # also KeyboardInterrupt, which is no user's here
            name = f"{self._settings.env_id} environment {self._settings.first_env + self._index}"
            text = f"{name}: {describe_error(error)}\n{traceback.format_exc()}".rstrip()
        return FAULT + text.encode(errors="surrogatepass")

    def _obey(self, command: bytes) -> bytes:
        if command == STEP:
            self._step()
        elif command == RESET:
            self._arrays["obs"][...] = self._env.begin_first()
        elif command == STATE:
            return self._env.state()
        elif command[:1] == SET:
            self._env.attributes = command[1:].decode()
        elif command[:1] == CHECK:
            return self._env.why_not_set(json.loads(command[1:])).encode(errors="surrogatepass")
        elif command[:1] == TRY:
            return self._env.try_repeating(pickle.loads(command[1:])).encode(errors="surrogatepass")
        elif command[:1] == REBUILD:
            self._arrays["obs"][...], why = self._env.rebuild(*pickle.loads(command[1:]))
            return why.encode(errors="surrogatepass")
        elif command == MAKE:
            self._register()
            self._env = Episodes(self._settings, self._index)
            return self._env.spec.to_json().encode()
        elif command == SHARE:
            self._share()
        return b""

    def _register(self) -> None:
        """Register the environment with Gymnasium, if that was done in the parent only.

        Raises:
            ConfigError: its class is not to be found here.
        """
        if not self._registration:
            return
        try:
            spec = pickle.loads(self._registration)
        except USER_ERRORS as error:
            reason = f"cannot be imported in a worker ({first_line(error)})"
            raise ConfigError(f"--env-id {self._settings.env_id}: {reason}") from None
        gymnasium.registry.setdefault(spec.id, spec)

    def _share(self) -> None:
        """Receive the shared memory, of which only this environment's part is kept.

        A part is always an array, also of a scalar, which would be a copy.
        """
        file = recv_handle(self._pipe)
        settings = self._settings
        arrays = map_arrays(file, self._env.spec, settings.num_envs, len(settings.info_keys))
        os.close(file)
        rows = {name: view[:, None] if view.ndim == 1 else view for name, view in arrays.items()}
        self._arrays = {name: view[self._index] for name, view in rows.items()}

    def _step(self) -> None:
        """Take a step with the action that lies in the shared memory, and write what follows.

        At an end, the episode's last observation is written, and the next one's first.
        """
        arrays, env = self._arrays, self._env
        action = arrays["actions"].item() if env.spec.action.shape == () else arrays["actions"].copy()
        obs, arrays["rewards"][0], arrays["terminated"][0], arrays["truncated"][0] = env.step(action)
        arrays["lost_life"][0] = env.lost_life
        if arrays["terminated"][0] or arrays["truncated"][0]:
            arrays["final_obs"][...] = obs
            arrays["info"][...] = env.ending() or (0.0, MISSING)
            obs = env.begin()
        arrays["obs"][...] = obs

    def close(self) -> bytes:
        """Close the environment; return JSON of why a video is unwritten, and of what close raised."""
        unwritten = raised = ""
        if hasattr(self, "_env"):
            try:
                self._env.close()
            except UnwrittenVideoError as error:
                unwritten = str(error)
            except BaseException as error:
                raised = describe_error(error).splitlines()[0]
        return json.dumps([unwritten, raised]).encode()
