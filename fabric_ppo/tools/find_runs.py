"""Folders of runs: those below a folder, and those that words of the command line name."""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import newest_first, require_text_path
from fabric_ppo.run.folder import CONFIG_FILE
from fabric_ppo.run.result import RunResult, load_run
from fabric_ppo.run.trackers.json_lines import METRICS_FILE
from fabric_ppo.tools.run_names import name_key

_OWN_FOLDERS = ("checkpoints", "train_videos", "test_videos")
"""Folders of a run in which no other runs are looked for."""


def find_runs(folder: Path, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    """Yield the folders of runs in a folder and below it, each once, sorted by their names.

    Hidden folders are left out. A link is followed where it leads to the folder of a run that is
    not below `folder`, and nowhere else: it may lead to a whole disk, or back.

    Args:
        folder: it may be a link itself.
        on_error: called with the error of a folder that cannot be read.
    """
    links: list[Path] = []
    found: set[str] = set()
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        try:
            with os.scandir(path) as scanned:
                entries = sorted(scanned, key=lambda entry: name_key(entry.name))
            own = _is_run(path, {entry.name for entry in entries})
        except OSError as error:
            on_error(error)
            continue
        if own:
            found.add(os.path.realpath(path))
            yield path
        links += [path / entry.name for entry in entries if entry.is_symlink() and _is_looked_into(entry, own)]
        below = [path / entry.name for entry in entries if not entry.is_symlink() and _is_looked_into(entry, own)]
        waiting += reversed(below)
    for link in sorted(links, key=lambda link: name_key(str(link))):
        target = os.path.realpath(link)
        if target not in found and _leads_to_run(link):
            found.add(target)
            yield link


def _is_looked_into(entry: os.DirEntry[str], of_run: bool) -> bool:
    """Return True if there may be runs in what a folder holds."""
    if entry.name.startswith((".", "__pycache__")) or (of_run and entry.name in _OWN_FOLDERS):
        return False
    try:
        return entry.is_dir()
    except OSError:  # as a link that leads to itself
        return False


def _leads_to_run(link: Path) -> bool:
    try:
        return _is_run(link, set(os.listdir(link)))
    except OSError:
        return False


def _is_run(path: Path, names: set[str]) -> bool:
    """Return True if a folder with files of these names is that of a run of this program."""
    if METRICS_FILE in names and {CONFIG_FILE, "summary.json", "checkpoints"} & names:
        return True
    if "checkpoints" in names and any(newest_first(path / "checkpoints")):
        return True
    # other programs have files of these names, too; a damaged one is beside the lock
    named = any(name in names for name in (CONFIG_FILE, "summary.json"))
    run = RunResult(path)
    return (named and (".lock" in names or "env_id" in run.flags or "env_id" in run.last_summary)) or (
        METRICS_FILE in names and "step" in run.metrics
    )


def named_runs(words: Sequence[str], of: str = "RUN_DIR") -> list[RunResult]:
    """Open the runs that words of the command line name, each once, in the order given.

    Args:
        words: folders of runs; folders with runs below them, as those of a benchmark, which stand
            for all of these; patterns such as `logs/*_1`, where the shell has not replaced them.
        of: name of the argument, for errors.

    Raises:
        ConfigError: a word names no run.
    """
    found: dict[str, RunResult] = {}
    for word in words:
        require_text_path(of, word)
        is_pattern = glob.has_magic(word) and not os.path.lexists(word)
        for run in _matching(word) if is_pattern else _runs_of(Path(word)):
            found.setdefault(os.path.realpath(run.run_dir), run)
    return list(found.values())


def _matching(pattern: str) -> list[RunResult]:
    """Return the runs in folders that fit a pattern, and below them."""
    runs: list[RunResult] = []
    for path in sorted(glob.glob(pattern, recursive=True), key=name_key):
        with contextlib.suppress(ConfigError):
            runs += _runs_of(Path(path))
    if not runs:
        raise ConfigError(f"{pattern}: fits no folder with a run; folders of runs are expected")
    return runs


def _runs_of(path: Path) -> list[RunResult]:
    """Return the run in a folder, or those below it."""
    try:
        return [load_run(path)]
    except ConfigError:
        unreadable: list[OSError] = []
        runs = [RunResult(each) for each in find_runs(path, unreadable.append)]
        if runs:
            return runs
        raise
