"""Ranks that exchange tensors: the process group, and the collective that others build on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from fabric_ppo.process.errors import ConfigError, first_line
from fabric_ppo.process.launch import read_launch
from fabric_ppo.process.packets import pack, unpack

_RENDEZVOUS_SECONDS = 60.0


@dataclass(frozen=True)
class Ranks:
    """The ranks that train together, and the collective that joins them.

    Attributes:
        rank: of this process.
        size: how many ranks.
        all_gather: `[...] -> [size, ...]`, in order of rank, so that every rank sums in the same
            order.
    """

    rank: int
    size: int
    all_gather: Callable[[Tensor], Any]

    def gather(self, tensor: Tensor) -> Tensor:
        """Stack the tensors of all ranks, which have one shape: `[...] -> [size, ...]`."""
        gathered: Tensor = tensor.unsqueeze(0) if self.size == 1 else self.all_gather(tensor)
        return gathered

    def gather_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return `gather` of each of several tensors, of any types, in one collective."""
        if self.size == 1:
            return [tensor.unsqueeze(0) for tensor in tensors]
        return unpack(self.gather(pack(tensors)), tensors)


ALONE = Ranks(rank=0, size=1, all_gather=lambda tensor: tensor.unsqueeze(0))
"""The ranks of a process that trains without others."""


def from_rank_zero(content: bytes, ranks: Ranks) -> bytes:
    """Return rank 0's argument on all ranks (two collectives); it is not empty."""
    if ranks.size == 1:
        return content
    size = int(ranks.gather(torch.tensor([len(content)]))[0].item())
    padded = torch.frombuffer(bytearray(content[:size].ljust(size)), dtype=torch.uint8)
    return bytes(ranks.gather(padded)[0].cpu().numpy())


def set_timeout(seconds: float) -> None:
    """Have collectives of the default process group fail after `seconds`, not half an hour."""
    if torch.distributed.is_initialized():
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))


def join_process_group(backend: str, timeout: float) -> None:
    """Meet the other ranks at `MASTER_ADDR` and `MASTER_PORT`, and form the default process group.

    Args:
        backend: as `torch.distributed.init_process_group` takes it.
        timeout: seconds; a meeting that takes longer fails, after a minute at the latest.

    Raises:
        ConfigError: not all ranks met in time.
    """
    seconds = min(timeout, _RENDEZVOUS_SECONDS)
    limit = timedelta(seconds=seconds)
    try:
        store, rank, size = next(torch.distributed.rendezvous("env://", timeout=limit))  # type: ignore[attr-defined]
        store.set_timeout(limit)
        # torchrun keeps its store over --max-restarts, with the addresses of ranks that are no more
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        if restarts != "0":
            store = torch.distributed.PrefixStore(f"restart_{restarts}", store)  # type: ignore[attr-defined]
        torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    except (torch.distributed.DistError, ValueError) as error:
        where = (
            f"{os.environ.get('MASTER_ADDR', 'MASTER_ADDR unset')}:{os.environ.get('MASTER_PORT', 'MASTER_PORT unset')}"
        )
        if "EADDRINUSE" in str(error):
            reason = "this host uses the port already: MASTER_PORT takes another, the same for all ranks"
        else:
            reason = f"not all ranks met within {seconds:g} s ({first_line(error)})"
        raise ConfigError(f"rendezvous at {where}: {reason}") from None


def one_process_unless_launched() -> None:
    """Have Fabric take the ranks that a launcher started, or one device where none did.

    By itself it knows those of `fabric run` alone: to it the ranks of `torchrun` and `mpirun` are
    runs of their own, and a process without a launcher is to take every GPU. Nor is it to look for
    its rank in the variables of a SLURM job, unless a launcher set one. Without `fabric run` it
    trains on the CPU, as `train_torch.py` does unless it is told otherwise.
    """
    launch = read_launch()
    if "LT_CLI_USED" not in os.environ and launch.world_size > 1:
        hosts = launch.world_size // launch.local_world_size
        launched = {
            "LT_CLI_USED": 1,
            "LT_DEVICES": launch.local_world_size,
            "LT_NUM_NODES": hosts,
            "LT_STRATEGY": "ddp",
            "LT_ACCELERATOR": os.environ.get("LT_ACCELERATOR", "cpu"),
        }
        os.environ |= {name: str(value) for name, value in launched.items()}
        # it takes these for the ranks if the last one is there
        os.environ.setdefault("LOCAL_RANK", str(launch.local_rank))
        os.environ.setdefault("GROUP_RANK", str(launch.rank // launch.local_world_size))
        os.environ.setdefault("TORCHELASTIC_RUN_ID", "none")
    if "LT_CLI_USED" not in os.environ:
        os.environ.setdefault("LT_DEVICES", "1")
        os.environ.setdefault("LT_ACCELERATOR", "cpu")
    if "RANK" not in os.environ:
        os.environ.pop("SLURM_NTASKS", None)
