"""Averaging DDP's gradients through shared memory, for ranks on the CPUs of one host.

It stands for DDP's own all-reduce over gloo.

A gradient of some tens of kilobytes costs gloo milliseconds when ranks fill the cores: each all-reduce wakes threads
on both ends of a socket. Here each rank writes its gradient where the others can read it and counts up a flag; what
is waited for is the slowest rank, and nothing else. DDP calls it as a communication hook
(https://pytorch.org/docs/stable/ddp_comm_hooks.html), so its semantics stay: `sum over ranks of gradient / W`.
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

_FLAG_BYTES = 64  # a cache line for each flag, so that ranks do not invalidate each other's


_PATIENT_SPINS = 2000


_SECONDS_BETWEEN_CHECKS = 0.2


def reduce_in_shared_memory(ddp: DistributedDataParallel | None, ranks: Ranks, timeout: float) -> None:
    """Have a DDP module average its gradients through shared memory where that is possible.

    It is where every rank runs on this host, on the CPU, and the processor keeps stores in order
    (x86-64); elsewhere DDP goes on with its own collectives. Every rank must call this at the same
    point.

    Args:
        ddp: the module that synchronises gradients; None where there is only one rank.
        ranks: those that it averages over.
        timeout: seconds to wait for a rank.
    """
    if ddp is None or not _can_share_memory(ddp, ranks):
        return
    size = max(sum(each.nbytes for each in ddp.parameters() if each.requires_grad), 8)
    memory = SharedMemorySum.between(ranks, size, timeout)
    if memory is None:
        return

    def average(_: object, bucket: Any) -> torch.futures.Future[Tensor]:
        gradient = bucket.buffer()
        memory.sum_(gradient.div_(ranks.size))
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(gradient)
        return done

    average.__annotations__.clear()  # DDP takes its own types, unquoted, or none
    ddp.register_comm_hook(None, average)


def _can_share_memory(ddp: DistributedDataParallel, ranks: Ranks) -> bool:
    is_on_one_host = read_launch().local_world_size == read_launch().world_size
    keeps_order = sys.platform == "linux" and platform.machine() == "x86_64"
    is_on_cpu = all(each.device.type == "cpu" for each in ddp.parameters())
    return ranks.size > 1 and is_on_one_host and keeps_order and is_on_cpu


class SharedMemorySum:
    """Sums tensors over the ranks of one host, in order of rank.

    Two buffers take turns, counted from 1; a flag says which turn its rank has written. A rank writes turn k+2, into
    the buffer of turn k, only when every flag has reached k+1, and a rank writes turn k+1 only when it has read turn k.
    """

    @classmethod
    def between(cls, ranks: Ranks, size: int, timeout: float) -> SharedMemorySum | None:
        """Share memory for tensors of up to `size` bytes between all of `ranks`; None on all where that fails."""
        slot = -(-size // _FLAG_BYTES) * _FLAG_BYTES
        memory = _map_together(ranks, ranks.size * _FLAG_BYTES + 2 * ranks.size * slot)
        return None if memory is None else cls(ranks, memory, slot, timeout)

    def __init__(self, ranks: Ranks, memory: mmap.mmap, slot: int, timeout: float) -> None:
        """Use `memory`: a flag for each rank, then two buffers of a slot of `slot` bytes for each."""
        self._rank, self._timeout, self._turn = ranks.rank, timeout, 0
        flags = np.frombuffer(memory, np.int64, ranks.size * _FLAG_BYTES // 8)
        self._flags = flags[:: _FLAG_BYTES // 8]
        data = torch.frombuffer(memory, dtype=torch.uint8, offset=ranks.size * _FLAG_BYTES)
        self._slots = data.view(2, ranks.size, slot)
        self._pids = ranks.gather(torch.tensor(os.getpid())).tolist()

    @timed("all-reduce")
    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over the ranks; every rank must call this with the same shape.

        Raises:
            LostContactError: a rank has died, or did not come within the timeout.
        """
        size = tensor.numel() * tensor.element_size()
        slots = self._slots[self._turn % 2, :, :size].view(tensor.dtype)
        flat = tensor.view(-1)
        slots[self._rank].copy_(flat)
        self._turn += 1
        self._flags[self._rank] = self._turn
        self._wait()
        torch.add(slots[0], slots[1], out=flat)
        for slot in slots[2:]:
            flat += slot
        return tensor

    def _wait(self) -> None:
        for _ in range(_PATIENT_SPINS):
            if self._flags.min() >= self._turn:
                return
            os.sched_yield()
        started = checked = time.monotonic()
        while self._flags.min() < self._turn:
            time.sleep(2e-5)
            now = time.monotonic()
            if now - checked > _SECONDS_BETWEEN_CHECKS:
                checked = now
                self._check(now - started)

    def _check(self, waited: float) -> None:
        for rank, pid in enumerate(self._pids):
            if self._flags[rank] < self._turn and not _is_alive(pid):
                raise LostContactError(f"rank {rank} has died")
            if self._flags[rank] < self._turn and waited > self._timeout:
                raise LostContactError(f"rank {rank} did not answer within --timeout {self._timeout:g} s")


def _map_together(ranks: Ranks, size: int) -> mmap.mmap | None:
    """Zeroed memory that all ranks share, or None on all of them where one cannot have it.

    Its file is gone when this returns or raises.
    """
    path = ""
    try:
        if ranks.rank == 0:
            handle, path = tempfile.mkstemp(prefix="fabric_ppo_", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
            with contextlib.suppress(OSError), open(handle, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)  # what does not fit is noticed here, not as SIGBUS later
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
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
