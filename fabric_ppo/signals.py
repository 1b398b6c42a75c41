"""SIGTERM, SIGUSR1 and Ctrl-C: asked to stop, a run saves what it has and ends with status 75.

Python runs its signal handlers between two bytecodes of the main thread, which may sit in a collective for minutes.
The number of a signal is therefore also written to a pipe by C code, and a thread reads it there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from fabric_ppo.errors import StoppedBySignal
from fabric_ppo.launch import FAILED, STOPPED_BY_SIGNAL, is_rank_zero, say, told

GRACE_SECONDS = 4.0
"""How long an update may go on after a signal; then the state from before it is saved."""
_AFTER_RANK_ZERO = 2.0
_SECONDS_TO_CLOSE = 10.0  # for what a failed rank has open
_TEARDOWN_SECONDS = 3.0  # for what is closed after an update that ended in time: an environment may take for ever
_SAME_CTRL_C = 1.0
_INTERRUPTED_TWICE = 130
_STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """The signals that ask this process to stop, and what is to happen then.

    Attributes:
        name: of the signal that came; empty for none.
        is_script: whether this process is a script's, which ends with the run, or somebody's notebook.
    """

    def __init__(self) -> None:
        """Listen to nothing yet: see `install`."""
        self.name, self.is_script = "", False
        self._phase = "loading"
        self._peers: list[int] = []
        self._save: Callable[[], str] | None = None
        self._failure: BaseException | None = None
        self._ends_late = self._has_raised = False
        self._lock = threading.Lock()

    def install(self) -> None:
        """Listen, from now on. Until `guard` there is nothing to clean up: a signal ends the process at once."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        for each in _STOPPING:
            signal.signal(each, self._handle)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        sys.unraisablehook = _tell_unraisable
        # a signal to a process that is forked off, by an environment for instance, is not the run's
        os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget)
        threading.Thread(target=self._watch, args=(read,), daemon=True).start()

    def guard(self) -> None:
        """From here on somebody catches StoppedBySignal, which a signal raises while nothing is trained."""
        self._phase, self.is_script = "guarded", True

    def forward_to(self, pids: list[int]) -> None:
        """Pass a signal on to the other ranks of this host: a launcher sends it to all, a person to one."""
        self._peers = pids

    def begin_training(self, save: Callable[[], str] | None = None) -> None:
        """From here on the run looks at `name` once an update.

        Args:
            save: writes the state from before the running update and says where it lies, for an update that does not
                end in time; None on ranks that write nothing.
        """
        self._save, self._phase = save, "training"

    def end_training(self) -> None:
        """The run has stopped, or is over."""
        with self._lock:
            self._phase = "guarded" if self._phase == "training" else self._phase

    def note(self, is_asked: bool) -> None:
        """Take note of a signal that another rank was given, maybe on another host."""
        if is_asked:
            self.name = self.name or "a signal"

    def raise_if_asked(self) -> None:
        """End the process in good order, if a signal asked for it.

        Raises:
            StoppedBySignal: it did.
        """
        self.stopping()
        if self.name:
            raise StoppedBySignal(f"stopped by {self.name}")

    def stopping(self) -> None:
        """The process is about to end in good order."""
        with self._lock:
            self._phase = "stopping"

    def failed(self, error: BaseException) -> None:
        """A run has failed: whatever ends a script's process from now on tells that, and something does in seconds."""
        if self.is_script:
            self._failure = error
            threading.Thread(target=self._end_failed, daemon=True).start()

    def _end_failed(self) -> NoReturn:
        time.sleep(_SECONDS_TO_CLOSE)
        self._save_and_exit()

    def _handle(self, number: int, _: Any) -> None:
        self.name = self.name or signal.Signals(number).name
        if self._phase == "loading":
            _exit(STOPPED_BY_SIGNAL, f"stopped by {self.name} before the training began")
        if self._phase == "guarded" and not self._has_raised:
            self._has_raised = True  # where Python swallows it, in a callback, the end comes after the grace
            raise StoppedBySignal(f"stopped by {self.name}")

    def _watch(self, pipe: int) -> None:
        first_interrupt = None
        while True:
            number, now = os.read(pipe, 1)[0], time.monotonic()
            if number == signal.SIGINT:
                first_interrupt = first_interrupt or now
                # a terminal's Ctrl-C reaches the launcher too, which passes it on
                if now - first_interrupt > _SAME_CTRL_C:
                    self._tell_failure_and_exit()
                    _exit(_INTERRUPTED_TWICE, "interrupted twice")
            if number in _STOPPING and not self._ends_late:
                self._ends_late = True
                self.name = self.name or signal.Signals(number).name
                for pid in self._peers:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGTERM)
                threading.Thread(target=self._end_late_update, daemon=True).start()

    def _end_late_update(self) -> None:
        """Save the state from before an update that goes on for too long, and end; or end what does not close."""
        time.sleep(GRACE_SECONDS)
        if self._save is None:
            time.sleep(_AFTER_RANK_ZERO)
        with self._lock:
            if self._phase != "stopping":
                self._save_and_exit()
        time.sleep(_TEARDOWN_SECONDS)
        self._save_and_exit()

    def _tell_failure_and_exit(self) -> None:
        """If the run has failed, that is what is told, whatever ends the process."""
        if self._failure is not None:
            say(told(self._failure), sys.stderr)
            os._exit(FAILED)

    def _save_and_exit(self) -> NoReturn:
        self._tell_failure_and_exit()
        said = self._save() if self._save is not None else ""
        _exit(STOPPED_BY_SIGNAL, f"stopped by {self.name}{said}")


def _tell_unraisable(swallowed: sys.UnraisableHookArgs) -> None:
    """Python's own hook, silent where Python swallows what a signal raised."""
    if not isinstance(swallowed.exc_value, StoppedBySignal):
        sys.__unraisablehook__(swallowed)


def _exit(status: int, message: str) -> NoReturn:
    try:
        if is_rank_zero():
            os.write(2, f"{message}\n".encode())  # sys.stderr may be somebody else's while flags are read
        sys.stdout.flush()
    finally:  # also where nobody listens any more
        os._exit(status)


_held = threading.local()


def _hold() -> None:
    _held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)


def _release() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held.mask)


def _forget() -> None:
    signal.set_wakeup_fd(-1)
    for each in _STOPPING:
        # a terminal sends Ctrl-C to all: the run stops in good order, and needs its environments until then
        signal.signal(each, signal.SIG_DFL if each == signal.SIGTERM else signal.SIG_IGN)
    _release()


def ignore_in_child() -> None:
    """In a forked worker: leave signals to the parent, whose end ends the worker too."""
    for each in _STOPPING:
        signal.signal(each, signal.SIG_IGN)


signals = StopSignals()
"""This process's."""
