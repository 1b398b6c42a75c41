"""Checkpoint files in a run's folder: when they are written, which are kept, which is whole."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fabric_ppo.config import Config
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import Checkpoint, write_atomically
from fabric_ppo.process.profile import timed
from fabric_ppo.run.snapshot import Snapshot
from fabric_ppo.run.writes import Writes

BEST = "best.ckpt"
_NAME = re.compile(r"update_(\d+)\.ckpt")
_SECONDS_BETWEEN = 60.0


class Checkpoints:
    """On rank 0, the newest snapshot, kept in memory, and the files that are made of it.

    Attributes:
        last: where the last file lies, as the end of a message.
    """

    def __init__(self, folder: Path, config: Config, writes: Writes, flush: Callable[[], object]) -> None:
        """Write into `folder` as often as `config` says.

        `flush` is called before, so that the logs hold all that the checkpoint knows of.
        """
        self._folder, self._config, self._writes, self._flush = folder, config, writes, flush
        self._newest: Snapshot | None = None
        self._written_update, self._written_at = 0, time.monotonic()
        self._best_return: float | None = None
        self._lock = threading.Lock()
        self.last = "; nothing to save before the first update"

    def resume_from(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, which need not be written again."""
        self._note_written(checkpoint.values["update"], checkpoint.values["best_return"])

    def keep(self, snapshot: Snapshot) -> None:
        """Have `save` write this one."""
        self._newest = snapshot

    def is_due(self, update: int, eval_return: float | None) -> bool:
        """Return whether it is time for a file, or an evaluation was the best so far."""
        if eval_return is not None and self._is_best(eval_return):
            return True
        every = self._config.checkpoint_every
        if every:
            return update % every == 0
        return time.monotonic() - self._written_at >= _SECONDS_BETWEEN

    def _is_best(self, mean: float | None) -> bool:
        return self._best_return is None or (mean is not None and mean > self._best_return)

    @timed("checkpoint")
    def save(self) -> str:
        """Write the newest snapshot, unless that has been done; return `last`.

        It asks nobody: another thread may call it, in the middle of an update, and when another
        rank has died.
        """
        with self._lock:
            snapshot = self._newest
            if snapshot is None or snapshot.values["update"] == self._written_update:
                return self.last
            mean = snapshot.values["return_mean"]
            is_best = self._is_best(mean)
            best = mean if is_best else self._best_return
            update, keep = snapshot.values["update"], self._config.keep_checkpoints
            self._flush()
            content = snapshot.to_checkpoint({"best_return": best}).to_bytes()
            self._written_at = time.monotonic()
            arguments = (self._folder, update, content, keep, is_best)
            if self._writes.do("a checkpoint", save_checkpoint, *arguments):
                self._note_written(update, best)
            return self.last

    def _note_written(self, update: int, best_return: float | None) -> None:
        self._written_update, self._best_return = update, best_return
        path, run_dir = self._folder / f"update_{update}.ckpt", self._folder.parent
        self.last = f"; saved {path}: go on with --resume --run-dir {run_dir}"


def save_checkpoint(folder: Path, update: int, content: bytes, keep: int, is_best: bool) -> Path:
    """Write `update_<n>.ckpt`, and `best.ckpt` where it is the best; drop all but the `keep` newest.

    Raises:
        OSError: it cannot be written; the older ones are as they were.
    """
    folder.mkdir(exist_ok=True)
    for stale in folder.glob(".*.tmp"):
        stale.unlink()  # a kill in the middle of a write leaves one
    path = folder / f"update_{update}.ckpt"
    if is_best:  # first: a run killed between the two comes here again
        write_atomically(folder / BEST, content)
    write_atomically(path, content)
    drop_old(folder, keep)
    return path


def drop_old(folder: Path, keep: int) -> None:
    """Drop all but the `keep` newest numbered checkpoints."""
    for old in list(newest_first(folder))[keep:]:
        old.unlink()


def newest_first(folder: Path) -> Iterator[Path]:
    """Yield the numbered checkpoints in `folder`, from the last update to the first."""
    numbered = [(int(found[1]), path) for path in folder.glob("*.ckpt") if (found := _NAME.fullmatch(path.name))]
    yield from (path for _, path in sorted(numbered, reverse=True))


def newest_intact(folder: Path) -> tuple[bytes, list[str]]:
    """Find the newest checkpoint that is whole.

    A damaged file is renamed to `update_<n>.ckpt.damaged`.

    Returns:
        Its bytes, empty if there is no checkpoint, and what is wrong with newer ones.

    Raises:
        ConfigError: there are checkpoints, maybe renamed before, and none is whole.
    """
    refused: list[str] = []
    put_aside = [f"{path}: damaged" for path in sorted(folder.glob("*.ckpt.damaged"))]
    for path in newest_first(folder):
        try:
            content = path.read_bytes()
            Checkpoint.from_bytes(content)
            return content, refused
        except OSError as error:
            refused.append(f"{path}: {error}")
        except ConfigError as error:
            refused.append(f"{path}: {error}")
            with contextlib.suppress(OSError):
                path.rename(path.with_name(f"{path.name}.damaged"))
    if refused or put_aside:
        raise ConfigError(f"--resume: no checkpoint is whole; {'; '.join([*refused, *put_aside])}")
    return b"", refused
