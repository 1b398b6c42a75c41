"""Runs that a mistyped folder may have meant, where `--resume` finds no run in it."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Collection
from pathlib import Path

from fabric_ppo.process.console import is_rank_zero
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import newest_first, run_around
from fabric_ppo.run.folder import CONFIG_FILE, is_of_a_run, require_nothing_foreign, started_with

_SAY_NOT_WHAT = {"run_dir", "log_dir", "resume", "quiet", "profile", "config"}
"""Flags that do not determine the training; for `config` the contents of the file count."""


def require_run_or_flags(run_dir: str, given: Collection[str], log_dir: str | os.PathLike[str]) -> None:
    """Check that a command with `--resume` has a run to resume, or flags for a new one.

    Otherwise a typing error in the folder would begin a run with the default flags. Rank 0 checks it,
    because other hosts may not have the folder.

    Args:
        run_dir: the folder.
        given: fields that the command line, a file or the caller has given.
        log_dir: the folder of all runs.

    Raises:
        ConfigError: it has neither, or the folder is a part of a run.
    """
    path = Path(run_dir)
    if not is_rank_zero() or _is_run(path):
        return
    is_part = is_of_a_run(path.name) or path.suffix == ".ckpt"
    if is_part and (around := run_around(path)) is not None:
        raise ConfigError(f"--resume --run-dir {run_dir}: is a part of a run; did you mean {around}?")
    if not set(given) <= _SAY_NOT_WHAT:
        return
    with contextlib.suppress(OSError):  # missing, a file, not to be read
        require_nothing_foreign(path)
    what = "holds no run" if path.is_dir() else "is a file" if path.exists() else "there is no such folder"
    hint = f"did you mean {near}?" if (near := nearest_run(path, log_dir)) else _newest_beside(path, log_dir)
    raise ConfigError(f"--resume --run-dir {run_dir}: {what}, and no flag says what to train; {hint}")


def nearest_run(path: Path, log_dir: str | os.PathLike[str]) -> Path | None:
    """Return the run whose path is most similar to a path without a run; None for none."""
    with contextlib.suppress(OSError):  # a folder that must not be read
        if (corrected := _corrected(path)) is not None:
            return corrected
    return _closest(path.name, _runs_of(Path(log_dir).absolute()))


def is_numbered_alike(path: Path, other: Path) -> bool:
    """Return True for names that differ only in their numbers, such as those of an array of jobs."""
    return re.sub(r"\d+", "0", path.name) == re.sub(r"\d+", "0", other.name)


def _newest_beside(path: Path, log_dir: str | os.PathLike[str]) -> str:
    """Return the end of a message: the newest run beside a folder, or the expected arguments."""
    runs = _runs_of(path.parent) or _runs_of(Path(log_dir))
    newest = max(runs, key=lambda each: (each / CONFIG_FILE).stat().st_mtime, default=None)
    expected = "the folder of a run, or flags of a new one, such as --env-id, are expected"
    return expected if newest is None else f"{expected}; the newest run there is {newest}"


def _is_run(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return (path / CONFIG_FILE).is_file() or any(newest_first(path / "checkpoints"))
    return False


def _runs_of(folder: Path) -> list[Path]:
    """Return the runs in a folder, or one folder deeper, as in `logs/torch_logs`."""
    with contextlib.suppress(OSError):
        found = [each.parent for depth in ("*", "*/*") for each in folder.glob(f"{depth}/{CONFIG_FILE}")]
        return [each for each in found if started_with(str(each))[0]]
    return []


def _closest(name: str, runs: Collection[Path]) -> Path | None:
    """Return the run with the most similar name; None if no name is similar."""
    by_name = {each.name.lower(): each for each in runs}
    close = difflib.get_close_matches(name.lower(), by_name, n=1)
    return by_name[close[0]] if close else None


def _corrected(path: Path) -> Path | None:
    """Return the run at a path after its missing parts are replaced by the most similar names."""
    whole = path.absolute()
    folder = next(each for each in whole.parents if each.is_dir())
    for name in whole.relative_to(folder).parts[:-1]:
        folders = [each for each in folder.iterdir() if each.is_dir()]
        if (nearest := _closest(name, folders)) is None:
            return None
        folder = nearest
    runs = [each for each in folder.iterdir() if _is_run(each) and each != whole]
    return _closest(whole.name, runs)
