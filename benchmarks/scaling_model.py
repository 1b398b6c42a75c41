"""Model of the time that an update takes on many ranks, for the four ways to train on them.

docs/scaling.md explains it and compares it with measured runs; `benchmarks.scaling` prints and
draws it. Seconds are of the wall clock, and an update is that of all ranks.

Sources:
- gloo's ring all-reduce in two halves: P. Patarasuk and X. Yuan, "Bandwidth optimal all-reduce
  algorithms for clusters of workstations" (2009), for the 2 (W - 1) steps. That a step takes two
  delays, since gloo's receiver says first that it is ready, is measured
  (`python -m benchmarks.collectives`).
- The expected maximum of W normal times: H. A. David and H. N. Nagaraja, "Order Statistics" (2003).
- What is sent: docs/cluster.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

_SEGMENT_BYTES = 2**20
"""Bytes of the longest segment that gloo's all-reduce sends at once."""
_MERGED_BYTES = 200
"""Bytes of the numbers that a trainer merges with the others after an update."""
_HEADER_BYTES = 1000
"""Bytes of names and numbers that come with weights and optimizer."""
_EVALUATED = 1 / 3
"""Time of a row's forward pass, as a part of the time of forward and backward."""
_SHUFFLE_SECONDS = 2.5e-8
"""Seconds to permute one of the shared rows in an epoch."""
_LOOPBACK = (85e-6, 7e9)
"""Latency in seconds and bandwidth in bits per second between gloo's ranks on one host."""
_SHARED_SECONDS, _SHARED_BYTE_SECONDS = 30e-6, 1.6e-10
"""Seconds of a sum in shared memory, and those for each byte of each rank."""
_COPY_SECONDS = 1e-9
"""Seconds to rearrange a byte of shared rows."""


@dataclass(frozen=True)
class Work:
    """Work of a rank in one update, and how long it takes alone.

    Attributes:
        rows: transitions that it collects, T x M.
        batch_size: rows of a minibatch.
        epochs: passes over the rows.
        weights: number of weights.
        row_bytes: of a row: observation, action and 5 numbers.
        report_bytes: of the report that ends an update (docs/cluster.md).
        collect_seconds: of a transition in the rollout.
        step_seconds: of a gradient step, whatever its rows.
        row_seconds: of a row in a gradient step.
        other_seconds: of the rest of an update: advantages, report, logs.
        player_speed: times as fast as one rank the player of the decoupled script steps
            environments, for it may have a whole host's cores for them.
    """

    rows: int
    batch_size: int
    epochs: int
    weights: int
    row_bytes: int
    report_bytes: int
    collect_seconds: float
    step_seconds: float
    row_seconds: float
    other_seconds: float
    player_speed: float = 1.0

    @property
    def gradient_steps(self) -> int:
        """Number of gradient steps in an update, the same for all ranks."""
        return self.epochs * -(-self.rows // self.batch_size)

    def step(self, rows: float) -> float:
        """Return the seconds of a gradient step on so many rows."""
        return self.step_seconds + rows * self.row_seconds


@dataclass(frozen=True)
class Network:
    """Links between ranks, and how unequally fast ranks are.

    Attributes:
        latency: seconds from one rank to another for a message without content, with the time that
            the software takes on both ends.
        bandwidth: bits per second of payload, in each direction of each rank's link.
        spread: standard deviation of the time of a rank's rollout, as a part of its mean.
        step_spread: the same of a rank's gradient step.
        tree: true for an all-reduce up and down a binary tree, false for gloo's ring.
        host_ranks: number of ranks up to which all are on one host: they average gradients through
            shared memory, and exchange the rest over its loopback interface.
    """

    latency: float
    bandwidth: float
    spread: float = 0.0
    step_spread: float = 0.0
    tree: bool = False
    host_ranks: int = 1

    def of(self, ranks: int) -> Network:
        """Return the links of a run of so many ranks: those of a host, where one has them all."""
        return replace(self, latency=_LOOPBACK[0], bandwidth=_LOOPBACK[1]) if self.is_one_host(ranks) else self

    def is_one_host(self, ranks: int) -> bool:
        """Return True if so many ranks are on one host; a single rank has no use for a network."""
        return ranks <= self.host_ranks

    def wire(self, size: float) -> float:
        """Return the seconds that so many bytes take on a link, beyond its latency."""
        return 8 * size / self.bandwidth


@dataclass(frozen=True)
class Parts:
    """Seconds of an update.

    Attributes:
        rollout: collecting, until the slowest rank has done.
        training: gradient steps, each until the slowest rank has done.
        averaging: all-reduces of the gradients.
        exchange: rows, weights, moments and reports between ranks.
        other: the rest.
        hidden: what happens beside something longer, and is not waited for.
    """

    rollout: float = 0.0
    training: float = 0.0
    averaging: float = 0.0
    exchange: float = 0.0
    other: float = 0.0
    hidden: float = 0.0

    @property
    def total(self) -> float:
        """Seconds that the update takes."""
        return sum(getattr(self, each.name) for each in fields(self) if each.name != "hidden") - self.hidden


def expected_maximum(count: int) -> float:
    """Return the expected maximum of so many independent standard normal numbers.

    0 for one, 1 / sqrt(pi) for two; it grows as sqrt(2 ln count).
    """
    x = np.linspace(-12.0, 12.0, 24001)
    below = np.array([0.5 * math.erfc(-each / math.sqrt(2)) for each in x]) ** count
    # E[X] = integral of P(X > x) over x > 0, less that of P(X < x) over x < 0
    heights = np.where(x > 0, 1 - below, -below)
    heights[len(x) // 2] = 0.5 - below[len(x) // 2]  # the mean of both sides of the jump
    return float(heights.sum() * (x[1] - x[0]))


def slowest(mean: float, spread: float, ranks: int) -> float:
    """Return the expected time of the slowest of some ranks, whose times are normal."""
    return mean * (1 + spread * expected_maximum(ranks)) if spread and ranks > 1 else mean


def all_reduce_seconds(size: float, ranks: int, network: Network) -> float:
    """Return the seconds of an all-reduce of so many bytes; 0 for one rank.

    A ring passes segments round twice, W - 1 steps each, and has two of them on the way at a time.
    """
    if ranks == 1:
        return 0.0
    if network.tree:
        return 2 * math.ceil(math.log2(ranks)) * (network.latency + network.wire(size))
    pairs = max(1, math.ceil(size / ranks / _SEGMENT_BYTES / 2))
    return _ring_seconds(2 * (ranks - 1) * pairs, size / ranks / pairs, network)


def averaging_seconds(work: Work, network: Network, ranks: int, world: int) -> float:
    """Return the seconds in which some ranks average a gradient, in a run of `world` ranks."""
    size = 4 * work.weights
    if ranks > 1 and network.is_one_host(world):
        return _SHARED_SECONDS + ranks * size * _SHARED_BYTE_SECONDS
    return all_reduce_seconds(size, ranks, network)


def all_gather_seconds(size: float, ranks: int, network: Network) -> float:
    """Return the seconds in which each rank gets the `size` bytes of each other one; 0 for one."""
    return _ring_seconds(ranks - 1, size, network)


def _ring_seconds(steps: int, size: float, network: Network) -> float:
    """Return the seconds of some steps round a ring, in each of which a rank sends `size` bytes.

    Before they are sent, the receiver has said that it is ready: two latencies.
    """
    return steps * (2 * network.latency + network.wire(size))


def local_data(work: Work, network: Network, ranks: int) -> Parts:
    """Return the seconds of an update in which each rank trains on its own rows."""
    return _coupled(work, network, ranks, all_gather_seconds(32, ranks, network.of(ranks)))


def shared_data(work: Work, network: Network, ranks: int) -> Parts:
    """Return the seconds of an update with `--share-data`: all ranks get the rows of all."""
    if ranks == 1:
        return local_data(work, network, 1)
    size = work.rows * work.row_bytes
    everything = ranks * size * _COPY_SECONDS + work.epochs * ranks * work.rows * _SHUFFLE_SECONDS
    return _coupled(work, network, ranks, all_gather_seconds(size, ranks, network.of(ranks)) + everything)


def _coupled(work: Work, network: Network, ranks: int, rows: float) -> Parts:
    """Return the parts of an update of coupled ranks, where exchanging rows takes some seconds."""
    steps = work.gradient_steps
    return Parts(
        rollout=slowest(work.rows * work.collect_seconds, network.spread, ranks),
        training=steps * slowest(work.step(work.batch_size), network.step_spread, ranks),
        averaging=steps * averaging_seconds(work, network, ranks, ranks),
        exchange=rows + all_gather_seconds(work.report_bytes, ranks, network.of(ranks)),
        other=work.other_seconds,
    )


def decoupled(work: Work, network: Network, ranks: int) -> Parts:
    """Return the seconds of an update where a player collects for the other ranks, which train.

    The player collects as many rows as coupled ranks do together, and minibatches hold as many.

    Raises:
        ValueError: there is no rank that could train.
    """
    trainers = _trainers(ranks)
    steps, rows, link = work.gradient_steps, ranks * work.rows, network.of(ranks)
    return Parts(
        rollout=rows * work.collect_seconds / work.player_speed,
        training=steps * slowest(work.step(work.batch_size * ranks / trainers), network.step_spread, trainers),
        averaging=steps * averaging_seconds(work, network, trainers, ranks),
        exchange=2 * link.latency
        + link.wire(rows * work.row_bytes + _state_bytes(work))
        + all_gather_seconds(_MERGED_BYTES, trainers, link),
        other=work.other_seconds,
    )


def overlapped(work: Work, network: Network, ranks: int) -> Parts:
    """Return the seconds of an update with `--overlap`: the player collects while others train.

    Raises:
        ValueError: there is no rank that could train.
    """
    alone, link = decoupled(work, network, ranks), network.of(ranks)
    revaluing = ranks * work.rows * work.row_seconds * _EVALUATED
    answer = link.latency + link.wire(_state_bytes(work))
    of_trainers = alone.training + alone.averaging + alone.exchange - answer
    # weights are sent when the player has said that it is ready for them
    of_player = alone.rollout + alone.other + link.latency
    return Parts(
        alone.rollout,
        alone.training,
        alone.averaging,
        alone.exchange + link.latency,
        alone.other + revaluing,
        hidden=min(of_trainers, of_player),
    )


def _trainers(ranks: int) -> int:
    if ranks < 2:
        raise ValueError(f"{ranks} ranks: the decoupled script has a player and at least one trainer")
    return ranks - 1


def _state_bytes(work: Work) -> float:
    """Return the bytes of the weights and of Adam's two moments, which trainers send back."""
    return 3 * 4 * work.weights + _HEADER_BYTES


WAYS: dict[str, Callable[[Work, Network, int], Parts]] = {
    "local data": local_data,
    "--share-data": shared_data,
    "decoupled": decoupled,
    "--overlap": overlapped,
}
"""The four ways, name -> seconds of an update."""


def rows_per_second(way: str, work: Work, network: Network, ranks: int) -> float:
    """Return the transitions per second of all ranks, of a way in `WAYS`."""
    return ranks * work.rows / WAYS[way](work, network, ranks).total


def efficiency(way: str, work: Work, network: Network, ranks: int) -> float:
    """Return the speed of a way as a part of that of as many ranks that need not communicate."""
    alone = work.rows / local_data(work, network, 1).total
    return rows_per_second(way, work, network, ranks) / ranks / alone
