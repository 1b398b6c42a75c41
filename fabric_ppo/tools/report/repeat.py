"""The command that repeats a run, from its folder."""

from __future__ import annotations

import shlex
from typing import Any

from fabric_ppo.config import SCRIPT_CONFIGS, script_file
from fabric_ppo.run.commands import flag_words
from fabric_ppo.run.folder import started_with
from fabric_ppo.tools.report.runs import ReportRun

_HERE_ONLY = ("quiet", "profile")
"""Flags that change what a run prints only."""


def command_of(run: ReportRun) -> str:
    """Return the shell command that trains a run again; empty where its folder does not tell.

    It has the launcher's flags, and those of the run that are not the defaults: it needs no file
    of the run.
    """
    names = {script_file(kind): name for name, kind in SCRIPT_CONFIGS.items()}
    if run.script not in names or not run.result.flags:
        return ""
    words = ["python", "-m", "fabric_ppo", "train", names[run.script]]
    for name, value in started_with(str(run.result))[1].items():
        words += [f"--{name}", value]
    for name, value in changed_flags(run).items():
        words += flag_words(name, value)
    return shlex.join(words)


def changed_flags(run: ReportRun) -> dict[str, Any]:
    """Return the flags of a run that are not at their defaults, field name -> value."""
    kinds = {script_file(kind): kind for kind in SCRIPT_CONFIGS.values()}
    if run.script not in kinds:
        return {}
    defaults = kinds[run.script]().to_dict()
    own = run.result.flags
    return {
        name: own[name]
        for name, default in defaults.items()
        if name in own and own[name] != default and name not in _HERE_ONLY
    }
