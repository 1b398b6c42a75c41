"""Signals that come before a process can handle them, in its first second: held back until it can.

Without that, Python's and the system's own handling ends the process: a SIGUSR1 with status 138, which
no job goes on after. It imports nothing that takes time, so that a program can begin with it. What is held back is
passed on where the process becomes another program, and to the processes that it starts.
"""

from __future__ import annotations

import signal

from fabric_ppo.process.extras import name_missing_packages

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals that ask a run to stop."""


def begin_script() -> None:
    """Hold back signals, and have a package that is not installed named in one line."""
    name_missing_packages()
    hold_signals()


def hold_signals() -> None:
    """Hold back the signals of STOPPING in this thread, and in processes that it starts or becomes."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)


def release_signals() -> None:
    """Let the signals of STOPPING through; one that was held back comes at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
