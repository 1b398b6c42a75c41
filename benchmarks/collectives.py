"""Seconds that gloo's collectives take over links of a known delay, by the number of hosts.

    python -m benchmarks.collectives --hosts 2 4 8 --delay 0.01 --bandwidth 100e6 --bytes 4000 40000

Each host is a network namespace with one rank. The times are also given in delays of the link, and
beside them is what `benchmarks.scaling_model` says. Root is needed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor

from benchmarks.namespaces import DEVICE, Link, address, hosts, inside, measure_link, require_root
from benchmarks.scaling_model import Network, all_gather_seconds, all_reduce_seconds

ROUNDS, CALLS = 7, 8


def all_gather(tensor: Tensor) -> None:
    """Gather as the scripts do."""
    gathered = tensor.new_empty(dist.get_world_size(), *tensor.shape)
    dist.all_gather(list(gathered.unbind()), tensor)


def scatter(tensor: Tensor) -> None:
    """Send one tensor from rank 0 to each of the ranks."""
    parts = [tensor] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.scatter(torch.empty_like(tensor), parts, src=0)


def exchange(tensor: Tensor) -> None:
    """Broadcast from rank 0, and have rank 1 answer with as much."""
    dist.broadcast(tensor, src=0)
    if dist.get_rank() == 1:
        dist.send(tensor, 0)
    elif dist.get_rank() == 0:
        dist.recv(tensor, 1)


WAYS: dict[str, Callable[[Tensor], object]] = {
    "all_reduce": dist.all_reduce,
    "all_gather": all_gather,
    "broadcast": lambda tensor: dist.broadcast(tensor, src=0),
    "scatter": scatter,
    "broadcast and answer": exchange,
}


def rank_main(rank: int, names: Sequence[str], sizes: Sequence[int], link: Link) -> None:
    """Measure on one host; rank 0 prints."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": address(0), "MASTER_PORT": "29513", "GLOO_SOCKET_IFNAME": DEVICE}
    with inside(names[rank]):
        dist.init_process_group("gloo", rank=rank, world_size=len(names))
        for size in sizes:
            for name, way in WAYS.items():
                seconds = seconds_of(way, torch.zeros(max(size // 4, 1)))
                if rank == 0:
                    print(line(name, len(names), size, seconds, link), flush=True)
        dist.destroy_process_group()


def seconds_of(way: Callable[[Tensor], object], tensor: Tensor) -> float:
    """Return the seconds of a collective, when it is called again and again."""
    seconds, barriers = [], []
    for _ in range(ROUNDS):
        way(tensor)
        dist.barrier()
        started = time.perf_counter()
        for _ in range(CALLS):
            way(tensor)
        dist.barrier()  # the root of a scatter has sent all long before the last rank has it
        seconds.append(time.perf_counter() - started)
        started = time.perf_counter()
        dist.barrier()
        barriers.append(time.perf_counter() - started)
    return (statistics.median(seconds) - statistics.median(barriers)) / CALLS


def line(name: str, ranks: int, size: int, seconds: float, link: Link) -> str:
    """Return a row of the table, with what the model predicts where it has the collective."""
    network = Network(link.delay, link.bandwidth)
    predicted = {"all_reduce": all_reduce_seconds, "all_gather": all_gather_seconds}.get(name)
    cells = [str(ranks), f"{size:,}", name, f"{1e3 * seconds:.1f}", f"{seconds / link.delay:.2f}"]
    cells.append(f"{1e3 * predicted(size, ranks, network):.1f}" if predicted else "")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Make the hosts, measure their link, and start a rank in each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--delay", type=float, default=0.01, help="seconds from host to host (0.01)")
    parser.add_argument("--bandwidth", type=float, default=100e6, help="bits per second (100e6)")
    parser.add_argument("--bytes", type=int, nargs="+", default=[4000, 40000])
    given = parser.parse_args()
    require_root()
    head = ["ranks", "bytes", "collective", "ms", "in delays of the link", "model, ms"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for count in given.hosts:
        with hosts(count, Link(given.delay, given.bandwidth)) as names:
            link = measure_link(names)
            torch.multiprocessing.spawn(rank_main, (names, given.bytes, link), nprocs=count)


if __name__ == "__main__":
    main()
