"""What ranks say to each other."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fabric_ppo.config import Config
from fabric_ppo.errors import ConfigError, first_line, flag
from fabric_ppo.launch import cores_per_rank
from fabric_ppo.signals import signals

ALIGNMENT = 8
_RENDEZVOUS_SECONDS = 60.0
_MULTIPLY_ADDS_FOR_THREADS = 2**25


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
    all_gather: Callable[[Tensor], Any]

    def gather(self, tensor: Tensor) -> Tensor:
        """`[...] -> [size, ...]`."""
        gathered: Tensor = tensor.unsqueeze(0) if self.size == 1 else self.all_gather(tensor)
        return gathered

    def gather_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """`gather` for several tensors in one collective: as bytes, each part aligned."""
        if self.size == 1:
            return [tensor.unsqueeze(0) for tensor in tensors]
        parts = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in tensors]
        padded = [torch.nn.functional.pad(part, (0, -part.numel() % ALIGNMENT)) for part in parts]
        gathered = self.gather(torch.cat(padded)).split([part.numel() for part in padded], dim=1)
        return [
            got[:, : part.numel()].contiguous().view(tensor.dtype).view(self.size, *tensor.shape)
            for got, part, tensor in zip(gathered, parts, tensors, strict=True)
        ]


ALONE = Ranks(rank=0, size=1, all_gather=lambda tensor: tensor.unsqueeze(0))


def prepare_process(config: Config, ranks: Ranks) -> None:
    """Set threads, the timeout and determinism; see that all ranks were started alike; share signals with them.

    Raises:
        ConfigError: ranks have different flags.
    """
    threads = config.num_threads or useful_threads(config)
    torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # without it, Lightning sets threads anew when it launches
    set_timeout(config.timeout)
    if config.torch_deterministic:
        # as use_deterministic_algorithms(True, warn_only=True), which would load the compiler, in seconds
        torch.set_deterministic_debug_mode("warn")
    require_same_config(config, ranks)
    if ranks.size > 1:
        host = int.from_bytes(hashlib.sha256(platform.node().encode()).digest()[:7], "big")
        everybody = ranks.gather(torch.tensor([host, os.getpid()])).tolist()
        signals.forward_to([pid for its_host, pid in everybody if its_host == host and pid != os.getpid()])


def useful_threads(config: Config) -> int:
    """Threads that a rank makes use of: its share of the host's cores where its matrix products are large, else one.

    Products of a minibatch with small layers take microseconds: threads gain nothing by sharing them, and on a busy
    machine lose a time slice whenever they wait for each other.
    """
    between_layers = [n * m for n, m in pairwise(config.hidden_sizes)]
    is_small = config.per_rank_batch_size * max(between_layers, default=0) < _MULTIPLY_ADDS_FOR_THREADS
    return 1 if is_small else cores_per_rank()


def set_timeout(seconds: float) -> None:
    """Have collectives of the default process group fail after `seconds`, not after half an hour."""
    if torch.distributed.is_initialized():
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds))


def join_process_group(backend: str, timeout: float) -> None:
    """Meet the other ranks where `MASTER_ADDR` and `MASTER_PORT` say.

    Raises:
        ConfigError: no meeting within a minute (or `timeout`, if that is less).
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
        reason = first_line(error)
        raise ConfigError(f"rendezvous at {where}: not all ranks met within {seconds:g} s ({reason})") from None


def require_same_config(config: Config, ranks: Ranks) -> None:
    """Compare the configurations of all ranks.

    Raises:
        ConfigError: they differ; names the flags and a rank that has other values than rank 0.
    """
    text = json.dumps(config.to_dict() | {"resume": config.resume}).encode()
    digest = int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
    seen = ranks.gather(torch.tensor([digest, len(text)])).tolist()
    if all(each == seen[0] for each in seen):
        return
    padded = text.ljust(max(length for _, length in seen))
    texts = ranks.gather(torch.frombuffer(bytearray(padded), dtype=torch.uint8)).tolist()
    first, *others = (json.loads(bytes(each)) for each in texts)
    for rank, other in enumerate(others, start=1):
        if differing := [name for name in first if first[name] != other.get(name)]:
            shown = ", ".join(f"{flag(name)} {first[name]} and {other.get(name)}" for name in differing)
            raise ConfigError(
                f"rank 0 and rank {rank} were started with different flags: {shown}; the same are expected"
            )


def one_process_unless_launched() -> None:
    """Without `fabric run`, have Fabric take one device: it would take every GPU that it sees."""
    if "LT_CLI_USED" not in os.environ:
        os.environ.setdefault("LT_DEVICES", "1")
