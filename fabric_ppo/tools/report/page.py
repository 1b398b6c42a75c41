"""Report as one HTML file: what the page holds, and how it is rendered and written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import write_atomically
from fabric_ppo.tools.curves import metric_names
from fabric_ppo.tools.report.html import safe_json, self_contained
from fabric_ppo.tools.report.machines import machines_of
from fabric_ppo.tools.report.repeat import changed_flags, command_of
from fabric_ppo.tools.report.results import Score, Tile, group_score, histogram, scale, scores, seconds, tiles
from fabric_ppo.tools.report.runs import ReportRun, read_runs
from fabric_ppo.tools.report.series import MOST_POINTS, bands, run_series
from fabric_ppo.tools.report.times import Times, times_of
from fabric_ppo.tools.report.verdicts import DIAGNOSTICS, RETURN, Diagnostic, Verdict, combine, verdict
from fabric_ppo.tools.report.videos import videos_of
from fabric_ppo.tools.run_groups import differing_flags, format_setting, groups

VIDEO_MEGABYTES = 10.0
"""Bound on the videos in a report, unless it is given."""
_OWN_TITLES = {
    "Eval/return_mean": "Return of evaluations",
    "Rewards/rew_last_100": "Return, mean of the last 100 training episodes",
    "Game/ep_len_avg": "Length of training episodes",
    "Game/episodes": "Training episodes that ended in an update",
    "Time/step_per_second": "Transitions per second",
    "Time/rollout_seconds": "Seconds of a rollout",
    "Time/update_seconds": "Seconds of an update",
}
"""Titles of metrics that have no verdict; others have their tags."""


@dataclass(frozen=True)
class Chart:
    """Chart of a metric, with its sentences where there are any."""

    tag: str
    title: str
    healthy: str = ""
    verdict: Verdict | None = None


@dataclass(frozen=True)
class GroupView:
    """Group of runs as the page shows it: runs with their test scores, and times."""

    label: str
    runs: list[tuple[ReportRun, Score]]
    score: tuple[str, str]
    times: Times | None
    command: str


def write_report(run_dirs: Sequence[Path], out: Path, video_megabytes: float = VIDEO_MEGABYTES) -> None:
    """Write the report of runs.

    Args:
        run_dirs: their folders.
        out: the file to write; an older one is replaced as a whole.
        video_megabytes: bound on the videos inside the page; larger ones are named there.

    Raises:
        ConfigError: a folder holds no run, or the file cannot be written.
    """
    content = render(read_runs(run_dirs), video_megabytes).encode("utf-8", "replace")
    try:
        write_atomically(out, content)
    except OSError as error:
        reason = f"cannot be written ({error.strerror}); a file in a folder is expected"
        raise ConfigError(f"--out {out}: {reason}") from None


def render(runs: Sequence[ReportRun], video_megabytes: float = VIDEO_MEGABYTES) -> str:
    """Return the page of runs, at least one; the same folders give the same page."""
    values = _contents(runs, video_megabytes)
    return self_contained("fabric_ppo.tools.report", values, {"seconds": seconds, "setting": format_setting})


def _contents(runs: Sequence[ReportRun], video_megabytes: float) -> dict[str, Any]:
    """Return the values of the template."""
    by_result = {id(run.result): run for run in runs}
    found = [(each.label, [by_result[id(run)] for run in each.runs]) for each in groups([run.result for run in runs])]
    members = [own for _, own in found]
    runs = [run for own in members for run in own]
    scored = dict(zip((run.name for run in runs), scores(runs), strict=True))
    envs = list(dict.fromkeys(run.env_id or "an unknown environment" for run in runs))
    return {
        "heading": runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        "envs": envs,
        "runs": runs,
        "groups": [
            GroupView(label, [(run, scored[run.name]) for run in own], group_score(own), times_of(own), command)
            for label, own in found
            for command in [command_of(own[0])]
        ],
        "scale": scale(runs),
        "tiles": _tiles(runs),
        "bars": histogram(runs[0].test_returns) if len(runs) == 1 else [],
        "videos": videos_of(members, video_megabytes),
        "return_chart": _chart(RETURN, runs),
        "diagnostics": [_chart(each, runs) for each in DIAGNOSTICS],
        "others": _others(runs),
        "settings": _settings(runs, members),
        "machines": machines_of(runs),
        "data": safe_json(_data(found)),
        "is_thinned": any(run.updates > MOST_POINTS for run in runs),
        "most_points": MOST_POINTS,
    }


def _tiles(runs: Sequence[ReportRun]) -> list[Tile]:
    return tiles(runs[0]) if len(runs) == 1 else []


def _chart(diagnostic: Diagnostic, runs: Sequence[ReportRun]) -> Chart:
    """Return the chart of a diagnostic, with what the runs show."""
    found = {run.short: verdict(diagnostic, run.result.metrics, run.settings) for run in runs}
    return Chart(diagnostic.tag, diagnostic.title, diagnostic.healthy, combine(found))


def _others(runs: Sequence[ReportRun]) -> list[Chart]:
    """Return the charts of all metrics that are not explained, such as one's own."""
    explained = {RETURN.tag, *(each.tag for each in DIAGNOSTICS)}
    tags = [tag for tag in metric_names([run.result for run in runs]) if tag not in explained]
    tags.sort(key=lambda tag: list(_OWN_TITLES).index(tag) if tag in _OWN_TITLES else len(_OWN_TITLES))
    return [Chart(tag, _OWN_TITLES.get(tag, tag)) for tag in tags]


def _settings(runs: Sequence[ReportRun], members: Sequence[Sequence[ReportRun]]) -> dict[str, Any]:
    """Return the flags: names that differ between groups, names that are not at their default, all.

    The values of each are those of the groups, in order.
    """
    firsts = [own[0] for own in members]
    differing = differing_flags([run.result for run in runs])
    changed = {name for run in firsts for name in changed_flags(run)} - {*differing}
    every = list(dict.fromkeys(name for run in firsts for name in run.settings))

    def rows(names: Sequence[str]) -> list[tuple[str, list[str]]]:
        return [(name, [_values(own, name) for own in members]) for name in names]

    return {
        "differing": rows(differing),
        "changed": rows([name for name in every if name in changed]),
        "others": rows([name for name in every if name not in changed and name not in differing]),
    }


def _values(runs: Sequence[ReportRun], name: str) -> str:
    """Return the values that a group's runs have of a setting; seeds, for one, are several."""
    return ", ".join(dict.fromkeys(format_setting(run.settings.get(name)) for run in runs))


def _data(found: Sequence[tuple[str, Sequence[ReportRun]]]) -> dict[str, Any]:
    """Return the numbers that the page's script draws."""
    return {
        "groups": [
            {
                "label": label,
                "bands": bands([run.result for run in own]),
                "runs": [{"name": run.name} | run_series(run.result) for run in own],
            }
            for label, own in found
        ]
    }
