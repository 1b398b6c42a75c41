"""What the launcher (`torchrun`, `fabric run`, none) told this process, before any heavy import."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TextIO

from fabric_ppo.errors import (
    ConfigError,
    EnvironmentFault,
    LostContactError,
    NotAllWrittenError,
    StoppedBySignal,
    TrainingError,
    first_line,
)

_SECONDS_FOR_RANK_ZERO = 2.0
_PARENT = os.getppid()
FAILED, BAD_INPUT, NOT_ALL_WRITTEN, STOPPED_BY_SIGNAL = 1, 2, 3, 75
"""Exit statuses of a rank besides 0; 130 ends one that is interrupted twice."""


_ENVIRONMENTAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)


@dataclass(frozen=True)
class Launch:
    """This process's place among the processes of the run, as the environment variables say."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def read_launch() -> Launch:
    """Read `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `LOCAL_WORLD_SIZE`; without a launcher: one process.

    Raises:
        ConfigError: the variables are half set or not numbers.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    missing = [name for name in names if name not in os.environ]
    if len(missing) == len(names):
        return Launch(rank=0, world_size=1, local_rank=0, local_world_size=1)
    if missing:
        raise ConfigError(
            f"environment variable {' and '.join(missing)} is not set while others of {', '.join(names)} are: "
            "start with torchrun or fabric run, or unset them all"
        )
    try:
        rank, world_size, local_rank = (int(os.environ[name]) for name in names)
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    except ValueError:
        values = ", ".join(f"{name}={os.environ[name]}" for name in names)
        raise ConfigError(f"environment variables {values}: whole numbers are expected") from None
    for name, value, size in (("RANK", rank, world_size), ("LOCAL_RANK", local_rank, local_world_size)):
        if not 0 <= value < size:
            size_name = name.replace("RANK", "WORLD_SIZE")
            raise ConfigError(f"environment variable {name}={value}: a number from 0 to {size_name} - 1 = {size - 1}")
    return Launch(rank, world_size, local_rank, local_world_size)


def cores_per_rank() -> int:
    """This rank's share of the cores that the host lends it, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // read_launch().local_world_size)


def is_rank_zero() -> bool:
    """Whether this process is the one that speaks for all of them."""
    return os.environ.get("RANK", "0") == "0"


def tell(message: str) -> None:
    """Print one line on stderr, from rank 0 only."""
    if is_rank_zero():
        say(message, sys.stderr)


def say(message: str, stream: TextIO) -> None:
    """Print a line, if anybody listens: a full disk or a closed terminal costs what is said, not the training."""
    with contextlib.suppress(OSError, ValueError):
        stream.write(f"{message}\n")  # in one piece: other ranks may write at the same time
    flush(stream)


def flush(stream: TextIO) -> None:
    """Flush; where that fails, what was said and will be said goes nowhere, and Python's own last flush works."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def die_with_launcher() -> None:
    """Have a rank end when its launcher ends, or has ended since this rank began."""
    if "RANK" in os.environ:
        die_with_parent()
        if os.getppid() != _PARENT:
            os._exit(FAILED)


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends (Linux; elsewhere nothing happens)."""
    if sys.platform == "linux":
        import ctypes
        import signal

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def run_script(main: Callable[[Any], object], config: Any) -> None:
    """Run a script's `main(config)` and exit with the status that its end calls for.

    0: done; 1: failure; 2: bad input, told in one line by rank 0; 3: done, but something could not be written;
    75: stopped by a signal.
    """
    from fabric_ppo.signals import signals

    _quieten_libraries()
    signals.guard()
    status = 0
    try:
        try:
            main(config)
        finally:
            signals.stopping()  # from here on no signal raises anything
    except (Exception, SystemExit, StoppedBySignal) as error:
        status = _tell_failure(error, lambda: bool(signals.name))
    finally:
        _destroy_process_group()
    end_process(status)


def end_process(status: int) -> NoReturn:
    """Exit; a rank of several without shutting down Python, as what PyTorch's threads still hold then may abort it."""
    flush(sys.stdout)
    flush(sys.stderr)
    if "RANK" in os.environ:
        os._exit(status)
    sys.exit(status)


def _tell_failure(error: BaseException, is_asked_to_stop: Callable[[], bool]) -> int:
    """Print what ended a run; the exit status."""
    if isinstance(error, ConfigError):
        tell(f"error: {error}")
        # where all ranks fail alike, rank 0 tells it, and the launcher ends this one meanwhile
        deadline = time.monotonic() + _SECONDS_FOR_RANK_ZERO
        while not is_rank_zero() and not is_asked_to_stop():
            if time.monotonic() >= deadline:
                say(f"error: rank {os.environ['RANK']}: {error}", sys.stderr)
                break
            time.sleep(0.02)
        return BAD_INPUT
    if isinstance(error, (StoppedBySignal, NotAllWrittenError)):
        tell(str(error))
        return STOPPED_BY_SIGNAL if isinstance(error, StoppedBySignal) else NOT_ALL_WRITTEN
    if is_asked_to_stop() and is_lost_contact(error):
        return STOPPED_BY_SIGNAL  # as the other rank was
    say(told(error), sys.stderr)
    return FAILED


def _quieten_libraries() -> None:
    """Keep what libraries say to developers out of what users read."""
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*torch.distributed.*deprecated.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # TensorBoard's thread cannot write to a full disk: the next scalar raises the same error where it is handled
    threading.excepthook = lambda failed: (
        None if isinstance(failed.exc_value, OSError) else threading.__excepthook__(failed)
    )


def told(error: BaseException) -> str:
    """What a failed rank prints: a known kind of failure in one line, a bug with its traceback."""
    rank = os.environ.get("RANK", "0")
    if isinstance(error, (EnvironmentFault, TrainingError)):
        return f"error: rank {rank}: {error}"
    if isinstance(error, OSError) and error.errno in _ENVIRONMENTAL:
        return f"error: rank {rank}: {error}"
    if is_lost_contact(error):
        return f"rank {rank} stops: it lost contact with another rank ({first_line(error)})"
    return "".join(traceback.format_exception(error)).rstrip()


def is_lost_contact(error: BaseException) -> bool:
    """Whether a collective failed since another rank died or did not answer: that rank has the story."""
    distributed = sys.modules.get("torch.distributed")
    is_dist_error = distributed is not None and isinstance(error, distributed.DistError)
    return (
        is_dist_error
        or isinstance(error, LostContactError)
        or (isinstance(error, RuntimeError) and "gloo" in str(error))
    )


def _destroy_process_group() -> None:
    """A process that ends with a process group alive can abort."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()
