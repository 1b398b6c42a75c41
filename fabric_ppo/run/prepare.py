"""Preparing a process for a run: threads, timeouts, determinism, and what ranks must agree on."""

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


def prepare_process(config: Config, ranks: Ranks) -> None:
    """Set threads, the timeout and determinism; see that ranks were started alike; share signals.

    Raises:
        ConfigError: ranks have different flags.
    """
    threads = config.num_threads or useful_threads(config)
    torch.set_num_threads(threads)
    # without it, Lightning sets threads anew when it launches
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    set_timeout(config.timeout)
    if config.torch_deterministic:
        # as use_deterministic_algorithms(True, warn_only=True), which would load the compiler
        torch.set_deterministic_debug_mode("warn")
    require_same_config(config, ranks)
    if ranks.size > 1:
        host = int.from_bytes(hashlib.sha256(platform.node().encode()).digest()[:7], "big")
        everybody = ranks.gather(torch.tensor([host, os.getpid()])).tolist()
        signals.forward_to([pid for its_host, pid in everybody if its_host == host and pid != os.getpid()])


def useful_threads(config: Config) -> int:
    """Return the threads that a rank makes use of: one, unless its matrix products are large.

    Then it is the rank's share of the host's cores. Products of a minibatch with small layers take
    microseconds: threads gain nothing by sharing them, and on a busy machine lose a time slice
    whenever they wait for each other.
    """
    between_layers = [n * m for n, m in pairwise(config.hidden_sizes)]
    is_small = config.per_rank_batch_size * max(between_layers, default=0) < _MULTIPLY_ADDS_FOR_THREADS
    return 1 if is_small else cores_per_rank()


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
            values = ", ".join(f"{flag(name)} {first[name]} and {other.get(name)}" for name in differing)
            raise ConfigError(
                f"rank 0 and rank {rank} were started with different flags: {values}; the same are expected"
            )
