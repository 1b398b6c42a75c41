"""Checkpoint files of a run: writing, deleting old ones, and finding the newest undamaged one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fabric_ppo.config import Config
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import Checkpoint, newest_first, write_atomically
from fabric_ppo.process.profile import timed
from fabric_ppo.run.commands import go_on_text
from fabric_ppo.run.snapshot import Snapshot
from fabric_ppo.run.writes import Writes

BEST = "best.ckpt"
_SECONDS_BETWEEN = 60.0
"""Seconds between checkpoints, unless `--checkpoint-every` counts updates."""


class Checkpoints:
    """The newest snapshot of a run, in memory on rank 0, and the files that are written from it.

    Attributes:
        last: end of a message with the path of the last file.
        path: the last file; None before the first.
        saved_at: time at which this process wrote it, from `time.monotonic`; None if it did not.
    """

    def __init__(self, folder: Path, config: Config, writes: Writes, flush: Callable[[], object]) -> None:
        """Write into `folder` as often as `config` says.

        Args:
            folder: `checkpoints` in the run's folder.
            config: the run's configuration.
            writes: records a checkpoint that cannot be written.
            flush: writes the logs to disk.
        """
        self._folder, self._config, self._writes, self._flush = folder, config, writes, flush
        self._newest: Snapshot | None = None
        self._written: Snapshot | None = None
        self._written_at = time.monotonic()
        self._best_return: float | None = None
        self._lock = threading.Lock()
        self.last = "; nothing to save before the first update"
        self.path: Path | None = None
        self.saved_at: float | None = None

    def resume_from(self, checkpoint: Checkpoint) -> None:
        """Count the checkpoint from which the run was resumed as written."""
        self._note_written(checkpoint.values["update"], checkpoint.values["best_return"])

    def keep(self, snapshot: Snapshot) -> None:
        """Replace the snapshot for `save`."""
        self._newest = snapshot

    def is_due(self, update: int, eval_return: float | None) -> bool:
        """Return True if a file is due, or an evaluation had the best mean return so far."""
        if eval_return is not None and self._is_best(eval_return):
            return True
        every = self._config.checkpoint_every
        if every:
            return update % every == 0
        return time.monotonic() - self._written_at >= _SECONDS_BETWEEN

    def _is_best(self, mean: float | None) -> bool:
        # there is no mean before an episode has ended: until then each checkpoint is the best one
        return self._best_return is None or (mean is not None and mean > self._best_return)

    @timed("checkpoint")
    def save(self) -> str:
        """Write the newest snapshot, unless it has been written; return `last`.

        Any thread may call it, also in the middle of an update or when another rank has died: it
        uses no collective.
        """
        with self._lock:
            snapshot = self._newest
            if snapshot is None or snapshot is self._written:
                return self.last
            mean = snapshot.values["return_mean"]
            is_best = self._is_best(mean)
            best = mean if is_best else self._best_return
            update, keep = snapshot.values["update"], self._config.keep_checkpoints
            # first the logs: they must hold all updates that the checkpoint has, for a resumed run
            # cuts them back to it, but cannot fill a gap
            self._flush()
            content = snapshot.to_checkpoint({"best_return": best}).to_bytes()
            self._written_at = time.monotonic()
            arguments = (self._folder, update, content, keep, is_best)
            if self._writes.do("a checkpoint", save_checkpoint, *arguments):
                self._written, self.saved_at = snapshot, self._written_at
                self._note_written(update, best)
            return self.last

    def _note_written(self, update: int, best_return: float | None) -> None:
        self._best_return = best_return
        self.path, run_dir = self._folder / f"update_{update}.ckpt", self._folder.parent
        self.last = f"; saved {self.path}: {go_on_text(run_dir)}"


def save_checkpoint(folder: Path, update: int, content: bytes, keep: int, is_best: bool) -> Path:
    """Write `update_<n>.ckpt`, and `best.ckpt` if it is the best; delete all but the newest files.

    Args:
        folder: is made if it is missing.
        update: n.
        content: bytes of the checkpoint.
        keep: number of newest files to keep.
        is_best: true if it has the best mean return so far.

    Raises:
        OSError: it cannot be written; the older ones stay as they were.
    """
    folder.mkdir(exist_ok=True)
    for stale in folder.glob(".*.tmp"):
        stale.unlink()  # from a kill in the middle of a write
    path = folder / f"update_{update}.ckpt"
    # best.ckpt first: a run that is killed between the two resumes before this update
    if is_best:
        write_atomically(folder / BEST, content)
    write_atomically(path, content)
    drop_old(folder, keep)
    return path


def drop_old(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest numbered checkpoints."""
    for old in list(newest_first(folder))[keep:]:
        old.unlink()


def newest_intact(folder: Path) -> tuple[bytes, list[str]]:
    """Find the newest undamaged checkpoint; rename damaged ones to `update_<n>.ckpt.damaged`.

    Returns:
        Its bytes, empty if there is no checkpoint, and a line for each newer one that is damaged.

    Raises:
        ConfigError: there are checkpoints, perhaps renamed before, and all are damaged.
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
