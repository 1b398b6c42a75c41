"""Worker processes of `AsyncEnvs` from their parent's side: how they start, answer and end."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pickle
import signal
import sys
import time
import types
from collections.abc import Iterator, Sequence
from multiprocessing.reduction import send_handle
from typing import Any

import gymnasium

from fabric_ppo.envs.contract import EnvSettings
from fabric_ppo.envs.worker import CLOSED, work
from fabric_ppo.process.errors import USER_ERRORS, ConfigError, first_line

_SECONDS_BETWEEN_LOOKS = 1.0
"""Seconds after which a worker that has not answered is looked at: it may have ended."""


def start_method(settings: EnvSettings) -> str:
    """Return the start method of workers; a fork shares what is loaded and takes milliseconds."""
    # outside of Linux a fork is not safe
    return settings.start_method or ("fork" if sys.platform == "linux" else "spawn")


def worker_context(settings: EnvSettings) -> Any:
    """Return the context of `multiprocessing` that starts workers.

    Raises:
        ConfigError: this system does not have the start method.
    """
    method = start_method(settings)
    if method not in (known := multiprocessing.get_all_start_methods()):
        raise ConfigError(f"--env-start-method {method}: this system has {', '.join(known)}")
    context: Any = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([work.__module__])  # once, not in each worker
    return context


def registration_of(settings: EnvSettings) -> bytes:
    """Pickle what Gymnasium's registry has of an environment, for workers that are not forked.

    A module that was imported may have registered it, without being named in its id.

    Returns:
        The registration; empty for a fork, or if there is none.

    Raises:
        ConfigError: the environment or a wrapper is defined where such a worker cannot find it.
    """
    method = start_method(settings)
    if method == "fork":
        return b""
    spec = gymnasium.registry.get(settings.env_id.rpartition(":")[2])
    entry: Any = spec and spec.entry_point
    module = entry.partition(":")[0] if isinstance(entry, str) else getattr(entry, "__module__", "")
    workers = f"workers of --env-start-method {method}"
    for flag, name, its_module in (
        ("--env-id", settings.env_id, module),
        *(("--env-wrapper", each, each.partition(":")[0]) for each in settings.env_wrapper.split(",")),
    ):
        if its_module == "__main__":
            raise ConfigError(f"{flag} {name}: defined in __main__, which {workers} do not have; a module is expected")
    try:
        return pickle.dumps(spec) if spec is not None else b""
    except USER_ERRORS as error:
        raise ConfigError(f"--env-id {settings.env_id}: {workers} cannot have it ({first_line(error)})") from None


class WorkerProcess:
    """A process that has one environment, and is the leader of a process group of its own."""

    def __init__(
        self,
        context: Any,
        settings: EnvSettings,
        index: int,
        registration: bytes,
        others: Sequence[WorkerProcess],
    ) -> None:
        """Start the process; see `worker.work` for the arguments.

        Args:
            others: the workers so far, whose pipes a forked one inherits and has to close.

        Raises:
            OSError: there is no room for another process or file.
        """
        self._pipe, theirs = context.Pipe()
        is_fork = context.get_start_method() == "fork"
        inherited = [each._pipe for each in [*others, self]] if is_fork else []
        environ = {} if is_fork else dict(os.environ)  # a fork server has those of its own start
        args = (theirs, settings, index, registration, inherited, environ)
        self._process = context.Process(target=work, args=args, daemon=True, name=f"environment-{index}")
        with contextlib.nullcontext() if is_fork else _main_hidden():
            self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        """Return the id of the process, which is that of its group too."""
        pid: int = self._process.pid
        return pid

    @property
    def exit_code(self) -> int | None:
        """Return the exit code of a process that has closed its pipe; None if it lives."""
        self._process.join(1.0)
        code: int | None = self._process.exitcode
        return code

    def send(self, command: bytes, file: int | None = None) -> None:
        """Send a command, and the descriptor of a file; where the process has ended, do nothing."""
        with contextlib.suppress(OSError):  # it is noticed when its answer is awaited
            self._pipe.send_bytes(command)
            if file is not None:
                send_handle(self._pipe, file, self.pid)

    def receive(self, seconds: float) -> bytes | None:
        """Wait for an answer; return None where none comes in time.

        Raises:
            EOFError: the process has ended.
        """
        deadline = time.monotonic() + seconds
        try:
            while not self._pipe.poll(min(seconds, _SECONDS_BETWEEN_LOOKS)):
                # what its environment has started may still have the other end of the pipe
                if not self._process.is_alive():
                    if not self._pipe.poll(0):
                        raise EOFError
                    break
                seconds = max(0.0, deadline - time.monotonic())
                if seconds == 0:
                    return None
            answer: bytes = self._pipe.recv_bytes()
            return answer
        except OSError:
            raise EOFError from None

    def wait_until_closed(self, deadline: float) -> tuple[str, str] | None:
        """Wait, until `time.monotonic()` is `deadline`, for the answer to a CLOSE.

        Returns:
            Why a video is unwritten, and what the environment's `close` raised, each empty where
            nothing is wrong; None if it is not closed in time.
        """
        with contextlib.suppress(EOFError):
            while (answer := self.receive(max(0.0, deadline - time.monotonic()))) is not None:
                # before it there may be an answer that nobody has waited for
                if answer[:1] == CLOSED:
                    unwritten, raised = json.loads(answer[1:])
                    return unwritten, raised
        return None

    def join(self, seconds: float) -> None:
        """Wait for the process to end."""
        self._process.join(seconds)

    def kill(self) -> None:
        """End the process, if it has not ended, and what its environment has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.kill()  # it may not yet lead a group
        self._process.join()
        self._pipe.close()


@contextlib.contextmanager
def _main_hidden() -> Iterator[None]:
    """Keep `multiprocessing` from importing the script of this process in a worker.

    That would load PyTorch there; and a script without `if __name__ == "__main__"` would train.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
