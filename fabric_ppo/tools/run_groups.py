"""Several runs: the settings in which they differ, and groups of runs that differ by seed."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fabric_ppo.config import MAY_DIFFER, Config, DecoupledConfig, TorchConfig
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.run.folder import IMITATION, started_with
from fabric_ppo.run.result import RunResult
from fabric_ppo.tools.run_names import NameKey, name_key, ranks

_COMPARED_TOO = {
    *("total_timesteps", "stop_at_return", "test_episodes", "test_step_limit", "env_backend"),
    *("num_threads", "callback", "exp_name", "init_from"),
}
"""Flags that a resumed run may have other values of, and that still tell runs apart."""
NOT_COMPARED = {"seed", "trackers", *MAY_DIFFER} - _COMPARED_TOO
"""Flags whose values tell no groups apart: the seed, and those that only look at a run.

`trackers` was `track` in older runs.
"""
_FIRST = ("env_id", "exp_name", "script")
"""Settings that a group is named by where they tell it from the others."""
_CONFIGS: tuple[type[Config], ...] = (Config, TorchConfig, DecoupledConfig)


def settings(run: RunResult) -> dict[str, Any]:
    """Return the settings of a run, name -> value: its flags, `script` and `world_size`.

    Flags that `config.yaml` does not have are at their defaults, as they were when an older version
    wrote it. Empty where neither `config.yaml` nor `summary.json` can be read.
    """
    file, launcher = started_with(str(run))
    summary: dict[str, Any] = run.last_summary
    if not run.flags and not summary:
        return {}
    script = file.removeprefix("train_").removesuffix(".py") or summary.get("script")
    devices = launcher.get("devices", "1")
    world_size = summary.get("world_size", int(devices) if devices.isdecimal() else None)
    known = {name: summary[name] for name in ("env_id", "seed", "total_timesteps") if name in summary}
    defaults = dict(_defaults()) if run.flags else {}
    own: dict[str, Any] = {"script": script, "world_size": world_size}
    found = own | defaults | known | run.flags
    if script == IMITATION:  # its updates are epochs, and no transition was played
        found.pop("total_timesteps", None)
    return found


@functools.cache
def _defaults() -> Mapping[str, Any]:
    """Return the defaults of all flags; those that only another script has are off."""
    return {name: value for kind in _CONFIGS for name, value in kind().to_dict().items()}


def differing_flags(runs: Sequence[RunResult]) -> list[str]:
    """Return the settings that are not the same in all runs, but for `NOT_COMPARED`.

    The order is that of `config.yaml`, after `script` and `world_size`.
    """
    of_runs = [settings(run) for run in runs]
    names = dict.fromkeys(name for each in of_runs for name in each)
    return [name for name in names if name not in NOT_COMPARED and len({_key(each.get(name)) for each in of_runs}) > 1]


@dataclass(frozen=True)
class Group:
    """Runs with the same settings, but for the seed.

    Attributes:
        label: its name among the groups: the settings that tell it from the others, or the
            environment's id where it is the only one.
        runs: at least one.
        settings: those that differ between the groups, name -> value.
    """

    label: str
    runs: list[RunResult]
    settings: dict[str, Any]


def groups(runs: Sequence[RunResult], by: Sequence[str] | None = None) -> list[Group]:
    """Sort runs into groups.

    Groups are in order of the settings that their labels name: by size where these are numbers,
    else as they come. The runs of a group are in order of their seeds.

    Args:
        runs: at least one.
        by: settings that a group's runs have the same values of, such as `learning_rate`; hyphens
            will do for underscores. By default all but `NOT_COMPARED`.

    Raises:
        ConfigError: no run has a setting of `by`; the message has those that differ.
    """
    names = differing_flags(runs) if by is None else [_setting_name(runs, name) for name in by]
    members: dict[tuple[str, ...], list[RunResult]] = {}
    for run in runs:
        own = settings(run)
        members.setdefault(tuple(_key(own.get(name)) for name in names), []).append(run)
    values = [{name: settings(each[0]).get(name) for name in names} for each in members.values()]
    shown = _telling(values) if by is None else names
    labels = [", ".join(_words(name, each[name]) for name in shown) for each in values]
    only = str(settings(runs[0]).get("env_id", runs[0].run_dir.name))
    found = [
        Group(label or only, sorted(own, key=_seed_and_name), each)
        for label, own, each in zip(labels, members.values(), values, strict=True)
    ]
    # those that the labels name first, then the others
    priority = [*shown, *(name for name in names if name not in shown)]
    keys = zip(*(ranks([each[name] for each in values]) for name in priority), strict=True) if priority else [()]
    return [group for _, group in sorted(zip(keys, found, strict=True), key=lambda pair: pair[0])]


def _seed_and_name(run: RunResult) -> tuple[bool, float, NameKey]:
    """Return a key that sorts runs by seed and name; those without a seed come last."""
    seed: Any = settings(run).get("seed")
    is_number = isinstance(seed, int)
    return not is_number, float(seed) if is_number else 0.0, name_key(str(run))


def baseline_first(found: Sequence[Group], baseline: str) -> list[Group]:
    """Return groups with one of them at the front.

    Args:
        found: at least one.
        baseline: label of the group, `NAME=VALUE` or the value where one setting tells the groups
            apart, or a folder of one of its runs.

    Raises:
        ConfigError: it is not exactly one of the groups.
    """
    text = baseline.replace("=", " ").removeprefix("--").casefold()
    labels = [each.label.casefold() for each in found]
    folder = os.path.realpath(baseline)
    for fits in (
        [label == text for label in labels],
        [", " not in label and label.rpartition(" ")[2] == text for label in labels],
        [any(os.path.realpath(run.run_dir) == folder for run in each.runs) for each in found],
        [any(os.path.realpath(run.run_dir).startswith(f"{folder}{os.sep}") for run in each.runs) for each in found],
    ):
        if sum(fits) == 1:
            first = found[fits.index(True)]
            return [first, *(each for each in found if each is not first)]
    known = "; ".join(each.label for each in found)
    raise ConfigError(f"--baseline {baseline}: one of the groups ({known}), or the folder of a run, is expected")


def _key(value: Any) -> str:
    """Return a text that is the same for equal values only; 1 and 1.0 are equal."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)


def _setting_name(runs: Sequence[RunResult], name: str) -> str:
    """Return a setting's name as `settings` has it."""
    found = name.strip().removeprefix("--").replace("-", "_")
    known = {each for run in runs for each in settings(run)}
    if found not in known:
        differ = ", ".join(each.replace("_", "-") for each in differing_flags(runs)) or "none"
        raise ConfigError(
            f"{name}: no flag of these runs; one from config.yaml is expected (those that differ: {differ})"
        )
    return found


def _telling(values: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return as few settings as tell the groups apart, found one after the other."""
    names = sorted(values[0], key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))

    def told_apart(chosen: Sequence[str]) -> int:
        return len({tuple(_key(each[name]) for name in chosen) for each in values})

    for name in names:
        if told_apart([name]) == len(values):
            return [name] if len(values) > 1 else []
    chosen: list[str] = []
    for name in names:
        if told_apart([*chosen, name]) > told_apart(chosen):
            chosen.append(name)
    return chosen


def _words(name: str, value: Any) -> str:
    """Return a setting for a label; names of environments and runs stand for themselves."""
    text = format_setting(value)
    return text if name in _FIRST and value is not None else f"{name.replace('_', '-')} {text}"


def format_setting(value: Any) -> str:
    """Return the text of a setting's value, as on the command line; "-" for none."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (list, tuple)):
        return " ".join(map(format_setting, value))
    if isinstance(value, dict):
        return json.dumps(value, default=str)
    return f"{value:g}" if isinstance(value, float) else str(value)
