"""Start and end of a training script's process."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from fabric_ppo.process.console import flush, is_rank_zero, print_from_rank_zero, print_line
from fabric_ppo.process.errors import (
    BAD_INPUT,
    FAILED,
    NOT_ALL_WRITTEN,
    STOPPED_BY_SIGNAL,
    ConfigError,
    NotAllWrittenError,
    StoppedBySignal,
)
from fabric_ppo.process.failures import format_failure, is_lost_contact
from fabric_ppo.process.signals import signals

_SECONDS_FOR_RANK_ZERO = 2.0  # to print an error that all ranks have
_SECONDS_FOR_THREADS = 30.0  # to end, and for what libraries do at the end of a process


def run_script(main: Callable[[Any], object], config: Any) -> None:
    """Run a script's `main(config)` and exit with the status that its end calls for.

    0: done; 1: failure; 2: bad input, in one line from rank 0; 3: done, but something could not be
    written; 75: stopped by a signal.
    """
    # what has been imported stays: later collections need not look at it
    gc.freeze()
    gc.enable()
    _quieten_libraries()
    signals.guard()
    status = 0
    try:
        try:
            main(config)
        finally:
            signals.stopping()  # from here on no signal raises anything
    except (Exception, SystemExit, StoppedBySignal) as error:
        status = _print_failure(error)
    finally:
        _destroy_process_group()
    end_process(status)


def end_process(status: int) -> NoReturn:
    """Exit; a rank of several without shutting down Python.

    PyTorch's threads may still hold objects that abort a process whose interpreter is gone.
    """
    flush(sys.stdout)
    flush(sys.stderr)
    if "RANK" in os.environ:
        os._exit(status)
    shut_down(status)


def shut_down(status: int) -> NoReturn:
    """Exit as `sys.exit` does, but do not wait for ever for threads that an environment keeps."""
    watch = threading.Timer(_SECONDS_FOR_THREADS, _exit_despite_threads, (status,))
    watch.daemon = True
    watch.start()
    sys.exit(status)


def _exit_despite_threads(status: int) -> NoReturn:
    print_line("warning: threads that an environment has started go on; the process ends without them", sys.stderr)
    os._exit(status)


def _print_failure(error: BaseException) -> int:
    """Print what ended a run, and return the exit status."""
    if isinstance(error, ConfigError):
        print_from_rank_zero(f"error: {error}")
        # where all ranks fail alike, rank 0 prints it, and the launcher ends this one meanwhile
        deadline = time.monotonic() + _SECONDS_FOR_RANK_ZERO
        while not is_rank_zero() and not signals.name:
            if time.monotonic() >= deadline:
                print_line(f"error: rank {os.environ['RANK']}: {error}", sys.stderr)
                break
            time.sleep(0.02)
        return BAD_INPUT
    if isinstance(error, (StoppedBySignal, NotAllWrittenError)):
        print_from_rank_zero(str(error))
        return STOPPED_BY_SIGNAL if isinstance(error, StoppedBySignal) else NOT_ALL_WRITTEN
    if signals.name and is_lost_contact(error):
        return STOPPED_BY_SIGNAL  # as the other rank was
    print_line(format_failure(error), sys.stderr)
    return FAILED


def _quieten_libraries() -> None:
    """Keep what libraries print for developers out of what users read."""
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*torch.distributed.*deprecated.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # TensorBoard's thread cannot write to a full disk: the next scalar raises the same error where
    # it is handled
    threading.excepthook = lambda failed: (
        None if isinstance(failed.exc_value, OSError) else threading.__excepthook__(failed)
    )


def _destroy_process_group() -> None:
    """Destroy the default process group: a process that ends with one alive can abort."""
    distributed, graphs = (sys.modules.get(name) for name in ("torch.distributed", "fabric_ppo.fast.cuda_graphs"))
    if graphs is not None:
        graphs.release_graphs()
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()
