"""Cost of averaging one gradient between ranks of one host: gloo's all-reduce against shared memory.

    python benchmarks/all_reduce.py [--ranks 2] [--floats 9797]

The default is the gradient of the default agent on LunarLander. The two take turns, 500 times each.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing

from fabric_ppo.fast.shared_memory import SharedMemorySum
from fabric_ppo.process.group import Ranks

ROUNDS, CALLS = 20, 25


def rank_main(rank: int, size: int, floats: int, port: int) -> None:
    """Measure on one rank; rank 0 prints."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=size)

    def all_gather(tensor: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(tensor) for _ in range(size)]
        dist.all_gather(gathered, tensor)
        return torch.stack(gathered)

    memory = SharedMemorySum.between(Ranks(rank, size, all_gather), 4 * floats, timeout=60)
    assert memory is not None
    gradient = torch.randn(floats)
    ways: dict[str, Callable[[torch.Tensor], object]] = {"gloo": dist.all_reduce, "shared memory": memory.sum_}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, reduce in ways.items():
            dist.barrier()
            started = time.perf_counter()
            for _ in range(CALLS):
                reduce(gradient.div_(size))
            seconds[name].append((time.perf_counter() - started) / CALLS)
    if rank == 0:
        for name, each in seconds.items():
            middle, least, most = (1e6 * each_of(each) for each_of in (statistics.median, min, max))
            print(f"{name}: median {middle:.0f} us, from {least:.0f} to {most:.0f}")
        ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
        print(f"gloo / shared memory, pair by pair: {ratio:.1f}")
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Start the ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--floats", type=int, default=9797)
    given = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(rank_main, (given.ranks, given.floats, port), nprocs=given.ranks)


if __name__ == "__main__":
    main()
