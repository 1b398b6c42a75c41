"""`sweep`: a search for hyperparameters."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fabric_ppo.process.errors import ConfigError, flag
from fabric_ppo.process.files import require_text_path
from fabric_ppo.tools.command_parser import CommandParser, count
from fabric_ppo.tools.help import Entry

if TYPE_CHECKING:
    from fabric_ppo.tools.sweep.folder import Settings
    from fabric_ppo.tools.sweep.space import Space

ENTRY = Entry("sweep SPACE", "Search for hyperparameters, and write a page and the best preset.")
"""Row of this command on the page of all."""
_ABOUT = (
    "Search for hyperparameters with Optuna's TPE. SPACE is a YAML file of flags; those to be searched have "
    "{low: 1.0e-4, high: 1.0e-2, log: true} (or step), or {choices: [32, 64]}. A trial's value is the return of its "
    "runs' final tests, over several seeds. A sweep that was stopped or killed goes on with --resume."
)
_MAY_DIFFER = ("trials", "jobs", "lost_after")
"""Flags that a sweep which is resumed may be given."""


def run(args: list[str]) -> int:
    """Search, or go on with a search."""
    given = _parser().parse_args(args)
    flags = {name: value for name, value in vars(given).items() if value is not None}
    from fabric_ppo.tools.sweep.storage import require_optuna

    _check(flags)
    require_optuna()
    from fabric_ppo.tools.sweep.folder import lock_folder, read_folder, write_folder, write_settings
    from fabric_ppo.tools.sweep.study import Sweep
    from fabric_ppo.tools.sweep.worker import Worker

    if "resume" in flags:
        folder = Path(flags["resume"])
        before, space = read_folder(folder)
        settings = dataclasses.replace(before, **{name: flags[name] for name in _MAY_DIFFER if name in flags})
        if settings.trials < before.trials:
            raise ConfigError(f"--trials {settings.trials}: the sweep has {before.trials}; that or more is expected")
        unlock = lock_folder(folder)
        sweep = Sweep(settings, space, folder)
        write_settings(folder, settings)
    else:
        settings, space, folder = _new(flags)
        # first the study, whose storage or other settings may be wrong: then nothing is written
        sweep = Sweep(settings, space, folder)
        write_folder(folder, settings, space)
        unlock = lock_folder(folder)
    try:
        print(folder, flush=True)
        return Worker(sweep).work()
    finally:
        unlock()


def _parser() -> CommandParser:
    """Return the parser of the flags; those that are not given are None."""
    from fabric_ppo.tools.sweep.folder import OBJECTIVES, PRUNERS

    parser = CommandParser("fabric-ppo sweep")
    parser.description = _ABOUT
    parser.add_argument("space", metavar="SPACE", nargs="?", help="YAML file of flags; not with --resume.")
    parser.add_argument("--trials", type=count, help="Trials of the study, over all workers. (default: 100)")
    parser.add_argument("--seeds", type=count, help="Runs of each trial, with seeds from 1 up. (default: 3)")
    jobs = "Trials side by side on this host; they share its cores. (default: the cores)"
    parser.add_argument("--jobs", type=count, help=jobs)
    objective = "Value of a trial: mean or interquartile mean of its runs' final tests. (default: mean)"
    parser.add_argument("--objective", choices=OBJECTIVES, help=objective)
    pruner = "How trials are ended that do worse than others at an evaluation. (default: median)"
    parser.add_argument("--pruner", choices=PRUNERS, help=pruner)
    parser.add_argument("--seed", type=count, help="Seed of the sampler. (default: 0)")
    storage = (
        "Where trials are recorded: sqlite:///FILE, for several hosts postgresql+psycopg://USER@HOST/DATABASE or "
        "journal:///FILE on a shared disk. (default: sweep.db in --dir)"
    )
    parser.add_argument("--storage", metavar="URL", help=storage)
    study = "Name in the storage: workers of one name share their trials. (default: that of SPACE)"
    parser.add_argument("--study", help=study)
    folder = "Folder of this worker: page, preset, runs. (default: a new one in logs/sweeps)"
    parser.add_argument("--dir", metavar="DIR", help=folder)
    lost = "Silence after which the trials of another worker are taken up, in seconds. (default: 120)"
    parser.add_argument("--lost-after", type=_seconds, metavar="X", help=lost)
    resume = "Go on with the sweep in this folder; --trials (upward), --jobs, --lost-after may be others."
    parser.add_argument("--resume", metavar="DIR", help=resume)
    return parser


def _seconds(text: str) -> float:
    """Return a number of seconds above 0."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: a number above 0 is expected")
    return seconds


def _check(flags: dict[str, Any]) -> None:
    """Raise a ConfigError for flags that cannot work, or not with each other."""
    for name, least in (("trials", 1), ("seeds", 1), ("jobs", 1), ("seed", 0)):
        if flags.get(name, least) < least:
            raise ConfigError(f"{flag(name)} {flags[name]}: a whole number from {least} up is expected")
    for name in ("space", "dir", "resume"):
        require_text_path("sweep" if name == "space" else flag(name), flags.get(name))
    if "resume" not in flags:
        if "space" not in flags:
            raise ConfigError("sweep: SPACE, a YAML file of flags, or --resume DIR is expected")
        return
    if others := [name for name in flags if name not in (*_MAY_DIFFER, "resume")]:
        named = "SPACE" if others[0] == "space" else flag(others[0])
        can = ", ".join(map(flag, _MAY_DIFFER))
        raise ConfigError(f"--resume {flags['resume']}: {named} is that of the sweep; besides, {can} can be given")


def _new(flags: dict[str, Any]) -> tuple[Settings, Space, Path]:
    """Return settings, space and folder of a new sweep, checked; nothing is written."""
    from fabric_ppo.process.launch import cores_per_rank
    from fabric_ppo.tools.sweep.folder import SWEEP_FILE, Settings
    from fabric_ppo.tools.sweep.space import read_space
    from fabric_ppo.tools.sweep.storage import absolute_url

    path = Path(flags["space"])
    study = flags.get("study", path.stem)
    if not re.fullmatch(r"[\w.+-]+", study):
        raise ConfigError(f"--study {study}: letters, digits and . + - _ are expected")
    folder = Path(flags.get("dir", f"logs/sweeps/{time.strftime('%Y-%m-%d_%H-%M-%S')}_{study}"))
    if (folder / SWEEP_FILE).exists():
        raise ConfigError(f"--dir {folder}: holds a sweep already; a new folder or --resume {folder} is expected")
    space = read_space(str(path))
    settings = Settings(
        storage=absolute_url(flags.get("storage", f"sqlite:///{folder.absolute() / 'sweep.db'}")),
        study=study,
        trials=flags.get("trials", 100),
        seeds=flags.get("seeds", 3),
        jobs=flags.get("jobs", cores_per_rank()),
        objective=flags.get("objective", "mean"),
        pruner=flags.get("pruner", "median"),
        seed=flags.get("seed", 0),
        lost_after=flags.get("lost_after", 120.0),
    )
    return settings, space, folder
