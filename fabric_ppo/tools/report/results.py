"""Results of a report: test returns as figures, as a histogram, and in a table of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fabric_ppo.process.console import format_number
from fabric_ppo.tools.report.runs import ReportRun
from fabric_ppo.tools.run_states import finite, train_return
from fabric_ppo.tools.scores import interquartile_mean, interval

_MOST_BARS = 20


@dataclass(frozen=True)
class Tile:
    """Figure with its name, and more about it."""

    name: str
    figure: str
    more: str = ""


@dataclass(frozen=True)
class Bar:
    """Bar of a histogram: returns from `low` to `high`, and the number of episodes; shares in 0 .. 1."""

    low: str
    high: str
    count: int
    height: float


@dataclass(frozen=True)
class Score:
    """Test result of a run for the table: text, and where its episodes are on the scale in 0 .. 100."""

    text: str
    places: list[float]
    mean: float | None


def tiles(run: ReportRun) -> list[Tile]:
    """Return the figures of a run, the most important one first."""
    found, returns, test = [], run.test_returns, run.summary.get("test")
    if len(returns):
        cut_off = finite(test.get("cut_off")) if isinstance(test, dict) else None
        more = f"± {format_number(returns.std())} over {count(len(returns), 'greedy episode')}"
        more += f", {cut_off:.0f} cut off" if cut_off else ""
        found.append(Tile("Test return", format_number(returns.mean()), more))
    last = train_return(run.result, is_done=bool(run.summary))
    if last.mean is not None:
        more = f"last {count(last.episodes, 'episode')}" if last.episodes else "last update with an episode"
        found.append(Tile("Training return", format_number(last.mean), more))
    goal = finite(run.settings.get("total_timesteps"))
    unit = run.settings.get("timestep_unit") == "transition"
    more = f"of {goal:,.0f}, in {count(run.updates, 'update')}" if goal and unit else count(run.updates, "update")
    found.append(Tile("Transitions", f"{run.transitions:,}", more))
    if (speed := run.number("steps_per_second")) is not None:
        found.append(Tile("Speed", f"{speed:,.0f}", "transitions per second of training"))
    if (wall := run.number("wall_seconds")) is not None:
        resumes = run.number("resumes")
        more = f"resumed {resumes:.0f} times" if resumes else "from start to end, with the test"
        found.append(Tile("Time", seconds(wall), more))
    return found


def histogram(returns: NDArray[np.float64]) -> list[Bar]:
    """Return the bars of a histogram; none for no returns."""
    if not len(returns):
        return []
    if _are_equal(returns):
        value = format_number(returns[0])
        return [Bar(value, value, len(returns), 1.0)]
    edges = np.histogram_bin_edges(returns, "auto")
    counts, edges = np.histogram(returns, min(_MOST_BARS, max(5, len(edges) - 1)))
    pairs = zip(edges[:-1], edges[1:], counts.tolist(), strict=True)
    return [Bar(format_number(low), format_number(high), each, each / counts.max()) for low, high, each in pairs]


def scores(runs: Sequence[ReportRun]) -> list[Score]:
    """Return the test results of runs on one scale."""
    low, high = _bounds(runs) or (0.0, 0.0)
    found = []
    for run in runs:
        returns = run.test_returns
        if not len(returns):
            found.append(Score("no test", [], None))
            continue
        # equal returns are in the middle: at an end they would look like the worst or the best
        places = np.full(len(returns), 50.0) if low == high else (returns - low) / (high - low) * 100
        text = f"{format_number(returns.mean())} ± {format_number(returns.std())}"
        found.append(Score(text, [round(float(each), 2) for each in places], round(float(places.mean()), 2)))
    return found


def scale(runs: Sequence[ReportRun]) -> list[str]:
    """Return the ends of the scale of `scores` as text: one where all returns are equal; none without a test."""
    found = _bounds(runs)
    return list(dict.fromkeys(map(format_number, found))) if found else []


def _bounds(runs: Sequence[ReportRun]) -> tuple[float, float] | None:
    """Return the lowest and the highest test return; twice the same where they are equal but for rounding."""
    every = np.concatenate([run.test_returns for run in runs]) if runs else np.zeros(0)
    if not len(every):
        return None
    return (float(every[0]),) * 2 if _are_equal(every) else (float(every.min()), float(every.max()))


def _are_equal(returns: NDArray[np.float64]) -> bool:
    return bool(np.ptp(returns) <= 1e-9 * max(1.0, float(abs(returns).max())))


def group_score(runs: Sequence[ReportRun]) -> tuple[str, str]:
    """Return what a group's score is, and the score: of several runs with its interval."""
    means = [float(run.test_returns.mean()) for run in runs if len(run.test_returns)]
    if not means:
        return "", "no test"
    middle = format_number(float(interquartile_mean(means)))
    if len(means) == 1:
        return "mean test return of one run", middle
    low, high = interval(means)
    text = f"{middle} [{format_number(low)}, {format_number(high)}]"
    return f"interquartile mean of {count(len(means), 'run')} [95 %]", text


def count(value: int, noun: str) -> str:
    """Return a number and its noun: "1 run", "2 runs"."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def seconds(value: float) -> str:
    """Return a time's text in two units at most."""
    if value < 10:
        return f"{value:.2g} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600:,} h {whole % 3600 // 60} min"
