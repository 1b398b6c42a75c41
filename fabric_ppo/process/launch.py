"""The launcher of this process (`torchrun`, `fabric run`, none), read before any heavy import."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass

from fabric_ppo.process.errors import FAILED, ConfigError
from fabric_ppo.process.tasks import place_on_host, require_one_task

# Read at import, so that `die_with_launcher` sees a launcher that has ended since.
_PARENT = os.getppid()


@dataclass(frozen=True)
class Launch:
    """The place of this process among those of the run, as the environment variables give it."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def read_launch() -> Launch:
    """Read `RANK`, `WORLD_SIZE`, `LOCAL_RANK`, `LOCAL_WORLD_SIZE`; without a launcher: one process.

    The last two may be missing where MPI or SLURM has their values under other names.

    Raises:
        ConfigError: the variables are half set, no numbers, or out of range; or this is one of
            several tasks of `srun` or `mpirun` that have no ranks.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    given = {name: os.environ[name] for name in names if name in os.environ}
    if not given:
        require_one_task()
        return Launch(rank=0, world_size=1, local_rank=0, local_world_size=1)
    if len(given) == 2 and (place := place_on_host("LOCAL_RANK")) is not None:
        given["LOCAL_RANK"] = place
    if missing := [name for name in names if name not in given]:
        raise ConfigError(
            f"environment variable {' and '.join(missing)} is not set while others of {', '.join(names)} are: "
            "start with torchrun or fabric run, or unset them all"
        )
    try:
        rank, world_size, local_rank = (int(given[name]) for name in names)
        local_world_size = int(place_on_host("LOCAL_WORLD_SIZE") or world_size)
    except ValueError:
        values = ", ".join(f"{name}={given[name]}" for name in names)
        raise ConfigError(f"environment variables {values}: whole numbers are expected") from None
    for name, value, size in (("RANK", rank, world_size), ("LOCAL_RANK", local_rank, local_world_size)):
        if not 0 <= value < size:
            size_name = name.replace("RANK", "WORLD_SIZE")
            raise ConfigError(f"environment variable {name}={value}: a number from 0 to {size_name} - 1 = {size - 1}")
    return Launch(rank, world_size, local_rank, local_world_size)


def cores_per_rank() -> int:
    """Return this rank's share of the cores that the process may use on its host, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // read_launch().local_world_size)


def die_with_launcher() -> None:
    """Have a rank end when its launcher ends, or has ended since this rank began."""
    if "RANK" in os.environ:
        die_with_parent()
        # an end from before the kernel was asked goes unreported: the rank has another parent then
        if os.getppid() != _PARENT:
            os._exit(FAILED)


def die_with_parent() -> None:
    """Have the kernel end this process when its parent ends (Linux; elsewhere nothing happens)."""
    import signal

    _signal_at_parents_end(signal.SIGKILL)


def end_group_with_parent() -> None:
    """Make a child of `multiprocessing` the leader of a process group that ends with its parent.

    The kernel kills the group, in the middle of a step too, so that what the child has started
    ends as well, unless it has left the group (Linux; elsewhere there is the group only).
    """
    import multiprocessing
    from multiprocessing.connection import wait

    os.setpgid(0, 0)
    parent = multiprocessing.parent_process()
    if sys.platform != "linux" or parent is None:
        return
    import fcntl
    import signal

    # the parent has the other end of this pipe, which closes with it: then the kernel sends the
    # signal that tells of input, which may be any
    pipe = parent.sentinel
    with contextlib.suppress(OSError):  # a kernel that is only like Linux
        fcntl.fcntl(pipe, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(pipe, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
    # something else that the parent has forked may hold that end open; this waits for the end of a
    # step, and must not kill the group's leader alone
    if parent.pid == os.getppid():  # and not a fork server in between, which may end before
        signal.signal(signal.SIGRTMAX, lambda *_: os.killpg(0, signal.SIGKILL))
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGRTMAX, signal.SIG_DFL))
        _signal_at_parents_end(signal.SIGRTMAX)
    if wait([pipe], 0):  # closed before that
        os._exit(FAILED)


def _signal_at_parents_end(number: int) -> None:
    """Have the kernel send this process a signal when its parent ends (Linux)."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, number)
