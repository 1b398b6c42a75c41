"""What ranks say to each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor

from fabric_ppo.launch import read_launch

_ALIGNMENT = 8


@dataclass(frozen=True)
class Ranks:
    """The ranks that train together, and the one collective that everything is built from.

    Attributes:
        rank: of this process.
        size: how many ranks.
        all_gather: `[...] -> [size, ...]`, in order of rank, so that every rank sums in the same order.
    """

    rank: int
    size: int
    all_gather: Callable[[Tensor], Tensor]

    def gather(self, tensor: Tensor) -> Tensor:
        """`[...] -> [size, ...]`."""
        return tensor.unsqueeze(0) if self.size == 1 else self.all_gather(tensor)

    def gather_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """`gather` for several tensors in one collective: as bytes, each part aligned."""
        if self.size == 1:
            return [tensor.unsqueeze(0) for tensor in tensors]
        parts = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
        padded = [torch.nn.functional.pad(part, (0, -part.numel() % _ALIGNMENT)) for part in parts]
        gathered = self.gather(torch.cat(padded)).split([part.numel() for part in padded], dim=1)
        return [
            got[:, : part.numel()].contiguous().view(tensor.dtype).view(self.size, *tensor.shape)
            for got, part, tensor in zip(gathered, parts, tensors, strict=True)
        ]


ALONE = Ranks(rank=0, size=1, all_gather=lambda tensor: tensor.unsqueeze(0))


def set_threads(num_threads: int) -> None:
    """Set PyTorch's threads; 0 gives this rank its share of the host's cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(num_threads or max(1, cores // read_launch().local_world_size))


def set_timeout(seconds: float) -> None:
    """Have collectives of the default process group fail after `seconds`, not after half an hour."""
    if torch.distributed.is_initialized():
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))


def one_process_unless_launched() -> None:
    """Without `fabric run`, have Fabric take one device: it would take every GPU that it sees."""
    if "LT_CLI_USED" not in os.environ:
        os.environ.setdefault("LT_DEVICES", "1")
