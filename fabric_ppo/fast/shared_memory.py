"""Averaging of DDP's gradients through shared memory; stands for DDP's own all-reduce over gloo.

It is for ranks on the CPUs of one host. An all-reduce of some tens of kilobytes takes gloo
milliseconds when ranks fill the cores, for it wakes threads on both ends of a socket. Here each
rank writes its gradient into memory that the others can read, and counts up a flag; it waits for
nothing but the slowest rank. DDP calls this as a communication hook
(https://pytorch.org/docs/stable/ddp_comm_hooks.html) and keeps its meaning: the sum over ranks of
`gradient / W`.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fabric_ppo.process.errors import LostContactError
from fabric_ppo.process.group import Ranks
from fabric_ppo.process.launch import read_launch
from fabric_ppo.process.profile import timed

_FLAG_BYTES = 64
"""Bytes of a flag: a cache line each, so that ranks do not invalidate each other's."""
_PATIENT_SPINS = 2000
"""Looks at the flags before a rank begins to sleep between them."""
_SECONDS_BETWEEN_CHECKS = 0.2
"""Seconds between looks at whether the other ranks are alive."""


def reduce_in_shared_memory(ddp: DistributedDataParallel | None, ranks: Ranks, timeout: float) -> None:
    """Make a DDP module average its gradients through shared memory where that is possible.

    It is possible where every rank runs on this host, on the CPU, and the processor keeps stores in
    order (x86-64); elsewhere DDP keeps its own collectives. Every rank must call this at the same
    point.

    Args:
        ddp: the module that synchronises gradients; None where there is only one rank.
        ranks: those whose gradients are averaged.
        timeout: seconds to wait for a rank in each update.
    """
    if ddp is None or not _can_share_memory(ddp, ranks):
        return
    size = max(sum(each.nbytes for each in ddp.parameters() if each.requires_grad), 8)
    memory = SharedMemorySum.between(ranks, size, timeout)
    if memory is None:
        return

    # the division comes before the sum, as in DDP's own all-reduce
    def average(_: object, bucket: Any) -> torch.futures.Future[Tensor]:
        gradient = bucket.buffer()
        memory.sum_(gradient.div_(ranks.size))
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(gradient)
        return done

    # DDP checks a hook's annotations, which are strings in this module; it takes one without any
    average.__annotations__.clear()
    ddp.register_comm_hook(None, average)


def _can_share_memory(ddp: DistributedDataParallel, ranks: Ranks) -> bool:
    """Return True if all ranks train on the CPU of this host, and it keeps stores in order."""
    is_on_one_host = read_launch().local_world_size == read_launch().world_size
    # a flag must not be seen before the gradient that it announces
    keeps_order = sys.platform == "linux" and platform.machine() == "x86_64"
    is_on_cpu = all(each.device.type == "cpu" for each in ddp.parameters())
    return ranks.size > 1 and is_on_one_host and keeps_order and is_on_cpu


class SharedMemorySum:
    """Sum of tensors over the ranks of one host, always added in order of rank.

    Two buffers take turns, counted from 1; a rank's flag holds the last turn that it has written.
    Nothing is overwritten before all have read it: a rank writes turn k+2, into the buffer of turn
    k, only after every flag has reached k+1, and a rank sets its flag to k+1 only after it has read
    turn k.
    """

    @classmethod
    def between(cls, ranks: Ranks, size: int, timeout: float) -> SharedMemorySum | None:
        """Make one that all `ranks` share, or return None on all of them where that fails.

        Args:
            ranks: the ranks of this host.
            size: bytes of the largest tensor.
            timeout: seconds to wait for a rank.
        """
        # rounded up to whole cache lines, so that each rank writes lines of its own
        slot = -(-size // _FLAG_BYTES) * _FLAG_BYTES
        memory = _map_together(ranks, ranks.size * _FLAG_BYTES + 2 * ranks.size * slot)
        return None if memory is None else cls(ranks, memory, slot, timeout)

    def __init__(self, ranks: Ranks, memory: mmap.mmap, slot: int, timeout: float) -> None:
        """Divide `memory`: a flag for each rank, then two buffers of `slot` bytes for each rank."""
        self._rank, self._timeout, self._turn = ranks.rank, timeout, 0
        flags = np.frombuffer(memory, np.int64, ranks.size * _FLAG_BYTES // 8)
        self._flags = flags[:: _FLAG_BYTES // 8]
        data = torch.frombuffer(memory, dtype=torch.uint8, offset=ranks.size * _FLAG_BYTES)
        self._slots = data.view(2, ranks.size, slot)
        self._pids = ranks.gather(torch.tensor(os.getpid())).tolist()

    @timed("all-reduce")
    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over the ranks, in place.

        Every rank must call this with the same shape and type.

        Raises:
            LostContactError: a rank has died, or did not call this within the timeout.
        """
        size = tensor.numel() * tensor.element_size()
        slots = self._slots[self._turn % 2, :, :size].view(tensor.dtype)
        flat = tensor.view(-1)
        # the flag after the data: stores become visible in this order
        slots[self._rank].copy_(flat)
        self._turn += 1
        self._flags[self._rank] = self._turn
        self._wait()
        # each rank adds in the same order, so all have the same bits
        torch.add(slots[0], slots[1], out=flat)
        for slot in slots[2:]:
            flat += slot
        return tensor

    def _wait(self) -> None:
        """Wait until every rank has written this turn."""
        # ranks are usually microseconds apart; giving up the core lets a slower one on it catch up
        for _ in range(_PATIENT_SPINS):
            if self._flags.min() >= self._turn:
                return
            os.sched_yield()
        started = checked = time.monotonic()
        while self._flags.min() < self._turn:
            time.sleep(2e-5)
            current = time.monotonic()
            if current - checked > _SECONDS_BETWEEN_CHECKS:
                checked = current
                self._check(current - started)

    def _check(self, waited: float) -> None:
        """Raise a LostContactError if a rank has died, or `waited` seconds are too long."""
        for rank, pid in enumerate(self._pids):
            if self._flags[rank] < self._turn and not _is_alive(pid):
                raise LostContactError(f"rank {rank} has died")
            if self._flags[rank] < self._turn and waited > self._timeout:
                raise LostContactError(f"rank {rank} did not answer within --timeout {self._timeout:g} s")


def _map_together(ranks: Ranks, size: int) -> mmap.mmap | None:
    """Return `size` zero bytes that all ranks share, or None on all where one cannot map them.

    Their file is deleted when this returns or raises.
    """
    path = ""
    try:
        if ranks.rank == 0:
            folder = "/dev/shm" if os.path.isdir("/dev/shm") else None
            handle, path = tempfile.mkstemp(prefix="fabric_ppo_", dir=folder)
            # memory that is not there is an error here, and would be a SIGBUS at the first write
            with contextlib.suppress(OSError), open(handle, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        name = torch.frombuffer(bytearray(path.encode().ljust(1024)), dtype=torch.uint8)
        shared = bytes(ranks.gather(name)[0].tolist()).decode().strip()
        memory = None
        with contextlib.suppress(OSError, ValueError), open(shared, "r+b") as file:
            memory = mmap.mmap(file.fileno(), size)
        everybody = ranks.gather(torch.tensor([float(memory is not None)]))
        return memory if bool(everybody.all()) else None
    finally:
        if path:
            os.unlink(path)


def _is_alive(pid: int) -> bool:
    """Return True if a process runs; a zombie, whose state is Z, has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
