"""Comparison of groups of runs: scores with intervals, improvement over the first group, time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from fabric_ppo.tools.run_groups import Group, settings
from fabric_ppo.tools.run_names import ranks
from fabric_ppo.tools.run_states import RunState, finite, read_state
from fabric_ppo.tools.scores import (
    improvement_interval,
    interquartile_mean,
    interval,
    probability_of_improvement,
)


@dataclass(frozen=True)
class Estimate:
    """Estimate with its 95 % bootstrap interval.

    Attributes:
        value, low, high: the estimate, and the bounds of its interval; None where one score is too
            few for an interval.
        of: what it is taken over: `runs` or `episodes`.
        number: of these.
    """

    value: float
    low: float | None
    high: float | None
    of: str
    number: int


@dataclass(frozen=True)
class Comparison:
    """A group of runs as `compare` shows it; None for what is not known.

    Attributes:
        label: name of the group.
        states: its runs.
        values: settings that differ between the runs of the comparison, name -> the values in this
            group, each once.
        test_return: interquartile mean of the runs' test returns; of a single run the mean of its
            test episodes.
        train_return: interquartile mean of the runs' mean returns in training; without an interval
            where `train_episodes` says that they are of fewer than 100 episodes.
        train_episodes: the smallest number of episodes that one of these means is over, 100 at
            most; None where a run has only the mean of the episodes of one update.
        improvement: probability that a run of this group has a higher test return than one of the
            first group; None for the first, and where a group has fewer than two such runs.
        wall_seconds, steps_per_second, env_steps: medians.

    Runs that are not done count for none of these, unless none of the group is.
    """

    label: str
    states: list[RunState]
    values: dict[str, list[Any]]
    test_return: Estimate | None
    train_return: Estimate | None
    train_episodes: int | None
    improvement: Estimate | None
    wall_seconds: float | None
    steps_per_second: float | None
    env_steps: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the values that `--json` prints."""
        values = {name: each for name, each in asdict(self).items() if name != "states"}
        runs = [state.to_dict() for state in self.states]
        return values | {"seeds": [state.seed for state in self.states], "runs": runs}


def compare(groups: Sequence[Group], differing: Sequence[str]) -> list[Comparison]:
    """Compare groups of runs with the first of them.

    Args:
        groups: at least one.
        differing: settings to show, as `differing_flags` returns them.
    """
    found = [_describe(group, differing) for group in groups]
    envs = {state.env_id for each in found for state in each.states}
    if len(envs) > 1:  # their returns have nothing in common
        return found
    first = _test_returns(found[0].states)
    return [found[0], *(replace(each, improvement=_improvement(each.states, first)) for each in found[1:])]


def _describe(group: Group, differing: Sequence[str]) -> Comparison:
    states = [read_state(run, str(run)) for run in group.runs]
    own = [settings(run) for run in group.runs]
    values = {name: _once([each.get(name) for each in own]) for name in differing}
    done = [run for run, state in zip(group.runs, states, strict=True) if state.state == "done"]
    counted = [state for state in states if state.state == "done"] or states
    returns = [state.train_return for state in counted if state.train_return_mean is not None]
    numbers = [each.episodes for each in returns if each.episodes is not None]
    train = _of_runs([each.mean for each in returns])
    if train is not None and any(each.is_partial for each in returns):
        train = replace(train, low=None, high=None)
    return Comparison(
        label=group.label,
        states=states,
        values=values,
        test_return=_test_return(group, states),
        train_return=train,
        train_episodes=min(numbers) if numbers and len(numbers) == len(returns) else None,
        improvement=None,
        wall_seconds=_median([finite(run.last_summary.get("wall_seconds")) for run in done]),
        steps_per_second=_median([state.steps_per_second for state in counted]),
        env_steps=_median([state.env_steps for state in counted]),
    )


def _once(values: Sequence[Any]) -> list[Any]:
    """Return values, each once, in order of size where they are numbers."""
    once = [value for i, value in enumerate(values) if value not in values[:i]]
    return [value for _, value in sorted(zip(ranks(once), once, strict=True), key=lambda pair: pair[0])]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def _test_returns(states: Sequence[RunState]) -> list[float]:
    return [state.test_return_mean for state in states if state.test_return_mean is not None]


def _of_runs(scores: Sequence[float | None]) -> Estimate | None:
    """Return the interquartile mean of runs' scores."""
    known = [score for score in scores if score is not None]
    if not known:
        return None
    low, high = interval(known) if len(known) > 1 else (None, None)
    return Estimate(float(interquartile_mean(known)), low, high, "runs", len(known))


def _test_return(group: Group, states: Sequence[RunState]) -> Estimate | None:
    """Return the estimate of a group's test return."""
    tested = [i for i, state in enumerate(states) if state.test_return_mean is not None]
    if len(tested) != 1:
        return _of_runs(_test_returns(states))
    test = group.runs[tested[0]].last_summary["test"]
    returns = test.get("returns")
    scores = [finite(each) for each in returns] if isinstance(returns, list) else []
    episodes = [score for score in scores if score is not None]
    if not episodes:
        return _of_runs(_test_returns(states))
    low, high = interval(episodes, lambda drawn: drawn.mean(-1)) if len(episodes) > 1 else (None, None)
    return Estimate(float(np.mean(episodes)), low, high, "episodes", len(episodes))


def _improvement(states: Sequence[RunState], first: Sequence[float]) -> Estimate | None:
    """Return the probability that a run of a group is better than one of the first group."""
    own = _test_returns(states)
    if min(len(own), len(first)) < 2:
        return None
    low, high = improvement_interval(own, first)
    return Estimate(probability_of_improvement(own, first), low, high, "runs", min(len(own), len(first)))


def notes(compared: Sequence[Comparison]) -> Iterator[str]:
    """Yield a line for everything that a reader of the comparison should know."""
    states = [state for each in compared for state in each.states]
    envs = list(dict.fromkeys(state.env_id or "unknown" for state in states))
    if len(envs) > 1:
        yield f"different environments: {', '.join(envs)}; their returns are not compared"
    for each in compared:
        test = each.test_return
        if test is not None and test.of == "episodes" and test.low is not None:
            episodes = f"{test.number} episodes of one run"
            yield f"{each.label}: the interval of its test return is over {episodes}, not over runs"
        is_counted = all(state.state != "done" for state in each.states)
        for state in each.states:
            yield from (f"{state.run_dir}: {problem}" for problem in state.problems)
            if state.state != "done":
                reason = f" ({state.failure})" if state.failure else ""
                counts = "counts as it is" if is_counted else "is left out of scores, time and speed"
                yield f"{state.run_dir}: {state.state}{reason}, after {state.updates} updates: it {counts}"
            elif state.test_return_mean is None:
                yield f"{state.run_dir}: has no test"
            if state.train_return.is_partial and (is_counted or state.state == "done"):
                of = few_episodes(state.train_return_episodes)
                yield f"{state.run_dir}: its training return is the mean {of}, not of 100"


def few_episodes(number: int | None) -> str:
    """Return the words for the episodes of a mean return; None for those of one update."""
    return "of one update" if number is None else f"of {number} episode{'' if number == 1 else 's'}"
