"""Folder of a sweep: its settings, its space, and the lock of the process that works there."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import write_atomically
from fabric_ppo.tools.flags import read_mapping
from fabric_ppo.tools.sweep.space import Space, read_space

SWEEP_FILE, SPACE_FILE, PAGE_FILE, PRESET_FILE = "sweep.yaml", "space.yaml", "sweep.html", "best.yaml"
"""Files in the folder: settings, space, page, best flags."""
TRIALS = "trials"
"""Folder in it with one of each trial, which holds those of its runs."""
OBJECTIVES, PRUNERS = ("mean", "iqm"), ("median", "hyperband", "none")
"""Values of `--objective` and `--pruner`."""
_LOCK_SECONDS = 5.0
"""Seconds to wait for a process that has been killed, and may not have ended yet."""


@dataclass(frozen=True)
class Settings:
    """Flags of a sweep, as `sweep.yaml` has them.

    Attributes:
        storage: URL, with an absolute path.
        study: name in the storage.
        trials: number of trials, over all workers.
        seeds: runs of each trial.
        jobs: trials side by side on this host.
        objective, pruner: one of `OBJECTIVES`, of `PRUNERS`.
        seed: of the sampler.
        lost_after: seconds of silence after which another worker's trial is taken up.
        worker: name of the worker in the storage, its folder's own.
    """

    storage: str
    study: str
    trials: int
    seeds: int
    jobs: int
    objective: str
    pruner: str
    seed: int
    lost_after: float
    worker: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)

    def of_study(self, space: Space) -> dict[str, Any]:
        """Return what all workers of a study must have alike, as JSON has it."""
        alike = {name: getattr(self, name) for name in ("seeds", "objective", "pruner", "seed")}
        return {**alike, "space": space.to_yaml()}


def write_folder(folder: Path, settings: Settings, space: Space) -> None:
    """Write settings and space into the folder of a sweep.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / SPACE_FILE, yaml.safe_dump(space.to_yaml(), sort_keys=False).encode())
        write_settings(folder, settings)
    except OSError as error:
        raise ConfigError(f"--dir {folder}: cannot be written ({error.strerror}); a folder is expected") from None


def write_settings(folder: Path, settings: Settings) -> None:
    """Write `sweep.yaml`, which nobody else can read: the URL of a storage may hold a password."""
    before = os.umask(0o077)
    try:
        text = yaml.safe_dump(dataclasses.asdict(settings), sort_keys=False)
        write_atomically(folder / SWEEP_FILE, text.encode())
    finally:
        os.umask(before)


def read_folder(folder: Path) -> tuple[Settings, Space]:
    """Read settings and space of the sweep in a folder.

    Raises:
        ConfigError: it holds none, or a damaged one.
    """
    path = folder / SWEEP_FILE
    if not path.is_file():
        raise ConfigError(f"--resume {folder}: holds no sweep; the folder of a sweep, with {SWEEP_FILE}, is expected")
    values = read_mapping(str(path), "--resume")
    kinds = {field.name: {"int": int, "float": (int, float)}.get(str(field.type), str) for field in _FIELDS}
    wrong = [name for name, kind in kinds.items() if not isinstance(values.get(name), kind)]  # type: ignore[arg-type]
    if wrong or values.keys() != kinds.keys():
        raise ConfigError(f"--resume {path}: {', '.join(wrong) or 'its keys'}: the file of a sweep is expected")
    return Settings(**values), read_space(str(folder / SPACE_FILE))


_FIELDS = dataclasses.fields(Settings)


def lock_folder(folder: Path) -> Callable[[], None]:
    """Lock a folder against other processes, and return the function that unlocks it, as the process' end does.

    Raises:
        ConfigError: another process works there.
    """
    file = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return lambda: os.close(file)
        except (BlockingIOError, PermissionError):
            if time.monotonic() > deadline:
                os.close(file)
                raise ConfigError(f"--resume {folder}: another process works there") from None
            time.sleep(0.1)
        except OSError:  # a file system without locks
            return lambda: os.close(file)
