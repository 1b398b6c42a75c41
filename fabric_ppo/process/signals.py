"""SIGTERM, SIGUSR1 and Ctrl-C: asked to stop, a run saves what it has and ends with status 75.

Python runs its signal handlers between two bytecodes of the main thread, which may sit in a
collective for minutes. The number of a signal is therefore also written to a pipe by C code, and a
thread reads it there.
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

from fabric_ppo.process.console import is_rank_zero, print_line
from fabric_ppo.process.errors import FAILED, INTERRUPTED, STOPPED_BY_SIGNAL, StoppedBySignal
from fabric_ppo.process.failures import format_failure
from fabric_ppo.process.hold import STOPPING, hold_signals, release_signals

GRACE_SECONDS = 4.0
"""Seconds that an update may go on after a signal; then the state from before it is saved."""

_AFTER_RANK_ZERO = 2.0  # seconds that a rank which saves nothing waits for the one that does
_SECONDS_TO_CLOSE = 10.0  # for what a failed rank has open
_TEARDOWN_SECONDS = 3.0  # for closing after an update that ended in time: an environment may hang
_SAME_CTRL_C = 1.0  # seconds within which a second SIGINT is the first, passed on by a launcher
_PASSED_ON_INTERRUPT = getattr(signal, "SIGRTMIN", signal.SIGTERM)
"""Signal that a rank which got a SIGINT passes on: another SIGINT would count as a second Ctrl-C."""
_HANDLED = tuple(dict.fromkeys((*STOPPING, _PASSED_ON_INTERRUPT)))


class StopSignals:
    """The signals that ask this process to stop, and what each does at each stage of a run.

    The life cycle, in order, and who moves it on:

    | call | by | a signal from then on |
    |---|---|---|
    | `install` | the script as it reads its flags, first of all | ends the process at once |
    | `guard` | `run_script`, around the script's `main` | raises StoppedBySignal, once |
    | `forward_to` | the run's preparation | is passed on to the other ranks of this host too |
    | `begin_training` | the run's loop | is noted in `name`, which the loop reads once an update |
    | `note` | the loop, when ranks have exchanged | (nothing: another rank was given one) |
    | `end_training` | the loop's end, also by an error | raises StoppedBySignal again, once |
    | `failed` | a run that ends by an error | ends the process with that error as its story |
    | `stopping` | the run that saves, and `run_script` at the end | is ignored: the end is near |

    Whatever the stage, a watching thread ends the process: after `GRACE_SECONDS` for an update that
    does not end (the state from before it is saved), some seconds later for a teardown that does
    not end, and at once for a second Ctrl-C. A process that never calls `install` (a notebook, a
    test) keeps Python's own signal handling; the other calls then only keep books.

    Attributes:
        name: of the signal that came; empty for none.
        is_script: whether this process is a script's, which ends with the run, or a notebook.
    """

    def __init__(self) -> None:
        """Listen to nothing yet: see `install`."""
        self.name, self.is_script = "", False
        self._phase = "loading"  # then "guarded", "training", "stopping"
        self._peers: list[int] = []
        self._save: Callable[[], str] | None = None
        self._failure: BaseException | None = None
        self._ends_late = self._has_raised = False
        self._lock = threading.Lock()
        self._forking = threading.local()

    def install(self) -> None:
        """Listen, from now on; until `guard` nothing needs cleaning up, and a signal just exits."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        for each in _HANDLED:
            signal.signal(each, self._handle)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        sys.unraisablehook = _print_unraisable
        # a signal to a process that is forked off, by an environment for instance, is not the run's
        os.register_at_fork(
            before=self._block_signals, after_in_parent=self._unblock_signals, after_in_child=self._reset_in_child
        )
        hold_signals()  # of the watching thread too: where this process becomes another, all are held back
        threading.Thread(target=self._watch, args=(read,), daemon=True).start()
        release_signals()

    def guard(self) -> None:
        """Have a signal raise StoppedBySignal outside of training: from here on it is caught."""
        self._phase, self.is_script = "guarded", True

    def forward_to(self, pids: list[int]) -> None:
        """Pass signals on to other ranks of this host: a person may send one to a single rank."""
        self._peers = pids

    def begin_training(self, save: Callable[[], str] | None = None) -> None:
        """Only note a signal in `name` from here on: the run reads that once an update.

        Args:
            save: writes the state from before the running update and returns where it lies (text
                that follows "stopped by SIGTERM"), for an update that does not end in time; None on
                ranks that write nothing.
        """
        self._save, self._phase = save, "training"

    def end_training(self) -> None:
        """Leave the stage of `begin_training`, since the run has stopped or is over."""
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
        """Ignore signals from here on: the process is about to end in good order."""
        # waits for a thread that is just saving an update that took too long: it ends the process
        with self._lock:
            self._phase = "stopping"

    def failed(self, error: BaseException) -> None:
        """Print `error` whatever ends a script's process from now on; end it in some seconds."""
        if self.is_script:
            self._failure = error
            threading.Thread(target=self._end_failed, daemon=True).start()

    def _end_failed(self) -> NoReturn:
        time.sleep(_SECONDS_TO_CLOSE)
        self._save_and_exit()

    def _handle(self, number: int, _: Any) -> None:
        """Handle a signal in the main thread, between two of its bytecodes."""
        self.name = self.name or _name_of(number)
        if self._phase == "loading":
            _exit(STOPPED_BY_SIGNAL, f"stopped by {self.name} before the training began")
        if self._phase == "guarded" and not self._has_raised:
            # where Python swallows the exception, in a callback, the end comes after the grace
            self._has_raised = True
            raise StoppedBySignal(f"stopped by {self.name}")

    def _watch(self, pipe: int) -> None:
        """Read signals from the pipe, in a thread: the main one may be stuck in a collective."""
        first_interrupt = None
        while True:
            number, now = os.read(pipe, 1)[0], time.monotonic()
            if number == signal.SIGINT:
                first_interrupt = first_interrupt or now
                # a terminal's Ctrl-C reaches the launcher too, which passes it on
                if now - first_interrupt > _SAME_CTRL_C:
                    self._exit_if_failed()
                    _exit(INTERRUPTED, "interrupted twice")
            if number in _HANDLED and not self._ends_late:
                self._ends_late = True
                self.name = self.name or _name_of(number)
                passed_on = _PASSED_ON_INTERRUPT if number == signal.SIGINT else number
                for pid in self._peers:
                    with contextlib.suppress(OSError):
                        os.kill(pid, passed_on)
                threading.Thread(target=self._end_late_update, daemon=True).start()

    def _end_late_update(self) -> None:
        """End an update that takes too long, with the state from before it; or a stuck teardown."""
        time.sleep(GRACE_SECONDS)
        if self._save is None:
            time.sleep(_AFTER_RANK_ZERO)
        with self._lock:
            if self._phase != "stopping":
                self._save_and_exit()
        time.sleep(_TEARDOWN_SECONDS)
        self._save_and_exit()

    def _exit_if_failed(self) -> None:
        """Exit with the failure of a run that has failed, whatever ends the process."""
        if self._failure is not None:
            print_line(format_failure(self._failure), sys.stderr)
            os._exit(FAILED)

    def _save_and_exit(self) -> NoReturn:
        self._exit_if_failed()
        where = self._save() if self._save is not None else ""
        _exit(STOPPED_BY_SIGNAL, f"stopped by {self.name}{where}")

    def _block_signals(self) -> None:
        """Hold signals back before a fork: the child has the run's handlers at first."""
        self._forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)

    def _unblock_signals(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._forking.mask)

    def _reset_in_child(self) -> None:
        """Give a forked child, which is not the run, signal handling of its own."""
        signal.set_wakeup_fd(-1)
        for each in _HANDLED:
            # a terminal sends Ctrl-C to all: the run stops in good order, and needs its
            # environments until then
            signal.signal(each, signal.SIG_IGN if each in (signal.SIGINT, signal.SIGUSR1) else signal.SIG_DFL)
        self._unblock_signals()


def _name_of(number: int) -> str:
    """Return the name of the signal that asked a run to stop, here or in another rank."""
    is_passed_on = number == _PASSED_ON_INTERRUPT != signal.SIGTERM
    return "SIGINT" if is_passed_on else signal.Signals(number).name


def _print_unraisable(swallowed: sys.UnraisableHookArgs) -> None:
    """Print as Python's own hook does, but nothing where Python swallows what a signal raised."""
    if not isinstance(swallowed.exc_value, StoppedBySignal):
        sys.__unraisablehook__(swallowed)


def _exit(status: int, message: str) -> NoReturn:
    """End the process at once, whatever its main thread does; rank 0 prints the message."""
    try:
        if is_rank_zero():
            # sys.stderr may be somebody else's while flags are read
            os.write(2, f"{message}\n".encode())
        sys.stdout.flush()
    finally:  # also where nobody listens any more
        os._exit(status)


def pass_on_stop(error: BaseException) -> None:
    """Raise what code of the user's own has not raised itself: Ctrl-C and other signals.

    Everything else that an environment raises is its own fault, also what is no Exception, such as
    asyncio's CancelledError and panics of extensions written in Rust; and a KeyboardInterrupt in a
    script, where Ctrl-C raises none.
    """
    if isinstance(error, StoppedBySignal) or (isinstance(error, KeyboardInterrupt) and not signals.is_script):
        raise error


def ignore_in_worker() -> None:
    """In a worker: leave signals to the parent, whose end ends the worker too.

    Processes that its environment starts are ended by SIGTERM, as is usual.
    """
    # a handler that does nothing, since a program that is started would go on to ignore
    for each in STOPPING:
        signal.signal(each, lambda *_: None)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    # the worker is not of the terminal's process group, and would be stopped where it uses it
    for each in (signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(each, signal.SIG_IGN)


signals = StopSignals()
"""The signal handling of this process, which has one: the package's only singleton."""
