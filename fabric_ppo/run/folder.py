"""The folder of a run: its name, its lock, and the configuration in it."""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from fabric_ppo.config import Config, script_file
from fabric_ppo.process.command import launcher_flags
from fabric_ppo.process.console import is_rank_zero
from fabric_ppo.process.errors import ConfigError, first_line
from fabric_ppo.process.files import write_atomically

CONFIG_FILE = "config.yaml"
"""File of a run's flags in its folder."""
FAILURE_FILE = "failure.txt"
"""File in the folder of a run that has failed, with the error in one line."""
_LOCK_FILE = ".lock"
_LOCK_SECONDS = 5
"""Seconds to wait for the lock of a folder."""
_HEADER = re.compile(r"# (train_\w+\.py)(?: with (.*))?")
"""First line of config.yaml: the script, and the flags of its launcher."""


def new_run_dir(config: Config) -> Path:
    """Return the folder of a run.

    Unless `--run-dir` names it, rank 0 makes a new one, which is removed at exit if it is empty.

    Raises:
        ConfigError: `--run-dir` holds a run already, or there cannot be such a folder.
    """
    try:
        return _named_folder(config) if config.run_dir is not None else _new_folder(config)
    except OSError as error:
        is_named = config.run_dir is not None
        where = f"--run-dir {config.run_dir}" if is_named else f"--log-dir {config.log_dir}"
        raise ConfigError(f"{where}: cannot be written ({error.strerror}); a folder is expected") from None


def _named_folder(config: Config) -> Path:
    assert config.run_dir is not None
    path = Path(config.run_dir)
    if is_rank_zero():
        require_no_run(config)
        if path.exists() and not path.is_dir():
            raise ConfigError(f"--run-dir {config.run_dir}: is a file; a folder is expected")
    return path


def require_no_run(config: Config) -> None:
    """Raise a ConfigError where `--run-dir` holds a run, and is not to be resumed."""
    run_dir = config.run_dir
    if run_dir is not None and not config.resume and Path(run_dir, CONFIG_FILE).exists():
        raise ConfigError(f"--run-dir {run_dir}: holds a run already; a new folder or --resume is expected")


def _new_folder(config: Config) -> Path:
    env_id = config.env_id.replace("/", "-").replace(":", "-")
    name = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{env_id}_{config.exp_name}_{config.seed}"
    path = Path(config.log_dir, f"{config.script}_logs", name)
    twin = 2
    while is_rank_zero() and not _claim(path):
        path = path.with_name(f"{name}_{twin}")
        twin += 1
    return path


def _claim(path: Path) -> bool:
    """Make a folder; return False if it exists, from a run that started in the same second."""
    missing = [each for each in (path, *path.parents) if not each.exists()]
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    atexit.register(_remove_empty, missing)
    return True


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def make_folder(run_dir: Path, config: Config) -> None:
    """Make the folder, where it is missing, and write `config.yaml`.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        launched = shlex.join(f"--{name}={value}" for name, value in launcher_flags().items())
        header = f"# {script_file(type(config))}{' with ' if launched else ''}{launched}\n"
        values = yaml.safe_dump(config.to_dict(), sort_keys=False)
        write_atomically(run_dir / CONFIG_FILE, f"{header}{values}".encode())
        (run_dir / FAILURE_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{run_dir}: cannot be written ({error.strerror}); a folder is expected") from None


def started_with(run_dir: str) -> tuple[str, dict[str, str]]:
    """Return the script that began a run, and the flags of its launcher, name -> value.

    Both are empty where `config.yaml` does not say, as that of an older version.
    """
    try:
        with Path(run_dir, CONFIG_FILE).open(encoding="utf-8") as file:
            found = _HEADER.fullmatch(file.readline().rstrip("\n"))
        words = shlex.split(found[2] or "") if found else []
    except (OSError, ValueError):
        return "", {}
    pairs = (word.removeprefix("--").partition("=") for word in words)
    return found[1] if found else "", {name: value for name, _, value in pairs}


def lock_folder(run_dir: Path) -> Callable[[], None]:
    """Lock a folder against other processes, and return the function that unlocks it.

    The end of the process unlocks it, too.

    Raises:
        ConfigError: another process has the lock, or nothing can be written there.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / _LOCK_FILE).open("w")
    except OSError as error:
        raise ConfigError(f"--run-dir {run_dir}: cannot be written ({error.strerror}); a folder is expected") from None
    for attempt in range(_LOCK_SECONDS + 1):
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lock.close
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return lock.close  # a file system without locks
            # a run that was just killed may not have ended yet
            if attempt < _LOCK_SECONDS:
                time.sleep(1)
    raise ConfigError(f"--run-dir {run_dir}: another process trains there")


def is_locked(run_dir: Path) -> bool:
    """Return True if another process trains in a folder.

    Not to be called by the process that trains there: on some systems it would lose its lock.
    """
    try:
        lock = (run_dir / _LOCK_FILE).open("rb")
    except OSError:
        return False
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


def note_failure(run_dir: Path, error: BaseException, is_final: bool) -> None:
    """Write what a run has failed of into its folder.

    Args:
        run_dir: the folder; nothing is written where it is missing.
        error: the failure.
        is_final: False where another rank may have noted a better reason.
    """
    line = f"{first_line(error)}\n".encode("utf-8", "backslashreplace")
    # where it cannot be written, as on a full disk: the failure is printed in any case
    with contextlib.suppress(OSError), (run_dir / FAILURE_FILE).open("wb" if is_final else "xb") as file:
        file.write(line)
