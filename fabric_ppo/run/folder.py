"""The folder of a run: its name, its lock, and the configuration in it."""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import os
import re
import shlex
import time
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from fabric_ppo.config import Config, script_file
from fabric_ppo.process.command import launcher_flags
from fabric_ppo.process.console import is_rank_zero, print_from_rank_zero
from fabric_ppo.process.errors import ConfigError, first_line
from fabric_ppo.process.files import write_atomically

CONFIG_FILE = "config.yaml"
"""File of a run's flags in its folder."""
FAILURE_FILE = "failure.txt"
"""File in the folder of a run that has failed, with the error in one line."""
_LOCK_FILE = ".lock"
_LOCK_SECONDS = 5
"""Seconds to wait for the lock of a folder."""
_OF_A_RUN = (
    *(CONFIG_FILE, FAILURE_FILE, _LOCK_FILE, ".*.tmp", "checkpoints", "train_videos", "test_videos"),
    *("policy.safetensors", "summary.json", "metrics.jsonl", "events.out.tfevents.*", "tracked_by_*.json"),
    *("trace_rank_*.json", "report.html", "wandb"),
)
"""Patterns of the files that a run writes into its folder."""
_LOGS = ("metrics.jsonl", "events.out.tfevents.*", "tracked_by_*.json", "trace_rank_*.json")
"""Patterns of the files that are removed before another run begins in the folder."""
_OF_THE_SYSTEM = (".DS_Store", ".gitignore", ".gitkeep", ".nfs*", "lost+found")
"""Patterns of files that do not count in an empty folder."""
_MOST_NAMED = 3
"""Largest number of foreign files that an error names."""
IMITATION = "imitate"
"""Command that takes the script's place in the folder of a policy that imitates demonstrations."""
_HEADER = re.compile(rf"# (train_\w+\.py|{IMITATION})(?: with (.*))?")
"""First line of config.yaml: the script, and the flags of its launcher."""


def new_run_dir(config: Config) -> Path:
    """Return the folder of a run.

    Unless `--run-dir` names it, rank 0 makes a new one, which is removed at exit if it is empty.

    Raises:
        ConfigError: `--run-dir` holds a run already, or with `--resume` something that is no run,
            or the folder cannot be made.
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
        require_usable(config)
        if path.exists() and not path.is_dir():
            raise ConfigError(f"--run-dir {config.run_dir}: is a file; a folder is expected")
    return path


def require_usable(config: Config) -> None:
    """Raise a ConfigError if no run can begin or resume in `--run-dir`.

    Without `--resume` it must not hold a run, unless this has ended before its first checkpoint.
    With `--resume` it must not hold foreign files without a run.
    """
    if config.run_dir is None:
        return
    run_dir = Path(config.run_dir)
    if config.resume:
        with contextlib.suppress(OSError):  # missing, a file, not to be read: refused where it is made
            require_nothing_foreign(run_dir)
    elif (run_dir / CONFIG_FILE).exists() and not (has_nothing_to_keep(run_dir) and _has_ended(run_dir)):
        raise ConfigError(_holds_a_run(run_dir))


def replace_run(run_dir: Path) -> bool:
    """Remove the logs of a run that has ended before its first checkpoint; return False if there was none.

    The folder must be locked by this process.

    Raises:
        ConfigError: the run has a checkpoint by now; nothing is removed.
    """
    if not (run_dir / CONFIG_FILE).exists():
        return False
    if not has_nothing_to_keep(run_dir):
        raise ConfigError(_holds_a_run(run_dir))
    for each in run_dir.iterdir():
        if any(fnmatchcase(each.name, pattern) for pattern in _LOGS) and each.is_file():
            each.unlink()
    return True


def has_nothing_to_keep(run_dir: Path) -> bool:
    """Return True for the folder of a run that has written no checkpoint, policy or summary.

    A `config.yaml` alone is not a run's: its user may have copied it.
    """
    has_begun = (run_dir / _LOCK_FILE).exists() and bool(started_with(str(run_dir))[0])
    with contextlib.suppress(OSError):  # there is no such folder
        has_begun = has_begun and not any((run_dir / "checkpoints").iterdir())
    return has_begun and not any((run_dir / name).exists() for name in ("policy.safetensors", "summary.json"))


def _has_ended(run_dir: Path) -> bool:
    """Return True if a process has trained in a folder and none does now; False if that is unknown."""
    if (run_dir / FAILURE_FILE).exists():
        return True
    with (run_dir / _LOCK_FILE).open("rb") as lock, contextlib.suppress(OSError):
        fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    return False


def _holds_a_run(run_dir: Path) -> str:
    return f"--run-dir {run_dir}: holds a run already; a new folder or --resume is expected"


def is_of_a_run(name: str) -> bool:
    """Return True for the name of a file or folder that a run writes into its folder."""
    return any(fnmatchcase(name, each) for each in _OF_A_RUN)


def require_nothing_foreign(run_dir: Path) -> None:
    """Raise a ConfigError for a folder with foreign files and no run, and an OSError for no folder."""
    is_run = started_with(str(run_dir))[0] or any((run_dir / "checkpoints").glob("update_*.ckpt*"))
    names = sorted(each.name for each in run_dir.iterdir())
    foreign = [name for name in names if not is_of_a_run(name)]
    foreign = [name for name in foreign if not any(fnmatchcase(name, each) for each in _OF_THE_SYSTEM)]
    foreign = [name for name in foreign if not _is_own_output(run_dir / name)]
    if is_run or not foreign:
        return
    if below := _newest_run_below(run_dir):
        raise ConfigError(
            f"--resume --run-dir {run_dir}: holds no run, but others below it; one, as {below}, is expected"
        )
    named = ", ".join([*foreign[:_MOST_NAMED], *(["..."] if len(foreign) > _MOST_NAMED else [])])
    expected_folder = "the folder of a run, or a new or empty one, is expected"
    raise ConfigError(f"--resume --run-dir {run_dir}: holds no run, but {named}; {expected_folder}")


def _is_own_output(path: Path) -> bool:
    """Return True for the file into which this process prints, opened by a shell or a scheduler."""
    streams = []
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # closed
            streams.append(os.fstat(descriptor))
    return any(os.path.samestat(path.stat(), each) for each in streams)


def _newest_run_below(folder: Path) -> Path | None:
    """Return the folder of the newest run, one or two folders below; None for none."""
    found = (path for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{CONFIG_FILE}"))
    runs = [path for path in found if started_with(str(path.parent))[0]]
    return max(runs, key=lambda path: path.stat().st_mtime).parent if runs else None


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
    """Make the folder, if it is missing, and write `config.yaml`.

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

    Both are empty if `config.yaml` does not have them, like that of an older version.
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
            if attempt == 0 and _LOCK_SECONDS:
                print_from_rank_zero(f"waiting for {run_dir}, where another process trains")
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
    """Write the error of a failed run into its folder.

    Args:
        run_dir: the folder; nothing is written if it is missing.
        error: the failure.
        is_final: False if another rank may have written a better reason.
    """
    line = f"{first_line(error)}\n".encode("utf-8", "backslashreplace")
    # where it cannot be written, as on a full disk: the failure is printed in any case
    with contextlib.suppress(OSError), (run_dir / FAILURE_FILE).open("wb" if is_final else "xb") as file:
        file.write(line)
