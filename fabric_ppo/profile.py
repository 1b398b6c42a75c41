"""`--profile`: where a run's time went, as a table and as a trace that Chrome and Perfetto open.

What is timed carries `@timed("...")`; without `--profile` that costs a tenth of a microsecond a call. A span that lies
within another counts for itself alone, so that the table's rows add up to the time that passed. Times are the host's:
on a GPU, kernels that were started but not waited for belong to whoever waits.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch

from fabric_ppo.checkpoint import write_atomically
from fabric_ppo.launch import say

if TYPE_CHECKING:
    from fabric_ppo.distributed import Ranks

P = ParamSpec("P")
R = TypeVar("R")
MOST_EVENTS = 200_000
"""How many spans a trace has at most, the first ones; the table has them all."""
PARTS = (
    *("environment", "policy", "values", "batch", "minibatches", "loss", "backward", "all-reduce", "optimizer"),
    *("transfer", "wait", "report", "evaluation", "logging", "checkpoint"),
)
"""What is told apart; the rest of the time is `other`."""


class Profile:
    """The spans of one process."""

    def __init__(self) -> None:
        """Start the clock."""
        self._started = time.perf_counter()
        self._own_seconds: dict[str, float] = defaultdict(float)
        self._calls: dict[str, int] = defaultdict(int)
        self._events: list[tuple[str, float, float]] = []
        self._inner = [0.0]  # for each open span, and the process: seconds of the spans within

    def call(self, name: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `function` as a span."""
        started = time.perf_counter()
        self._inner.append(0.0)
        try:
            return function(*args, **kwargs)
        finally:
            seconds = time.perf_counter() - started
            self._own_seconds[name] += seconds - self._inner.pop()
            self._inner[-1] += seconds
            self._calls[name] += 1
            if len(self._events) < MOST_EVENTS:
                self._events.append((name, started, seconds))

    def totals(self) -> list[float]:
        """Seconds of each of PARTS, and of `other`, since the start."""
        known = [self._own_seconds[name] for name in PARTS]
        return [*known, time.perf_counter() - self._started - sum(known)]

    def write_trace(self, path: Path, rank: int) -> None:
        """Write the spans in the Trace Event Format."""
        events = [
            {
                "name": name,
                "ph": "X",
                "ts": (started - self._started) * 1e6,
                "dur": seconds * 1e6,
                "pid": rank,
                "tid": 0,
            }
            for name, started, seconds in self._events
        ]
        named = {"name": "process_name", "ph": "M", "pid": rank, "args": {"name": f"rank {rank}"}}
        write_atomically(path, json.dumps({"traceEvents": [named, *events]}).encode())


_current: list[Profile] = []


def start() -> Profile:
    """Time what is `timed`, from now on, in this process."""
    _current[:] = [Profile()]
    return _current[0]


def finish(ranks: Ranks, run_dir: Path | None, who: str = "rank") -> None:
    """Stop the clock on all of `ranks`: the first prints the table of all; each writes a trace if it has a folder."""
    if not _current:
        return
    own = _current.pop()
    totals = ranks.gather(torch.tensor(own.totals(), dtype=torch.float64)).tolist()
    if ranks.rank == 0:
        say(table(totals, who), sys.stdout)
    if run_dir is not None:
        run_dir.mkdir(parents=True, exist_ok=True)
        own.write_trace(run_dir / f"trace_rank_{ranks.rank}.json", ranks.rank)


def timed(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function as one of PARTS."""
    assert name in PARTS

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return _current[0].call(name, function, *args, **kwargs) if _current else function(*args, **kwargs)

        return call

    return mark


def table(totals: list[list[float]], who: str) -> str:
    """The `totals` of each rank (`who` in the header): seconds and shares of what took any time, the longest first."""
    names = [*PARTS, "other"]
    sums = [sum(rank) for rank in totals]
    rows = sorted(zip(names, zip(*totals, strict=True), strict=True), key=lambda row: -sum(row[1]))
    lines = ["where the time went".ljust(20) + "".join(f"{who} {rank}".rjust(18) for rank in range(len(totals)))]
    for name, seconds in rows:
        if max(seconds) >= 0.001:
            shown = (f"{each:10.2f} s {100 * each / total:4.0f} %" for each, total in zip(seconds, sums, strict=True))
            lines.append(name.ljust(20) + "".join(f"{cell:>18}" for cell in shown))
    return "\n".join(lines)
