"""Lines of a picture, from runs: a line for each run, or one with a band for each group."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.result import WINDOW_RETURN, RunResult
from fabric_ppo.tools.curves import band, curve, metric_names
from fabric_ppo.tools.plot import Line, Panel
from fabric_ppo.tools.run_groups import Group, groups, settings
from fabric_ppo.tools.run_names import short_names
from fabric_ppo.tools.tables import printable

_OF_EPISODES = ("Rewards/rew_avg", "Game/ep_len_avg", WINDOW_RETURN)
"""Metrics that a run without a finished episode does not have."""
_UNITS = (("hours", 3600.0, 2 * 3600.0), ("minutes", 60.0, 2 * 60.0), ("seconds", 1.0, 0.0))
"""Units of time: name, seconds in it, and the length in seconds from which on it is used."""


@dataclass(frozen=True)
class Drawn:
    """Curves that are drawn.

    Attributes:
        metrics: one panel each.
        x: one of `curves.AXES`.
        smooth: as `curves.curve` has it.
    """

    metrics: Sequence[str]
    x: str
    smooth: int


def single_runs(runs: Sequence[RunResult]) -> list[Group]:
    """Return a group for each run, labelled with as much of its path as tells it from the others."""
    parts = [run.run_dir.absolute().parts for run in runs]
    length = next(
        count for count in range(1, max(map(len, parts)) + 1) if len({each[-count:] for each in parts}) == len(parts)
    )
    return [Group("/".join(part[-length:]), [run], {}) for part, run in zip(parts, runs, strict=True)]


def seed_groups(runs: Sequence[RunResult], by: Sequence[str] | None) -> list[Group]:
    """Return groups as `run_groups.groups`, labelled with the number of runs, too."""
    return [replace(each, label=f"{each.label} (n = {len(each.runs)})") for each in groups(runs, by)]


def with_labels(found: Sequence[Group], labels: Sequence[str]) -> list[Group]:
    """Return groups with other labels.

    Raises:
        ConfigError: there are more or fewer labels than groups.
    """
    if len(labels) != len(found):
        lines = ", ".join(printable(each.label) for each in found)
        raise ConfigError(f"--labels {','.join(labels)}: one for each of {len(found)} lines is expected ({lines})")
    return [replace(each, label=label) for each, label in zip(found, labels, strict=True)]


def escaped(found: Sequence[Group], longest: int) -> list[Group]:
    """Return groups with labels in which nothing stands for a formula or a line's end.

    Args:
        found: at least one.
        longest: number of characters above which labels lose what all share, and their middle.
    """
    labels = [printable(each.label) for each in found]
    if max(map(len, labels)) > longest:
        labels = short_names(labels, longest)
    return [replace(each, label=label.replace("$", r"\$")) for each, label in zip(found, labels, strict=True)]


def panels_of(found: Sequence[Group], drawn: Drawn, log_y: bool) -> tuple[list[Panel], str]:
    """Return a panel for each metric, and the title of the x axes.

    Raises:
        ConfigError: a metric is unknown, or has no value that can be drawn.
    """
    known = metric_names([run for group in found for run in group.runs])
    for metric in drawn.metrics:
        if metric not in known:
            there_are = f"one of {', '.join(known)} is expected" if known else "these runs have none yet"
            what = "no episode of these runs ended in training" if metric in _OF_EPISODES else "no metric of these runs"
            raise ConfigError(f"--metric {metric}: {what if known else 'no metric of these runs'}; {there_are}")
    all_lines = [[_line(group, metric, drawn) for group in found] for metric in drawn.metrics]
    for metric, lines in zip(drawn.metrics, all_lines, strict=True):
        if not any(len(line.x) for line in lines):
            raise ConfigError(f"--metric {metric}: no line has a point; another metric, or other runs, are expected")
        if log_y and not any((line.y > 0).any() for line in lines):
            raise ConfigError(f"--log-y: {metric} has no value above 0; another metric is expected")
    title = drawn.x
    if drawn.x == "wall-time":
        last = max(float(line.x[-1]) for lines in all_lines for line in lines if len(line.x))
        unit, seconds = next((unit, seconds) for unit, seconds, least in _UNITS if last >= least)
        title = f"{unit} of training"
        all_lines = [[replace(line, x=line.x / seconds) for line in lines] for lines in all_lines]
    return [Panel(metric, lines) for metric, lines in zip(drawn.metrics, all_lines, strict=True)], title


def _line(group: Group, metric: str, drawn: Drawn) -> Line:
    """Return the line of a group: of several runs with a band, of one run with all its points."""
    curves = [curve(run, metric, drawn.x, drawn.smooth) for run in group.runs]
    if len(curves) == 1:
        return Line(group.label, *curves[0])
    merged = band(curves)
    return Line(group.label, merged.x, merged.middle, (merged.low, merged.high))


def remarks(found: Sequence[Group], drawn: Drawn) -> Iterator[str]:
    """Yield a line for each run that is not drawn, or not to its end, and one where environments differ."""
    envs = list(dict.fromkeys(str(settings(run).get("env_id") or "unknown") for each in found for run in each.runs))
    if len(envs) > 1:
        yield f"different environments: {', '.join(envs)}; their returns are on different scales"
    for metric in drawn.metrics:
        for group in found:
            xs = [curve(run, metric, drawn.x)[0] for run in group.runs]
            yield from (
                f"{run}: has no values of {metric}" for run, x in zip(group.runs, xs, strict=True) if not len(x)
            )
            ends = [(float(x[-1]), run) for run, x in zip(group.runs, xs, strict=True) if len(x)]
            first, last = min((end for end, _ in ends), default=0.0), max((end for end, _ in ends), default=0.0)
            if ends and max(x[0] for x in xs if len(x)) > first:
                yield f"{group.label}: its runs have no {drawn.x} of {metric} in common: there is no line"
            # runs of one length end a few updates apart, where no episode ends, and at different times
            elif drawn.x != "wall-time" and metric == drawn.metrics[0] and first < 0.9 * last:
                run = next(run for end, run in ends if end == first)
                yield f"{group.label}: the line ends where {run} does, after {first:,.0f} of {last:,.0f} {drawn.x}"


def without_empty(panels: Sequence[Panel]) -> list[Panel]:
    """Return panels without the lines that have no point in any of them: a legend is of what is drawn."""
    lines = zip(*(panel.lines for panel in panels), strict=True)
    is_drawn = [any(len(line.x) for line in own) for own in lines]
    return [replace(panel, lines=list(itertools.compress(panel.lines, is_drawn))) for panel in panels]


def above_zero(panels: Sequence[Panel]) -> tuple[list[Panel], list[str]]:
    """Return panels with only the points that a logarithmic axis has, and a line about each loss of some.

    A gap stays where a point is left out.
    """
    found, lost = [], []
    for panel in panels:
        lines = []
        for line in panel.lines:
            fits = line.y > 0
            if len(fits) and not fits.any():
                lost.append(f"--log-y: {line.label}: no value of {panel.metric} is above 0: there is no line")
                line = replace(line, x=line.x[:0], y=line.y[:0], band=None)
            elif not fits.all():
                left_out = f"{(~fits).sum():,} of {len(fits):,} values of {panel.metric} are not above 0"
                lost.append(f"--log-y: {line.label}: {left_out}: the line has gaps")
                line = replace(line, y=np.where(fits, line.y, np.nan))
            lines.append(line)
        found.append(replace(panel, lines=lines))
    return found, lost
