"""Profile of a run (`--profile`): a table of where its time went, and a trace.

A function whose time counts carries `@timed("...")`; without `--profile` that costs a tenth of a
microsecond a call. A span that lies within another counts for itself alone, so that the table's
rows add up to the time that passed. Times are the host's: on a GPU, kernels that were started but
not waited for belong to whoever waits. The trace opens in Chrome (`chrome://tracing`) and Perfetto.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from fabric_ppo.process.console import print_line
from fabric_ppo.process.files import write_atomically

if TYPE_CHECKING:
    from fabric_ppo.process.group import Ranks

P = ParamSpec("P")
R = TypeVar("R")

MOST_EVENTS = 200_000
"""Most spans in a trace, the first ones of the run; the table counts all of them."""

PARTS = (
    *("environment", "policy", "values", "batch", "minibatches", "loss", "backward", "all-reduce", "optimizer"),
    *("transfer", "wait", "report", "evaluation", "logging", "checkpoint"),
)
"""Names of spans, the rows of the table; the rest of the time is `other`."""


class Profile:
    """The spans of one rank, from `start` to `finish`.

    Whoever owns the loop (a run, a trainer) starts a profile and finishes it; in between, functions
    marked `timed` that are called in the same thread add their spans to it.
    """

    def __init__(self) -> None:
        """Start the clock; `start` makes the profile current as well."""
        self._started = time.perf_counter()
        self._own_seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, float, float]] = []
        self._inner = [0.0]  # for each open span, and the process: seconds of the spans within

    @classmethod
    def start(cls) -> Profile:
        """Return a new profile, current from now on in this thread (in place of an older one)."""
        profile = cls()
        _current.set(profile)
        return profile

    def finish(self, ranks: Ranks, run_dir: Path | None, who: str = "rank") -> None:
        """Stop the clock on all of `ranks`, print the table of all, and write each rank's trace.

        Args:
            ranks: those that are profiled; each calls this, and the first one prints.
            run_dir: folder of the traces, `trace_rank_<rank>.json`; None for no traces.
            who: name of a rank in the table's header.

        Raises:
            OSError: the trace cannot be written; the table is printed all the same.
        """
        if _current.get() is self:
            _current.set(None)
        own = self.totals()
        import torch  # here, so that who only marks functions does not wait for it

        totals = ranks.gather(torch.tensor(own, dtype=torch.float64)).tolist()
        if ranks.rank == 0:
            print_line(format_table(totals, who), sys.stdout)
        if run_dir is not None:
            run_dir.mkdir(parents=True, exist_ok=True)
            self.write_trace(run_dir / f"trace_rank_{ranks.rank}.json", ranks.rank)

    def call(self, name: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call `function` as a span, and return what it returns."""
        started = time.perf_counter()
        self._inner.append(0.0)
        try:
            return function(*args, **kwargs)
        finally:
            seconds = time.perf_counter() - started
            self._own_seconds[name] += seconds - self._inner.pop()
            self._inner[-1] += seconds
            if len(self._events) < MOST_EVENTS:
                self._events.append((name, started, seconds))

    def totals(self) -> list[float]:
        """Return the seconds of each of PARTS, and of `other`, since the start."""
        known = [self._own_seconds[name] for name in PARTS]
        return [*known, time.perf_counter() - self._started - sum(known)]

    def write_trace(self, path: Path, rank: int) -> None:
        """Write the spans in the Trace Event Format, in microseconds since the start.

        Raises:
            OSError: it cannot be written.
        """
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


# The profile of the thread that runs the loop; other threads have none, so their spans, which
# overlap with the loop's, do not spoil its sums.
_current: ContextVar[Profile | None] = ContextVar("profile", default=None)


def timed(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function's calls as spans of `name`, one of PARTS."""
    assert name in PARTS

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            profile = _current.get()
            if profile is None:
                return function(*args, **kwargs)
            return profile.call(name, function, *args, **kwargs)

        return call

    return mark


def format_table(totals: list[list[float]], who: str) -> str:
    """Format the totals of each rank: seconds and shares of what took time, longest first.

    Args:
        totals: for each rank, as `Profile.totals` returns them.
        who: name of a rank in the header.
    """
    names = [*PARTS, "other"]
    sums = [sum(rank) for rank in totals]
    rows = sorted(zip(names, zip(*totals, strict=True), strict=True), key=lambda row: -sum(row[1]))
    lines = ["where the time went".ljust(20) + "".join(f"{who} {rank}".rjust(18) for rank in range(len(totals)))]
    for name, seconds in rows:
        if max(seconds) >= 0.001:
            cells = (f"{each:10.2f} s {100 * each / total:4.0f} %" for each, total in zip(seconds, sums, strict=True))
            lines.append(name.ljust(20) + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)
