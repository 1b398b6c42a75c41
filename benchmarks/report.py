"""From runs to a table: is the work equal, what are medians, spread and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.workloads import Workload

UNSOLVED = ("mean return", "not done after")
"""How problems begin that say nothing against a run whose work ends at a return."""


@dataclass(frozen=True)
class Run:
    """One run of one row; a run with a `problem` gives no figures."""

    row: str
    round: int
    setting: str
    wall_seconds: float
    train_seconds: float | None
    env_steps: int
    gradient_steps: int
    return_mean: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class Spread:
    """Median and extremes of some figures."""

    median: float
    least: float
    most: float

    def show(self, digits: int) -> str:
        """`2.00 (1.50 .. 3.00)`."""
        return f"{self.median:,.{digits}f} ({self.least:,.{digits}f} .. {self.most:,.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def unequal_work(workload: Workload, env_steps: int, gradient_steps: int, return_mean: float | None) -> str:
    """In what a run's work differs from the agreed one; empty if it does not."""
    agreed = workload.agreed
    if agreed.stop_at_return is not None:
        shown = "unknown" if return_mean is None else f"{return_mean:.1f}"
        solved = return_mean is not None and return_mean >= agreed.stop_at_return
        return "" if solved else f"{UNSOLVED[0]} {shown}, {agreed.stop_at_return:g} agreed"
    for name, did, wanted in (
        ("transitions", env_steps, agreed.env_steps),
        ("gradient steps", gradient_steps, agreed.gradient_steps),
    ):
        if abs(did - wanted) > workload.tolerance * wanted:
            return f"{did:,} {name}, {wanted:,} agreed"
    return ""


def reference(runs: Sequence[Run]) -> str:
    """The row that the others are compared to: the first one with a good run, or else none."""
    return next((run.row for run in good(runs)), "")


def ratios(workload: Workload, runs: Sequence[Run], row: str, seconds: str) -> Spread | None:
    """How many times as long `row` took as the reference, round by round; None without a common round.

    Args:
        workload: what was run.
        runs: all of its runs, in order.
        row: whose.
        seconds: which of a run's times, `wall_seconds` or `train_seconds`.
    """

    def cost(run: Run) -> float | None:
        value: float | None = getattr(run, seconds)
        if value is None or workload.agreed.stop_at_return is not None:
            return value
        return value / run.env_steps

    costs = {(run.row, run.round): value for run in good(runs) if (value := cost(run)) is not None}
    first = reference(runs)
    found = [
        costs[row, number] / costs[first, number]
        for number in sorted({run.round for run in runs})
        if (row, number) in costs and (first, number) in costs
    ]
    return spread(found) if found else None


def good(runs: Sequence[Run]) -> list[Run]:
    """Those without a problem."""
    return [run for run in runs if not run.problem]


def failures(workload: Workload, runs: Sequence[Run]) -> list[Run]:
    """Runs that went wrong: not to have learned, or not in time, is a result where that is the question."""
    is_result = workload.agreed.stop_at_return is not None
    return [run for run in runs if run.problem and not (is_result and run.problem.startswith(UNSOLVED))]


def problems(runs: Sequence[Run]) -> str:
    """`refused 2 of 5: ...`; empty without any."""
    found = [run.problem for run in runs if run.problem]
    return f"refused {len(found)} of {len(runs)}: " + "; ".join(dict.fromkeys(found)) if found else ""


HEADER = (
    "| program | setting | from start to end, s | training, s | transitions/s in training | start to end, ratio | "
    "training, ratio | transitions | gradient steps |\n|---|---|---|---|---|---|---|---|---|"
)


def table_line(workload: Workload, runs: Sequence[Run], row: str) -> str:
    """A row's line of the table: `median (least .. most)` over its good runs, and its problems."""
    own = [run for run in runs if run.row == row]
    fine = good(own)
    if not fine:
        return f"| {row} | {own[0].setting}. {problems(own)} |" + " |" * 7
    trained = [run for run in fine if run.train_seconds is not None]
    train = spread([run.train_seconds or 0.0 for run in trained]).show(1) if trained else "not told"
    speed = spread([run.env_steps / (run.train_seconds or 1.0) for run in trained]).show(0) if trained else "not told"
    both = [ratios(workload, runs, row, seconds) for seconds in ("wall_seconds", "train_seconds")]
    cells = [
        row,
        ". ".join(filter(None, [fine[0].setting, problems(own)])),
        spread([run.wall_seconds for run in fine]).show(1),
        train,
        speed,
        *("" if ratio is None else ratio.show(2) for ratio in both),
        *(_counts([getattr(run, name) for run in fine]) for name in ("env_steps", "gradient_steps")),
    ]
    return "| " + " | ".join(cells) + " |"


def _counts(values: Sequence[int]) -> str:
    return f"{values[0]:,}" if len(set(values)) == 1 else spread(values).show(0)


def table(workload: Workload, runs: Sequence[Run], skipped: dict[str, str]) -> str:
    """The whole table, as Markdown; `skipped` are rows that could not run, with the reason."""
    lines = [
        f"| {each.row} | skipped: {skipped[each.row]} |" + " |" * 7
        if each.row in skipped
        else table_line(workload, runs, each.row)
        for each in workload.contenders
    ]
    return "\n".join([HEADER, *lines])
