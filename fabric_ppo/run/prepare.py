"""Preparation of a process for a run: threads, timeout, determinism, equal flags on all ranks."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from itertools import pairwise

import torch

from fabric_ppo.config import Config
from fabric_ppo.process.errors import ConfigError, flag
from fabric_ppo.process.group import Ranks, set_timeout
from fabric_ppo.process.launch import cores_per_rank
from fabric_ppo.process.signals import signals

_MULTIPLY_ADDS_FOR_THREADS = 2**25
"""Number of multiplications in one matrix product from which several threads are faster."""


def prepare_process(config: Config, ranks: Ranks) -> None:
    """Set threads, timeout and determinism, compare the ranks' flags, and share signals.

    Raises:
        ConfigError: ranks have different flags.
    """
    threads = config.num_threads or useful_threads(config)
    torch.set_num_threads(threads)
    # otherwise Lightning sets the number of threads again when it launches
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    set_timeout(config.timeout)
    if config.torch_deterministic:
        # products on a GPU have one order of sums only with a workspace of their own (cuBLAS,
        # "Results Reproducibility"); read when the first one is started
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # the same as use_deterministic_algorithms(True, warn_only=True), which loads the compiler
        torch.set_deterministic_debug_mode("warn")
        # each new tensor would be filled before it is written: nothing here reads what nothing wrote
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # a CUDA graph that holds a collective need not be that of the other ranks then (nccl, "Environment
    # Variables"); read when the first collective is started
    os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")
    require_same_config(config, ranks)
    if ranks.size > 1:
        # a signal that reaches one process of this host is passed on to its other ranks
        host = int.from_bytes(hashlib.sha256(platform.node().encode()).digest()[:7], "big")
        everybody = ranks.gather(torch.tensor([host, os.getpid()])).tolist()
        signals.forward_to([pid for its_host, pid in everybody if its_host == host and pid != os.getpid()])


def useful_threads(config: Config) -> int:
    """Return the number of PyTorch's threads for a rank.

    It is one if matrix products are small, else the rank's share of the host's cores.
    """
    # products of a minibatch with small layers take microseconds: threads gain nothing by sharing
    # them, and on a busy machine lose a time slice whenever they wait for each other
    between_layers = [n * m for n, m in pairwise(config.hidden_sizes)]
    is_small = config.per_rank_batch_size * max(between_layers, default=0) < _MULTIPLY_ADDS_FOR_THREADS
    return 1 if is_small else cores_per_rank()


def require_same_config(config: Config, ranks: Ranks) -> None:
    """Compare the configurations of all ranks.

    Raises:
        ConfigError: they differ; the error names the flags, and the first rank unlike rank 0.
    """
    # digests first, whose size does not depend on the flags
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
            values = ", ".join(f"{flag(name)} {first[name]} and {other.get(name)}" for name in differing)
            # alone, --resume takes the other flags from the run's folder
            hint = ", or with --resume a folder that every host has" if config.resume else ""
            raise ConfigError(
                f"rank 0 and rank {rank} were started with different flags: {values}; the same are expected{hint}"
            )
