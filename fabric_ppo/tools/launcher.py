"""The launcher of `train`'s ranks, `torchrun` or `fabric run`, that ends with the status of the ranks.

python -m fabric_ppo.tools.launcher torch.distributed.run --nproc_per_node=2 train_torch.py
"""

from __future__ import annotations

import contextlib
import logging
import os
import runpy
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from fabric_ppo.process.console import print_line
from fabric_ppo.process.errors import BAD_INPUT, FAILED, STOPPED_BY_SIGNAL, first_line, one_line
from fabric_ppo.process.hold import STOPPING, hold_signals, release_signals

_FORWARDED = "SIGTERM,SIGINT,SIGUSR1,SIGHUP,SIGQUIT"
"""Signals that `torchrun` passes on to its ranks; by default these but for SIGUSR1."""


class _Stopped(BaseException):
    """A signal that came before there were ranks to pass it on to."""


def main(words: Sequence[str]) -> int:
    """Run a launcher's module with its arguments, and return the status that its ranks end with.

    A rank has printed why it ended: neither the launcher's report nor its log is printed.
    """
    for each in STOPPING:
        signal.signal(each, _stop)  # until the launcher has handlers of its own
    os.environ["PET_SIGNALS_TO_HANDLE"] = _FORWARDED
    logging.disable(logging.ERROR)
    sys.argv = list(words)
    try:
        with _signals_in_another_thread():
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except _Stopped as stopped:
        _ignore_signals()
        print_line(f"stopped by {stopped} before the training began", sys.stderr)
        return STOPPED_BY_SIGNAL
    except Exception as error:
        _ignore_signals()
        return _status_of(error, words)
    return 0


@contextlib.contextmanager
def _signals_in_another_thread() -> Iterator[None]:
    """Hold signals back in the main thread, whose ranks begin as it is; its handlers are called all the same.

    A rank lets them through once it handles them: without that, one that has just begun would be ended.
    """
    release_signals()
    is_over = threading.Event()
    taker = threading.Thread(target=is_over.wait, daemon=True)
    taker.start()
    hold_signals()
    try:
        yield
    finally:
        is_over.set()
        taker.join()  # it has taken all signals that came until now


def _stop(number: int, _: Any) -> NoReturn:
    raise _Stopped(signal.Signals(number).name)


def _ignore_signals() -> None:
    """Ignore further signals: all ranks have ended, and so does this process."""
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)


def _status_of(error: Exception, words: Sequence[str]) -> int:
    """Return the status to end with after an error that the launcher has raised.

    It is that of the ranks; an error that is neither theirs nor of the rendezvous is raised again.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if isinstance(error, SignalException):
        return STOPPED_BY_SIGNAL if error.sigval in STOPPING else FAILED
    if isinstance(error, DistError):  # before any rank has started
        print_line(f"error: rendezvous at {_meeting_place(words)}: {_reason(error)}", sys.stderr)
        return BAD_INPUT
    if not isinstance(error, ChildFailedError):
        raise error
    for rank, each in sorted(error.failures.items()):
        if each.exitcode < 0:  # it could print nothing
            print_line(f"error: rank {rank} was ended by {signal.Signals(-each.exitcode).name}", sys.stderr)
    if any(each.exitcode == BAD_INPUT for each in error.failures.values()):
        return BAD_INPUT  # the others have lost contact with that rank, maybe before it ended
    status: int = error.get_first_failure()[1].exitcode
    return status if status > 0 else FAILED


def _meeting_place(words: Sequence[str]) -> str:
    """Return address and port that the launcher was given, `127.0.0.1:29500`."""
    given = dict(word.partition("=")[::2] for word in words)
    names = (("--master_addr", "--main-address"), ("--master_port", "--main-port"))  # of torchrun, of fabric run
    return ":".join(given.get(name) or given.get(other, "") for name, other in names)


def _reason(error: Exception) -> str:
    """Return the reason why the launchers of the hosts did not meet."""
    if "EADDRINUSE" in str(error):
        return "this host uses the port already: --main-port takes another, the same on all hosts"
    return one_line(f"not all hosts met in time ({first_line(error)})")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
